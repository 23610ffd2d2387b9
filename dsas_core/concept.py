"""The artifact: what `learn` returns, `steer` takes, and files and the Hub hold.

A concept folder has `config.json` (everything readable), `concept.safetensors` (the tensors) and `README.md` (a card
with the evidence). Nothing is ever unpickled. Values are rounded to storage precision before they are first used, so
what was saved and loaded again equals what was learned.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch

from .cloud import Cloud
from .errors import DSASError
from .files import replacing_folder
from .fingerprints import fingerprint
from .maps import IdentityMap, Map
from .parts import unpack
from .probes import PooledConditionProbe, PooledProbe, Probe, RunningProbe
from .sites import Roots, Site

FORMAT = 1
CONFIG, TENSORS, CARD = "config.json", "concept.safetensors", "README.md"


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
        if across and not all(isinstance(probe, PooledProbe | PooledConditionProbe) for probe in self.probes):
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
        base: root name -> fingerprint of the module that it was learned on.
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
    evidence: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "interventions", tuple(_stored(item) for item in self.interventions))
        for name in ("base", "evidence", "provenance"):  # what JSON cannot hold must not get in
            object.__setattr__(self, name, json.loads(json.dumps(getattr(self, name))))

    def __hash__(self) -> int:
        return hash(self.name)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Concept):
            return NotImplemented
        (config, tensors), (its_config, its_tensors) = self._packed(), other._packed()
        return config == its_config and all(torch.equal(tensors[key], its_tensors[key]) for key in tensors)

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
    def digest(self) -> str:
        """Sixteen hex digits of its interventions, edges and unit."""
        config, tensors = self._packed()
        digest = hashlib.sha256(json.dumps([config["interventions"], self.edges, self.unit]).encode())
        for name in sorted(tensors):
            digest.update(tensors[name].numpy().tobytes())
        return digest.hexdigest()[:16]

    def with_unit(self, unit: float) -> Concept:
        """The same concept with another unit of strength; the ends of its range stay where they are in the map's."""
        ends = None
        if self.range is not None and unit > 0:
            low, high = (end * self.unit / unit for end in self.range)
            ends = low, high
        return replace(self, unit=float(unit), range=ends)

    def check(self, roots: Roots, *, force: bool = False) -> None:
        """Raise a DSASError when the concept was learned on another architecture than `roots`, unless forced."""
        missing = [root for root in self.base if root not in roots]
        if missing:
            there, model = ", ".join(roots), self.provenance.get("model", "another kind of model")
            raise DSASError(
                f"concept {self.name!r} steers {', '.join(missing)}, which this model lacks (it has {there}), and was "
                f"learned on {model}: use it on such a one"
            )
        for root, wanted in self.base.items():
            found = fingerprint(roots[root])
            if found != wanted and not force:
                raise DSASError(
                    f"concept {self.name!r} was learned on another {root} (fingerprint {wanted}, this one is {found}): "
                    "learn it on this model, or pass force=True if you know that the layers agree"
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
        config, tensors = self._packed()
        from safetensors.torch import save

        with replacing_folder(folder) as draft:
            apart = {name: tensor.clone() for name, tensor in tensors.items()}  # bins may share a probe
            (draft / TENSORS).write_bytes(save(apart, metadata={"format": "pt", "dsas": str(FORMAT)}))
            (draft / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
            (draft / CARD).write_text(_card(self, config))
        return folder

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None, token: str | None = None) -> Self:
        """Read a concept from a folder, or from the Hub by its repository name.

        Raises:
            DSASError: nothing there, or what is there is damaged; the message names the file.
        """
        folder = Path(name)
        if folder.is_file():
            raise DSASError(f"{folder} is a file, not a concept's folder; a prompt file is to be learned first")
        if not folder.is_dir():
            folder = _download(str(name), revision, token)
        return cls._read(folder)

    def push_to_hub(self, repository: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the concept folder to a Hub model repository; returns its address."""
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        repository = api.create_repo(repository, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as draft:
            self.save_pretrained(Path(draft) / "concept")
            return str(api.upload_folder(repo_id=repository, folder_path=Path(draft) / "concept"))

    def _packed(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        tensors: dict[str, torch.Tensor] = {}
        interventions = []
        for place, intervention in enumerate(self.interventions):
            key = f"{place}.{intervention.site}"  # several slices of one module are several sites
            bins = []
            for i, (probe, transform) in enumerate(zip(intervention.probes, intervention.maps, strict=True)):
                packed = {
                    "probe": probe.pack(tensors, f"{key}.{i}.probe"),
                    "map": transform.pack(tensors, f"{key}.{i}.map"),
                    "weight": intervention.weights[i],
                }
                if intervention.clouds:
                    packed["cloud"] = intervention.clouds[i].pack(tensors, f"{key}.{i}.cloud")
                bins.append(packed)
            elsewhere = {} if intervention.reads is None else {"reads": intervention.reads.to_dict()}
            interventions.append({"site": intervention.site.to_dict(), **elsewhere, "bins": bins})
        config = {
            "format": FORMAT,
            "name": self.name,
            "description": self.description,
            "method": self.method,
            "gate": self.gate,
            "unit": self.unit,
            **({} if self.range is None else {"range": list(self.range)}),
            "edges": list(self.edges),
            "base": self.base,
            "evidence": self.evidence,
            "provenance": self.provenance,
            "interventions": interventions,
        }
        return config, tensors

    @classmethod
    def _read(cls, folder: Path) -> Self:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        for name in (CONFIG, TENSORS):
            if not (folder / name).is_file():
                raise DSASError(f"{folder} is no concept: it has no {name} (write one with `dsas learn`)")
        try:
            config = json.loads((folder / CONFIG).read_text())
        except ValueError as error:
            raise DSASError(f"{folder / CONFIG} is damaged: {error}") from None
        try:
            tensors = load_file(folder / TENSORS)
        except (SafetensorError, OSError, ValueError) as error:
            raise DSASError(f"{folder / TENSORS} is damaged or cut short: {error}; save or download it again") from None
        if not isinstance(config, dict) or config.get("format") != FORMAT:
            found = config.get("format") if isinstance(config, dict) else type(config).__name__
            raise DSASError(f"{folder / CONFIG}: format {found}, this version reads format {FORMAT}")
        if any(not bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise DSASError(f"{folder / TENSORS} holds NaN or infinite values; learn the concept again")
        try:
            interventions = tuple(
                Intervention(
                    site=Site.from_dict(item["site"]),
                    probes=tuple(unpack(bin_["probe"], tensors) for bin_ in item["bins"]),
                    maps=tuple(unpack(bin_["map"], tensors) for bin_ in item["bins"]),
                    weights=tuple(float(bin_["weight"]) for bin_ in item["bins"]),
                    reads=Site.from_dict(item["reads"]) if "reads" in item else None,
                    clouds=tuple(unpack(bin_["cloud"], tensors) for bin_ in item["bins"] if "cloud" in bin_),
                )
                for item in config.pop("interventions")
            )
            edges = tuple(float(edge) for edge in config.pop("edges"))
            config.pop("format")
            if config.get("range") is not None:
                config["range"] = tuple(float(end) for end in config["range"])
            concept = cls(interventions=interventions, edges=edges, **config)
            _validate(concept)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DSASError(f"{folder / CONFIG} is damaged: {type(error).__name__} {error}") from None
        if any(len(item.probes) != len(edges) + 1 for item in interventions):
            raise DSASError(f"{folder / CONFIG} is damaged: {len(edges)} edges need {len(edges) + 1} bins at each site")
        return concept


def _validate(concept: Concept) -> None:
    """Raise a ValueError when a file holds what no concept can; parts have been checked by `unpack`."""
    texts = (concept.name, concept.method, concept.gate, concept.description)
    weights = [weight for item in concept.interventions for weight in item.weights]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("name, method, gate and description must be texts")
    if isinstance(concept.unit, str) or not all(map(math.isfinite, (concept.unit, *concept.edges, *weights))):
        raise ValueError("unit, edges and weights must be finite numbers")
    if list(concept.edges) != sorted(set(concept.edges)):
        raise ValueError("edges must ascend")
    ends = concept.range
    if ends is not None and not (
        len(ends) == 2 and -math.inf < ends[0] <= 0 <= ends[1] < math.inf and ends[0] < ends[1]
    ):
        raise ValueError(f"range must be two finite numbers, from 0 or below to 0 or above, found {list(ends)}")
    if not concept.interventions:
        raise ValueError("it has no interventions")
    for item in concept.interventions:
        if not all(isinstance(probe, Probe) for probe in item.probes) or not all(isinstance(m, Map) for m in item.maps):
            raise ValueError(f"{item.site} needs probes and maps")
        if item.clouds and (len(item.clouds) != len(item.maps) or not all(isinstance(c, Cloud) for c in item.clouds)):
            raise ValueError(f"{item.site} needs a cloud in every bin, or none at all")


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


def _download(name: str, revision: str | None, token: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise DSASError(f"no concept at {name}: no such folder, and it is no Hub name (user/name)")
    try:
        patterns = [CONFIG, TENSORS, CARD]
        return Path(snapshot_download(name, revision=revision, token=token, allow_patterns=patterns))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DSASError(f"no concept at {name}: no such folder, and the Hub gave none ({reason})") from None


def _card(concept: Concept, config: Mapping[str, Any]) -> str:
    rows = [
        f"| `{site['site']}` | {site['balanced_accuracy']:.3f} | {site['auroc']:.3f} | {site['control_h']:.4f} |"
        for site in concept.evidence.get("sites", [])
    ]
    text = not {"unet", "transformer", "text_encoder"} & set(concept.base)
    lines = (
        ["from dsas_core import llm", "", f'with llm.steer(model, {{"{concept.name}": 1.0}}):']
        if text
        else ["import dsas_diffusion as dsas", "", f'with dsas.steer(pipe, {{"{concept.name}": 1.0}}):']
    )
    example = "\n".join([*lines, "    out = model.generate(**inputs)" if text else '    image = pipe("…").images[0]'])
    ends = "" if concept.range is None else " Useful strengths go from {:g} to {:g}.".format(*concept.range)
    table = "\n".join(["| site | balanced accuracy | AUROC | mean h on controls |", "|---|---|---|---|", *rows])
    return f"""---
library_name: dsas
tags: [activation-steering, dsas]
---
# {concept.name}

{concept.description or "A concept for Dynamically Scaled Activation Steering."}

Method `{concept.method}`, gate `{concept.gate}`; a strength of 1 stands for {concept.unit:g} units of the map.{ends}

```python
{example}
```

## Evidence

Cross-validated on prompts that the gate was not fitted on.

{table if rows else "None recorded."}

## Provenance

```json
{json.dumps(config["provenance"], indent=2)}
```

Steering changes what a model {"writes" if text else "draws"}, in either direction; look at samples before you rely
on it.
"""
