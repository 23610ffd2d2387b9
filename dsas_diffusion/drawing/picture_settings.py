"""How a picture was drawn, as plain data: what its file says, and all that is needed to draw it again, bit for bit.

A document holds one picture or several that share a model, concepts and options; the strength of a concept is one for
all, or a list with one for each picture, null where it is not there. Whoever wrote it, one schema checks it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dsas_core.concept.schema import MAX_LINE, MAX_TEXT, NEEDED, OTHERS, check_name, check_plain
from dsas_core.concept.storage.reading import check_json
from dsas_core.errors import ArtifactError, DSASError, quote
from dsas_core.steering.steering import COMBINE, WITHIN
from dsas_core.steering.strengths import Auto, as_strength
from dsas_core.utils.numbers import number, optional

from ..generation.settings import Settings
from ..pipelines.batch_layout import BRANCHES
from ..steering.schedule import Schedule
from ..steering.steer import ATTACH

#: gate, as commands and files name it -> `gate` of `steer`
GATES: Mapping[str, str | None] = {"own": None, "on": "on", "off": "off"}
#: most pictures of a document, and concepts of a picture
MAX_PICTURES, MAX_CONCEPTS = 10_000, 100
#: what a file shows, where it is no map, mask or the like
PICTURE = "picture"


@dataclass(frozen=True)
class DrawnConcept:
    """A concept that steered a picture.

    Args:
        concept: its folder, Hub name or builtin:NAME.
        name: of the concept.
        strength: in units.
        unit: of strength; None where the file does not tell.
        digest: of what the concept does, `ConceptData.digest`; None where the file does not tell.
    """

    concept: str
    name: str
    strength: float | Auto
    unit: float | None = None
    digest: str | None = None


@dataclass(frozen=True)
class HowSteered:
    """How concepts steered, by the names of the command line's options.

    Args:
        gate: a key of GATES.
        combine: as for `steer`.
        within: as for `steer`.
        schedule: points of a `Schedule`; None for a constant strength.
        interpolate_bins: as for `steer`.
        rows: `branch` of `steer`.
        attach: as for `steer`.
        words: concept name -> words of the prompt.
        diverse: how many pictures of one prompt were drawn in one batch and pushed apart by `stars`; 0 for none.
        apart: at which strength.

    Raises:
        DSASError: a value that is none of an option's.
    """

    gate: str = "own"
    combine: str = "sum"
    within: str | None = None
    schedule: tuple[tuple[float, float], ...] | None = None
    interpolate_bins: bool = False
    rows: str = "conditional"
    attach: str = "hooks"
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    diverse: int = 0
    apart: float = 1.0

    def __post_init__(self) -> None:
        choices: dict[str, Sequence[Any]] = {"gate": tuple(GATES), "combine": COMBINE, "within": WITHIN}
        for name, allowed in {**choices, "rows": BRANCHES, "attach": ATTACH}.items():
            if getattr(self, name) not in allowed:
                listed = " or ".join(str(value) for value in allowed)
                raise DSASError(f"{name} {quote(getattr(self, name))}: expected {listed}")
        if self.schedule is not None:
            object.__setattr__(self, "schedule", tuple(tuple(point) for point in Schedule(self.schedule).points))
        object.__setattr__(self, "apart", number("strength", self.apart, "apart"))
        if self.diverse and number("batch", self.diverse, "diverse") < 2:
            raise DSASError(f"diverse {self.diverse}: expected 2 pictures or more, which are pushed apart")

    def options(self, names: Sequence[str]) -> dict[str, Any]:
        """Arguments of `steer`, where concepts of these names are attached."""
        return {
            "gate": GATES[self.gate],
            "combine": self.combine,
            "within": self.within,
            "schedule": None if self.schedule is None else Schedule(self.schedule),
            "interpolate_bins": self.interpolate_bins,
            "branch": self.rows,
            "attach": self.attach,
            "words": {name: words for name, words in self.words.items() if name in names},
        }


@dataclass(frozen=True)
class Origin:
    """What a picture was drawn with, that changes its pixels where it differs; None where it is not known.

    Args:
        device: of the pipeline, such as "cpu" or "cuda:0".
        dtype: of the pipeline, such as "float32".
        variant: of the weights' files.
        config: of a checkpoint in one file.
        model_digest: of weights and scheduler.
        mask_digest: of the file of `preserve`.
        versions: of packages.
    """

    device: str | None = None
    dtype: str | None = None
    variant: str | None = None
    config: str | None = None
    model_digest: str | None = None
    mask_digest: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def differences(self, other: Origin) -> list[str]:
        """What differs, in words, where both sides are known.

        Example:
            >>> Origin("cpu", "float32").differences(Origin("cuda:0", "float32"))
            ['device cpu, now cuda']
        """
        kinds = (("device", *(None if it.device is None else it.device.split(":")[0] for it in (self, other))),)
        pairs = [*kinds, ("dtype", self.dtype, other.dtype)]
        pairs += [(name, found, other.versions.get(name)) for name, found in self.versions.items()]
        told = [f"{name} {found}, now {now}" for name, found, now in pairs if None not in (found, now) and found != now]
        digests = {"model_digest": "other weights or scheduler", "mask_digest": "another mask"}
        for name, what in digests.items():
            found, now = getattr(self, name), getattr(other, name)
            told += [what] if None not in (found, now) and found != now else []
        return told


@dataclass(frozen=True)
class PictureSettings:
    """How one picture was drawn.

    Args:
        model: "builtin:emoji", a folder, or a Hub name.
        prompt: without tags.
        noise_seed: of its noise, for `torch.Generator().manual_seed`.
        settings: steps, guidance, scheduler and size.
        seed: of the run, and
        place: of the prompt in it, that the command line has made `noise_seed` from; None elsewhere.
        negative_prompt: None for none.
        concepts: that steered it.
        how: they did.
        preserve: as for `PipelineSteering.generate`; a mask is named by its file.
        origin: what it was drawn with.

    Raises:
        DSASError: a number out of bounds.

    Example:
        >>> made = PictureSettings("builtin:emoji", "a dog", 7, Settings(12, 3.0))
        >>> from_document(as_document([made])) == [made]
        True
    """

    model: str
    prompt: str
    noise_seed: int
    settings: Settings
    seed: int | None = None
    place: int | None = None
    negative_prompt: str | None = None
    concepts: tuple[DrawnConcept, ...] = ()
    how: HowSteered = field(default_factory=HowSteered)
    preserve: bool | str = False
    origin: Origin = field(default_factory=Origin)

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_seed", number("seed", self.noise_seed, "noise_seed"))
        object.__setattr__(self, "seed", optional("seed", self.seed))

    def to_dict(self) -> dict[str, Any]:
        """The document that a file of this picture has."""
        return as_document([self])


def as_document(drawn: Sequence[PictureSettings]) -> dict[str, Any]:
    """Pictures that differ in prompt, noise, steps, guidance and strengths as one document of plain data."""
    first = drawn[0]
    strengths = [{concept.name: _plain(concept.strength) for concept in picture.concepts} for picture in drawn]
    concepts = []
    for name, concept in {concept.name: concept for picture in drawn for concept in picture.concepts}.items():
        own = [of_picture.get(name) for of_picture in strengths]
        entry = {"concept": concept.concept, "name": name, "strength": own[0] if own.count(own[0]) == len(own) else own}
        concepts.append({**entry, "unit": concept.unit, "digest": concept.digest})
    shared = asdict(first.settings)
    pictures = []
    for picture in drawn:
        settings = asdict(picture.settings)
        named = {"prompt": picture.prompt, "seed": picture.seed, "place": picture.place}
        differing = {name: settings[name] for name in ("steps", "guidance") if settings[name] != shared[name]}
        pictures.append({**named, "noise_seed": picture.noise_seed, **differing})
    return {
        "model": first.model,
        "negative_prompt": first.negative_prompt,
        "concepts": concepts,
        **{name: value for name, value in asdict(first.how).items() if first.how.diverse or name not in _APART},
        "preserve": first.preserve,
        "seed": first.seed,
        **shared,
        **asdict(first.origin),
        "pictures": pictures,
    }


#: fields of `HowSteered` that only pictures have which were pushed apart
_APART = ("diverse", "apart")


def _plain(strength: float | Auto) -> float | str:
    return str(strength) if isinstance(strength, Auto) else strength


# ---- the schema -----------------------------------------------------------------------------------------------------

_TEXT, _LINE = (None, "a text"), (None, "a line of text")
_PICTURE = {
    NEEDED: ("prompt", "noise_seed"),
    "prompt": "a text",
    "noise_seed": "a count",
    "seed": (None, "a count"),
    "place": (None, "a count"),
    "steps": "a count",
    "guidance": "a number",
    "files": {OTHERS: "a text"},
    "seen": "true or false",
}
_CONCEPT = {
    NEEDED: ("concept", "name", "strength"),
    "concept": "a line of text",
    "name": "a line of text",
    "strength": None,  # read below
    "unit": (None, "a number"),
    "digest": _LINE,
}
_DOCUMENT: dict[str, Any] = {
    NEEDED: ("model", "steps", "guidance", "pictures"),
    "model": "a line of text",
    "negative_prompt": _TEXT,
    "concepts": [_CONCEPT],
    **dict.fromkeys(("gate", "combine", "rows", "attach"), "a line of text"),
    "within": _LINE,
    "schedule": (None, [["a number"]]),
    "interpolate_bins": "true or false",
    "words": {OTHERS: ["a text"]},
    "diverse": "a count",
    "apart": "a number",
    "preserve": None,
    "seed": (None, "a count"),
    "steps": "a count",
    "guidance": "a number",
    "scheduler": _LINE,
    "size": None,
    **dict.fromkeys(("device", "dtype", "variant", "config", "model_digest", "mask_digest"), _LINE),
    "versions": {OTHERS: "a line of text"},
    "pictures": [_PICTURE],
    # what commands add: of which kind the file is, the axes of a grid, the place of a signature
    "kind": "a line of text",
    "compare": "true or false",
    "axes": None,
    "signature": "a text",
}


def from_document(document: Any) -> list[PictureSettings]:
    """The pictures of a document, all of it checked.

    Args:
        document: plain data, perhaps from somebody else.

    Raises:
        ArtifactError: anything that `as_document` does not write.
    """
    try:
        return _read(document)
    except (DSASError, ValueError, RecursionError) as error:
        raise ArtifactError(f"no settings of a picture as `dsas generate` writes them: {error}") from None


def _read(document: Any) -> list[PictureSettings]:
    check_json(document)
    check_plain(document, _DOCUMENT, "settings")
    _refuse_unknown(document, _DOCUMENT)
    pictures = document["pictures"]
    concepts = document.get("concepts", [])
    if not 0 < len(pictures) <= MAX_PICTURES or len(concepts) > MAX_CONCEPTS:
        raise ValueError(
            f"found {len(pictures)} pictures and {len(concepts)} concepts: expected 1 to {MAX_PICTURES}, and up to "
            f"{MAX_CONCEPTS}"
        )
    for part, known in [(picture, _PICTURE) for picture in pictures] + [(concept, _CONCEPT) for concept in concepts]:
        _refuse_unknown(part, known)
    texts = [picture["prompt"] for picture in pictures] + [document.get("negative_prompt") or ""]
    if any(len(text) > MAX_TEXT for text in texts):
        raise ValueError(f"a prompt has more than {MAX_TEXT} characters")
    preserve = document.get("preserve", False)
    if not isinstance(preserve, bool) and not (isinstance(preserve, str) and 0 < len(preserve) <= MAX_LINE):
        raise ValueError(f"preserve must be true, false or a text, found {quote(preserve)}")
    names = [concept["name"] for concept in concepts]
    if len(set(names)) < len(names):
        raise ValueError(f"a concept stands twice: {quote(names)}")
    how = {key: document[key] for key in HowSteered.__dataclass_fields__ if key in document}
    origin = {key: document[key] for key in Origin.__dataclass_fields__ if key in document}
    kept = ("steps", "guidance", "scheduler", "size")
    first = PictureSettings(
        document["model"],
        "",
        0,
        Settings(**{key: document[key] for key in kept if key in document}),
        negative_prompt=document.get("negative_prompt"),
        how=HowSteered(**how),
        preserve=preserve,
        origin=Origin(**origin),
    )
    drawn = [_read_concept(concept, len(pictures)) for concept in concepts]
    made = []
    for i, entry in enumerate(pictures):
        own = {key: entry[key] for key in ("steps", "guidance") if key in entry}
        seeds = {key: entry.get(key, document.get(key)) for key in ("seed", "place")}
        present = tuple(one for of_picture in drawn if (one := of_picture[i]) is not None)
        settings = replace(first.settings, **own)
        named = {"prompt": entry["prompt"], "noise_seed": entry["noise_seed"], "settings": settings}
        made.append(replace(first, **named, **seeds, concepts=present))
    return made


def _refuse_unknown(part: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    if unknown := [key for key in part if key not in known or key == NEEDED]:
        raise ValueError(
            f"{quote(unknown[0])} is no setting of this version: expected {', '.join(list(known)[1:6])}, …"
        )


def _read_concept(entry: Mapping[str, Any], count: int) -> list[DrawnConcept | None]:
    """A concept as it steered each of so many pictures; None where it did not."""
    check_name(entry["name"])
    given = entry["strength"]
    strengths = given if isinstance(given, list) else [given] * count
    if len(strengths) != count:
        raise ValueError(f"{quote(entry['name'])} has {len(strengths)} strengths for {count} pictures")
    concept = DrawnConcept(entry["concept"], entry["name"], 0.0, entry.get("unit"), entry.get("digest"))
    return [None if strength is None else replace(concept, strength=as_strength(strength)) for strength in strengths]
