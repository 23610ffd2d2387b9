"""Where a language model keeps its layers, and which of their outputs and inputs can be steered.

A table by `config.model_type`; a model that it does not hold is searched for its one list of equal layers. Names below
are canonical paths within a layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import DSASError
from ..sites import Site, find, modules


@dataclass(frozen=True)
class Layout:
    """What the parts of a layer are called.

    Args:
        attention, mlp: the blocks whose outputs are added to the residual stream.
        heads: the projection whose input holds the attention heads side by side.
        norms: norms behind attention and MLP, where a family has them.
    """

    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    heads: tuple[str, ...]
    norms: tuple[str, ...] = ()


_LLAMA = Layout(("self_attn",), ("mlp",), ("self_attn.o_proj",))
_GEMMA = Layout(
    ("self_attn",), ("mlp",), ("self_attn.o_proj",), ("post_attention_layernorm", "post_feedforward_layernorm")
)
_T5 = Layout(
    ("layer.0.SelfAttention", "layer.1.EncDecAttention"),
    ("layer.1.DenseReluDense", "layer.2.DenseReluDense"),
    ("layer.0.SelfAttention.o",),
)
#: model_type -> layout
LAYOUTS: dict[str, Layout] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "phi3", "qwen2_vl", "qwen2_5_vl", "llava"), _LLAMA),
    **dict.fromkeys(("gemma2", "gemma3", "gemma3_text"), _GEMMA),
    "gpt2": Layout(("attn",), ("mlp",), ("attn.c_proj",)),
    "gpt_neox": Layout(("attention",), ("mlp",), ("attention.dense",)),
    # its MLP flattens the batch
    "opt": Layout(("self_attn",), (), ("self_attn.out_proj",)),
    "falcon": Layout(("self_attention",), ("mlp",), ("self_attention.dense",)),
    **dict.fromkeys(("t5", "mt5"), _T5),
}
#: groups of sites that `sites=` can name; "middle" is the default
GROUPS = ("middle", "block", "attention", "mlp", "norm", "heads")


def bare(model: nn.Module) -> nn.Module:
    """The model without torch.compile's and peft's wrappers, whose adapters stay at work inside it."""
    inner: Any = getattr(model, "_orig_mod", model)
    return inner.get_base_model() if hasattr(inner, "peft_config") and hasattr(inner, "get_base_model") else inner


def roots_of(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that are called with tokens, by name: "encoder" and "decoder", or "model" where there is but one."""
    model = bare(model)
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return {"encoder": model.get_encoder(), "decoder": model.get_decoder()}  # type: ignore[operator]
    return {"model": model}


def layers_of(model: nn.Module) -> dict[str, list[str]]:
    """Canonical paths of the layers of each root, in order.

    The language part's list of layers: of all module lists that are no part of another, the one that holds most
    parameters, vision and audio towers left out.

    Raises:
        DSASError: a root has no list of layers.
    """
    found: dict[str, list[str]] = {}
    for root, module in roots_of(model).items():
        by_path = modules({root: module})
        lists = {path: part for path, part in by_path.items() if isinstance(part, nn.ModuleList) and len(part)}
        outer = {
            path: part
            for path, part in lists.items()
            if not any(path.startswith(f"{other}.") for other in lists)
            and not re.search(r"vision|visual|audio|image|experts", path)
            and len({type(layer) for layer in part}) == 1
        }
        if not outer:
            raise DSASError(
                f"{type(module).__name__} has no list of layers that could be found: name the sites, "
                "sites=[…] with module suffixes or a regular expression"
            )
        stack = max(outer, key=lambda path: sum(parameter.numel() for parameter in outer[path].parameters()))
        found[root] = [f"{stack}.{i}" for i in range(len(outer[stack]))]
    return found


def find_sites(model: nn.Module, sites: str | Sequence[str] | None = None) -> list[Site]:
    """Sites of a language model.

    Args:
        sites: None for the outputs of the middle third of the layers ("middle"), which benchmarks/toxicity.py shows
            best; "block" for those of every layer; "attention", "mlp" or "norm" for the outputs of these parts,
            "heads" for each head at the input of the output projection; a regular expression on canonical paths; a
            list of module suffixes ("layers.3", "mlp.down_proj") or of groups.

    Raises:
        DSASError: nothing matches, or the group is not known of this kind of model; the message says what exists.
    """
    wanted: list[str] = ["middle"] if sites is None else [sites] if isinstance(sites, str) else list(sites)
    found: dict[str, Site] = {}
    for pattern in wanted:
        chosen = _group(model, pattern) if pattern in GROUPS else _matching(model, pattern, isinstance(sites, str))
        found |= {str(site): site for site in chosen}
    return list(found.values())


def _matching(model: nn.Module, pattern: str, expression: bool) -> Iterator[Site]:
    for path in find(roots_of(model), pattern if expression else [pattern]):
        yield Site(path)


def _group(model: nn.Module, group: str) -> Iterator[Site]:
    stacks = layers_of(model)
    if group in ("middle", "block"):
        for paths in stacks.values():
            third = len(paths) // 3
            yield from map(Site, paths if group == "block" else paths[third : len(paths) - third])
        return
    kind = getattr(getattr(bare(model), "config", None), "model_type", type(model).__name__)
    if kind not in LAYOUTS:
        raise DSASError(
            f"the layers of {kind} are not known by parts: name the sites, sites=[…] with module suffixes; "
            f"known are {', '.join(LAYOUTS)}"
        )
    names: Sequence[str] = getattr(LAYOUTS[kind], "norms" if group == "norm" else group)
    known = modules(roots_of(model))
    paths = [f"{path}.{name}" for layers in stacks.values() for path in layers for name in names]
    paths = [path for path in paths if path in known]
    if not paths:
        raise DSASError(f"{kind} has no {group} sites; choose among {', '.join(GROUPS)}")
    for path in paths:
        if group != "heads":
            yield Site(path)
            continue
        width, heads = _heads(known[path], int(_text_config(model).num_attention_heads))
        for head in range(heads):
            yield Site(path, side="input", channels=(head * width, (head + 1) * width))


def _heads(projection: nn.Module, count: int) -> tuple[int, int]:
    """Width and number of the heads that come into an output projection."""
    weight: Any = getattr(projection, "base_layer", projection).weight
    transposed = type(projection).__name__ == "Conv1D"  # GPT-2 keeps its weights as [in, out]
    return int(weight.shape[0 if transposed else 1]) // count, count


def device_of_input(model: nn.Module) -> torch.device:
    """Where tokens are to be put: the device of the first parameter that is anywhere at all."""
    places = (parameter.device for parameter in model.parameters())
    return next((device for device in places if device.type != "meta"), torch.device("cpu"))


def positions_of(model: nn.Module) -> int:
    """How many tokens the model can take; 0 when its config does not say."""
    return int(getattr(_text_config(model), "max_position_embeddings", 0) or 0)


def _text_config(model: nn.Module) -> Any:
    """The config of the language part."""
    config: Any = bare(model).config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def ends_of(model: nn.Module) -> list[int]:
    """The tokens that end a text, by the model's generation settings."""
    found: Any = getattr(getattr(bare(model), "generation_config", None), "eos_token_id", None)
    return [] if found is None else [found] if isinstance(found, int) else list(found)
