"""`steer(pipe, {concept: strength})` steers a pipeline; `steered(pipe)` tells what does, `detach(pipe)` ends it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Self

from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError, UnsupportedError
from dsas_core.model.hooks import Call
from dsas_core.model.sites import Site
from dsas_core.steering.handle import detach_all, find_handles
from dsas_core.steering.steering import Steering
from dsas_core.steering.strengths import Schedule, Strength, Strengthened, load_concepts

from ..pipelines.adapter import adapt
from ..pipelines.batch_layout import BatchLayout
from ..pipelines.generation_watcher import GenerationRequest, find_watchers
from .checks import SiteChecks
from .preserve import Generation, generate_preserving
from .processor import SteeredProcessors
from .trace import PictureTrace
from .word_masks import WordMasks, Words, check_words

#: how the outputs of the denoiser's attention layers are steered; all other sites have hooks
ATTACH = ("hooks", "processor")


class PipelineSteering(Steering):
    """The handle that `steer` returns: `strengths`, `generate()`, `trace`, `detach()`, see `Handle`. A context manager.

    Args:
        layout: of the pipeline's batches.
        concepts: concept -> strength.
        words: masks by words of the prompt, or None.
        attach: "hooks" or "processor".
        settings: of `Steering`.

    Attributes:
        adapter: of the pipeline.
        at_start: called, once each, when the next generation begins.
    """

    ways_out = "dsas.steered(pipe) returns the handles, dsas.detach(pipe) ends them"
    _trace: PictureTrace | None

    def __init__(
        self,
        layout: BatchLayout,
        concepts: Mapping[Concept, Strength],
        words: WordMasks | None = None,
        attach: str = "hooks",
        **settings: Any,
    ) -> None:
        super().__init__(concepts, localiser=words, **settings)
        if attach not in ATTACH:
            raise DSASError(f"attach {attach!r}: expected {' or '.join(ATTACH)}")
        self.adapter = layout.adapter
        self._layout, self._words = layout, words
        self._denoiser = self.adapter.family.denoiser
        self._roots = self.adapter.roots
        by_processor = self.sites if attach == "processor" else []
        self._processors = SteeredProcessors(self._roots[self._denoiser], self._denoiser, by_processor)
        self._checks = SiteChecks(layout, self.sites, self._processors.sites)
        self._told = False  # that a text encoder was called by somebody else
        self._undo = ExitStack()  # of what is done to the pipeline beside hooks
        self.at_start: set[Callable[[], object]] = set()

    def attach_to_pipeline(self) -> Self:
        """Watch the pipeline and place hooks at the sites of its modules."""
        self._check_pipeline()
        self._layout.on_generation, self._layout.owner, self._told = self._generation_begins, self, False
        try:
            self._undo.enter_context(self._layout)
            if self._words is not None:
                self._undo.callback(self._words.detach)
                self._words.attach()
            unhooked = self._processors.sites
            # other text encoders may read what they will
            steered = {self._denoiser, *(site.root for site in self.sites)}
            calls = {root: call for root, call in self._layout.describe().items() if root in steered}
            self.attach(self._roots, calls, on_unreached=self._checks.missed, unhooked=unhooked)
            self._undo.callback(self._processors.restore)
            self._processors.replace(self)
        except BaseException:
            self.detach()
            raise
        return self

    def _check_pipeline(self) -> None:
        """Refuse a pipeline that cannot be steered beside what steers it, or that is no longer what it was."""
        pipe = self.adapter.pipe
        if replaced := [name for name, root in self._roots.items() if getattr(pipe, name, None) is not root]:
            raise DSASError(f"the pipeline has another {', '.join(replaced)} since: steer it anew with steer(pipe, …)")
        for other in find_handles(self._roots):
            if isinstance(other, PipelineSteering) and other.adapter.pipe is not pipe:
                raise DSASError(f"another pipeline of the same parts is being steered: {self.ways_out}")
            if isinstance(other, PipelineSteering) and other._processors.sites and self._processors.sites:
                raise UnsupportedError(
                    'a processor steers attention layers already: pass all concepts to one steer(…, attach="processor")'
                    ', or steer with attach="hooks"'
                )

    def attach_again(self) -> Self:
        return self.attach_to_pipeline()

    def detach(self) -> None:
        """Remove every hook; the pipeline is what it was. Can be called again; `with` attaches it again."""
        try:
            super().detach()
        finally:  # it may warn, and warnings may be raised as errors
            self._undo.close()
            # which hold this: traces would wait for the garbage collector
            self._layout.on_generation = self._layout.owner = None

    def generate(
        self, *args: Any, preserve: Any = False, unsteered: Generation | None = None, **kwargs: Any
    ) -> Generation:
        """Draw pictures; with `preserve` everything in them stays as it is without steering, but for the concepts.

        `preserve` calls the pipeline twice, with the same random numbers. Where the concepts' probes see nothing, or
        strengths are 0, a picture is the unsteered one, bit for bit; the second pass is left out where all are.

        Args:
            args: of the pipeline.
            preserve: False for `pipe(*args, **kwargs)`; True keeps latents and pixels outside of where the concepts'
                probes see them; "latents" does not compose pixels in the end; a mask keeps what is outside of it: a PIL
                picture or an array [height, width] of bools, floats in [0, 1] or uint8, of any size with the pictures'
                aspect (1 × 1 is one value for all of it), or a list with one for each picture.
            unsteered: with `preserve`, what an earlier call with the same arguments and seeds returned, at whatever
                strengths: its unsteered pass is used again, and only the steered one is run.
            kwargs: of the pipeline; a callback of the user runs in both passes.

        Returns:
            The images; with `preserve` also the unsteered ones and the masks. The trace is of the last pass; where
            `unsteered` is given and nothing is steered, no pass runs, and the trace stays as it was.

        Raises:
            UnsupportedError: a pipeline that gives no latents after its steps; with `preserve`, an `output_type` other
                than "pil" ("latent" works with preserve="latents"), or another handle that steers the pipeline.
            DSASError: a bad mask; `unsteered` of another call; steering that has ended.

        Example:
            >>> from dsas_diffusion import load_pipeline
            >>> pipe = load_pipeline("builtin:emoji", device="cpu")
            >>> with steer(pipe, {"builtin:banana-blur": 1.0}) as steering:
            ...     made = steering.generate("a dog", preserve=True, num_inference_steps=4)
            >>> made.images == made.unsteered, made.masks[0].shape
            (True, (64, 64))
        """
        self.check_attached("call generate")
        if preserve is False:
            if unsteered is not None:
                raise DSASError("unsteered= is what preserve= puts back: give preserve=True, or leave it out")
            return Generation(self.adapter.pipe(*args, **kwargs)[0])
        if self.others:
            raise UnsupportedError(
                f"preserve= puts back the unsteered picture, and {self.others[0]} steers that, too: pass all concepts "
                "to one steer(), or detach the other"
            )
        return generate_preserving(self, self._layout, self._concepts, preserve, unsteered, args, kwargs)

    def bring(self, site: Site, value: Any) -> Any:
        """The output of an attention layer, steered; unchanged once this is detached."""
        current = self._visit  # another thread may detach meanwhile
        return value if current is None else current.apply(site, value)

    def attn_processors(self, inner: Any = None) -> dict[str, Any]:
        """Processors for the denoiser's `set_attn_processor`, a dict with one for every layer.

        Args:
            inner: the processor that computes attention where there is steering; None for those of the model.

        Raises:
            UnsupportedError: this steering has hooks there, and would steer twice.
        """
        if not self._processors.sites:
            raise UnsupportedError(
                'no attention layer of the denoiser is steered by a processor: steer with attach="processor", and a '
                'concept that was learned with sites="denoiser" (text encoders are steered by hooks)'
            )
        return self._processors.build(self, inner)

    def begin(self, root: str, call: Call) -> None:
        if root == self._denoiser:
            self._check_strengths(self._layout.request.prompts)
            if self._visit is not None:
                self._checks.check_texts(self._visit)
            if self._trace is not None:
                self._trace.follow(self._layout)
        elif bool(call.steered.any()):
            self._check_strengths(len(call.prompts))
        if root != self._denoiser and self._layout.called_directly and not self._told:
            self._told = True
            warnings.warn(
                f"the {root} was called by something else than {type(self.adapter.pipe).__name__} and its "
                "encode_prompt, and all that it reads so is taken for prompts: give other pipelines a copy of it, and "
                "encode negative prompts outside of the steer() block",
                stacklevel=2,
            )
        super().begin(root, call)

    def _generation_begins(self, request: GenerationRequest) -> None:
        while self.at_start:
            self.at_start.pop()()
        self._state.clear_scores()  # of other prompts
        if self._visit is not None:
            self._visit.reset()
        if self._trace is not None:
            self._trace.clear()
        if self._words is not None:
            self._words.start(request)
        self._checks.begin(request.clip_skip, self._visit, self._words)

    def _check_strengths(self, prompts: int) -> None:
        """Raise where strengths are given by prompt, and not for as many as a call has."""
        for name in self.strengths:
            given = len(self.strengths.values_of(name))
            if given not in (1, prompts):
                raise DSASError(f"strength of {name!r} is given for {given} prompts, but the call has {prompts}")


def steer(
    pipe: Any,
    concepts: Strengthened,
    *,
    gate: str | None = None,
    branch: str = "conditional",
    schedule: Schedule | Mapping[str, Schedule] | None = None,
    combine: str = "sum",
    within: str | None = None,
    words: Words | None = None,
    interpolate_bins: bool = False,
    attach: str = "hooks",
    trace: bool = False,
    force: bool = False,
    rows: str | None = None,
) -> PipelineSteering:
    """Steer a pipeline, until the end of the `with` block, or of `detach()`.

    Several `steer` on one pipeline add up as several concepts of one do.

    Args:
        pipe: a diffusers text-to-image pipeline of a known family, or its `PipelineAdapter`.
        concepts: concept, or its folder, Hub name or builtin:NAME -> strength; 1 is one unit, 0 is off and exact,
            negative strengths steer the opposite way. A list gives one strength per prompt of a batch. "auto", or
            `Auto(target)`, steers each position just as far as its probe's probability is above the target.
        gate: None for each concept's own, "on" to steer everything (the vanilla method), "off" for nothing.
        branch: of classifier-free guidance, "conditional" steers the prompt's rows, "unconditional" those of the
            negative prompt, "both" all.
        schedule: strength over the timestep (`dsas_diffusion.Schedule`), for all concepts or by name.
        combine: "sum" adds up the changes of several concepts, "blend" keeps the total of their h within the highest.
        within: "target" takes as much of a strength, at each position, as keeps it among those of the concept's target
            pictures; for concepts learned with recipe={"cloud": 8}.
        words: concept name -> a word of the prompt, or several: h is multiplied by the picture's cross-attention to
            them, see `dsas_diffusion.steering.word_masks`. For concepts that steer the denoiser; in a prompt without
            the word they do nothing.
        interpolate_bins: whether probes and maps of several timestep bins are interpolated linearly, or change at the
            bins' edges.
        attach: "hooks", or "processor" to steer the outputs of the denoiser's attention layers in their processors,
            see `dsas_diffusion.steering.processor`.
        trace: record h; `trace.heatmap(name, image)` draws it.
        force: use a concept that was learned on another architecture all the same.
        rows: the former name of `branch`; deprecated.

    Returns:
        A handle, attached already: use it in a `with` block or call `detach()`.

    Raises:
        ModelMismatchError: a concept that was learned on another architecture.
        UnsupportedError: an unknown family, a compiled denoiser, an option that a concept cannot do.
        DSASError: an unknown option, a strength that is not finite, a concept that steers the pipeline already.

    Example:
        >>> from dsas_diffusion import load_pipeline
        >>> pipe = load_pipeline("builtin:emoji", device="cpu")
        >>> with steer(pipe, {"builtin:banana-blur": 1.0}) as steering:
        ...     image = pipe("a banana and a dog", num_inference_steps=2).images[0]
        >>> steering.strengths
        Strengths({'banana-blur': 1.0})
    """
    if rows is not None:
        warnings.warn("steer(rows=…) is called branch= now", DeprecationWarning, stacklevel=2)
        branch = rows
    adapter = adapt(pipe)
    chosen = load_concepts(concepts, adapter.roots, force=force)
    positions = {str(concept.provenance.get("positions", "all")) for concept in chosen}
    if len(positions) > 1:
        raise UnsupportedError("concepts that read words and concepts that read padding too cannot be steered together")
    layout = BatchLayout(adapter, branch, positions.pop())
    checked = check_words(words or {}, chosen, adapter.family.denoiser)
    steering = PipelineSteering(
        layout,
        chosen,
        WordMasks(layout, checked) if checked else None,
        attach,
        gate=gate,
        schedule=schedule,
        combine=combine,
        within=within,
        interpolate_bins=interpolate_bins,
        trace=PictureTrace() if trace else None,
    )
    return steering.attach_to_pipeline()


def steered(pipe: Any) -> list[PipelineSteering]:
    """The handles that steer a pipeline now, or its parts in another one, the first one that was attached first.

    They are found by their hooks, so nothing needs to be kept to end what steers a pipeline.

    Example:
        >>> from dsas_diffusion import load_pipeline
        >>> pipe = load_pipeline("builtin:emoji", device="cpu")
        >>> steering = steer(pipe, {"builtin:banana-blur": 1.0})
        >>> steered(pipe)
        [PipelineSteering({'banana-blur': 1.0}, attached)]
        >>> detach(pipe)
        [PipelineSteering({'banana-blur': 1.0}, ended)]
        >>> steered(pipe)
        []
    """
    adapter = adapt(pipe)
    # one whose modules were replaced since has no hooks here, and still watches
    watching = reversed([watcher.owner for watcher in find_watchers(adapter.pipe)])
    found = dict.fromkeys([*find_handles(adapter.roots), *watching])
    return [handle for handle in found if isinstance(handle, PipelineSteering)]


def detach(pipe: Any) -> list[PipelineSteering]:
    """Detach all that steers a pipeline; see `steered`.

    Returns:
        The handles that are detached; `with handle:` attaches one again.

    Example:
        >>> from dsas_diffusion import load_pipeline
        >>> detach(load_pipeline("builtin:emoji", device="cpu"))
        []
    """
    return detach_all(steered(pipe))
