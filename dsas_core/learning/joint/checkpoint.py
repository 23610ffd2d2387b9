"""Checkpoints of joint training: one file of tensors, from which an interrupted run goes on to the same bits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ...errors import ArtifactError, DSASError, quote, shorten
from ...utils.processes import Share
from ...utils.saving.files import write_files
from ..recipe import Recipe

FILE = "training.safetensors"
#: the way out of a file that cannot be gone on from
ELSE = "choose another folder, or delete it"
ALONE = Share()


def check_trains(folder: str | Path | None, recipe: Recipe) -> None:
    """Raise a DSASError where a training is to be kept, and a recipe has none."""
    if folder is not None and recipe.mode != "joint":
        raise DSASError(
            f"checkpoint keeps a training, and method {recipe.method} with gate {recipe.gate} is not trained: leave it "
            "out, or choose lineas or e2e-dsas"
        )


class Progressed(NamedTuple):
    """How far a training is.

    Args:
        step: number of steps that are done.
        history: what was measured at each check, as plain data.
        best: the lowest held-out loss, and the check it was of; None before the first.
        first: the loss that others are compared with, before training.
    """

    step: int = 0
    history: list[dict[str, float]] = []
    best: tuple[float, int] | None = None
    first: float = 0.0


class Checkpoint:
    """The state of a training in a folder.

    Args:
        folder: where the file is, or will be written; None keeps nothing.
        about: what the training depends on, as plain data; a file that was written with other values is refused.

    Example:
        >>> Checkpoint(None, {}).read(nn.Module(), None) is None
        True
    """

    def __init__(self, folder: str | Path | None, about: Mapping[str, Any]) -> None:
        self.path = None if folder is None else Path(folder).expanduser() / FILE
        self.about = json.loads(json.dumps(about))

    def write(
        self, module: nn.Module, optimiser: Any, best: Mapping[str, torch.Tensor], progressed: Progressed
    ) -> None:
        """Write parameters, the optimiser's state and the best parameters, all or nothing.

        Raises:
            DSASError: the file cannot be written; what was there is as it was.
        """
        if self.path is None:
            return
        from safetensors.torch import save

        tensors = {f"now.{name}": part for name, part in module.state_dict().items()}
        tensors |= {f"best.{name}": part for name, part in best.items()}
        for number, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{name}": part for name, part in state.items() if part is not None}
        copies = {name: part.detach().cpu().clone().contiguous() for name, part in tensors.items()}
        metadata = {"about": json.dumps(self.about), "progressed": json.dumps(progressed)}
        write_files({self.path: save(copies, metadata=metadata)}, is_ours=_is_ours)

    def read(
        self, module: nn.Module, optimiser: torch.optim.Optimizer, share: Share = ALONE
    ) -> tuple[Progressed, dict[str, torch.Tensor]] | None:
        """Bring parameters and optimiser to where they were; None where nothing was written yet.

        The first process reads the file for all: others may be on machines that do not see it.

        Returns:
            How far it was, and the best parameters.

        Raises:
            ArtifactError: a file that is damaged, or of another training.
        """
        kept = share.from_first(self._load)
        if kept is None:
            return None
        parts, progressed = kept
        device = next((part.device for part in module.parameters()), None)
        if not _shapes(module.state_dict()) == _shapes(parts["now"]) == _shapes(parts["best"]):
            raise ArtifactError(f"{self.path} is of a training of other sites or widths: {ELSE}")
        module.load_state_dict(parts["now"])
        state = optimiser.state_dict()
        trained = [part for group in optimiser.param_groups for part in group["params"]]
        for name, tensor in parts["optimiser"].items():
            number, _, field = name.partition(".")
            if not (number.isdecimal() and int(number) < len(trained)):
                raise ArtifactError(f"{self.path} is damaged (it has no parameter {quote(number)}): {ELSE}")
            if tensor.ndim and tensor.shape != trained[int(number)].shape:
                raise ArtifactError(f"{self.path} is damaged (the optimiser's {quote(name)} has another shape): {ELSE}")
            state["state"].setdefault(int(number), {})[field] = tensor
        optimiser.load_state_dict(state)
        return progressed, {name: part.to(device) for name, part in parts["best"].items()}

    def _load(self) -> tuple[dict[str, dict[str, torch.Tensor]], Progressed] | None:
        """The tensors of a file by kind, and how far its training was; None where there is no file."""
        if self.path is None or not self.path.is_file():
            return None
        tensors, metadata = _read(self.path)
        try:
            about = dict(json.loads(metadata["about"]))
            step, history, best, first = json.loads(metadata["progressed"])
            progressed = Progressed(
                int(step),
                [{str(name): float(value) for name, value in entry.items()} for entry in history],
                None if best is None else (float(best[0]), int(best[1])),
                float(first),
            )
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            raise ArtifactError(f"{self.path} is damaged ({shorten(str(error), 80)}): {ELSE}") from None
        different = sorted(key for key in {*about, *self.about} if about.get(key) != self.about.get(key))
        if different:
            raise ArtifactError(f"{self.path} is of another training ({', '.join(different)}): {ELSE}")
        parts: dict[str, dict[str, torch.Tensor]] = {"now": {}, "best": {}, "optimiser": {}}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind not in parts:
                raise ArtifactError(f"{self.path} is damaged (it has a tensor {quote(name)}): {ELSE}")
            parts[kind][rest] = tensor
        return parts, progressed


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: part.shape for name, part in tensors.items()}


def _is_ours(path: Path) -> bool:
    try:
        _read(path)
    except ArtifactError:
        return False
    return True


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} is damaged ({error}): {ELSE}") from None
    if not {"about", "progressed"} <= set(metadata):
        raise ArtifactError(f"{path} holds no training: choose another folder")
    return tensors, metadata
