"""Drawing what an evaluation looks at: every prompt in every arm from the same noise, kept by content.

Pictures are judged elsewhere (`dsas_diffusion.evaluation.evaluate`); here they are only made, and found again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError
from dsas_core.evaluation import Cell, CellResult, RunStore, build_arm, cost
from dsas_core.evaluation.arms import BLIND, SCORES, Scores, load_scores, save_scores, collect_scores
from dsas_core.model.fingerprints import weights_digest
from dsas_core.steering.strengths import Auto

from ..generation.pictures import decode, latent_batches, made_by, seeds_for, size_of
from ..generation.settings import Settings
from ..pipelines.adapter import PipelineAdapter
from ..steering.steer import steer
from ..steering.trace import PictureTrace

#: heat is kept of the steps from this timestep on: before, there is no picture to see
BELOW = 500.0
BATCH = 8
#: pictures without steering, of rewritten prompts, and with a negative prompt
BASELINES = ("base", "asked", "negative")


@dataclass(frozen=True)
class PictureJob:
    """Pictures of one arm on one side; `settings` where they are others than the evaluation's.

    DSAS at strength 0 only looks: where its gates see the concept in what nobody steers.
    """

    arm: str
    side: str
    strength: float | Auto = 0.0
    settings: Settings | None = None


@dataclass(eq=False)
class PictureStore:
    """The pictures of one concept under evaluation.

    Args:
        adapter, concept: what is steered, and by what.
        prompts: by side, "target" holding what asks in words for what steering does to "source".
        negative: the negative prompt of that baseline.
        store: where pictures are kept.
        settings: how they are made. seeds: noise seeds that every prompt is drawn with.
    """

    adapter: PipelineAdapter
    concept: Concept
    prompts: Mapping[str, list[str]]
    negative: str | None
    store: RunStore
    settings: Settings
    seeds: int

    def __post_init__(self) -> None:
        adapter = self.adapter
        #: what all pictures depend on, beside concept, prompts and settings
        self.model_key = {
            **made_by(adapter.pipe),
            "decoder": weights_digest({"vae": adapter.pipe.vae}),
            "precision": cost.precision(adapter.denoiser),
        }
        #: whether steering reads and changes patches, which an oracle's masks can speak of
        self.steers_patches = any(site.root == adapter.family.denoiser for site in self.concept.steered_sites)
        self._oracle_masks: np.ndarray | None = None
        self._results: dict[PictureJob, CellResult] = {}

    def tell_oracle(self, masks: Sequence[np.ndarray | None]) -> bool:
        """Tell the oracle where the thing is in each unsteered source picture; None where it is not shown.

        Whether it can make use of that: else it knows only which prompts show the concept.
        """
        empty = next((np.zeros_like(mask) for mask in masks if mask is not None), None)
        if self.steers_patches and empty is not None:
            self._oracle_masks = np.stack([empty if mask is None else mask for mask in masks])
        return self._oracle_masks is not None

    def complete(self, jobs: Sequence[PictureJob], label: str) -> None:
        """Draw what is missing of some jobs."""
        missing = [job for job in dict.fromkeys(map(self._stand_in, jobs)) if job not in self._results]
        results = self.store.complete([self._cell(job) for job in missing], label)
        self._results |= dict(zip(missing, results, strict=True))

    def __contains__(self, job: PictureJob) -> bool:
        return self._stand_in(job) in self._results

    def prompts_of(self, job: PictureJob) -> list[str]:
        """The prompt of each picture: each once per seed; other settings than usual are tried with one seed."""
        texts = self.prompts["target" if job.arm == "asked" else job.side]
        return texts * (1 if job.settings else self.seeds)

    def pictures(self, job: PictureJob) -> list[Image.Image]:
        """What was drawn."""
        count = self._of(job).values["pictures"]
        return [Image.open(self.file(job, i)).convert("RGB") for i in range(count)]

    def file(self, job: PictureJob, number: int) -> Path:
        """Where a picture lies."""
        return self._of(job).folder / f"{number:03d}.png"

    def latents(self, job: PictureJob) -> torch.Tensor:
        """What was decoded, float [n, channels, height, width]."""
        return torch.from_numpy(np.load(self._of(job).folder / "latents.npy"))

    def heat(self, side: str) -> np.ndarray | None:
        """Where the denoiser's gates see the concept in unsteered pictures, float [n, height, width], or None."""
        path = self._of(PictureJob("dsas", side)).folder / "heat.npy"
        return np.load(path).astype(np.float32) if path.is_file() else None

    def mean_h(self, side: str) -> float:
        """What DSAS at strength 1 lets through of the map: mean h over sites, bins and positions, with site weights."""
        scores = load_scores(self._of(PictureJob("dsas", side, 1.0)).folder / SCORES)
        items = self.concept.interventions
        return float(np.mean([float(h.mean()) * items[i].weights[bin_] for (i, bin_), h in scores.items()]))

    def _of(self, job: PictureJob) -> CellResult:
        return self._results[self._stand_in(job)]

    def _stand_in(self, job: PictureJob) -> PictureJob:
        """The job that gives the same pictures: the oracle steers where the thing is told, nothing without it."""
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
        if job.arm in BLIND:
            key["scores"] = self._cell(_DSAS).digest
        if job.arm == "oracle":
            assert self._oracle_masks is not None
            key["there"] = hashlib.sha256(self._oracle_masks.tobytes()).hexdigest()[:20]
        return Cell(key, lambda folder: self._draw(job, folder))

    def _draw(self, job: PictureJob, folder: Path) -> dict[str, Any]:
        """Draw and keep pictures and latents; of DSAS at 0 also heat, at 1 what the gates said."""
        pipe, prompts, noise = self.adapter.pipe, self.prompts_of(job), self._noise(job)
        negative = self.negative if job.arm == "negative" else None
        keeps_heat, keeps_scores = job == PictureJob("dsas", job.side), job == PictureJob("dsas", job.side, 1.0)
        batches: list[torch.Tensor] = []
        heatmaps: list[np.ndarray] = []
        scores: list[Scores] = []
        for start in range(0, len(prompts), BATCH):
            part = slice(start, start + BATCH)
            with self._steered(job, part, keeps_heat or keeps_scores) as steering:
                settings = job.settings or self.settings
                (batch,) = latent_batches(pipe, prompts[part], noise[part], settings, BATCH, negative)
                batches.append(batch.float().cpu())
                if keeps_heat:
                    heatmaps += self._heatmaps(steering.trace, batch)
                if keeps_scores:
                    scores.append(collect_scores(steering.trace, self.concept))
        latents = torch.cat(batches)
        for i, picture in enumerate(decode(pipe, latents.to(pipe.vae.device))):
            picture.convert("RGB").save(folder / f"{i:03d}.png")
        np.save(folder / "latents.npy", latents.numpy())
        if heatmaps:
            np.save(folder / "heat.npy", np.stack(heatmaps).astype(np.float16))
        if scores:
            save_scores(scores, folder / SCORES)
        return {"pictures": len(latents)}

    def _steered(self, job: PictureJob, part: slice, traced: bool) -> AbstractContextManager[Any]:
        """Steering for some of a job's pictures."""
        if job.arm in BASELINES:
            return nullcontext()
        scores = load_scores(self._results[_DSAS].folder / SCORES) if job.arm in BLIND else None
        there = {}
        if job.arm == "oracle" and self._oracle_masks is not None:
            masks = torch.from_numpy(self._oracle_masks[part]).float()
            # patches are not smaller than latents, so masks need not be larger
            height, width = (side // self.adapter.pipe.vae_scale_factor for side in masks.shape[-2:])
            smaller = torch.nn.functional.adaptive_avg_pool2d(masks[:, None], (height, width))[:, 0]
            there = {self.adapter.family.denoiser: smaller}
        concept, gate = build_arm(self.concept, job.arm, scores, masks=there)
        return steer(self.adapter.pipe, {concept: job.strength}, gate=gate, trace=traced)

    def _heatmaps(self, trace: PictureTrace, latents: torch.Tensor) -> list[np.ndarray]:
        """Where the denoiser's gates saw the concept in each picture; [] where none read patches in these steps."""
        height, width = size_of(self.adapter.pipe, latents)
        try:
            return [trace.heat(self.concept.name, (width, height), image=i, below=BELOW) for i in range(len(latents))]
        except DSASError:
            return []


#: whose gates the blind arms repeat
_DSAS = PictureJob("dsas", "source", 1.0)
