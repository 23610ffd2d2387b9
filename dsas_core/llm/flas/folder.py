"""Folders of FLAS networks, as their authors release them: config.json and safetensors, never what would run code."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...errors import ArtifactError, quote
from ...utils.saving.files import to_readable_json
from ...utils.saving.folders import save_folder
from .network import PARTS, Network

CONFIG, TENSORS = "config.json", "flas.safetensors"
#: what a configuration that does not say it means, as their loader has it
MODEL, LAYER = "google/gemma-2-2b-it", 20
#: most bytes of a configuration, most layers of a model and blocks of a network
MOST_BYTES, MOST_LAYERS = 2**20, 10_000
#: beginnings of names of tensors that some files have, and that models make anew
_MADE_ANEW = ("rotary_emb.", "concept_enc.rotary_emb.")


def load(folder: str | Path) -> Network:
    """Read a folder that FLAS's authors released, or that `train` wrote.

    Args:
        folder: has config.json (model_id, layer, num_blocks, disable_…) and one file of safetensors.

    Raises:
        ArtifactError: a file is missing, damaged, or none of a FLAS network; the message names it.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from dsas_core import llm
        >>> model, tokenizer = llm.load("builtin:chat", device="cpu")
        >>> with TemporaryDirectory() as folder:
        ...     load(save(llm.flas.start(model, layer=3), folder)).layer
        3
    """
    folder = Path(folder)
    config = _read_config(folder / CONFIG)
    without = tuple(part for part in PARTS if config.get(f"disable_{part}"))
    weights = _read_tensors(_find_tensors(folder))
    weights = {name: tensor for name, tensor in weights.items() if not _is_stale(name, without)}
    try:
        network = Network(weights, config["layer"], config["model_id"], without, config)
    except ArtifactError as error:
        raise ArtifactError(f"{folder}: {error}") from None
    if config.get("num_blocks", network.blocks) != network.blocks:
        raise ArtifactError(
            f"{folder / CONFIG} says num_blocks {quote(config['num_blocks'])}, and the tensors are of "
            f"{network.blocks}: download both again"
        )
    return network


def save(network: Network, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write a network as its authors do, in float32; `load` reads it.

    Args:
        network: the network.
        folder: where to; it is created if need be, and other files in it stay.
        overwrite: replace a network that is there.

    Raises:
        ArtifactError: there is one, or the folder cannot be written.
    """
    from safetensors.torch import save as as_bytes

    folder = Path(folder)
    tensors = as_bytes({name: tensor.detach().float().cpu().contiguous() for name, tensor in network.weights.items()})
    disabled = {f"disable_{part}": part in network.without for part in PARTS}
    own = {"model_id": network.model, "layer": network.layer, "num_blocks": network.blocks, **disabled}
    config = {**network.settings, **own}

    def recognise(place: Path) -> Mapping[str, str]:
        taken = [name for name in (CONFIG, TENSORS) if (place / name).exists()]
        if taken and not overwrite:
            raise ArtifactError(f"{place} has a {taken[0]} already: choose another folder, or overwrite")
        if taken and taken != [CONFIG, TENSORS]:
            raise ArtifactError(f"{place} has a {taken[0]}, but no FLAS network: choose another folder")
        return {name: hashlib.sha256((place / name).read_bytes()).hexdigest() for name in taken}

    save_folder(folder, {CONFIG: (to_readable_json(config) + "\n").encode(), TENSORS: tensors}, recognise)
    return folder


def _is_stale(name: str, without: tuple[str, ...]) -> bool:
    """Whether a tensor is of no use: frequencies, and attention that a later version left out but not its tensors."""
    own = name.split(".", 2)[-1] if name.startswith("blocks.") else name
    norms = ("self_attn", "pre_sa_norm", "post_sa_norm")
    return own.startswith(_MADE_ANEW) or ("self_attn" in without and own.startswith(norms))


def _read_config(path: Path) -> dict[str, Any]:
    """The configuration, with what it does not say."""
    if not path.is_file():
        raise ArtifactError(f"{path.parent} is no folder of a FLAS network: it has no {CONFIG}")
    try:
        content = path.read_bytes()
        config = json.loads(content) if len(content) <= MOST_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read as JSON: {error}; download it again") from None
    if not isinstance(config, dict):
        raise ArtifactError(f"{path} is no configuration of a FLAS network: expected names with values")
    config = {"model_id": MODEL, "layer": LAYER, **config}
    if not isinstance(config["model_id"], str) or not config["model_id"].isprintable():
        raise ArtifactError(f"{path}: model_id must be the name of a model, found {quote(config['model_id'])}")
    for name in ("layer", "num_blocks"):
        if name in config and not (type(config[name]) is int and 0 <= config[name] < MOST_LAYERS):
            raise ArtifactError(f"{path}: {name} must be a whole number, found {quote(config[name])}")
    return config


def _find_tensors(folder: Path) -> Path:
    """The file of safetensors in a folder."""
    found = sorted(path for path in folder.glob("*.safetensors") if stat.S_ISREG(path.stat().st_mode))
    if len(found) == 1:
        return found[0]
    if found:
        raise ArtifactError(f"{folder} has {len(found)} files of safetensors, expected one: remove the others")
    pickled = next(iter(sorted(folder.glob("*.pt"))), None)
    if pickled is not None:
        raise ArtifactError(f"{pickled} may run code when it is read: save its tensors as safetensors, which are read")
    raise ArtifactError(f"{folder} has no file of safetensors: download it again")


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (OSError, SafetensorError, ValueError, MemoryError) as error:
        raise ArtifactError(f"{path} is damaged: {error}; download it again") from None
    if odd := next((name for name, tensor in tensors.items() if not tensor.is_floating_point()), None):
        raise ArtifactError(f"{path} is damaged: {quote(odd)} is no tensor of floats; download it again")
    return tensors
