"""`steer(pipe, {concept: strength})`: steer a pipeline with concepts, until the block ends."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Self

from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError, UnsupportedError
from dsas_core.model.hooks import Call, find_visitors
from dsas_core.model.sites import Site
from dsas_core.steering.diagnostics import (
    UnreachedSites,
    explain_unreached,
    list_sites,
    warn_unreached,
    warn_wrapped,
)
from dsas_core.steering.steering import Steering
from dsas_core.steering.strengths import Schedule, Strength, Strengthened, load_concepts

from ..pipelines.adapter import adapt
from ..pipelines.batch_layout import BatchLayout
from ..pipelines.caches import caches_of, sites_steered_twice
from ..pipelines.generation_watcher import GenerationRequest
from .preserve import Generation, generate_preserving
from .processor import SteeredProcessors
from .trace import PictureTrace
from .word_masks import WordMasks, Words, check_words

#: how the outputs of the denoiser's attention layers are steered; all other sites have hooks
ATTACH = ("hooks", "processor")


class PipelineSteering(Steering):
    """The handle that `steer` returns: `strengths`, `generate()`, `trace`, `detach()`. A context manager.

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

    trace: PictureTrace | None

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
        self._unreached = UnreachedSites()  # in this generation
        self._told = False  # that a text encoder was called by somebody else
        self._undo = ExitStack()  # of what is done to the pipeline beside hooks
        self.at_start: set[Callable[[], object]] = set()

    def attach_to_pipeline(self) -> Self:
        """Watch the pipeline and place hooks at the sites of its modules."""
        self._layout.on_generation = self._generation_begins
        self._undo.enter_context(self._layout)
        try:
            if any(isinstance(visitor, PipelineSteering) for visitor in find_visitors(self._roots)):
                raise DSASError("another pipeline of the same parts is being steered: detach that steering first")
            if self._words is not None:
                self._undo.callback(self._words.detach)
                self._words.attach()
            unhooked = self._processors.sites
            steered = {
                self._denoiser,
                *(site.root for site in self.sites),
            }  # other text encoders may read what they will
            calls = {root: call for root, call in self._layout.describe().items() if root in steered}
            self.attach(self._roots, calls, on_unreached=self._missed, unhooked=unhooked)
            self._undo.callback(self._processors.restore)
            self._processors.replace(self)
        except BaseException:
            self.detach()
            raise
        return self

    def detach(self) -> None:
        """Remove every hook; the pipeline is what it was. Can be called again."""
        try:
            super().detach()
        finally:  # it may warn, and warnings may be raised as errors
            self._undo.close()
            self._layout.on_generation = None  # which holds this: traces would wait for the garbage collector

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
                than "pil" ("latent" works with preserve="latents").
            DSASError: a bad mask; `unsteered` of another call; steering that has ended.

        Example:
            >>> from dsas_diffusion import load_pipeline
            >>> pipe = load_pipeline("builtin:emoji", device="cpu")
            >>> with steer(pipe, {"builtin:banana-blur": 1.0}) as steering:
            ...     made = steering.generate("a dog", preserve=True, num_inference_steps=4)
            >>> made.images == made.unsteered, made.masks[0].shape
            (True, (64, 64))
        """
        if self._visit is None:
            raise DSASError("this steering has ended: call generate in its with block, or before detach()")
        if preserve is False:
            if unsteered is not None:
                raise DSASError("unsteered= is what preserve= puts back: give preserve=True, or leave it out")
            return Generation(self.adapter.pipe(*args, **kwargs)[0])
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
            self._check_texts()
            if self.trace is not None:
                self.trace.follow(self._layout)
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
        self._unreached.reset()
        self._state.clear_scores()  # of other prompts
        if self._visit is not None:
            self._visit.reset()
        if self.trace is not None:
            self.trace.clear()
        if self._words is not None:
            self._words.start(request)
        self._check_parts()
        unused = self.adapter.unused_layers(self.sites, request.clip_skip)
        if unused:
            warnings.warn(
                f"the denoiser reads the tokens of an earlier layer than {list_sites(unused)}, which only "
                "change what is pooled, if anything: steer earlier layers, or ask for a smaller clip_skip",
                stacklevel=2,
            )

    def _check_parts(self) -> None:
        """Warn of modules that were replaced since steering began; refuse caches that steer sites twice."""
        if self._visit is None:
            return
        pipe = self.adapter.pipe
        roots = {name: getattr(pipe, name) for name in self._roots if getattr(pipe, name, None) is not None}
        words = [] if self._words is None else self._words.find_replaced(roots)
        replaced = [*self._visit.find_replaced(roots), *words]
        if replaced:
            self._unreached.new_among(replaced)
            warn_wrapped(replaced)
        twice = sites_steered_twice(roots, [site for site in self.sites if site not in replaced])
        if twice:
            raise UnsupportedError(
                f"{caches_of(roots[self._denoiser])[0]} leaves out blocks and adds what they changed in an earlier "
                f"step, and {list_sites(twice)} would be steered once more on top: disable the cache, or steer the "
                "attention inside"
            )

    def _check_strengths(self, prompts: int) -> None:
        """Raise where strengths are given by prompt, and not for as many as a call has."""
        for name in self.strengths:
            given = len(self.strengths.values_of(name))
            if given not in (1, prompts):
                raise DSASError(f"strength of {name!r} is given for {given} prompts, but the call has {prompts}")

    def _check_texts(self) -> None:
        """Warn where the text encoders have not run before the denoiser does."""
        assert self._visit is not None
        embeddings = self._layout.request.embeddings
        if embeddings == "encoded here":
            return
        # where embeddings are given, text encoders run for negative prompts at most
        skipped = embeddings == "given" and self._layout.branch != "unconditional"
        visited = self._visit.visited
        silent = [site for site in self.sites if site.root != self._denoiser and (skipped or site not in visited)]
        if embeddings != "given":
            if silent:
                self._missed(silent[0].root, silent)
        elif silent := self._unreached.new_among(silent):
            message = (
                f"prompt_embeds were given, so the text encoder did not read the prompt, and {list_sites(silent)} did "
                "nothing: pass prompt= instead, or encode the prompt inside the steer() block"
            )
            if self._layout.called_directly:  # perhaps for these embeddings
                message = (
                    f"prompt_embeds were given, which {list_sites(silent)} changed only if the text encoder was called "
                    "for them inside the steer() block; it takes all that is read there by hand for prompts, so "
                    "encode negative prompts outside"
                )
            warnings.warn(message, stacklevel=2)

    def _missed(self, root: str, sites: list[Site]) -> None:
        """Warn, once a generation, of sites that a call has not reached."""
        silent = [] if self._layout.skips_layers else self._unreached.new_among(sites)
        if not silent:
            return
        module = getattr(self.adapter.pipe, root)
        caches = caches_of(module)
        if caches:
            warnings.warn(
                f"{caches[0]} answers from an earlier step, with the steering of then, for {list_sites(silent)}: "
                "disable it where strengths or schedules move",
                stacklevel=2,
            )
        elif set(silent).issubset(self._processors.sites):
            why = 'another attention processor has been set: steer afterwards, or with attach="hooks", which stays'
            warn_unreached(silent, why)
        else:
            warn_unreached(silent, explain_unreached(module))


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
    """Steer a pipeline.

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
        DSASError: an unknown option, a strength that is not finite, a pipeline that is being steered already.

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
