"""A grid of evaluations: prompt files × methods × gates × recipes × sites × models, in a YAML file.

```yaml
title: Results
models: [builtin:emoji]                   # of every concept that names none itself
concepts:
  - prompts: prompts/banana-blur.yaml
    models: [builtin:emoji]
    sites: [null, denoiser]               # null is the default
  - prompts: prompts/rudeness.yaml
    models: [builtin:chat]
    measure: {count: 24}                  # overrides the grid's
methods: [caa]
gates: [dsas]                             # null is each method's default, by the recipe's options
recipes: {plain: {}, causal: {mode: causal}}  # fields of dsas_core.learning.recipe.Recipe
learn: {count: 48, steps: 8, seed: 0}
measure: {count: 12, seeds: 2, strengths: [0.5, 1, 1.5, 2]}
```
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dsas_core import methods
from dsas_core.errors import DSASError, quote
from dsas_core.evaluation import Plan
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_core.learning.prompts.prompt_set import MAX_BYTES, PromptSet
from dsas_core.learning.recipe import recipe_of
from dsas_core.utils.reading.text_files import decode, read_bytes
from dsas_core.utils.saving.names import why_no_name

_KEYS = ("title", "models", "concepts", "methods", "gates", "recipes", "learn", "measure")
_CONCEPT = ("prompts", "models", "sites", "name", "measure")
_LEARN = ("count", "steps", "size", "seed")


@dataclass(frozen=True)
class GridEntry:
    """One concept to learn and to measure; `name` is unique in the grid."""

    name: str
    model: str
    prompts: PromptSet
    method: str
    gate: str
    recipe: Mapping[str, Any]
    sites: str | None
    plan: Plan


@dataclass(frozen=True)
class EvaluationGrid:
    """A checked grid file."""

    title: str
    entries: tuple[GridEntry, ...]
    learn: Mapping[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> EvaluationGrid:
        """Read and check a grid file.

        Args:
            path: of the YAML file; paths of prompt files in it are relative to the working directory, or to the grid.

        Raises:
            DSASError: no such file, no YAML, an unknown key, no concept, or two entries of one name.
        """
        from dsas_core.utils.reading.plain_yaml import parse_yaml

        path = Path(path)
        raw = read_bytes(path, MAX_BYTES, "write a grid file (see benchmarks/grids/results.yaml)", "grid file")
        content = parse_yaml(decode(raw, str(path)), str(path))
        _check_keys(content, _KEYS, str(path))
        learn = content.get("learn") or {}
        _check_keys(learn, _LEARN, f"{path}, learn")
        concepts = _list_of(content, "concepts", path)
        entries = [entry for concept in concepts for entry in _entries(concept, content, path)]
        names = [entry.name for entry in entries]
        if duplicates := [name for name in names if names.count(name) > 1]:
            raise DSASError(f"{path}: two concepts are called {duplicates[0]}: give one a name: of its own")
        return cls(str(content.get("title") or path.stem), tuple(entries), learn)


def _entries(concept: Any, content: Mapping[str, Any], path: Path) -> list[GridEntry]:
    """Every combination of one concept of the grid."""
    _check_keys(concept, _CONCEPT, f"{path}, concepts")
    plan = _plan_of(content, concept, path)
    given = Path(str(concept.get("prompts")))
    prompts = load_prompts(given if given.is_file() else path.parent / given)
    sites: Sequence[str | None] = _list_of(concept, "sites", path) if concept.get("sites") else [None]
    models = _list_of(concept if concept.get("models") else content, "models", path)
    map_methods, gates = content.get("methods") or ["caa"], content.get("gates") or [None]
    for kind, names in (("map", map_methods), ("gate", [gate for gate in gates if gate is not None])):
        for name in names:
            methods.get(name, kind)
    recipes = content.get("recipes") or {"": {}}
    if not isinstance(recipes, Mapping) or not all(isinstance(recipe, Mapping) for recipe in recipes.values()):
        raise DSASError(f"{path}: recipes map a name of yours to fields of a recipe, found {recipes!r}")
    default_gates = {
        (method, recipe): str(recipe_of(chosen, method=method).gate)
        for method, (recipe, chosen) in itertools.product(map_methods, recipes.items())
    }
    combinations = dict.fromkeys(  # methods share default gates
        (method, default_gates[method, recipe] if gate is None else gate, recipe)
        for method, gate, recipe in itertools.product(map_methods, gates, recipes)
    )
    entries = []
    for model, (method, gate, recipe), site in itertools.product(models, combinations, sites):
        parts = [str(concept.get("name") or prompts.name)]
        varied = ((site, sites), (method, map_methods), (gate, gates), (recipe, recipes), (model, models))
        parts += [part for part, options in varied if len(options) > 1 and part]
        name = re.sub(r"[^\w.]+", "-", "-".join(parts)).strip("-")  # a gate may be "product(dsas, gaps)"
        if reason := why_no_name(name):
            raise DSASError(f"{path}: {quote(name)} can be no folder's name, as {reason}: give it a name: of its own")
        entries.append(GridEntry(name, model, prompts, method, gate, recipes[recipe], site, plan))
    return entries


def _plan_of(content: Mapping[str, Any], concept: Mapping[str, Any], path: Path) -> Plan:
    """The plan of the grid, with the settings that one concept overrides."""
    settings: dict[str, Any] = {}
    for part, where in ((content, "measure"), (concept, "concepts, measure")):
        measure = part.get("measure") or {}
        _check_keys(measure, [field.name for field in fields(Plan)], f"{path}, {where}")
        settings |= {key: tuple(value) if isinstance(value, list) else value for key, value in measure.items()}
    try:
        return Plan(**settings)
    except TypeError as error:
        raise DSASError(f"{path}, measure: {error}") from None


def _list_of(content: Mapping[str, Any], key: str, path: Path) -> list[Any]:
    value = content.get(key)
    if not isinstance(value, list) or not value:
        raise DSASError(f"{path}: {key} must be a list that is not empty, found {value!r}")
    return value


def _check_keys(content: Any, keys: Sequence[str], where: str) -> None:
    if not isinstance(content, Mapping) or set(content) - set(keys):
        listed = ", ".join(map(str, content)) if isinstance(content, Mapping) else repr(content)
        raise DSASError(f"{where}: expected a mapping with {', '.join(keys)}; found {listed}")
