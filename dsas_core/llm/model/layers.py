"""Families of language models: their layers, sites, encoders, maximum lengths and end tokens.

`LAYER_NAMES` is a table by `config.model_type`: a new family is one line there. Layers are found without it, as the
module list with most parameters; the table is needed for the parts of a layer only.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ...errors import UnsupportedError
from ...model.sites import Site, find, modules
from ...model.wrappers import bare


@dataclass(frozen=True)
class LayerNames:
    """Names of the modules of a layer: canonical paths within it, by group of sites.

    Args:
        attention: attention blocks whose outputs are added to the residual stream.
        mlp: feed-forward blocks whose outputs are added to it.
        heads: output projections of attention; their inputs are the concatenated heads.
        norm: norms behind attention and MLP, where a family has them.
        transposed: whether the weight of the output projection is stored as [in, out].
    """

    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    heads: tuple[str, ...]
    norm: tuple[str, ...] = ()
    transposed: bool = False


_LLAMA = LayerNames(("self_attn",), ("mlp",), ("self_attn.o_proj",))
_GEMMA = LayerNames(
    ("self_attn",), ("mlp",), ("self_attn.o_proj",), ("post_attention_layernorm", "post_feedforward_layernorm")
)
_T5 = LayerNames(
    ("layer.0.SelfAttention", "layer.1.EncDecAttention"),
    ("layer.1.DenseReluDense", "layer.2.DenseReluDense"),
    ("layer.0.SelfAttention.o",),
)
#: model_type -> names
LAYER_NAMES: dict[str, LayerNames] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "phi3", "qwen2_vl", "qwen2_5_vl", "llava"), _LLAMA),
    **dict.fromkeys(("gemma2", "gemma3", "gemma3_text"), _GEMMA),
    "gpt2": LayerNames(("attn",), ("mlp",), ("attn.c_proj",), transposed=True),
    "gpt_neox": LayerNames(("attention",), ("mlp",), ("attention.dense",)),
    # without its MLP, which flattens the batch
    "opt": LayerNames(("self_attn",), (), ("self_attn.out_proj",)),
    "falcon": LayerNames(("self_attention",), ("mlp",), ("self_attention.dense",)),
    **dict.fromkeys(("t5", "mt5"), _T5),
}
#: groups of sites that `sites=` can name; "single" is the default
SITE_GROUPS = ("single", "middle", "block", "attention", "mlp", "norm", "heads")
#: where the default site is, as a share of the depth; models of fewer layers than `DEEP` are steered at a third of them
STEERED_DEPTH, DEEP = 0.6, 12
#: between which shares of the depth a gate that decides about texts is tried, and at how many layers at most
READ_DEPTHS, MAX_READ = (0.1, 0.4), 6
#: field of a config -> layout of what its layers give, where they hand on several residual streams (`sites.Site`)
_STREAMS = {"altup_num_inputs": "streams-first", "hc_mult": "streams-last"}
#: fields of configs that say how many layers there are
_LAYER_COUNTS = (
    *("num_hidden_layers", "num_layers", "n_layers", "n_layer"),
    *("encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers"),
)
#: models whose calls do not tell which tokens are read and which written, by model_type, and why
_OTHER_WRITERS = {
    **dict.fromkeys(("xlm", "flaubert"), "reads the whole text anew for each token, with a mask at its end to fill in"),
    "xlnet": "writes with a second stream of queries, which no layer hands on by row and position",
}
#: attributes by which layers tell the width of what they take; that of a packed weight does not
_IN_WIDTHS = ("in_features", "infeatures", "input_size", "nx")
#: paths of module lists that are no layers of the language model
_OTHER_TOWERS = re.compile(r"vision|visual|audio|image|experts")


def unwrap(model: nn.Module) -> nn.Module:
    """The model without the wrappers of torch.compile and PEFT; PEFT's adapters stay active inside it."""
    return bare(model)


def has_encoder(model: nn.Module) -> bool:
    """Whether the model reads prompts in an encoder, so that all tokens of its decoder are generated."""
    return bool(getattr(getattr(unwrap(model), "config", None), "is_encoder_decoder", False))


def roots_of(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that are called with tokens, by name: "encoder" and "decoder", else "model".

    Raises:
        UnsupportedError: a model whose calls do not tell which tokens are written.
    """
    if (kind := kind_of(model)) in _OTHER_WRITERS:
        raise UnsupportedError(f"{kind} {_OTHER_WRITERS[kind]}: choose a model that goes on after its last token")
    if has_encoder(model):
        inner = unwrap(model)
        return {"encoder": inner.get_encoder(), "decoder": inner.get_decoder()}  # type: ignore[operator]
    return {"model": model}  # as it is called, with what PEFT puts around it


def kind_of(model: nn.Module) -> str:
    """The model_type of its config; of a model without one, its class."""
    return str(getattr(getattr(unwrap(model), "config", None), "model_type", None) or type(model).__name__)


def auto_class(config: Any) -> Any:
    """The class of transformers whose `from_pretrained` loads a model.

    Args:
        config: its PretrainedConfig; of an unknown kind, the class of causal language models is returned.
    """
    import transformers

    names = ["AutoModelForCausalLM", "AutoModelForImageTextToText"]
    if config.is_encoder_decoder:
        names = ["AutoModelForSeq2SeqLM"]
    classes = [getattr(transformers, name) for name in names]
    return next((known for known in classes if type(config) in known._model_mapping), classes[0])


def layers_of(model: nn.Module) -> dict[str, list[str]]:
    """Canonical paths of the layers of each root, in order.

    The layers are the module list with most parameters, among those that are not inside another list nor in a vision or
    audio tower, and that are as many as the config says or else of one kind; the former go first. So layers of a hybrid
    stack are found, which are of several kinds.

    Raises:
        UnsupportedError: a root has no such list.

    Example:
        >>> from dsas_core import llm
        >>> model, _ = llm.load("builtin:chat", device="cpu")
        >>> layers_of(model)["model"][:2]
        ['model.model.layers.0', 'model.model.layers.1']
    """
    layers: dict[str, list[str]] = {}
    counts = _layer_counts(model)
    for root, module in roots_of(model).items():
        by_path = modules({root: module})
        lists: dict[str, Any] = {path: part for path, part in by_path.items() if _is_list(part, counts)}
        outer = {
            path: part
            for path, part in lists.items()
            if not any(path.startswith(f"{other}.") for other in lists)
            and not _OTHER_TOWERS.search(path)
            and (len(part) in counts or len({type(bare(layer)) for layer in part.children()}) == 1)
        }
        if not outer:
            raise UnsupportedError(
                f"{type(module).__name__} has no list of layers that could be found: name the sites, "
                "sites=[…] with module suffixes or a regular expression"
            )
        sizes = {path: sum(map(torch.Tensor.numel, _tensors(part))) for path, part in outer.items()}
        stack = max(outer, key=lambda path: (len(outer[path]) in counts, sizes[path]))
        layers[root] = [f"{stack}.{name}" for name, _ in outer[stack].named_children()]  # one that is shared once
    return layers


def _is_list(part: nn.Module, counts: Collection[int]) -> bool:
    """Whether a module is a list of others; modules in sequence may be one layer, unless they are as many as layers."""
    return (isinstance(part, nn.ModuleList) and len(part) > 0) or (
        isinstance(part, nn.Sequential | nn.ModuleDict) and len(part) in counts
    )


def _layer_counts(model: nn.Module) -> set[int]:
    """How many layers there are, by the config: of each part, where it has several."""
    config = getattr(unwrap(model), "config", None)
    parts = [config, _text_config(model)] if config is not None else []
    return {count for part in parts for name in _LAYER_COUNTS if isinstance(count := getattr(part, name, None), int)}


def find_sites(model: nn.Module, sites: str | Sequence[str] | None = None) -> list[Site]:
    """Sites of a language model.

    Args:
        model: a transformers model.
        sites: None or "single" for the output of the layer at three fifths of the depth (what is moved at several
            layers adds up, and costs more for the same effect: docs/real-models.md), the same as "middle" in models of
            fewer than 12 layers; "middle" for the outputs of the middle third of the layers; "block" for the outputs
            of all layers; "attention", "mlp" or "norm" for the outputs of these modules; "heads" for each attention
            head, at the input of the output projection; a regular expression on canonical paths; a list of module
            suffixes ("layers.3", "mlp.down_proj") or of groups.

    Raises:
        DSASError: nothing matches; the message says what there is.
        UnsupportedError: a group that is not known for this kind of model, or that it does not have.

    Example:
        >>> from dsas_core import llm
        >>> model, tokenizer = llm.load("builtin:chat", device="cpu")
        >>> [str(site) for site in find_sites(model)]
        ['model.model.layers.2', 'model.model.layers.3']
    """
    patterns: list[str] = ["single"] if sites is None else [sites] if isinstance(sites, str) else list(sites)
    by_name: dict[str, Site] = {}
    for pattern in patterns:
        if pattern in SITE_GROUPS:
            chosen = list(_sites_of_group(model, pattern))
        else:
            chosen = [Site(path) for path in find(roots_of(model), pattern if isinstance(sites, str) else [pattern])]
        by_name |= {str(site): site for site in chosen}
    return _laid_out(model, by_name.values())


def _laid_out(model: nn.Module, sites: Iterable[Site]) -> list[Site]:
    """Sites with the layout of what layers give, where that is of several streams."""
    config = _text_config(model)
    layout = next((layout for field, layout in _STREAMS.items() if getattr(config, field, 0)), None)
    if layout is None:
        return list(sites)
    layers = {path for paths in layers_of(model).values() for path in paths}
    return [replace(site, layout=layout) if site.path in layers else site for site in sites]


def _sites_of_group(model: nn.Module, group: str) -> Iterator[Site]:
    stacks = layers_of(model)
    if group in ("single", "middle", "block"):
        for paths in stacks.values():
            third, steered = len(paths) // 3, int(STEERED_DEPTH * len(paths))
            parts = {"single": (steered, steered + 1), "middle": (third, len(paths) - third), "block": (0, len(paths))}
            part = "middle" if group == "single" and len(paths) < DEEP else group
            yield from map(Site, paths[slice(*parts[part])])
        return
    kind = kind_of(model)
    if kind not in LAYER_NAMES:
        raise UnsupportedError(
            f"the layers of {kind} are not known by parts: name the sites, sites=[…] with module suffixes; "
            f"known are {', '.join(LAYER_NAMES)}"
        )
    names: tuple[str, ...] = getattr(LAYER_NAMES[kind], group)
    known = modules(roots_of(model))
    paths = [f"{path}.{name}" for layers in stacks.values() for path in layers for name in names]
    paths = [path for path in paths if path in known]
    if not paths:
        raise UnsupportedError(f"{kind} has no {group} sites; choose among {', '.join(SITE_GROUPS)}")
    if group != "heads":
        yield from map(Site, paths)
        return
    heads = int(_text_config(model).num_attention_heads)
    for path in paths:
        width, rest = divmod(_width_taken(known[path], transposed=LAYER_NAMES[kind].transposed), heads)
        if rest or not width:
            raise UnsupportedError(
                f"{path} takes {width * heads + rest} channels, which are not of {heads} heads: choose among "
                f"{', '.join(name for name in SITE_GROUPS if name != 'heads')}"
            )
        for head in range(heads):
            yield Site(path, side="input", channels=(head * width, (head + 1) * width))


def _width_taken(layer: nn.Module, transposed: bool) -> int:
    """The width of what a linear layer takes, its weight packed or not."""
    layer = bare(layer)
    told = next((width for name in _IN_WIDTHS if isinstance(width := getattr(layer, name, None), int)), None)
    if told is not None:
        return told
    weight = getattr(layer, "weight", None)
    if isinstance(weight, torch.Tensor) and weight.is_floating_point() and weight.ndim == 2:
        return int(weight.shape[0 if transposed else 1])
    raise UnsupportedError(
        f"{type(layer).__name__} does not tell how wide its input is, and its weight is packed: choose other "
        "sites than heads"
    )


def find_read_sites(model: nn.Module, steered: Sequence[Site]) -> list[Site]:
    """Where a gate that decides about whole texts may read: outputs of early layers, before any site that is steered.

    Words are told apart best in the first half of a model; what is written there later is not read.

    Args:
        model: a transformers model.
        steered: the sites that are steered.

    Returns:
        At most `MAX_READ` sites, in order; none where the first layer is steered, or what is in no layer, or where no
        layers are found.

    Example:
        >>> from dsas_core import llm
        >>> model, tokenizer = llm.load("builtin:chat", device="cpu")
        >>> [str(site) for site in find_read_sites(model, find_sites(model))]
        ['model.model.layers.1']
    """
    try:
        stacks = layers_of(model)
    except UnsupportedError:  # sites that were named are steered all the same
        return []
    found: list[Site] = []
    for root, paths in stacks.items():
        places = [_layer_of(site, paths) for site in steered if site.root == root]
        written = [place for place in places if place is not None]
        if not written or None in places:
            continue
        low, high = (round(share * len(paths)) for share in READ_DEPTHS)
        known = paths[min(low, len(paths)) : min(high + 1, min(written))] or paths[: min(written)][-1:]
        count = min(MAX_READ, len(known))
        found += [Site(known[round(i * (len(known) - 1) / max(1, count - 1))]) for i in range(count)]
    return _laid_out(model, found)


def _layer_of(site: Site, paths: Sequence[str]) -> int | None:
    """The place of the layer that a site is in, among the paths of a root's layers; None outside of all."""
    return next((i for i, path in enumerate(paths) if f"{site.path}.".startswith(f"{path}.")), None)


def logits_options(model: nn.Module, kept: int | list[int]) -> dict[str, int | list[int]]:
    """Options of a forward pass whose head reads some positions alone, where the model knows them.

    The model itself is called, not the one inside it: hooks on the model tell rows and positions.

    Args:
        model: a language model.
        kept: the number of last positions that are read, or a list of the indices of those that are, as the head may be
            on another device.

    Example:
        >>> from dsas_core import llm
        >>> logits_options(llm.load("builtin:chat", device="cpu")[0], 1)
        {'logits_to_keep': 1}
    """
    takes_it = "logits_to_keep" in inspect.signature(unwrap(model).forward).parameters
    return {"logits_to_keep": kept} if takes_it else {}


def takes_positions(model: nn.Module) -> bool:
    """Whether the model is told the positions of its tokens, counted from 0, for rotary embeddings."""
    config = _text_config(model)
    rotary = any(hasattr(config, name) for name in ("rope_parameters", "rope_theta"))
    return rotary and "position_ids" in inspect.signature(unwrap(model).forward).parameters


def device_of_input(model: nn.Module) -> torch.device:
    """The device for token ids: that of the first parameter, else buffer, that is not on the meta device."""
    devices = (tensor.device for tensor in _tensors(model))
    return next((device for device in devices if device.type != "meta"), torch.device("cpu"))


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    """Parameters, then buffers, which packed weights may be."""
    yield from module.parameters()
    yield from module.buffers()


def max_positions(model: nn.Module) -> int:
    """The highest number of tokens that the model takes; 0 where its config does not say."""
    return int(getattr(_text_config(model), "max_position_embeddings", 0) or 0)


def _text_config(model: nn.Module) -> Any:
    """The config of the language model, where it is part of a multimodal one."""
    config: Any = getattr(unwrap(model), "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def end_tokens(model: nn.Module) -> list[int]:
    """Ids of the tokens that end a text, by the model's generation config."""
    ends: Any = getattr(getattr(unwrap(model), "generation_config", None), "eos_token_id", None)
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
