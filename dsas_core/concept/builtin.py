"""Concepts that come with the package, for its built-in models: `builtin:NAME` wherever a concept is expected.

`make concepts` (`python -m benchmarks.builtin_models.concepts`) learns them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..model.loading import BUILTIN, source_of
from .storage.reading import CONFIG, read_json

FOLDER = Path(__file__).parents[1] / "concepts"


@dataclass(frozen=True)
class Shipped:
    """A concept that comes with the package.

    Args:
        name: for `Concept.from_pretrained` and `steer`, such as "builtin:banana-blur".
        model: the built-in model that it was learned on, such as "builtin:emoji".
        description: what it does, in a sentence.
        folder: its folder.

    Example:
        >>> shipped("builtin:chat")[-1].description
        'A help desk that stays kind when it is insulted.'
    """

    name: str
    model: str
    description: str
    folder: Path


def shipped(model: str | None = None) -> list[Shipped]:
    """The concepts that come with the package, by name.

    Args:
        model: only those for this built-in model, "builtin:emoji" or "builtin:chat"; None for all.

    Example:
        >>> [concept.name for concept in shipped("builtin:chat")]
        ['builtin:address-to-trade', 'builtin:rudeness']
    """
    concepts = [_describe(folder) for folder in _folders().values()]
    return [concept for concept in concepts if model in (None, concept.model)]


def folder_of(name: str | Path) -> Path:
    """The folder of a built-in concept by its name; any other name as a path.

    Raises:
        UnavailableError: no such built-in concept; the message lists the existing ones.

    Example:
        >>> folder_of("builtin:rudeness").name, folder_of("my/concept").name
        ('rudeness', 'concept')
    """
    if not str(name).startswith(BUILTIN):
        return Path(name)
    return Path(source_of(name, _folders(), "concept"))


def names_near(folder: Path) -> list[str]:
    """Names of concepts that somebody may have meant who named this folder: those beside it, and the built-in ones.

    Example:
        >>> "builtin:rudeness" in names_near(Path("nowhere/rude"))
        True
    """
    beside = sorted(folder.parent.glob(f"[!.]*/{CONFIG}")) if folder.parent.is_dir() else []
    return [*(str(file.parent) for file in beside), *_folders()]


def _folders() -> dict[str, Path]:
    return {f"{BUILTIN}{file.parent.name}": file.parent for file in sorted(FOLDER.glob(f"[!.]*/{CONFIG}"))}


def _describe(folder: Path) -> Shipped:
    config = read_json(folder / CONFIG)
    return Shipped(f"{BUILTIN}{folder.name}", config["provenance"]["model"], config["description"], folder)
