"""`steer(model, {concept: strength})`: steers a language model until the end of the block."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import nn

from ...concept.concept import Concept
from ...errors import DSASError, UnsupportedError
from ...model.sites import Site
from ...probes import RunningProbe, TextProbe
from ...steering.calls.call_state import CallState
from ...steering.diagnostics import UnreachedSites, explain_unreached, warn_unreached, warn_wrapped
from ...steering.handle import detach_all, find_handles
from ...steering.steering import Steering
from ...steering.strengths import Strength, Strengthened, load_concepts
from ..model.call_describer import CallDescriber
from ..model.call_inputs import virtual_tokens
from ..model.layers import end_tokens, max_positions, roots_of, unwrap
from ..model.runs import Runs, check_groups
from .trace import TextTrace


class TextSteering(Steering):
    """The handle that `steer` returns: `strengths`, `trace`, `detach()`, see `Handle`. A context manager.

    Args:
        concepts: concept -> strength.
        phase: see `steer`.
        on_text: called with the name of the root before a new text replaces that of the trace.
        groups: see `steer`.
        read_only: whether nothing is steered; then a text longer than the model takes is left to the model.
        settings: `gate`, `trace`, `combine` and `within`, see `Steering`.

    Example:
        >>> from dsas_core import llm
        >>> model, _ = llm.load("builtin:chat", device="cpu")
        >>> with llm.steer(model, {"builtin:rudeness": 1.0}) as steering:
        ...     steering.strengths["rudeness"] = 0.5
    """

    ways_out = "llm.steered(model) returns the handles, llm.detach(model) ends them"
    _trace: TextTrace | None

    def __init__(
        self,
        concepts: Mapping[Concept, Strength],
        *,
        phase: str = "all",
        on_text: Callable[[str], None] | None = None,
        groups: Sequence[int] | None = None,
        read_only: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(concepts, **settings)
        self._phase, self._on_text, self.watches = phase, on_text, read_only
        self._groups = None if groups is None else check_groups(groups)
        self._model: Callable[[], nn.Module | None] = _nothing

    def attach_to_model(self, model: nn.Module) -> Self:
        """Place the hooks.

        Args:
            model: a transformers language model.
        """
        roots, unreached, self._model = roots_of(model), UnreachedSites(), weakref.ref(model)
        probes = [entry.probe for concept in self._attached for entry in concept.entries]
        running = [probe for probe in probes if isinstance(probe, RunningProbe)]

        def begin_text(root: str) -> None:
            if self._visit is not None and (new := unreached.new_among(self._visit.wrapped_since())):
                warn_wrapped(new)
            self._begin_text(root)

        describer = CallDescriber(  # held by hooks alone: it holds this, and both must go when hooks do
            self._phase,
            self._count_prompts,
            on_text=begin_text,
            stateful=self.stateful,
            limit=0 if self.watches else max_positions(model),
            ends=end_tokens(model),
            on_tokens=self._note_tokens,
            on_rows=self._take_rows if self.stateful or self._trace is not None else None,
            by_prompt=any(isinstance(probe, TextProbe) or probe.by_prompt for probe in running),
            latched=all(probe.by_prompt for probe in running) and not any(True for _ in self._state.maps.running()),
            keeper=_Keeper(self._state, self._trace),
            runs=Runs(self._groups) if self._state.grouping.coupled else None,
            virtual=partial(virtual_tokens, model) if hasattr(model, "peft_config") else None,
        )

        def missed(root: str, sites: list[Site]) -> None:
            if new := unreached.new_among(sites):
                warn_unreached(new, explain_unreached(roots[root]))

        describe = {root: describer.describe(root, unwrap(module)) for root, module in roots.items()}
        return self.attach(roots, describe, on_unreached=missed, on_end=describer.finish)

    def attach_again(self) -> Self:
        model = self._model()
        if model is None:
            raise DSASError("the model that this steering was of is gone: steer another with llm.steer(model, …)")
        return self.attach_to_model(model)

    def _count_prompts(self) -> int:
        return max(len(self.strengths.values_of(name)) for name in self.strengths)

    def _begin_text(self, root: str) -> None:
        if self._on_text is not None:
            self._on_text(root)
        if self._trace is not None:
            self._trace.begin_text(root)

    def _note_tokens(self, root: str, start: int, ids: torch.Tensor | None, mask: torch.Tensor) -> None:
        if start == 0:
            self._check_prompt_gates(root)
            self._state.reset(root, len(mask), mask.device)
            self._state.maps.reset(root, len(mask), mask.device)
        if self._trace is not None:
            self._trace.note_tokens(root, start, ids, mask)

    def _take_rows(self, root: str, rows: torch.Tensor) -> None:
        self._state.take_rows(root, rows)
        self._state.maps.take_rows(root, rows)
        if self._trace is not None:
            self._trace.take_rows(root, rows)

    def _check_prompt_gates(self, root: str) -> None:
        """Raise where a gate that decides at the end of the prompt reads a decoder, which never has a prompt."""
        for entry, probe in self._state.stateful() if root == "decoder" else ():
            if entry.probe_site.root == root and probe.by_prompt:
                raise UnsupportedError(
                    f"{entry.concept!r} has a gate that decides at a prompt's end, at {entry.probe_site}, but the "
                    "prompt goes through the encoder: learn at encoder sites, or with form token"
                )


def _nothing() -> None:
    """In place of a weak reference to a model."""


class _Keeper:
    """Keeps states of gates and maps, and the trace of a text while its root works on another, see `texts.Keeper`."""

    def __init__(self, state: CallState, trace: TextTrace | None) -> None:
        self._state, self._trace = state, trace

    def save_gates(self, root: str) -> Any:
        return self._state.save(root), self._state.maps.save(root)

    def load_gates(self, root: str, saved: Any) -> None:
        gates, maps = saved
        self._state.load(gates)
        self._state.maps.load(maps)

    def save_trace(self, root: str) -> Any:
        return None if self._trace is None else self._trace.save(root)

    def load_trace(self, root: str, saved: Any) -> None:
        if self._trace is not None:
            self._trace.load(root, saved)

    def take_back(self, root: str, length: int) -> None:
        if self._trace is not None:
            self._trace.take_back(root, length)


def steer(
    model: nn.Module,
    concepts: Strengthened,
    *,
    gate: str | None = None,
    phase: str | None = None,
    groups: Sequence[int] | None = None,
    combine: str = "sum",
    within: str | None = None,
    trace: bool = False,
    tokenizer: Any = None,
    force: bool = False,
) -> TextSteering:
    """Steer a language model, until the end of the `with` block, or of `detach()`.

    Several `steer` on one model add up as several concepts of one do.

    Args:
        model: a transformers model, causal or with encoder and decoder. It may have PEFT adapters.
        concepts: concept, or its folder, Hub name or builtin:NAME -> strength. 1 is one unit, 0 is off (bit-exact),
            negative strengths steer the opposite way. A list has one strength per prompt of a batch. "auto", or
            `Auto(target)`, steers each token just so far that its probe's probability falls to the target.
        gate: None for each concept's own, "on" to steer every token (the vanilla method), "off" for none.
        phase: "generation" steers the positions that write the answer: the last one of the prompt, which writes the
            first token, and all that follow; "prompt" steers the others of the prompt, "all" both. None for "all";
            for "generation" with a concept of `stars`, as all runs of a prompt read the same.
        groups: for concepts of `stars`, a number for each row of the batch, the same for runs of one prompt. None: rows
            with equal prompts are its runs, as those of `num_return_sequences` are.
        combine: "sum" adds the changes of several concepts, "blend" limits the sum of their h to the highest of them.
        within: "target" limits the strength at each token so that its hidden state stays inside the envelope of the
            concept's target texts; for concepts learned with recipe={"cloud": 8}.
        trace: whether to record h; `trace.tokens(row)` returns it by token.
        tokenizer: tokenizer of the model, for the texts of the trace's tokens.
        force: accept concepts that were learned on another architecture.

    Returns:
        A handle, attached already: use it in a `with` block or call `detach()`.

    Raises:
        ModelMismatchError: a concept was learned on another architecture.
        DSASError: a concept that steers the model already, a compiled model, a strength that is not finite, "auto" for
            a concept without a hyperplane, "target" for one without an envelope.

    Example:
        >>> from dsas_core import llm
        >>> from dsas_core.llm.steering.answer import answer, encode_message
        >>> model, tokenizer = llm.load("builtin:chat", device="cpu")
        >>> with steer(model, {"builtin:rudeness": 1.0}):
        ...     answer(model, tokenizer, encode_message(tokenizer, "my parcel has not arrived, you fool!"), 7).text
        'i am sorry about the parcel.'
    """
    chosen = load_concepts(concepts, roots_of(model), force=force)
    record = TextTrace(tokenizer) if trace else None
    settings: dict[str, Any] = {"gate": gate, "trace": record, "combine": combine, "within": within, "groups": groups}
    if phase is None:
        phase = "generation" if any(concept.couples_rows for concept in chosen) else "all"
    return TextSteering(chosen, phase=phase, **settings).attach_to_model(model)


def steered(model: nn.Module) -> list[TextSteering]:
    """The handles that steer a language model now, the one that was attached first at the beginning.

    They are found by their hooks, so nothing needs to be kept to end what steers a model. A `Monitor` is none of them.

    Example:
        >>> from dsas_core import llm
        >>> model, _ = llm.load("builtin:chat", device="cpu")
        >>> steering = steer(model, {"builtin:rudeness": 1.0})
        >>> steered(model)
        [TextSteering({'rudeness': 1.0}, attached)]
        >>> detach(model)
        [TextSteering({'rudeness': 1.0}, ended)]
        >>> steered(model)
        []
    """
    return [handle for handle in find_handles(roots_of(model)) if isinstance(handle, TextSteering)]


def detach(model: nn.Module) -> list[TextSteering]:
    """Detach all that steers a language model; see `steered`.

    Returns:
        The handles that are detached; `with handle:` attaches one again.

    Example:
        >>> from dsas_core import llm
        >>> llm.detach(llm.load("builtin:chat", device="cpu")[0])
        []
    """
    return detach_all(steered(model))
