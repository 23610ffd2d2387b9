"""`illustrate(pipe, concept)`: a strip of pictures for the concept's card."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

from dsas_core.concept.concept import Concept
from dsas_core.concept.samples import Samples
from dsas_core.learning.illustrate import sample_prompts
from dsas_core.steering.handle import refuse_steered
from dsas_core.utils.progress import progress_bar

from ..generation import strips
from ..generation.pictures import pictures_of, seeds_for
from ..generation.settings import Settings, settings_of
from ..pipelines.adapter import adapt
from ..steering.steer import steer

#: strengths of a concept that has not been calibrated
ENDS = (-1.0, 2.0)


def illustrate(pipe: Any, concept: Concept, *, show_progress: bool = False) -> Concept:
    """Add pictures to a concept's card, of a source prompt and a control prompt that it was not fitted on.

    They are drawn at the ends of its range (-1 and 2 where it has none), without it, and at one unit where that is in
    the range; with the size, steps and guidance that it was learned with.

    Args:
        pipe: the pipeline that the concept was learned on, or one like it.
        concept: the concept; it is not changed.
        show_progress: whether to show a progress bar.

    Returns:
        The concept with these samples, which its folder keeps and its card shows.

    Raises:
        DSASError: the concept records no prompts, or does not fit the pipeline.

    Example:
        >>> import dsas_diffusion as dsas
        >>> pipe, concept = dsas.load_pipeline("builtin:emoji"), dsas.Concept.from_pretrained("builtin:banana-blur")
        >>> settings = {**concept.provenance["settings"], "steps": 1}  # quick, and blurred
        >>> concept = replace(concept, provenance={**concept.provenance, "settings": settings})
        >>> len(illustrate(pipe, concept).samples.prompts)
        2
    """
    adapter = adapt(pipe)
    refuse_steered(adapter.roots, "drawing samples")
    prompts, seed = sample_prompts(concept)
    learned = concept.provenance.get("settings")
    settings = Settings(**learned) if learned else settings_of(adapter)
    low, high = concept.range or ENDS
    strengths = sorted({low, 0.0, high} | ({1.0} if high > 1 else set()))
    columns = []
    with progress_bar(len(strengths), "drawing samples", show_progress) as bar:
        for strength in strengths:
            with steer(adapter, {concept: strength}):
                columns.append(pictures_of(adapter, prompts, seeds_for(prompts, seed), settings))
            bar.update()
    strip, content = strips.strip(list(zip(*columns, strict=True)), strengths, prompts), io.BytesIO()
    strip.save(content, "WEBP", quality=85)
    return replace(concept, samples=Samples(tuple(prompts), tuple(strengths), strip=content.getvalue()))
