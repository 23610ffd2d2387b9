"""A network of FLAS before training: its parts are copies of the layer that it follows."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...errors import UnsupportedError
from ...model.sites import modules
from ..model.layers import kind_of, layers_of, roots_of
from .frame import read_frame
from .network import Network

#: what gates begin with; numbers in the embedding of the time
GATE, WAVES = 0.1, 128
#: depth of the layer, as a share, where none is chosen: 20 of 26 in the paper
DEPTH = 0.77
#: tensors of a block -> those of a layer, the first that it has, the second where it has one norm for each part
_FROM_LAYER = {
    **{
        f"self_attn.{part}_proj.{kind}": f"self_attn.{part}_proj.{kind}"
        for part in "qkvo"
        for kind in ("weight", "bias")
    },
    **{f"self_attn.{part}_norm.weight": f"self_attn.{part}_norm.weight" for part in "qk"},
    **{f"{part}_proj.weight": f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")},
    "pre_sa_norm.weight": "input_layernorm.weight",
}
_WITH_TWO_NORMS = {"pre_mlp_norm.weight": "post_attention_layernorm.weight"}
_WITH_FOUR_NORMS = {
    "post_sa_norm.weight": "post_attention_layernorm.weight",
    "pre_mlp_norm.weight": "pre_feedforward_layernorm.weight",
    "post_mlp_norm.weight": "post_feedforward_layernorm.weight",
}


def start(
    model: nn.Module, layer: int | None = None, *, blocks: int = 1, seed: int = 0, name: str | None = None
) -> Network:
    """A network that has not been trained. Its MLP, causal attention and norms are those of the layer.

    Args:
        model: the language model that it is for.
        layer: number of the layer whose output it moves, from 0; None for three quarters of the depth.
        blocks: number of blocks.
        seed: of the rest: the attention to concepts, and the first layer of the embedding of the time.
        name: of the model; None for the one that it was loaded by.

    Raises:
        ModelMismatchError: there is no such layer.
        UnsupportedError: layers of which not all parts are known.
    """
    paths = layers_of(model).get("model", [])
    layer = round(DEPTH * (len(paths) - 1)) if layer is None else layer
    frame, random = read_frame(model, layer), torch.Generator().manual_seed(seed)
    known = modules(roots_of(model))[frame.site.path].state_dict()
    own: dict[str, torch.Tensor] = {key: tensor.detach().float().cpu().clone() for key, tensor in known.items()}
    four = "pre_feedforward_layernorm.weight" in own
    copied = {**_FROM_LAYER, **(_WITH_FOUR_NORMS if four else _WITH_TWO_NORMS)}
    missing = {source for target, source in copied.items() if "bias" not in target and ".q_norm" not in target}
    missing -= {*own, "self_attn.k_norm.weight"}
    if missing:
        raise UnsupportedError(
            f"the layers of {kind_of(model)} have no {min(missing)}, which a FLAS network begins with: choose Llama, "
            "Qwen, Gemma 2 or Mistral"
        )
    width, queries, keys = frame.width, frame.heads * frame.groups * frame.head, frame.heads * frame.head

    def linear(rows: int, columns: int) -> torch.Tensor:
        bound = columns**-0.5
        return torch.empty(rows, columns).uniform_(-bound, bound, generator=random)

    def norm(size: int) -> torch.Tensor:
        return torch.full((size,), 1 - frame.offset)

    weights: dict[str, Any] = {
        "time_embed.mlp.0.weight": linear(width, WAVES),
        "time_embed.mlp.0.bias": torch.zeros(width),
        "time_embed.mlp.2.weight": torch.zeros(width, width),
        "time_embed.mlp.2.bias": torch.zeros(width),
    }
    for i in range(blocks):
        block = {
            **{
                f"{place}_{part}_norm.weight": norm(width)
                for place in ("pre", "post")
                for part in ("cross", "sa", "mlp")
            },
            **{f"{part}_gate": torch.full((width,), GATE) for part in ("cross", "self_attn", "mlp")},
            "cross_attn.q_proj.weight": linear(queries, width),
            "cross_attn.k_proj.weight": linear(keys, width),
            "cross_attn.v_proj.weight": linear(keys, width),
            "cross_attn.o_proj.weight": linear(width, queries),
            **{f"cross_attn.{part}_norm.weight": norm(frame.head) for part in "qk"},
            **{target: own[source].clone() for target, source in copied.items() if source in own},
        }
        weights |= {f"blocks.{i}.{part}": tensor for part, tensor in block.items()}
    name = name or getattr(getattr(model, "config", None), "_name_or_path", "") or kind_of(model)
    return Network(weights, layer, _short(name))


def _short(name: str) -> str:
    """The name of a model; of the one that ships, not where it lies."""
    from ..model.load import BUILTIN

    return next((known for known, folder in BUILTIN.items() if str(folder) == name), name)
