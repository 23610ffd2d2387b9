"""The network of FLAS: its tensors by the names that released files have, their shapes, and the flow of a concept."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ...concept.concept import Concept
from ...concept.intervention import Intervention
from ...errors import ArtifactError, DSASError, ModelMismatchError, quote, shorten
from ...maps.attention import normalise, project, rotate
from ...maps.flow import CausalAttention, ConceptAttention, FlowBlock, FlowMap, GatedMLP
from ...model.fingerprints import describe_module, fingerprint
from ...probes import ConstantProbe, Probe
from ...utils.versions import versions
from ..model.layers import roots_of
from .frame import Frame, encode, read_frame

#: names of tensors outside of blocks -> names of their dimensions
_TIME = {
    "time_embed.mlp.0.weight": "width waves",
    "time_embed.mlp.0.bias": "width",
    "time_embed.mlp.2.weight": "width width",
    "time_embed.mlp.2.bias": "width",
}
#: part of a block -> names of its tensors -> names of their dimensions
PARTS: dict[str, dict[str, str]] = {
    "cross_attn": {
        "pre_cross_norm.weight": "width",
        "cross_attn.q_proj.weight": "queries width",
        "cross_attn.k_proj.weight": "keys width",
        "cross_attn.v_proj.weight": "keys width",
        "cross_attn.o_proj.weight": "width queries",
        "cross_attn.q_norm.weight": "head",
        "cross_attn.k_norm.weight": "head",
        "post_cross_norm.weight": "width",
        "cross_gate": "width",
    },
    "self_attn": {
        "pre_sa_norm.weight": "width",
        "self_attn.q_proj.weight": "queries width",
        "self_attn.k_proj.weight": "keys width",
        "self_attn.v_proj.weight": "keys width",
        "self_attn.o_proj.weight": "width queries",
        "post_sa_norm.weight": "width",
        "self_attn_gate": "width",
    },
    "mlp": {
        "pre_mlp_norm.weight": "width",
        "gate_proj.weight": "inner width",
        "up_proj.weight": "inner width",
        "down_proj.weight": "width inner",
        "post_mlp_norm.weight": "width",
        "mlp_gate": "width",
    },
}
#: tensors that some models' attention has
_OPTIONAL: dict[str, dict[str, str]] = {
    part: {
        **{f"{part}.{letter}_proj.bias": size for letter, size in zip("qkvo", sizes, strict=True)},
        **({f"{part}.{letter}_norm.weight": "head" for letter in "qk"} if part == "self_attn" else {}),
    }
    for part in ("cross_attn", "self_attn")
    for sizes in [("queries", "keys", "keys", "width")]
}
#: how gates may act on a flow, see `FlowMap.by_time`
GATINGS = ("interpolate", "time")


@dataclass(frozen=True, eq=False)
class Network:
    """The velocity network of one layer of a language model, for all concepts.

    Args:
        weights: its tensors, by the names that released files have.
        layer: number of the layer whose output it moves, from 0.
        model: name of the language model.
        without: parts that its blocks lack, of `PARTS`.
        settings: what else its configuration says; kept, and written again.

    Raises:
        ArtifactError: a tensor is missing, has another shape than the others demand, or is none of a network.

    Example:
        >>> from dsas_core import llm
        >>> model, tokenizer = llm.load("builtin:chat", device="cpu")
        >>> llm.flas.start(model, layer=3)
        Network(layer 3 of 'builtin:chat', 1 block, 437,040 numbers)
    """

    weights: Mapping[str, torch.Tensor]
    layer: int
    model: str
    without: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.blocks:
            raise ArtifactError("the file holds no blocks of a FLAS network (blocks.0.…): is it of another method?")
        _check_shapes(self)

    def __repr__(self) -> str:
        count, blocks = sum(tensor.numel() for tensor in self.weights.values()), self.blocks
        return f"Network(layer {self.layer} of {self.model!r}, {blocks} block{'s' * (blocks > 1)}, {count:,} numbers)"

    @property
    def blocks(self) -> int:
        """Number of its blocks."""
        return 1 + max(
            (int(name.split(".")[1]) for name in self.weights if re.match(r"blocks\.\d{1,4}\.", name)), default=-1
        )

    def concept(
        self,
        model: nn.Module,
        tokenizer: Any,
        text: str,
        *,
        name: str | None = None,
        gate: str | Probe = "on",
        gating: str = "interpolate",
        steps: int = 3,
    ) -> Concept:
        """The concept of a text, to be steered with as any other: strength 1 is a flow time of 2.

        Args:
            model: the language model that the network is of.
            tokenizer: its tokenizer.
            text: what the model is to do, as in "talk like a pirate".
            name: of the concept; None for the text, as far as a name can have it.
            gate: "on" to steer every token, or a probe of the hidden states behind the layer.
            gating: "interpolate" moves by a share h of the whole way, "time" goes on the way for a share h of the time.
            steps: number of Euler steps.

        Raises:
            ModelMismatchError: the model has other widths than the network, or too few layers.
            PromptError: a text that is empty, or longer than what networks are trained on.
            DSASError: an unknown gate or gating, or steps below 1.
        """
        if gating not in GATINGS:
            raise DSASError(f"gating {quote(gating)}: expected {' or '.join(GATINGS)}")
        if not isinstance(gate, Probe) and gate not in ("on", "off"):
            raise DSASError(
                f"gate {quote(gate)}: expected on, off, or a probe of {self.model} behind layer {self.layer}"
            )
        if type(steps) is not int or not 1 <= steps <= 1000:
            raise DSASError(f"steps {quote(steps)}: expected a whole number from 1 to 1000")
        frame = self.frame(model)
        (tokens,) = encode(model, tokenizer, [text])
        flow = self.flow(self.weights, frame, tokens, steps=steps, by_time=gating == "time")
        probe = gate if isinstance(gate, Probe) else ConstantProbe(float(gate == "on"))
        root = roots_of(model)["model"]
        return Concept(
            name or _name_of(text),
            (Intervention(frame.site, (probe,), (flow,), (1.0,)),),
            method="flas",
            gate=gate if isinstance(gate, str) else type(probe).kind,
            description=shorten(text, 1000),
            base={"model": fingerprint(root)},
            learned_on={"model": describe_module(root)},
            provenance={"model": self.model, "layer": self.layer, "text": text, "versions": versions("transformers")},
        )

    def frame(self, model: nn.Module) -> Frame:
        """What it takes from a language model, which has to fit.

        Raises:
            ModelMismatchError: the model has other sizes, or too few layers.
        """
        frame, sizes = read_frame(model, self.layer), _check_shapes(self)
        own = {"width": frame.width, "queries": frame.heads * frame.groups * frame.head}
        own |= {"keys": frame.heads * frame.head, "head": frame.head}
        for size, found in own.items():
            if sizes.get(size, found) != found:
                raise ModelMismatchError(
                    f"the network is of {quote(self.model)}, with {size} {sizes[size]}, and this model has {size} "
                    f"{found}: load the model that it was trained on"
                )
        return frame

    def flow(
        self,
        weights: Mapping[str, torch.Tensor],
        frame: Frame,
        tokens: torch.Tensor,
        hidden: torch.Tensor | None = None,
        *,
        steps: int = 3,
        by_time: bool = False,
    ) -> FlowMap:
        """The map towards a concept.

        Args:
            weights: as those of the network, perhaps in training.
            frame: of the language model.
            tokens: of the concept, [tokens, width]; in training of one for each row, [batch, tokens, width].
            hidden: float [batch, tokens], 1 for padding; None for none.
            steps: number of Euler steps.
            by_time: see `FlowMap`.
        """
        wide = {name: tensor.float() for name, tensor in weights.items()}
        blocks = tuple(
            _Block(wide, f"blocks.{i}.", frame).build(tokens, hidden, self.without) for i in range(self.blocks)
        )
        waves = wide["time_embed.mlp.0.weight"].shape[1] // 2
        sine, cosine = wide["time_embed.mlp.0.weight"].split([waves, waves], 1)
        return FlowMap(
            blocks,
            sine,
            cosine,
            embedding_bias=wide["time_embed.mlp.0.bias"],
            embedding=wide["time_embed.mlp.2.weight"],
            second_bias=wide["time_embed.mlp.2.bias"],
            steps=steps,
            by_time=by_time,
        )


@dataclass(frozen=True)
class _Block:
    """One block's tensors on their way into a map."""

    weights: Mapping[str, torch.Tensor]
    prefix: str
    frame: Frame

    def build(self, tokens: torch.Tensor, hidden: torch.Tensor | None, without: tuple[str, ...]) -> FlowBlock:
        return FlowBlock(
            None if "cross_attn" in without else self._concept(tokens, hidden),
            None if "self_attn" in without else self._causal(),
            None if "mlp" in without else self._mlp(),
        )

    def _get(self, name: str, *shape: int) -> torch.Tensor | None:
        found = self.weights.get(self.prefix + name)
        return found if found is None or not shape else found.view(shape)

    def _need(self, name: str, *shape: int) -> torch.Tensor:
        found = self.weights[self.prefix + name]
        return found.view(shape) if shape else found

    def _norm(self, name: str) -> torch.Tensor:
        return self._need(name) + self.frame.offset

    def _around(self, part: str, factor: str) -> dict[str, Any]:
        norms = {"before": self._norm(f"pre_{part}_norm.weight"), "after": self._norm(f"post_{part}_norm.weight")}
        return {**norms, "factor": self._need(factor), "epsilon": self.frame.epsilon}

    def _queries(self, part: str) -> dict[str, Any]:
        frame = self.frame
        heads = frame.heads, frame.groups, frame.head
        return {
            "query": self._need(f"{part}.q_proj.weight", *heads, frame.width),
            "output": self._need(f"{part}.o_proj.weight", frame.width, *heads),
            "query_bias": self._get(f"{part}.q_proj.bias", *heads),
            "output_bias": self._get(f"{part}.o_proj.bias"),
            "frequencies": frame.frequencies.to(self._need(f"{part}.q_proj.weight").device),
            "length": frame.length,
            "cap": frame.cap,
        }

    def _concept(self, tokens: torch.Tensor, hidden: torch.Tensor | None) -> ConceptAttention:
        frame, single = self.frame, tokens.ndim == 2
        shape = frame.heads, frame.head
        rows, queries = tokens[None] if single else tokens, self._queries("cross_attn")
        keys, values = (
            project(
                rows,
                self._need(f"cross_attn.{part}_proj.weight", *shape, frame.width),
                self._get(f"cross_attn.{part}_proj.bias", *shape),
            )
            for part in "kv"
        )
        keys = normalise(keys, self._norm("cross_attn.k_norm.weight"), frame.epsilon)
        keys = rotate(keys, torch.arange(rows.shape[1], device=rows.device), queries["frequencies"], frame.length)
        return ConceptAttention(
            **queries,
            **self._around("cross", "cross_gate"),
            query_norm=self._norm("cross_attn.q_norm.weight"),
            keys=keys[0] if single else keys,
            values=values[0] if single else values,
            hidden=hidden,
        )

    def _causal(self) -> CausalAttention:
        frame = self.frame
        shape = frame.heads, frame.head
        norms: dict[str, Any] = {
            f"{name}_norm": self._norm(f"self_attn.{name[0]}_norm.weight")
            for name in ("query", "key")
            if f"{self.prefix}self_attn.{name[0]}_norm.weight" in self.weights
        }
        return CausalAttention(
            **self._queries("self_attn"),
            **self._around("sa", "self_attn_gate"),
            **norms,
            key=self._need("self_attn.k_proj.weight", *shape, frame.width),
            value=self._need("self_attn.v_proj.weight", *shape, frame.width),
            key_bias=self._get("self_attn.k_proj.bias", *shape),
            value_bias=self._get("self_attn.v_proj.bias", *shape),
            scale=frame.scale,
        )

    def _mlp(self) -> GatedMLP:
        projections = (self._need(f"{name}_proj.weight") for name in ("gate", "up", "down"))
        gate, up, down = projections
        return GatedMLP(
            gate=gate, up=up, down=down, activation=self.frame.activation, **self._around("mlp", "mlp_gate")
        )


def expected(network: Network) -> Iterator[tuple[str, str, bool]]:
    """The tensors of a network: names, names of dimensions, and whether it must have them."""
    yield from ((name, dims, True) for name, dims in _TIME.items())
    for i in range(network.blocks):
        for part, tensors in PARTS.items():
            if part not in network.without:
                yield from ((f"blocks.{i}.{name}", dims, True) for name, dims in tensors.items())
                yield from ((f"blocks.{i}.{name}", dims, False) for name, dims in _OPTIONAL.get(part, {}).items())


def _check_shapes(network: Network) -> dict[str, int]:
    """The sizes of a network's dimensions by name, after all its tensors have been checked."""
    sizes: dict[str, int] = {}
    known = set()
    for name, dims, needed in expected(network):
        known.add(name)
        tensor = network.weights.get(name)
        if tensor is None and needed:
            raise ArtifactError(f"a FLAS network lacks {name}: download it again, or name the parts that it is without")
        if tensor is None:
            continue
        names = dims.split()
        if tensor.ndim != len(names) or any(
            sizes.setdefault(dim, size) != size for dim, size in zip(names, tensor.shape, strict=True)
        ):
            told = ", ".join(f"{dim} {sizes[dim]}" for dim in names if dim in sizes)
            raise ArtifactError(
                f"{name} of a FLAS network has shape {list(tensor.shape)}, expected [{dims}] with {told}"
            )
        if not bool(tensor.isfinite().all()):
            raise ArtifactError(f"{name} of a FLAS network has numbers that are not finite: download it again")
    if sizes["waves"] % 2:
        raise ArtifactError(
            f"the time of a FLAS network has {sizes['waves']} waves, expected sines and as many cosines"
        )
    if unknown := sorted(set(network.weights) - known):
        raise ArtifactError(f"a FLAS network has no {shorten(unknown[0], 80)}: is the file of another method?")
    return sizes


def _name_of(text: str) -> str:
    """A name for a concept, from its text."""
    plain = " ".join(re.findall(r"[\w'-]+", text))
    return plain[:60].strip(" '-") or "concept"
