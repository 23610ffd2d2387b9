"""Learning the concepts of an evaluation grid, for `dsas eval --grid`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsas_core import llm
from dsas_core.concept import Concept
from dsas_core.errors import DSASError
from dsas_core.processes import Share

from ..grid import Entry, Grid
from ..learn import Lesson
from ..masks import masks_of
from .models import Models

#: in the folder of a concept that cannot be learned: why
REFUSED = "refused.txt"


def learn_grid(
    grid: Grid, models: Models, out: Path, share: Share, show_progress: bool
) -> tuple[dict[str, Concept], dict[str, str]]:
    """The concepts of a grid, learned where they are not there yet, each by one process; why others cannot be.

    Raises:
        DSASError: none can be learned.
    """
    lessons = _Lessons(models, {**grid.learn, "show_progress": show_progress})
    for i, entry in enumerate(sorted(grid.entries, key=lambda entry: str(lessons.key_of(entry)))):
        folder = out / entry.name / "concept"
        if i % share.processes != share.process or _is_learned(folder, entry, grid):
            continue
        if show_progress:
            print(f"learning {entry.name}", file=sys.stderr, flush=True)
        refused = folder.parent / REFUSED
        refused.unlink(missing_ok=True)
        lesson = lessons.of(entry)
        try:
            concept = lesson.learn(entry.method, entry.gate, recipe=entry.recipe)
        except DSASError as error:  # what a method or a gate says of this concept; the others may do
            refused.parent.mkdir(parents=True, exist_ok=True)
            refused.write_text(str(error), encoding="utf-8")
        else:
            concept.save_pretrained(folder, overwrite=True)
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


def _is_learned(folder: Path, entry: Entry, grid: Grid) -> bool:
    """Whether a concept was learned from these prompts in this way already."""
    if not folder.is_dir():
        return False
    concept = Concept.from_pretrained(folder)
    provenance = concept.provenance
    same = provenance.get("prompts") == entry.prompts.to_dict()
    same = same and (concept.method, concept.gate) == (entry.method, entry.gate)
    same = same and all(provenance.get(key) == grid.learn[key] for key in ("seed", "count") if key in grid.learn)
    recipe = provenance.get("recipe", {})
    if not same or any(recipe.get(key) != value for key, value in entry.recipe.items()):
        raise DSASError(
            f"{folder} holds a concept that was learned otherwise (prompts, method, gate, recipe, seed or count): "
            "choose another --out"
        )
    return True


class _Lessons:
    """Lessons of a grid: concepts of the same prompts at the same sites are fitted on one reading of them."""

    def __init__(self, models: Models, settings: Mapping[str, Any]) -> None:
        self._models, self._settings = models, settings
        self._key: tuple[Any, ...] = ()
        self._lesson: Any = None

    def key_of(self, entry: Entry) -> tuple[Any, ...]:
        """What entries of one lesson have in common; last, whether pictures are masked."""
        masked = not llm.is_language_model(entry.model) and entry.recipe.get("supervision") == "positions"
        return entry.model, str(entry.prompts.to_dict()), str(entry.sites), masked

    def of(self, entry: Entry) -> Any:
        """The lesson of an entry; the last one is kept, as those of large models fill the memory."""
        key = self.key_of(entry)
        if key != self._key:
            self._key, self._lesson = (), None
            settings = {**self._settings, "sites": entry.sites}
            if llm.is_language_model(entry.model):
                settings = {key: value for key, value in settings.items() if key not in ("steps", "size")}
                self._lesson = llm.Lesson(*self._models.language_model(entry.model), entry.prompts, **settings)
            else:
                masks = masks_of(entry.prompts) if key[-1] else None
                self._lesson = Lesson(self._models.pipeline(entry.model), entry.prompts, masks=masks, **settings)
            self._key = key
        return self._lesson
