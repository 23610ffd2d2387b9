"""What a steering of a pipeline warns of while it draws: sites that are not reached, or that were replaced."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from dsas_core.errors import UnsupportedError
from dsas_core.model.hooks import Visit
from dsas_core.model.sites import Site
from dsas_core.steering.diagnostics import (
    UnreachedSites,
    explain_unreached,
    list_sites,
    warn_unreached,
    warn_wrapped,
)

from ..pipelines.batch_layout import BatchLayout
from ..pipelines.caches import caches_of, sites_steered_twice
from .word_masks import WordMasks


class SiteChecks:
    """Warns, once in a generation, of sites that steering does not reach.

    Args:
        layout: of the pipeline's batches.
        sites: that are steered.
        by_processor: those of them that attention processors steer.
    """

    def __init__(self, layout: BatchLayout, sites: Sequence[Site], by_processor: Sequence[Site]) -> None:
        self._layout, self._sites, self._by_processor = layout, sites, by_processor
        self._adapter = layout.adapter
        self._roots, self._denoiser = tuple(self._adapter.roots), self._adapter.family.denoiser
        self._unreached = UnreachedSites()  # in this generation

    def begin(self, clip_skip: int, visit: Visit | None, words: WordMasks | None) -> None:
        """A generation begins: warn of layers that it does not use, and of modules that were replaced.

        Args:
            clip_skip: of the generation.
            visit: the hooks; None once they are detached.
            words: masks by words, or None.

        Raises:
            UnsupportedError: a cache steers sites twice.
        """
        self._unreached.reset()
        if visit is not None:
            self._check_parts(visit, words)
        unused = self._adapter.unused_layers(self._sites, clip_skip)
        if unused:
            warnings.warn(
                f"the denoiser reads the tokens of an earlier layer than {list_sites(unused)}, which only "
                "change what is pooled, if anything: steer earlier layers, or ask for a smaller clip_skip",
                stacklevel=2,
            )

    def _check_parts(self, visit: Visit, words: WordMasks | None) -> None:
        pipe = self._adapter.pipe
        roots = {name: getattr(pipe, name) for name in self._roots if getattr(pipe, name, None) is not None}
        replaced = [*visit.find_replaced(roots), *([] if words is None else words.find_replaced(roots))]
        if replaced:
            self._unreached.new_among(replaced)
            warn_wrapped(replaced)
        twice = sites_steered_twice(roots, [site for site in self._sites if site not in replaced])
        if twice:
            raise UnsupportedError(
                f"{caches_of(roots[self._denoiser])[0]} leaves out blocks and adds what they changed in an earlier "
                f"step, and {list_sites(twice)} would be steered once more on top: disable the cache, or steer the "
                "attention inside"
            )

    def check_texts(self, visit: Visit) -> None:
        """Warn where the text encoders have not run before the denoiser does."""
        embeddings = self._layout.request.embeddings
        if embeddings == "encoded here":
            return
        # where embeddings are given, text encoders run for negative prompts at most
        skipped = embeddings == "given" and self._layout.branch != "unconditional"
        visited = visit.visited
        silent = [site for site in self._sites if site.root != self._denoiser and (skipped or site not in visited)]
        if embeddings != "given":
            if silent:
                self.missed(silent[0].root, silent)
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

    def missed(self, root: str, sites: list[Site]) -> None:
        """Warn of sites that a call has not reached."""
        silent = [] if self._layout.skips_layers else self._unreached.new_among(sites)
        if not silent:
            return
        module = getattr(self._adapter.pipe, root)
        caches = caches_of(module)
        if caches:
            warnings.warn(
                f"{caches[0]} answers from an earlier step, with the steering of then, for {list_sites(silent)}: "
                "disable it where strengths or schedules move",
                stacklevel=2,
            )
        elif set(silent).issubset(self._by_processor):
            why = 'another attention processor has been set: steer afterwards, or with attach="hooks", which stays'
            warn_unreached(silent, why)
        else:
            warn_unreached(silent, explain_unreached(module))
