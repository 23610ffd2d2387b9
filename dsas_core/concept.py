"""The artifact: what `learn` returns, `steer` takes, and files and the Hub hold.

A concept folder has `config.json` (everything readable), `concept.safetensors` (the tensors) and `README.md` (a card
with the evidence), and with samples perhaps `strip.webp`; see `layout`. Nothing is ever unpickled. Values are rounded
to storage precision before they are first used, so what was saved and loaded again equals what was learned.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch

from .card import STRIP, Samples, card
from .errors import DSASError
from .files import as_lines, replacing_folder
from .fingerprints import difference, fingerprint, other_weights
from .layout import CARD, CONFIG, FILES, FORMAT, TENSORS, packed, read
from .maps import IdentityMap, Map
from .maps.envelope import Cloud
from .probes import Probe, RunningProbe
from .shipped import folder_of
from .sites import Roots, Site

__all__ = ["CARD", "CONFIG", "FILES", "TENSORS", "Concept", "Intervention", "Samples"]

#: what models are -> their roots
_KINDS = {"a model that draws": {"unet", "transformer"}, "a language model": {"model", "encoder", "decoder"}}


@dataclass(frozen=True, eq=False)
class Intervention:
    """What happens at one site, per timestep bin: probe (when), map (how), weight (how far the probe is trusted).

    `reads` is where the probe reads, if elsewhere than where the map writes: a site that comes by earlier, of the same
    root and positions, unless the probe has one h for all of them; then it may be in another root, a text encoder.
    `clouds` are those of target activations where the map writes, per bin, or none.
    """

    site: Site
    probes: tuple[Probe, ...]
    maps: tuple[Map, ...]
    weights: tuple[float, ...]
    reads: Site | None = None
    clouds: tuple[Cloud, ...] = ()

    def __post_init__(self) -> None:
        across = self.reads is not None and self.reads.root != self.site.root
        if across and not all(probe.one_score_per_row for probe in self.probes):
            raise DSASError(
                f"a probe at {self.reads} cannot gate {self.site}, which does not have its positions: read in "
                f"{self.site.root!r}, or have one h for a whole prompt (form pooled)"
            )

    @property
    def watches(self) -> bool:
        """Whether it only reads: steering does not attach it unless there is a trace to write to."""
        return all(isinstance(transform, IdentityMap) for transform in self.maps)

    @property
    def by_prompt(self) -> bool:
        """Whether a probe goes by where a prompt ends (`RunningProbe.by_prompt`)."""
        return any(isinstance(probe, RunningProbe) and probe.by_prompt for probe in self.probes)

    @property
    def width(self) -> int | None:
        """Channels of the activation that it moves, or reads; None where no tensor tells."""
        tensors = (tensor for part in (self.maps[0], self.probes[0]) for tensor in part.tensors() if tensor.ndim)
        return next((tensor.shape[-1] for tensor in tensors), None)

    def watching(self) -> Intervention:
        """The same probes, changing nothing."""
        return replace(self, maps=(IdentityMap(),) * len(self.maps))


@dataclass(frozen=True, eq=False)
class Concept:
    """A learned direction of change and the knowledge of when to apply it.

    Args:
        name: a short slug; strengths are set by it.
        interventions: by site.
        edges: ascending timesteps that separate the bins; every intervention has one entry more than edges.
        unit: the map strength that a user's strength of 1 stands for.
        range: the useful ends of strength, low and high, in units; None where nobody has looked (`calibrate`).
        method, gate: names in `dsas_core.methods`.
        base: root name -> fingerprint of the architecture of the module that it was learned on.
        learned_on: root name -> `fingerprints.portrait` of that module.
        samples: what it does, to be shown; None where nobody has looked (`illustrate`).
        evidence: measured while learning: per site, and of the choice of unit.
        provenance: prompts, seeds, versions, settings.
    """

    name: str
    interventions: tuple[Intervention, ...]
    edges: tuple[float, ...] = ()
    unit: float = 1.0
    range: tuple[float, float] | None = None
    method: str = "caa"
    gate: str = "dsas"
    description: str = ""
    base: Mapping[str, str] = field(default_factory=dict)
    learned_on: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    samples: Samples | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "interventions", tuple(_stored(item) for item in self.interventions))
        for name in ("base", "learned_on", "evidence", "provenance"):  # what JSON cannot hold must not get in
            object.__setattr__(self, name, json.loads(json.dumps(getattr(self, name))))

    def __hash__(self) -> int:
        return hash(self.name)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Concept):
            return NotImplemented
        (told, tensors), (its_told, its_tensors) = self._told(), other._told()
        same = self.settings() == other.settings() and told == its_told
        return same and all(torch.equal(tensors[key], its_tensors[key]) for key in tensors)

    def __repr__(self) -> str:
        ends = "" if self.range is None else f", range {self.range[0]:g} to {self.range[1]:g}"
        sites = f"{len(self.interventions)} sites"
        return f"Concept({self.name!r}, {self.method}+{self.gate}, {sites}, unit {self.unit:g}{ends})"

    @property
    def by_prompt(self) -> bool:
        """Whether a gate goes by where a prompt ends."""
        return any(item.by_prompt for item in self.interventions)

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(intervention.site for intervention in self.interventions)

    @property
    def steered_sites(self) -> tuple[Site, ...]:
        """Those where it changes something, and does not only watch."""
        return tuple(item.site for item in self.interventions if not item.watches)

    @property
    def digest(self) -> str:
        """Sixteen hex digits of its interventions, edges and unit."""
        told, tensors = self._told()
        digest = hashlib.sha256(json.dumps([told, self.edges, self.unit]).encode())
        for name in sorted(tensors):
            digest.update(tensors[name].numpy().tobytes())
        return digest.hexdigest()[:16]

    def with_unit(self, unit: float) -> Concept:
        """The same concept with another unit of strength; the ends of its range stay where they are in the map's.

        Samples, which are by strength, are left out.
        """
        ends = None
        if self.range is not None and unit > 0:
            low, high = (end * self.unit / unit for end in self.range)
            ends = low, high
        return replace(self, unit=float(unit), range=ends, samples=None)

    def settings(self) -> dict[str, Any]:
        """All of it but the interventions, as plain data."""
        return {
            "name": self.name,
            "description": self.description,
            "method": self.method,
            "gate": self.gate,
            "unit": self.unit,
            **({} if self.range is None else {"range": list(self.range)}),
            "edges": list(self.edges),
            "base": self.base,
            **({"learned_on": self.learned_on} if self.learned_on else {}),
            **({} if self.samples is None else {"samples": self.samples.to_dict()}),
            "evidence": self.evidence,
            "provenance": self.provenance,
        }

    def check(self, roots: Roots, *, force: bool = False) -> None:
        """Raise a DSASError when the concept was learned on another architecture than `roots`, unless forced.

        The same architecture with other weights is warned of.
        """
        missing = [root for root in self.base if root not in roots]
        model = self.provenance.get("model", "another kind of model")
        own, kind = _kind(self.base), _kind(roots)
        if missing and own and kind and own != kind:
            raise DSASError(
                f"concept {self.name!r} is of {own}, and this is {kind}: use it on such a one as it was learned "
                f"on ({model})"
            )
        if missing:
            there = ", ".join(roots)
            raise DSASError(
                f"concept {self.name!r} steers {', '.join(missing)}, which this model lacks (it has {there}), and was "
                f"learned on {model}: use it on such a one"
            )
        if force:
            return
        for root, wanted in self.base.items():
            found, known = fingerprint(roots[root]), self.learned_on.get(root, {})
            if found != wanted:
                here = [item for item in self.interventions if item.site.root == root]
                widths = {item.site: item.width for item in here if item.width is not None}
                raise DSASError(
                    f"concept {self.name!r} was learned on another {root} than this, that of {model} "
                    f"(fingerprint {wanted}, this one is {found}): {difference(root, roots[root], widths, known)}; "
                    "learn it on this model, or pass force=True if you know that the layers agree"
                )
        others = [root for root, known in self.learned_on.items() if other_weights(roots[root], known)]
        if others:
            # told at this line, whoever asks, so that Python's usual filter lets it pass once
            warnings.warn(
                f"concept {self.name!r} was learned on {model}, and this model has other weights in its "
                f"{', '.join(others)}: look at results before you rely on it, or calibrate it here",
                stacklevel=1,
            )

    # ---- files ------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the concept folder, whole or not at all.

        Raises:
            DSASError: the folder is there and not empty, and `overwrite` was not given; or writing failed.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not overwrite:
            raise DSASError(f"{folder} is there and not empty: choose another folder, or pass overwrite (--overwrite)")
        if folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG).is_file():
            raise DSASError(
                f"{folder} holds something else than a concept, which overwrite would lose: choose another folder"
            )
        from safetensors.torch import save

        config, tensors = packed(self)
        with replacing_folder(folder) as draft:
            (draft / TENSORS).write_bytes(save(tensors, metadata={"format": "pt", "dsas": str(FORMAT)}))
            (draft / CONFIG).write_text(as_lines(config) + "\n")
            (draft / CARD).write_text(card(self), encoding="utf-8")
            if self.samples is not None and self.samples.strip:
                (draft / STRIP).write_bytes(self.samples.strip)
        return folder

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, revision: str | None = None, token: str | None = None, **options: Any
    ) -> Self:
        """Read a concept from a folder, from the Hub by its repository name, or one that comes with the package.

        Args:
            name: a folder, a Hub name (user/name), or "builtin:NAME", see `shipped`.
            options: further ones of a download, as huggingface_hub knows them: cache_dir, local_files_only, …

        Raises:
            DSASError: nothing there, or what is there is damaged; the message names the file.
        """
        folder = folder_of(name)
        if folder.is_file():
            raise DSASError(f"{folder} is a file, not a concept's folder; a prompt file is to be learned first")
        if not folder.is_dir():
            from .hub import download

            folder = download(str(name), revision=revision, token=token, **options)
        return read(cls, folder)

    def push_to_hub(self, repository: str, *, private: bool | None = None, **options: Any) -> str:
        """Upload the concept folder, samples and all, to a Hub model repository.

        Args:
            private: of a repository that is not there yet; None for what its owner's repositories usually are.
            options: as `huggingface_hub.ModelHubMixin.push_to_hub` knows them: token, commit_message, branch,
                create_pr, …

        Returns:
            The address of the commit.
        """
        from .hub import upload

        return upload(self, repository, private=private, **options)

    def _told(self) -> tuple[list[Any], dict[str, torch.Tensor]]:
        """Its interventions bin by bin, as plain data and tensors: what digests and comparisons go by.

        However files are laid out, this stays as it is: evaluations that are kept on disk are known by the digest.
        """
        tensors: dict[str, torch.Tensor] = {}
        interventions = []
        for place, intervention in enumerate(self.interventions):
            key = f"{place}.{intervention.site}"  # several slices of one module are several sites
            bins = []
            for i, (probe, transform) in enumerate(zip(intervention.probes, intervention.maps, strict=True)):
                told = {
                    "probe": probe.pack(tensors, f"{key}.{i}.probe"),
                    "map": transform.pack(tensors, f"{key}.{i}.map"),
                    "weight": intervention.weights[i],
                }
                if intervention.clouds:
                    told["cloud"] = intervention.clouds[i].pack(tensors, f"{key}.{i}.cloud")
                bins.append(told)
            elsewhere = {} if intervention.reads is None else {"reads": intervention.reads.to_dict()}
            interventions.append({"site": intervention.site.to_dict(), **elsewhere, "bins": bins})
        return interventions, tensors


def _stored(intervention: Intervention) -> Intervention:
    """Rounded to storage precision: float32, on the CPU."""

    def rounded(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to("cpu", torch.float32)

    return replace(
        intervention,
        probes=tuple(probe.map_tensors(rounded) for probe in intervention.probes),
        maps=tuple(transform.map_tensors(rounded) for transform in intervention.maps),
        clouds=tuple(cloud.map_tensors(rounded) for cloud in intervention.clouds),
        weights=tuple(float(weight) for weight in intervention.weights),
    )


def _kind(roots: Iterable[str]) -> str:
    """What a model is, by the names of its roots; "" where they do not tell."""
    return next((kind for kind, known in _KINDS.items() if known & set(roots)), "")
