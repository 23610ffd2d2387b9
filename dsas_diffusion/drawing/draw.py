"""Drawing pictures each by itself, by their settings: a file draws the same pixels again, whatever was beside it.

A batch of several would be quicker on a GPU, but the last bits of a picture would depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError, quote
from dsas_core.steering.strengths import Strength

from ..generation.pictures import check_negative, pictures_of
from ..pipelines.adapter import PipelineAdapter
from ..steering.drawing import generate_batches
from ..steering.preserve import Generation
from ..steering.steer import PipelineSteering, steer
from .picture_settings import PictureSettings
from .stars import stars


def draw_each(
    adapter: PipelineAdapter,
    pictures: Sequence[PictureSettings],
    concepts: Mapping[str, Concept],
    mask: Any = None,
    trace: bool = False,
) -> Iterator[tuple[Generation, PipelineSteering | None]]:
    """Draw pictures, one call of the pipeline for each.

    Args:
        adapter: of the pipeline.
        pictures: what to draw; neighbours that differ in strengths alone share an unsteered pass of `preserve`.
        concepts: by name, those that steer.
        mask: what `preserve` of the pictures stands for, where it names a file.
        trace: whether the steering records h.

    Yields:
        What was drawn, and the steering with the trace of it, which goes on with the next; None without concepts.

    Raises:
        DSASError: words of a concept that steers no picture, or what `steer` and the pipeline refuse.

    Example:
        >>> from dsas_diffusion import load_pipeline
        >>> from dsas_diffusion.generation.settings import Settings
        >>> adapter = PipelineAdapter(load_pipeline("builtin:emoji", device="cpu"))
        >>> ((made, steering),) = draw_each(adapter, [PictureSettings("", "a dog", 7, Settings(1, 3.0))], {})
        >>> made.images[0].size, steering
        ((64, 64), None)
    """
    check_words(pictures)
    for negative, settings in {(picture.negative_prompt, picture.settings) for picture in pictures}:
        if negative is not None:
            check_negative(adapter, settings)
    last: tuple[object, Generation] | None = None
    for (drawn, _), group in groupby(pictures, key=lambda picture: (picture.concepts, repr(picture.how))):
        first, *others = group
        if (runs := picture_runs([first, *others])) is not None:
            yield from _draw_apart(adapter, runs, concepts, trace)
            continue
        if not drawn:
            yield from ((_draw_unsteered(adapter, picture), None) for picture in (first, *others))
            continue
        strengths: dict[Concept, Strength] = {concepts[one.name]: one.strength for one in drawn}
        with steer(adapter, strengths, trace=trace, **first.how.options([one.name for one in drawn])) as steering:
            for picture in (first, *others):
                key = (picture.prompt, picture.noise_seed, picture.settings, picture.negative_prompt)
                masked = isinstance(picture.preserve, str) and mask is not None
                given = masked and not isinstance(mask, bool | str)  # so that nothing looks for a concept
                can_reuse = last is not None and last[0] == key and (given or last[1].looked_for(strengths))
                reused = [last[1]] if last is not None and can_reuse else []
                preserve = mask if masked else picture.preserve
                arguments = [picture.prompt], [picture.noise_seed], picture.settings, preserve, 1, reused
                (made,) = generate_batches(steering, *arguments, negative=picture.negative_prompt)
                last = None if made.recorded is None else (key, made)
                yield made, steering


def picture_runs(pictures: Sequence[PictureSettings]) -> list[list[PictureSettings]] | None:
    """Pictures that are drawn together, prompt by prompt; None where each is drawn by itself.

    Raises:
        DSASError: some of those that were drawn together are not there.
    """
    count = pictures[0].how.diverse
    if not count:
        return None
    runs = [list(pictures[i : i + count]) for i in range(0, len(pictures), count)]
    for run in runs:
        told = {(one.prompt, one.settings, one.negative_prompt) for one in run}
        if len(run) < count or len(told) > 1 or len({one.noise_seed for one in run}) < count:
            raise DSASError(
                f"this picture was drawn with {count - 1} others of its prompt, and goes by them (--diverse {count}): "
                "give the settings of them all (generate.json), or its prompt, seed and --diverse again"
            )
    return runs


def _draw_apart(
    adapter: PipelineAdapter, runs: Sequence[Sequence[PictureSettings]], concepts: Mapping[str, Concept], trace: bool
) -> Iterator[tuple[Generation, PipelineSteering | None]]:
    """Pictures of one prompt in one call, pushed apart."""
    first = runs[0][0]
    strengths: dict[Concept, Strength] = {concepts[one.name]: one.strength for one in first.concepts}
    strengths[stars(adapter)] = first.how.apart
    with steer(adapter, strengths, trace=trace, **first.how.options([one.name for one in first.concepts])) as steering:
        for run in runs:
            arguments = [one.prompt for one in run], [one.noise_seed for one in run], run[0].settings
            (made,) = generate_batches(steering, *arguments, batch=len(run), negative=run[0].negative_prompt)
            yield from ((Generation([image]), steering) for image in made.images)


def check_words(pictures: Sequence[PictureSettings]) -> None:
    """Raise a DSASError where words are given for a concept that steers none of the pictures."""
    steering = {name for picture in pictures for name in _names(picture)}
    for name in {name for picture in pictures for name in picture.how.words}:
        if name not in steering:
            raise DSASError(f"words for {quote(name)}, but steered are {', '.join(sorted(steering)) or 'none'}")


def _names(picture: PictureSettings) -> tuple[str, ...]:
    return tuple(concept.name for concept in picture.concepts)


def _draw_unsteered(adapter: PipelineAdapter, picture: PictureSettings) -> Generation:
    arguments = [picture.prompt], [picture.noise_seed], picture.settings, 1, picture.negative_prompt
    return Generation(pictures_of(adapter, *arguments))
