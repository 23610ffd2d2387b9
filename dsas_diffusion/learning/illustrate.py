"""`illustrate(pipe, concept)`: a strip of pictures for the concept's card."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

from dsas_core.concept.concept import Concept
from dsas_core.concept.samples import Samples
from dsas_core.learning.illustrate import sample_prompts
from dsas_core.utils.progress import progress_bar

from ..generation import strips
from ..generation.pictures import pictures_of, seeds_for
from ..generation.settings import Settings, settings_of
from ..pipelines.adapter import adapt
from ..steering.steer import steer

#: strengths of a concept that nobody has calibrated
ENDS = (-1.0, 2.0)


def illustrate(pipe: Any, concept: Concept, *, show_progress: bool = False) -> Concept:
    """Draw what a concept does, on a source prompt and a control prompt that it was not fitted on.

    At the ends of its range (-1 and 2 where it has none), without it, and at one unit where that is in the range; as
    large, in as many steps and with the guidance that it was learned with.

    Args:
        pipe: the pipeline that the concept was learned on, or one that is like it.
        concept: the concept; it is not changed.

    Returns:
        The concept with these samples, which its folder keeps and its card shows.

    Raises:
        DSASError: the concept tells no prompts, or does not fit the pipeline.
    """
    adapter = adapt(pipe)
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
