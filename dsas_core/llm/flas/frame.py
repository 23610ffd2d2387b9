"""What the network of FLAS takes from the language model that it is of: sizes, norms, rotary embedding, its layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...errors import DSASError, ModelMismatchError, PromptError, UnsupportedError, quote
from ...maps.flow import ACTIVATIONS
from ...model.hooks import Call, visit
from ...model.sites import Site, modules
from ..model.layers import device_of_input, kind_of, layers_of, roots_of, unwrap
from ..steering.steer import steered

#: layers that encode the text of a concept, and most tokens of such a text
ENCODING_LAYERS, MOST_TOKENS = 2, 64


@dataclass(frozen=True, eq=False)
class Frame:
    """What the network takes from a language model.

    Args:
        site: the layer whose output it moves.
        width: of hidden states.
        heads: of keys.
        groups: heads of queries to each head of keys.
        head: width of a head.
        frequencies: float32 [head], of the rotary embedding.
        length: factor on rotated vectors.
        scale: of the products of queries and keys in its attention to earlier positions.
        cap: bound on these products; None for none.
        epsilon: of norms.
        activation: of the MLP.
        offset: what norms add to their weights: 1 in Gemma's.
    """

    site: Site
    width: int
    heads: int
    groups: int
    head: int
    frequencies: torch.Tensor
    length: float
    scale: float
    cap: float | None
    epsilon: float
    activation: str
    offset: int


def read_frame(model: nn.Module, layer: int) -> Frame:
    """Read it from a language model.

    Args:
        model: a transformers model with rotary embeddings and root mean square norms, such as Llama, Qwen, Gemma 2 or
            Mistral.
        layer: number of the layer whose output is moved, from 0.

    Raises:
        ModelMismatchError: it has no such layer.
        UnsupportedError: it is of another kind.

    Example:
        >>> from dsas_core import llm
        >>> frame = read_frame(llm.load("builtin:chat", device="cpu")[0], layer=3)
        >>> str(frame.site), frame.width, frame.heads, frame.groups, frame.head, frame.offset
        ('model.model.layers.3', 160, 4, 1, 40, 0)
    """
    paths = _layers(model)
    if not 0 <= layer < len(paths):
        raise ModelMismatchError(
            f"the network is of layer {layer}, and this model has layers 0 to {len(paths) - 1}: use it with the model "
            "that it was trained on"
        )
    whole: Any = unwrap(model)
    config: Any = whole.config.get_text_config()
    heads, queries = int(config.num_key_value_heads or config.num_attention_heads), int(config.num_attention_heads)
    head = int(getattr(config, "head_dim", None) or config.hidden_size // queries)
    norm, rotary = _beside_layers(model, "norm"), _beside_layers(model, "rotary_emb")
    prefix = "" if hasattr(rotary, "inv_freq") else "full_attention_"  # Gemma 3 has one for each kind of layer
    waves = getattr(rotary, f"{prefix}inv_freq", torch.empty(0)).float().cpu()
    activation = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    if 2 * len(waves) != head or activation not in ACTIVATIONS:
        what = f"activation {quote(activation)}" if activation not in ACTIVATIONS else "a partly rotated head"
        raise UnsupportedError(
            f"{kind_of(model)} has {what}, which FLAS does not: choose Llama, Qwen, Gemma or Mistral"
        )
    cap = getattr(config, "attn_logit_softcapping", None)
    return Frame(
        site=Site(paths[layer]),
        width=int(config.hidden_size),
        heads=heads,
        groups=queries // heads,
        head=head,
        frequencies=torch.cat([waves, waves]),
        length=float(getattr(rotary, f"{prefix}attention_scaling", 1.0)),
        scale=float(getattr(config, "query_pre_attn_scalar", None) or head) ** -0.5,
        cap=None if cap is None else float(cap),
        epsilon=float(config.rms_norm_eps),
        activation=str(activation),
        offset=_offset_of(norm),
    )


def encode(model: nn.Module, tokenizer: Any, texts: Sequence[str]) -> list[torch.Tensor]:
    """The tokens of texts of concepts, as the first layers of the model and its last norm show them.

    Args:
        model: a language model, not steered.
        tokenizer: its tokenizer.
        texts: of concepts.

    Returns:
        float32 [tokens, width] for each, on the CPU.

    Raises:
        PromptError: a text is empty, or too long.
        DSASError: the model is steered.

    Example:
        >>> from dsas_core import llm
        >>> [tuple(tokens.shape) for tokens in encode(*llm.load("builtin:chat", device="cpu"), ["be kind"])]
        [(3, 160)]
    """
    if steered(model):
        raise DSASError("a concept's text is read by the model itself, which is steered: llm.detach(model) first")
    norm, reader = _beside_layers(model, "norm"), _Reader()
    paths = _layers(model)
    found = []
    for text in texts:
        if not text.strip():
            raise PromptError("the text of a concept is empty: say what the model is to do, as in 'talk like a pirate'")
        ids = tokenizer(text, return_tensors="pt").input_ids
        if ids.shape[1] > MOST_TOKENS:
            raise PromptError(
                f"concept {quote(text)} has {ids.shape[1]} tokens, networks are trained on up to {MOST_TOKENS}: "
                "shorten it"
            )
        place = Site(paths[min(ENCODING_LAYERS, len(paths)) - 1])
        with torch.no_grad(), visit(roots_of(model), [place], reader):
            model(input_ids=ids.to(device_of_input(model)), use_cache=False)
            found.append(norm(reader.seen)[0].float().cpu())
    return found


class _Reader:
    """A visitor that keeps what it has seen."""

    def __init__(self) -> None:
        self.seen = torch.empty(0)

    def begin(self, root: str, call: Call) -> None:
        """Nothing is to be done."""

    def visit(self, site: Site, x: torch.Tensor) -> None:
        self.seen = x


def _layers(model: nn.Module) -> list[str]:
    """The paths of the layers of a causal language model."""
    layers = layers_of(model)
    if "model" not in layers:
        raise UnsupportedError(
            f"{kind_of(model)} has an encoder, and FLAS is of models that read and write in one stack: choose such"
        )
    return layers["model"]


def _beside_layers(model: nn.Module, name: str) -> nn.Module:
    """A module beside the list of layers."""
    parent = _layers(model)[0].rsplit(".", 2)[0]
    found = modules(roots_of(model)).get(f"{parent}.{name}")
    if found is None:
        raise UnsupportedError(
            f"{kind_of(model)} has no {name} beside its layers, and FLAS builds on such: choose Llama, Qwen, Gemma or "
            "Mistral"
        )
    return found


def _offset_of(norm: nn.Module) -> int:
    """What a root mean square norm adds to its weight before it multiplies, 0 or 1: told by what it does."""
    weight: Any = getattr(norm, "weight", None)
    if not isinstance(weight, torch.Tensor) or getattr(norm, "bias", None) is not None:
        raise UnsupportedError(f"{type(norm).__name__} is no root mean square norm, which FLAS builds on")
    x = torch.linspace(0.5, 1.5, len(weight), device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        scale = norm(x[None])[0].float() / (x.float() * x.float().square().mean().rsqrt())
    return abs(round(float((scale - weight.detach().float()).mean())))
