"""Learning the concepts of an evaluation grid, for `dsas eval --grid`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from dsas_core import llm
from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError
from dsas_core.learning.prompts.kept import kept_prompts
from dsas_core.utils.processes import Share
from dsas_core.utils.saving.files import write_files
from dsas_core.utils.saving.folders import names_in

from ..learning.learn import Lesson
from ..vision.segmentation import segmenter_for
from .grid_file import EvaluationGrid, GridEntry

#: the file with the reason why a concept cannot be learned, in its folder
REFUSED = "refused.txt"

#: a model's name -> a pipeline, or a language model and its tokenizer
LoadModel = Callable[[str], tuple[Any, ...]]


def learn_grid(
    grid: EvaluationGrid, load: LoadModel, out: Path, share: Share, show_progress: bool
) -> tuple[dict[str, Concept], dict[str, str]]:
    """Learn the missing concepts of a grid, each in one process.

    Args:
        grid: what to learn.
        load: loads models.
        out: the folder of results; a concept is in `NAME/concept`.
        share: this process's share of the work.
        show_progress: print what is learned, and show bars.

    Returns:
        The concepts by name, and the reasons why others cannot be learned.

    Raises:
        DSASError: none can be learned.
    """
    own = sorted(grid.entries, key=lambda entry: str(_lesson_key(entry)))[share.process :: share.processes]
    missing = [entry for entry in own if not _is_learned(out / entry.name / "concept", entry, grid)]
    for key, entries in groupby(missing, _lesson_key):
        _learn_together(list(entries), key[-1], load, {**grid.learn, "show_progress": show_progress}, out)
    share.wait()
    return _read_learned({entry.name: out / entry.name for entry in grid.entries})


def _read_learned(folders: Mapping[str, Path]) -> tuple[dict[str, Concept], dict[str, str]]:
    reasons = {
        name: (folder / REFUSED).read_text(encoding="utf-8")
        for name, folder in folders.items()
        if (folder / REFUSED).is_file()
    }
    if len(reasons) == len(folders):
        name, reason = next(iter(reasons.items()))
        raise DSASError(f"no concept of the grid can be learned; {name}: {reason}")
    learned = {name: folder / "concept" for name, folder in folders.items() if name not in reasons}
    return {name: Concept.from_pretrained(folder) for name, folder in learned.items()}, reasons


def _is_learned(folder: Path, entry: GridEntry, grid: EvaluationGrid) -> bool:
    """Whether a concept was learned from these prompts in this way already."""
    if not names_in(folder):
        return False
    concept = Concept.from_pretrained(folder)
    provenance = concept.provenance
    kept = kept_prompts(concept)
    same = kept is not None and kept.are_of(entry.prompts)
    same = same and (concept.method, concept.gate) == (entry.method, entry.gate)
    same = same and all(provenance.get(key) == grid.learn[key] for key in ("seed", "count") if key in grid.learn)
    recipe = provenance.get("recipe", {})
    if not same or any(recipe.get(key) != value for key, value in entry.recipe.items()):
        raise DSASError(
            f"{folder} holds a concept that was learned otherwise (prompts, method, gate, recipe, seed or count): "
            "choose another --out"
        )
    return True


def _lesson_key(entry: GridEntry) -> tuple[Any, ...]:
    """What entries must share to be learned from one capture; the last item is whether pictures are masked."""
    masked = not llm.is_language_model(entry.model) and entry.recipe.get("supervision") == "positions"
    return entry.model, str(entry.prompts.to_dict()), str(entry.sites), masked


def _learn_together(
    entries: Sequence[GridEntry], masked: bool, load: LoadModel, settings: Mapping[str, Any], out: Path
) -> None:
    """Learn and save concepts of one model, prompt file and sites, or the reason why one cannot be learned."""
    lesson: Any = None
    for entry in entries:
        if settings["show_progress"]:
            print(f"learning {entry.name}", file=sys.stderr, flush=True)
        refused = out / entry.name / REFUSED
        lesson = lesson or _lesson(entry, masked, load, settings)
        try:
            concept = lesson.learn(entry.method, entry.gate, recipe=entry.recipe)
        except DSASError as error:  # about this method or gate; others may work
            write_files({refused: str(error).encode()})
        else:
            concept.save_pretrained(out / entry.name / "concept")
            refused.unlink(missing_ok=True)


def _lesson(entry: GridEntry, masked: bool, load: LoadModel, settings: Mapping[str, Any]) -> Any:
    if llm.is_language_model(entry.model):
        model, tokenizer = load(entry.model)
        settings = {key: value for key, value in settings.items() if key not in ("steps", "size")}
        return llm.Lesson(model, tokenizer, entry.prompts, sites=entry.sites, **settings)
    (pipe,) = load(entry.model)
    masks = segmenter_for(entry.prompts) if masked else None
    return Lesson(pipe, entry.prompts, masks=masks, sites=entry.sites, **settings)
