"""Evaluating a concept on a pipeline: effect, preservation, localisation, robustness and cost, arm by arm.

Prompts that learning never used are drawn in every arm from the same noise: without steering; rewritten, asking in
words; with a negative prompt; and, on one grid of strengths, with DSAS, with the gate always on, and with the control
arms (`dsas_core.evaluation.arms`). Pictures are kept by content (`dsas_diffusion.evaluation.picture_store`) and judged
afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from dsas_core.concept.concept import Concept
from dsas_core.errors import UnavailableError
from dsas_core.evaluation import Evaluation, Plan, RunStore, run_store
from dsas_core.learning.prompts.prompt_set import PromptSet
from dsas_core.steering.strengths import Auto
from dsas_diffusion.vision.localisation import average, localisation

from ..generation.compare import UNCHANGED, change
from ..generation.pictures import latent_batches
from ..generation.settings import Settings, other_schedulers, settings_of
from ..pipelines.adapter import PipelineAdapter, adapt
from ..steering.steer import steer
from ..vision import similarity
from ..vision.builtin_metrics import change_outside
from ..vision.image_models import Clip
from ..vision.picture_judge import PictureJudge
from ..vision.segmentation import Masks
from .picture_store import PictureJob, PictureStore

#: control pictures from which on KID says something
MIN_KID_PICTURES = 50


def identity(pipe: Any, concept: Concept, prompts: PromptSet) -> dict[str, Any]:
    """What a run is about: with another model, concept or prompt file it is another run."""
    return run_store.identity(adapt(pipe).roots, concept, prompts)


def evaluate(
    pipe: Any,
    concept: Concept,
    prompts: PromptSet,
    judge: PictureJudge | Sequence[PictureJudge],
    run: RunStore,
    plan: Plan | None = None,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    size: int | None = None,
    clip: str | None = None,
    features: similarity.Features | str | None = None,
    masks: Masks | None = None,
) -> dict[str, Any]:
    """Measure a concept.

    Args:
        pipe: the pipeline that it was learned on.
        prompts: the prompt file; see `PromptSet.fresh` for what is drawn from it.
        judge: tells whether a picture shows what is wanted; of several, figures are the first one's, and what the
            others say of each arm is told beside.
        run: where pictures are kept; of `identity(pipe, concept, prompts)`.
        plan: how much is drawn.
        steps, guidance, size: as in `generation.settings_of`.
        clip: a CLIP model by folder or Hub name, for how well pictures fit their prompts.
        features: an image model by folder or Hub name, or a function, to compare sets of pictures with (FID and KID),
            beside the built-in judge's network.
        masks: tells where a picture shows the thing; None asks the judge, which may not know.

    Returns:
        Plain data: `summed_up`'s figures with `baselines`, `judges`, `localisation`, `unnamed`, `wordings`,
        `robustness`, `cost`, `samples` (picture files by arm) and `skipped` (what could not be measured, and why).

    Raises:
        DSASError: no prompts for an arm.
    """
    settings = settings_of(pipe, steps, guidance, size)
    return PictureEvaluation(
        concept, prompts, judge, run, plan or Plan(), adapt(pipe), settings, clip, features, masks
    ).report()


@dataclass(eq=False)
class PictureEvaluation(Evaluation):
    """The evaluation of a concept on a pipeline; arguments as in `evaluate`."""

    adapter: PipelineAdapter
    settings: Settings
    clip: str | None
    features: similarity.Features | str | None
    masks: Masks | None
    outputs = "pictures"
    sides = ("source", "control", "unnamed")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seeds = self.plan.seeds
        self.unsteered_arms += ["asked"] if self.rewritten else []
        negative = next(iter(self.prompt_set.sample("negative", 1)), None)
        self.drawings = PictureStore(
            self.adapter, self.concept, self.prompts, negative, self.store, self.settings, self.seeds
        )
        self.masks = self.masks or getattr(self.judge, "masks", None)
        self._masks_by_side: dict[str, list[np.ndarray | None]] = {}
        self._unavailable: set[str] = set()
        name, own = self.clip, self.features
        self._clip_model = self._try("CLIP score", lambda: Clip(name)) if name else None
        network = getattr(self.judge, "judge", None)
        #: functions that sets of pictures are compared with, by the suffix of their figures
        self.networks = {} if network is None else {"_judge": similarity.judge_features(network)}
        if isinstance(own, str):
            own = self._try("FID and KID", partial(similarity.transformers_features, own))
        if own is not None:
            self.networks[""] = own

    def run_arms(self) -> None:
        sides = [side for side in self.sides if self.prompts[side]]
        first = [PictureJob("base", side) for side in sides] + [PictureJob("dsas", side, 1.0) for side in sides]
        first += [PictureJob("dsas", "source"), *([PictureJob("asked", "source")] if self.rewritten else [])]
        first += [PictureJob("negative", side) for side in ("source", "control") if self.drawings.negative]
        self.drawings.complete(first, "drawing base and DSAS")
        masks = self._masks_of("source") if "oracle" in self.plan.arms else None
        if masks is not None and self.drawings.tell_oracle(masks):
            self.oracle_sees = "patches"
        grid = [PictureJob(arm, side, strength) for arm, strength in self.grid for side in ("source", "control")]
        grid += [PictureJob("on", "unnamed", 1.0)] if self.prompts["unnamed"] and "on" in self.plan.arms else []
        self.drawings.complete(grid, "drawing the arms")
        jobs = [
            PictureJob(arm, side, strength, settings)
            for arm, strength in (("base", 0.0), ("dsas", 1.0))
            for settings in self._other_settings()
            for side in ("source", "control")
        ]
        self.drawings.complete(jobs, "drawing other settings")

    def judge_outputs(self, judge: PictureJudge, arm: str, strength: float | Auto) -> np.ndarray:
        return self._judge_job(judge, PictureJob(arm, "source", strength))

    def preservation(self, arm: str, strength: float | Auto) -> tuple[np.ndarray, dict[str, float]]:
        control = PictureJob(arm, "control", strength)
        changes, more = self._changes(control)
        more |= self._change_around(PictureJob(arm, "source", strength))
        if strength == 1.0:
            more |= self._distances(control)
        return changes.clip(0, 1), more

    def mean_h(self, side: str) -> float:
        return self.drawings.mean_h(side)

    def baselines(self) -> dict[str, dict[str, float]]:
        baselines = super().baselines()
        if self.drawings.negative is not None:
            source, control = PictureJob("negative", "source"), PictureJob("negative", "control")
            changes, more = self._changes(control)
            more |= self._change_around(source) | self._clip_score(control)
            shown = float(self.scores("negative").mean())
            figures = {"shown": shown, "cost": float(changes.mean()), **more}
            baselines[f"negative prompt “{self.drawings.negative}”"] = figures
        return baselines

    def baseline_figures(self, arm: str) -> dict[str, float]:
        return (
            self._clip_score(PictureJob(arm, "control"))
            if arm == "base"
            else self._change_around(PictureJob(arm, "source"))
        )

    def further_figures(self) -> dict[str, Any]:
        figures = {
            "localisation": self._localisation(),
            "unnamed": self._unnamed(),
            "robustness": [self._robustness(settings) for settings in self._other_settings()],
        }
        if not self.rewritten:
            self.skip("asking in words: source and target templates do not go in pairs")
        if self.drawings.negative is None:
            self.skip("a negative prompt: the prompt file's evaluation names none (negative: [...])")
        return figures

    def sample(self, side: str, number: int) -> dict[str, str]:
        strongest = self.plan.strengths[-1]
        jobs = [PictureJob("base", side), *([PictureJob("asked", side)] if side == "source" else [])]
        jobs += [PictureJob(arm, side, 1.0) for arm in self.plan.arms if (arm, side) != ("oracle", "unnamed")]
        jobs += [PictureJob("dsas", side, strongest)]
        return {
            f"{job.arm} ×{strongest:g}" if job.strength == strongest != 1.0 else job.arm: str(
                self.drawings.file(job, number)
            )
            for job in jobs
            if job in self.drawings
        }

    def timed_work(self) -> tuple[Callable[[], object], Mapping[str, Any], torch.device]:
        """One picture."""
        adapter, settings, prompt = self.adapter, self.settings, self.prompts["source"][:1]
        about = {**self.drawings.model_key, "prompt": prompt, "settings": asdict(settings)}
        denoiser: Any = self.adapter.denoiser
        return lambda: list(latent_batches(adapter, prompt, [0], settings)), about, denoiser.device

    def steered(self, gate: str | None = None) -> AbstractContextManager[Any]:
        return steer(self.adapter.pipe, {self.concept: 1.0}, gate=gate)

    # ---- what a picture shows, and how far it is from another -------------------------------------------------------

    def _judge_job(self, judge: PictureJudge, job: PictureJob) -> np.ndarray:
        prompts = self.drawings.prompts_of(PictureJob("base", job.side, settings=job.settings))
        return judge.target_scores(self.drawings.pictures(job), prompts)

    def _pair(self, job: PictureJob) -> tuple[list[Image.Image], list[Image.Image]]:
        """Pictures of the same prompts and noise without steering, and of a job."""
        return self.drawings.pictures(PictureJob("base", job.side, settings=job.settings)), self.drawings.pictures(job)

    def _masks_of(self, side: str) -> list[np.ndarray | None] | None:
        """Where each unsteered picture of a side shows the thing; None where nobody knows masks."""
        if self.masks is not None and side not in self._masks_by_side:
            self._masks_by_side[side] = self.masks(self.drawings.pictures(PictureJob("base", side)))
        return self._masks_by_side.get(side)

    def _try(self, what: str, get: Callable[[], Any]) -> Any:
        """What `get` gives, or None where it is unavailable: that is noted, and not tried a second time."""
        if what in self._unavailable:
            return None
        try:
            return get()
        except UnavailableError as error:
            self._unavailable.add(what)
            self.skip(f"{what}: {error}")
            return None

    def _changes(self, job: PictureJob) -> tuple[np.ndarray, dict[str, float]]:
        """1 - SSIM of each picture of a job with the unsteered one, and what else tells how much it changed."""
        base, steered = self._pair(job)
        pixels = change(base, steered)
        base_latents = self.drawings.latents(PictureJob("base", job.side, settings=job.settings))
        figures = {
            "unchanged": float((pixels <= UNCHANGED).mean()),
            "identical": float(similarity.identical(base, steered).mean()),
            "pixel_change": float(pixels.mean()),
            "latent_change": float(similarity.latent_change(base_latents, self.drawings.latents(job)).mean()),
        }
        return 1 - similarity.ssim(base, steered), figures

    def _change_around(self, job: PictureJob) -> dict[str, float]:
        """Mean change of 255 around the thing, and the share of things beside it that look as before.

        Of pictures that show the thing, where masks are known; neighbours where the judge knows things by name.
        """
        masks = self._masks_of(job.side)
        if masks is None:
            return {}
        base, steered = self._pair(job)
        by_picture = {"change_outside_the_thing": change_outside(base, steered, masks)}
        neighbours_kept = getattr(self.judge, "neighbours_kept", None)
        if neighbours_kept is not None:
            by_picture["neighbours_kept"] = neighbours_kept(base, steered, masks)
        return {name: float(np.mean(values)) for name, values in by_picture.items() if values}

    def _distances(self, job: PictureJob) -> dict[str, float]:
        """Distances between the sets of steered and unsteered control pictures, and fit to prompts."""
        base, steered = self._pair(job)
        figures = self._clip_score(job)
        lpips = self._try("perceptual distance", lambda: similarity.lpips(base, steered))
        if lpips is not None:
            figures["lpips"] = float(lpips.mean())
        for suffix, features in self.networks.items() if len(base) > 1 else ():
            figures[f"frechet{suffix}"] = similarity.fid(base, steered, features)
            if len(base) < MIN_KID_PICTURES:
                needed = f"{MIN_KID_PICTURES} are needed (--count, --seeds)"
                self.skip(f"KID: of {len(base)} control pictures it is noise, {needed}")
            else:
                figures[f"kid{suffix}"] = similarity.kid(base, steered, features)
        return figures

    def _clip_score(self, job: PictureJob) -> dict[str, float]:
        """How well pictures fit their prompts, where a CLIP is named."""
        if self._clip_model is None:
            return {}
        scores = similarity.clip_score(self.drawings.pictures(job), self.drawings.prompts_of(job), self._clip_model)
        return {"clip_score": float(scores.mean())}

    # ---- where, and under which settings ----------------------------------------------------------------------------

    def _localisation(self) -> dict[str, float] | None:
        """Heat of the denoiser's gates in unsteered pictures against masks of these."""
        masks, heatmaps = self._masks_of("source"), self.drawings.heat("source")
        if masks is None or heatmaps is None:
            self.skip("localisation: it needs gates that read patches in late steps, and masks (masks: …)")
            return None
        results = [
            localisation(heat, mask)
            for heat, mask in zip(heatmaps, masks, strict=True)
            if mask is not None and mask.any() and not mask.all()
        ]
        return {**asdict(average(results)), "pictures": len(results)} if results else None

    def _unnamed(self) -> dict[str, float] | None:
        """Pictures that show the concept although no prompt names it: how many, and the share that was treated."""
        if not self.prompts["unnamed"]:
            return None
        masks = self._masks_of("unnamed")
        if masks is None:
            self.skip("the concept where no prompt names it: it needs masks (masks: …)")
            return None
        untreated = self._judge_job(self.judge, PictureJob("base", "unnamed")) < 0.5
        present = np.array([mask is not None for mask in masks]) & untreated
        if not present.any():
            self.skip("the concept where no prompt names it: no such picture showed it")
            return None
        figures: dict[str, float] = {"pictures": int(present.sum())}
        for job in (PictureJob("dsas", "unnamed", 1.0), PictureJob("on", "unnamed", 1.0)):
            if job in self.drawings:
                figures[job.arm] = float(self._judge_job(self.judge, job)[present].mean())
        return figures

    def _other_settings(self) -> list[Settings]:
        """Fewer and more steps, less and more guidance, and other schedulers than the concept was learned with."""
        if not self.plan.robustness:
            return []
        usual = self.settings
        others = [
            replace(usual, steps=max(1, 2 * usual.steps // 3)),
            replace(usual, steps=2 * usual.steps),
            replace(usual, guidance=round(usual.guidance * 2 / 3, 2)),
            replace(usual, guidance=round(usual.guidance * 5 / 3, 2)),
            *(replace(usual, scheduler=name) for name in other_schedulers(self.adapter)),
        ]
        return [settings for settings in others if settings != usual]

    def _robustness(self, settings: Settings) -> dict[str, Any]:
        """DSAS at strength 1 under other settings."""
        jobs = {
            "base": PictureJob("base", "source", 0.0, settings),
            "shown": PictureJob("dsas", "source", 1.0, settings),
        }
        means = {name: float(self._judge_job(self.judge, job).mean()) for name, job in jobs.items()}
        changes = self._changes(PictureJob("dsas", "control", 1.0, settings))[1]
        scheduler = settings.scheduler or type(self.adapter.pipe.scheduler).__name__
        return {**asdict(settings), "scheduler": scheduler, **means, **changes}
