"""The pictures of an evaluation: every prompt in every arm from the same noise, cached by content.

Here pictures are only drawn and stored; `dsas_diffusion.evaluation.evaluate` judges them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError
from dsas_core.evaluation import Cell, CellResult, RunStore, build_arm, cost
from dsas_core.evaluation.arms import BLIND, SCORES, Scores, collect_scores, load_scores, save_scores
from dsas_core.model.fingerprints import weights_digest
from dsas_core.steering.strengths import Auto

from ..generation.pictures import decode, latent_batches, model_key, seeds_for, size_of
from ..generation.settings import Settings
from ..pipelines.adapter import PipelineAdapter
from ..pipelines.sites import has_patches
from ..steering.drawing import generate_batches
from ..steering.steer import steer
from ..steering.trace import PictureTrace

#: heat is stored of the steps below this timestep: earlier latents show no picture yet
BELOW = 500.0
BATCH = 8
#: arms without steering: plain, of rewritten prompts, and with a negative prompt
BASELINES = ("base", "asked", "negative")


@dataclass(frozen=True)
class PictureJob:
    """Pictures of one arm on one side.

    DSAS at strength 0 changes nothing; it records the heat of its gates in unsteered pictures.

    Args:
        arm: in `ARMS` or `BASELINES`.
        side: of the prompts: "source", "control" or "unnamed".
        strength: in units of the concept.
        settings: None takes those of the evaluation.
    """

    arm: str
    side: str
    strength: float | Auto = 0.0
    settings: Settings | None = None

    @property
    def unsteered(self) -> PictureJob:
        """Pictures of the same prompts and noise without steering."""
        return PictureJob("base", self.side, settings=self.settings)


@dataclass(eq=False)
class PictureStore:
    """The pictures of one concept under evaluation.

    Args:
        adapter: of the pipeline to steer.
        concept: the concept to steer with.
        prompts: by side; those of "target" ask in words for what steering does to "source".
        negative: the negative prompt of the baseline "negative"; None leaves it out.
        store: caches results.
        settings: of the generation.
        seeds: noise seeds that every prompt is drawn with.
        preserve: as for `generate`, of every arm that steers: False, True or "latents".
    """

    adapter: PipelineAdapter
    concept: Concept
    prompts: Mapping[str, list[str]]
    negative: str | None
    store: RunStore
    settings: Settings
    seeds: int
    preserve: bool | str = False

    def __post_init__(self) -> None:
        adapter = self.adapter
        #: the part of every cell's key that is about the pipeline
        self.model_key = {
            **model_key(adapter),
            "decoder": weights_digest({"vae": adapter.pipe.vae}),
            "precision": cost.precision(adapter.denoiser),
        }
        #: whether the concept steers patches, to which the oracle's masks apply
        self.steers_patches = any(has_patches(site, adapter.family.denoiser) for site in self.concept.steered_sites)
        self._oracle_masks: np.ndarray | None = None
        self._results: dict[PictureJob, CellResult] = {}

    def use_oracle_masks(self, masks: Sequence[np.ndarray | None]) -> bool:
        """Give the oracle the masks of the thing in the unsteered source pictures.

        Args:
            masks: bool [height, width] of each picture; None if the thing is not shown.

        Returns:
            Whether they apply to the concept's sites; otherwise the oracle steers all of a source prompt.
        """
        empty = next((np.zeros_like(mask) for mask in masks if mask is not None), None)
        if self.steers_patches and empty is not None:
            self._oracle_masks = np.stack([empty if mask is None else mask for mask in masks])
        return self._oracle_masks is not None

    def complete(self, jobs: Sequence[PictureJob], label: str) -> None:
        """Draw the missing pictures of some jobs."""
        missing = [job for job in dict.fromkeys(map(self._equivalent, jobs)) if job not in self._results]
        results = self.store.complete([self._cell(job) for job in missing], label)
        self._results |= dict(zip(missing, results, strict=True))

    def __contains__(self, job: PictureJob) -> bool:
        return self._equivalent(job) in self._results

    def prompts_of(self, job: PictureJob) -> list[str]:
        """The prompt of each picture: each once per seed; only once under other settings than the evaluation's."""
        texts = self.prompts["target" if job.arm == "asked" else job.side]
        return texts * (1 if job.settings else self.seeds)

    def load(self, job: PictureJob) -> list[Image.Image]:
        """The stored pictures of a job."""
        count = self._result(job).values["pictures"]
        return [Image.open(self.file(job, i)).convert("RGB") for i in range(count)]

    def file(self, job: PictureJob, number: int) -> Path:
        """The file of a picture."""
        return self._result(job).folder / f"{number:03d}.png"

    def latents(self, job: PictureJob) -> torch.Tensor | None:
        """The latents of a job's pictures, float [n, channels, height, width]; None of pictures that were composed."""
        path = self._result(job).folder / "latents.npy"
        return torch.from_numpy(np.load(path)) if path.is_file() else None

    def heat(self, side: str) -> np.ndarray | None:
        """The heat of the denoiser's gates in unsteered pictures, float [n, height, width], or None."""
        path = self._result(PictureJob("dsas", side)).folder / "heat.npy"
        return np.load(path).astype(np.float32) if path.is_file() else None

    def mean_h(self, side: str) -> float:
        """Mean h of DSAS at strength 1 over sites, bins and positions, with site weights."""
        scores = load_scores(self._result(PictureJob("dsas", side, 1.0)).folder / SCORES)
        items = self.concept.interventions
        return float(np.mean([float(h.mean()) * items[i].weights[bin_] for (i, bin_), h in scores.items()]))

    def _result(self, job: PictureJob) -> CellResult:
        return self._results[self._equivalent(job)]

    def _equivalent(self, job: PictureJob) -> PictureJob:
        """The job with the same pictures: without masks the oracle is always on for source prompts, else off."""
        if job.arm != "oracle" or (self._oracle_masks is not None and job.side == "source"):
            return job
        return PictureJob("on", job.side, job.strength) if job.side == "source" else PictureJob("base", job.side)

    def _noise(self, job: PictureJob) -> list[int]:
        texts = self.prompts[job.side]
        return [number for seed in range(1 if job.settings else self.seeds) for number in seeds_for(texts, seed)]

    def _cell(self, job: PictureJob) -> Cell:
        key = {
            "kind": "pictures",
            **self.model_key,
            "concept": None if job.arm in BASELINES else self.concept.digest,
            "arm": job.arm,
            "strength": str(job.strength) if isinstance(job.strength, Auto) else job.strength,
            "prompts": self.prompts_of(job),
            "noise": self._noise(job),
            "settings": asdict(job.settings or self.settings),
            "negative": self.negative if job.arm == "negative" else None,
        }
        if self._preserves(job):
            key |= {"preserve": self.preserve, "mask": self.concept.evidence.get("mask")}
        if job.arm in BLIND:
            key["scores"] = self._cell(_DSAS).digest
        if job.arm == "oracle":
            assert self._oracle_masks is not None
            key["there"] = hashlib.sha256(self._oracle_masks.tobytes()).hexdigest()[:20]
        return Cell(key, lambda folder: self._draw(job, folder))

    def _draw(self, job: PictureJob, folder: Path) -> dict[str, Any]:
        """Draw and store pictures, and latents of those that are not composed.

        Of DSAS at strength 0 also heat, at 1 the scores of the gates.
        """
        adapter, prompts, noise = self.adapter, self.prompts_of(job), self._noise(job)
        negative = self.negative if job.arm == "negative" else None
        stores_heat, stores_scores = job == PictureJob("dsas", job.side), job == PictureJob("dsas", job.side, 1.0)
        pictures: list[Image.Image] = []
        batches: list[torch.Tensor] = []
        heatmaps: list[np.ndarray] = []
        scores: list[Scores] = []
        for start in range(0, len(prompts), BATCH):
            part = slice(start, start + BATCH)
            with self._attach(job, part, stores_heat or stores_scores) as steering:
                settings = job.settings or self.settings
                if self._preserves(job):
                    (made,) = generate_batches(steering, prompts[part], noise[part], settings, self.preserve, BATCH)
                    pictures += made.images
                else:
                    (batch,) = latent_batches(adapter, prompts[part], noise[part], settings, BATCH, negative)
                    batches.append(batch.float().cpu())
                if stores_heat:
                    heatmaps += self._heatmaps(steering.trace, batch)
                if stores_scores:
                    scores.append(collect_scores(steering.trace, self.concept))
        if batches:
            latents = torch.cat(batches)
            np.save(folder / "latents.npy", latents.numpy())
            pictures = decode(adapter, latents.to(adapter.pipe.vae.device))
        for i, picture in enumerate(pictures):
            picture.convert("RGB").save(folder / f"{i:03d}.png")
        if heatmaps:
            np.save(folder / "heat.npy", np.stack(heatmaps).astype(np.float16))
        if scores:
            save_scores(scores, folder / SCORES)
        return {"pictures": len(pictures)}

    def _preserves(self, job: PictureJob) -> bool:
        """Whether the rest of a job's pictures is kept; at strength 0 all of them is anyway."""
        return bool(self.preserve) and job.arm not in BASELINES and job.strength != 0.0

    def _attach(self, job: PictureJob, part: slice, traced: bool) -> AbstractContextManager[Any]:
        """Steer for some of a job's pictures, as a context."""
        if job.arm in BASELINES:
            return nullcontext()
        scores = load_scores(self._results[_DSAS].folder / SCORES) if job.arm in BLIND else None
        by_root = {}
        if job.arm == "oracle" and self._oracle_masks is not None:
            masks = torch.from_numpy(self._oracle_masks[part]).float()
            # patches are not smaller than latents, so masks need not be larger
            height, width = (side // self.adapter.pipe.vae_scale_factor for side in masks.shape[-2:])
            smaller = torch.nn.functional.adaptive_avg_pool2d(masks[:, None], (height, width))[:, 0]
            by_root = {self.adapter.family.denoiser: smaller}
        concept, gate = build_arm(self.concept, job.arm, scores, masks=by_root)
        if self._preserves(job) and not any(item.read_only for item in concept.interventions):
            watching = tuple(item for item in self.concept.interventions if item.read_only)  # the probes of its masks
            concept = replace(concept, interventions=(*concept.interventions, *watching))
        # strengths of the plan may go beyond the range
        return steer(self.adapter.pipe, {replace(concept, range=None): job.strength}, gate=gate, trace=traced)

    def _heatmaps(self, trace: PictureTrace, latents: torch.Tensor) -> list[np.ndarray]:
        """The heat of the gates of the denoiser in each picture; [] if none reads patches in these steps."""
        height, width = size_of(self.adapter, latents)
        try:
            return [trace.heat(self.concept.name, (width, height), image=i, below=BELOW) for i in range(len(latents))]
        except DSASError:
            return []


#: the job whose scores the blind arms repeat
_DSAS = PictureJob("dsas", "source", 1.0)
