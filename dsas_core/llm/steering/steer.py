"""`steer(model, {concept: strength})`: concepts at work in a language model, until the block ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import nn

from ...concept.concept import Concept
from ...errors import UnsupportedError
from ...model.sites import Site
from ...steering.diagnostics import UnreachedSites, explain_unreached, warn_unreached
from ...steering.steering import Steering
from ...steering.strengths import Strength, Strengthened, load_concepts
from ..model.call_describer import CallDescriber
from ..model.layers import ends_of, positions_of, roots_of
from .trace import TextTrace


class TextSteering(Steering):
    """The handle that `steer` gives: `strengths`, `trace`, `detach()`. A context manager.

    Args:
        concepts: concept -> strength.
        gate: see `steer`.
        phase: see `steer`.
        trace: where h is recorded, if anywhere.
        on_text: called with the root's name before a new text replaces what the trace holds.
        read_only: whether nothing is to be changed, so that a text longer than the model takes is no error here.
        combine: see `steer`.
        within: see `steer`.
    """

    trace: TextTrace | None

    def __init__(
        self,
        concepts: Mapping[Concept, Strength],
        gate: str | None = None,
        phase: str = "all",
        trace: TextTrace | None = None,
        on_text: Callable[[str], None] | None = None,
        read_only: bool = False,
        combine: str = "sum",
        within: str | None = None,
    ) -> None:
        super().__init__(concepts, gate=gate, trace=trace, combine=combine, within=within)
        self._on_text, self._read_only = on_text, read_only
        self._tokens = CallDescriber(
            phase, self._prompts, self._text_begins, self.stateful, on_tokens=self._tokens_come
        )

    def attach_to_model(self, model: nn.Module) -> Self:
        roots = roots_of(model)
        self._tokens.limit, self._tokens.ends = 0 if self._read_only else positions_of(model), ends_of(model)
        unreached = UnreachedSites()

        def missed(root: str, sites: list[Site]) -> None:
            if new := unreached.new_among(sites):
                warn_unreached(new, explain_unreached(roots[root]))

        return self.attach(roots, {root: self._tokens.describe(root) for root in roots}, on_unreached=missed)

    def _prompts(self) -> int:
        return max(len(self.strengths.values_of(name)) for name in self.strengths)

    def _text_begins(self, root: str) -> None:
        if self._on_text is not None:
            self._on_text(root)
        if self.trace is not None:
            self.trace.begin_text(root)

    def _tokens_come(self, root: str, start: int, ids: torch.Tensor | None, mask: torch.Tensor) -> None:
        if start == 0:
            self._refuse_without_prompt(root)
            self._state.reset(root, len(mask), mask.device)
        if self.trace is not None:
            self.trace.note_tokens(root, start, ids, mask)

    def _refuse_without_prompt(self, root: str) -> None:
        """A latch that reads at a decoder would wait for ever: all that comes by there is written."""
        for entry, probe in self._state.stateful() if root == "decoder" else ():
            if entry.probe_site.root == root and probe.by_prompt:
                raise UnsupportedError(
                    f"{entry.concept!r} has a gate that decides at a prompt's end, at {entry.probe_site}, but the "
                    "prompt goes through the encoder: learn at encoder sites, or with form token"
                )


def steer(
    model: nn.Module,
    concepts: Strengthened,
    *,
    gate: str | None = None,
    phase: str = "all",
    combine: str = "sum",
    within: str | None = None,
    trace: bool = False,
    tokenizer: Any = None,
    force: bool = False,
) -> TextSteering:
    """Steer a language model.

    Args:
        model: a transformers model; a causal one, or encoder and decoder. It may wear PEFT adapters.
        concepts: concept, or its folder, Hub name or builtin:NAME -> strength; 1 is one unit, 0 is off and exact,
            negative goes the other way. A list gives one strength per prompt of a batch. "auto", or `Auto(target)`,
            steers each token just as far as its probe's probability is above the target.
        gate: None for each concept's own, "on" to steer every token (the vanilla method), "off" for none.
        phase: "prompt" steers the tokens that are given, "generation" those that the model writes, "all" both.
        combine: "sum" adds up what several concepts change, "blend" keeps the total of their h within the highest.
        within: "target" takes as much of a strength, at each token, as keeps it among those of the concept's target
            texts; for concepts learned with recipe={"cloud": 8}.
        trace: record h; `trace.tokens(row)` gives it token by token.
        tokenizer: spells the tokens of the trace.
        force: use a concept that was learned on another architecture all the same.

    Returns:
        A handle, attached already: use it in a `with` block or call `detach()`.

    Raises:
        ModelMismatchError: a concept that was learned on another architecture.
        DSASError: a compiled model, a strength that is not finite, "auto" for a concept without a hyperplane,
            "target" for one without a cloud.

    Example:
        >>> from dsas_core import llm
        >>> from dsas_core.llm.steering.answer import answer, asked
        >>> model, tokenizer = llm.load("builtin:chat", device="cpu")
        >>> with steer(model, {"builtin:rudeness": 1.0}):
        ...     answer(model, tokenizer, asked(tokenizer, "my parcel has not arrived, you fool!"), 7).text
        'i am sorry about the parcel.'
    """
    chosen = load_concepts(concepts, roots_of(model), force=force)
    record = TextTrace(tokenizer) if trace else None
    steering = TextSteering(chosen, gate=gate, phase=phase, trace=record, combine=combine, within=within)
    return steering.attach_to_model(model)
