"""What the user holds of a steering: whether it is attached, its strengths, and who else steers the same model.

Several handles on one model add up as the concepts of one handle do. At a site that several steer, the one that was
attached first computes the changes of all, from the same activation; the hooks of the others leave it alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, Self, TypeVar

from ..concept.concept import Concept
from ..errors import DSASError, quote
from ..model.compilation import runs_compiled
from ..model.hooks import Visit, find_visitors
from ..model.sites import Roots, Site
from .calls.call_state import CallState
from .diagnostics import Conflict, find_conflicts
from .strengths import Strength, Strengths
from .trace import Trace

H = TypeVar("H", bound="Handle")


class Handle:
    """A steering as the user holds it; a context manager that detaches at the end of its block.

    Entering the block attaches again what was detached. A block within a block of the same handle changes nothing.

    Args:
        concepts: what steers.
        strengths: of the concepts.
        trace: where h and changes are recorded, or None.
        state: of the calls that are steered.

    Attributes:
        watches: whether it only reads, whatever its strengths are set to; then it is none of the handles that add up.
    """

    #: how to find and end what steers a model, for messages
    ways_out: ClassVar[str] = "call detach() of its handle first"
    watches = False

    def __init__(
        self, concepts: Sequence[Concept], strengths: Strengths, trace: Trace | None, state: CallState
    ) -> None:
        self.strengths = strengths
        self._concepts, self._trace, self._state = concepts, trace, state
        self._visit: Visit | None = None
        self._entered = 0  # blocks, one within another
        self._stack: list[Handle] = []  # those that steer the model, the first one first
        #: for each site that others steer, too: all of them
        self._together: dict[Site, list[Handle]] = {}

    def __repr__(self) -> str:
        state = "ended" if self.strengths.ended else "attached" if self.attached else "not attached"
        return f"{type(self).__name__}({dict(self.strengths)}, {state}{'' if self.enabled else ', disabled'})"

    @property
    def trace(self) -> Any:
        """The record of h and of changes.

        Raises:
            DSASError: it was not asked for.
        """
        if self._trace is None:
            raise DSASError("nothing is recorded: steer with trace=True, and trace has h by site, step and position")
        return self._trace

    @property
    def traced(self) -> bool:
        """Whether there is a `trace`."""
        return self._trace is not None

    # ---- attached ---------------------------------------------------------------------------------------------------

    @property
    def attached(self) -> bool:
        """Whether the model is steered by this."""
        return self._visit is not None

    def detach(self) -> None:
        """Remove every hook, which leaves the model as it was. Can be called again; `with` attaches it again."""
        if self._visit is None:
            return
        self._leave()
        self._visit.detach()
        self._visit = None
        if self._state.choice is not None:
            self._state.choice.compiled = runs_compiled  # which holds no module
        self.strengths.ended = True
        for record in self._state.history:
            record.detached = True
        for name, sites in self.unreachable().items():
            most = [site for site, part in sites.items() if part > 0.5]
            if most:
                warnings.warn(
                    f"strength auto of {name!r}: at {', '.join(most)} the map does not lower what the probe sees at "
                    "most positions that are above the target, which stayed as they were: learn with other sites or "
                    "another method, or give a number",
                    stacklevel=3,
                )

    def attach_again(self) -> Self:
        """Attach to the same model as before.

        Raises:
            DSASError: it is not known to what.
        """
        raise DSASError("this steering is attached to nothing: call attach(roots, describe) before the with block")

    def __enter__(self) -> Self:
        if not self.attached:
            self.attach_again()
        self._entered += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._entered -= 1
        if self._entered <= 0:
            self._entered = 0
            self.detach()

    def check_attached(self, action: str) -> None:
        """Raise a DSASError where this steering has ended, so that something would have no effect."""
        if not self.attached:
            raise DSASError(
                f"this steering has ended: {action} in its with block, or before detach() (with steering: … attaches "
                "it again)"
            )

    # ---- strengths --------------------------------------------------------------------------------------------------

    def set_strengths(self, strengths: Mapping[str, Strength]) -> None:
        """Set several strengths at once; those of other concepts stay as they are.

        Args:
            strengths: concept name -> strength, as for `steer`.

        Raises:
            DSASError: an unknown name, a strength that is refused, or steering that has ended; then none is set.

        Example:
            >>> from dsas_core import llm
            >>> model, _ = llm.load("builtin:chat", device="cpu")
            >>> with llm.steer(model, {"builtin:rudeness": 1.0}) as steering:
            ...     steering.set_strengths({"rudeness": 0.5})
            ...     print(steering)
            TextSteering({'rudeness': 0.5}, attached)
        """
        self.strengths.set_all(strengths)

    @property
    def enabled(self) -> bool:
        """Whether strengths count; not so after `disable`."""
        return not self._state.disabled

    def disable(self) -> None:
        """Let every strength count as 0, bit for bit, until `enable`; the strengths themselves are kept.

        Raises:
            DSASError: steering that has ended.

        Example:
            >>> from dsas_core import llm
            >>> model, _ = llm.load("builtin:chat", device="cpu")
            >>> with llm.steer(model, {"builtin:rudeness": 1.0}) as steering:
            ...     steering.disable()
            ...     print(steering)
            TextSteering({'rudeness': 1.0}, attached, disabled)
        """
        self.check_attached("call disable()")
        self._state.disabled = True

    def enable(self) -> None:
        """Let strengths count again after `disable`.

        Raises:
            DSASError: steering that has ended.
        """
        self.check_attached("call enable()")
        self._state.disabled = False

    @contextmanager
    def muted(self) -> Iterator[Mapping[str, Collection[int]]]:
        """In this block every strength counts as 0, whatever it is set to meanwhile: probes read, and nothing changes.

        Yields:
            Concept name -> numbers of the prompts that the strengths would have steered in the calls so far.

        Raises:
            DSASError: it is muted already.
        """
        if self._state.muted is not None:
            raise DSASError("this steering is muted already: wait until that generation ends")
        self._state.muted = {name: set() for name in self.strengths}
        try:
            yield self._state.muted
        finally:
            self._state.muted = None

    # ---- what happened ----------------------------------------------------------------------------------------------

    @property
    def fired(self) -> list[str]:
        """Names of the sites that have been reached so far; with a pipeline, in the last generation."""
        return sorted(str(site) for site in self._visit.visited) if self._visit else []

    def conflicts(self) -> list[Conflict]:
        """The cosine between the shifts of every two concepts, at each site that they share.

        These are the concepts of this handle, each with the others and with those of other handles on the model.
        """
        return self._conflicts(all_concepts=True)

    def _conflicts(self, *, all_concepts: bool) -> list[Conflict]:
        """Those of all concepts, or of the ones alone whose strengths are not 0."""
        handles = self._stack or [self]
        strengths = {name: handle.strengths.values_of(name) for handle in handles for name in handle.strengths}
        concepts = [concept for handle in handles for concept in handle._concepts]
        chosen = [concept for concept in concepts if all_concepts or bool(strengths[concept.name].any())]
        found = find_conflicts(chosen, strengths)
        return [conflict for conflict in found if {conflict.first, conflict.second} & set(self.strengths)]

    def unreachable(self) -> dict[str, dict[str, float]]:
        """How often the map does not lower the probe's logit, for concepts with the strength "auto".

        Returns:
            Concept name -> site -> share of the positions that were above the target so far; sites without such
            positions are left out.
        """
        return self._state.unreachable()

    # ---- with others ------------------------------------------------------------------------------------------------

    @property
    def others(self) -> list[Handle]:
        """Other handles that steer the same model."""
        return [handle for handle in self._stack if handle is not self]

    def _check_names(self, others: Sequence[Handle]) -> None:
        """Raise where a concept of this steers the model already."""
        for other in others:
            for name in self.strengths:
                if name in other.strengths:
                    raise DSASError(
                        f"concept {quote(name)} is steering this model already: set its strength on that handle, or "
                        f"detach it ({self.ways_out})"
                    )

    def _join(self, others: Sequence[Handle]) -> None:
        """Add up with other handles, from now on."""
        stack = list(dict.fromkeys(handle for other in others for handle in other._stack))
        stack.append(self)
        _share(stack)

    def _leave(self) -> None:
        stack, self._stack, self._together = self.others, [], {}
        _share(stack)


def find_handles(roots: Roots) -> list[Handle]:
    """The handles that steer a model now, found by its hooks, the one that was attached first at the beginning.

    Args:
        roots: root modules by name.
    """
    found = [visitor for visitor in find_visitors(roots) if isinstance(visitor, Handle) and not visitor.watches]
    return sorted(found, key=lambda handle: handle._stack.index(handle))


def refuse_steered(roots: Roots, action: str) -> None:
    """Raise a DSASError where a model is steered that is about to be learned from, or measured, as it is by itself.

    Args:
        roots: root modules by name.
        action: what is about to be done, for the message.
    """
    if handles := find_handles(roots):
        raise DSASError(f"{action} needs the model by itself, and {handles[0]} steers it: {handles[0].ways_out}")


def detach_all(handles: list[H]) -> list[H]:
    """Detach handles, the last one first, all of them whatever one raises."""
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.detach)
    return handles


def _share(stack: list[Handle]) -> None:
    """Tell some handles, the first one first, where they steer together."""
    at: dict[tuple[Site, int], list[Handle]] = {}
    for handle in stack:
        assert handle._visit is not None
        for site, module in handle._visit.modules():
            at.setdefault((site, id(module)), []).append(handle)
    for handle in stack:
        handle._stack = stack
        handle._together = {site: group for (site, _), group in at.items() if len(group) > 1 and handle in group}
