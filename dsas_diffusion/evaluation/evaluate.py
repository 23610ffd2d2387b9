"""Evaluation of a concept on a pipeline: effect, preservation, localisation, robustness and cost of every arm.

Held-out prompts are drawn in every arm from the same noise: without steering; rewritten to ask in words; with a
negative prompt; and, on one grid of strengths, with DSAS, with the gate always on, and with the control arms
(`dsas_core.evaluation.arms`). Pictures are cached by content (`dsas_diffusion.evaluation.picture_store`) and judged
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
from dsas_core.steering.handle import refuse_steered
from dsas_core.steering.strengths import Auto
from dsas_core.utils.numbers import optional

from ..generation.compare import UNCHANGED, change
from ..generation.pictures import latent_batches
from ..generation.settings import Settings, other_schedulers, settings_of
from ..pipelines.adapter import PipelineAdapter, adapt
from ..steering.concept_masks import localises
from ..steering.preserve import can_preserve
from ..steering.steer import steer
from ..vision import similarity
from ..vision.image_models import Clip
from ..vision.localisation import average, localisation
from ..vision.picture_judge import PictureJudge
from ..vision.segmentation import Masks
from .picture_store import PictureJob, PictureStore

#: the least control pictures for a KID
MIN_KID_PICTURES = 50


def identity(pipe: Any, concept: Concept, prompts: PromptSet) -> dict[str, Any]:
    """The `RunStore` identity of an evaluation: model, concept and prompt file."""
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
        pipe: the pipeline that the concept was learned on.
        concept: the concept to measure.
        prompts: the prompt file; see `PromptSet.fresh` for which prompts are drawn from it.
        judge: scores whether a picture shows what is wanted. Of several judges, figures are the first one's, and the
            others' mean scores are reported beside them.
        run: caches results; its identity is `identity(pipe, concept, prompts)`.
        plan: how much to measure.
        steps: as in `generation.settings_of`.
        guidance: as in `generation.settings_of`.
        size: as in `generation.settings_of`.
        clip: folder or Hub name of a CLIP, for the CLIP score.
        features: folder or Hub name of an image model, or a function, for FID and KID; those of the built-in judge's
            network are measured too.
        masks: the segmenter of the thing; None takes the judge's, if it has one.

    Returns:
        Plain data: the figures of `summarise` with `baselines`, `judges`, `localisation`, `unnamed`, `wordings`,
        `robustness`, `cost`, `samples` (picture files by arm) and `skipped` (what could not be measured, and why).

    Raises:
        DSASError: no prompts for an arm.

    Example:
        >>> import tempfile
        >>> import dsas_diffusion as dsas
        >>> from dsas_core.learning.prompts.prompt_file import load_prompts
        >>> from dsas_diffusion.vision.judges import judge_from
        >>> pipe = dsas.load_pipeline("builtin:emoji")
        >>> concept = Concept.from_pretrained("builtin:banana-blur")
        >>> prompts = load_prompts(concept.provenance["prompts"])
        >>> run = RunStore(tempfile.mkdtemp(), identity(pipe, concept, prompts))
        >>> plan = Plan(count=2, seeds=1, strengths=(1.0,), arms=("dsas",), robustness=False)
        >>> judge = judge_from(prompts.judges[0])
        >>> figures = evaluate(pipe, concept, prompts, judge, run, plan, steps=2)
        >>> list(figures["arms"]), figures["prompts"]["source"][0]
        (['dsas'], 'a banana to the left of a house on a yellow background')
    """
    settings = settings_of(pipe, steps, guidance, optional("size", size))
    refuse_steered(adapt(pipe).roots, "an evaluation")
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
        negative = next(iter(self.prompt_set.sample("negative", 1)), None)
        preserve = _preserve_of(self.plan, self.adapter, self.concept, self.skip)
        self.pictures = PictureStore(
            self.adapter, self.concept, self.prompts, negative, self.store, self.settings, self.seeds, preserve
        )
        self.masks = self.masks or getattr(self.judge, "masks", None)
        self._masks_by_side: dict[str, list[np.ndarray | None]] = {}
        self._unavailable: set[str] = set()
        name, own = self.clip, self.features
        self._clip_model = self._try("CLIP score", lambda: Clip(name)) if name else None
        network = getattr(self.judge, "judge", None)
        #: features for FID and KID, by the suffix of their figures
        self.networks = {} if network is None else {"_judge": similarity.judge_features(network)}
        if isinstance(own, str):
            own = self._try("FID and KID", partial(similarity.transformers_features, own))
        if own is not None:
            self.networks[""] = own

    def run_arms(self) -> None:
        sides = [side for side in self.sides if self.prompts[side]]
        first = [PictureJob("base", side) for side in sides] + [PictureJob("dsas", side, 1.0) for side in sides]
        first += [PictureJob("dsas", "source"), *([PictureJob("asked", "source")] if self.rewritten else [])]
        first += [PictureJob("negative", side) for side in ("source", "control") if self.pictures.negative]
        self.pictures.complete(first, "drawing base and DSAS")
        masks = self._masks_of("source") if "oracle" in self.plan.arms else None
        if masks is not None and self.pictures.use_oracle_masks(masks):
            self.oracle_knows = "patches"
        grid = [PictureJob(arm, side, strength) for arm, strength in self.grid for side in ("source", "control")]
        grid += [PictureJob("on", "unnamed", 1.0)] if self.prompts["unnamed"] and "on" in self.plan.arms else []
        self.pictures.complete(grid, "drawing the arms")
        jobs = [
            PictureJob(arm, side, strength, settings)
            for arm, strength in (("base", 0.0), ("dsas", 1.0))
            for settings in self._other_settings()
            for side in ("source", "control")
        ]
        self.pictures.complete(jobs, "drawing other settings")

    @property
    def unsteered_arms(self) -> list[str]:
        return ["base", "asked"] if self.rewritten else ["base"]

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
        return self.pictures.mean_h(side)

    def baselines(self) -> dict[str, dict[str, float]]:
        baselines = super().baselines()
        if self.pictures.negative is not None:
            source, control = PictureJob("negative", "source"), PictureJob("negative", "control")
            changes, more = self._changes(control)
            more |= self._change_around(source) | self._clip_score(control)
            figures = {"shown": float(self.scores("negative").mean()), "cost": float(changes.mean()), **more}
            baselines[f"negative prompt “{self._shown(self.pictures.negative)}”"] = figures
        return baselines

    def baseline_figures(self, arm: str) -> dict[str, float]:
        control, source = PictureJob(arm, "control"), PictureJob(arm, "source")
        return self._clip_score(control) if arm == "base" else self._change_around(source)

    def further_figures(self) -> dict[str, Any]:
        figures: dict[str, Any] = {
            **({"preserve": self.pictures.preserve} if self.pictures.preserve else {}),
            "localisation": self._localisation(),
            "unnamed": self._unnamed(),
            "robustness": [self._robustness(settings) for settings in self._other_settings()],
        }
        if not self.rewritten:
            self.skip("asking in words: source and target templates do not go in pairs")
        if self.pictures.negative is None:
            self.skip("a negative prompt: the prompt file's evaluation names none (negative: [...])")
        return figures

    def sample(self, side: str, number: int) -> dict[str, str]:
        strongest = self.plan.strengths[-1]
        jobs = [PictureJob("base", side), *([PictureJob("asked", side)] if side == "source" else [])]
        jobs += [PictureJob(arm, side, 1.0) for arm in self.plan.arms if (arm, side) != ("oracle", "unnamed")]
        jobs += [PictureJob("dsas", side, strongest)]
        files = {job: str(self.pictures.file(job, number)) for job in jobs if job in self.pictures}
        return {
            f"{job.arm} ×{strongest:g}" if job.strength == strongest != 1.0 else job.arm: file
            for job, file in files.items()
        }

    def timed_work(self) -> tuple[Callable[[], object], Mapping[str, Any], torch.device]:
        """Drawing one picture."""
        adapter, settings, prompt = self.adapter, self.settings, self.prompts["source"][:1]
        about = {**self.pictures.model_key, "prompt": prompt, "settings": asdict(settings)}
        denoiser: Any = self.adapter.denoiser
        return lambda: list(latent_batches(adapter, prompt, [0], settings)), about, denoiser.device

    def attach(self, gate: str | None = None) -> AbstractContextManager[Any]:
        return steer(self.adapter.pipe, {self.concept: 1.0}, gate=gate)

    # ---- scores of pictures, and distances between them -------------------------------------------------------------

    def _judge_job(self, judge: PictureJudge, job: PictureJob) -> np.ndarray:
        return judge.target_scores(self.pictures.load(job), self.pictures.prompts_of(job.unsteered))

    def _pair(self, job: PictureJob) -> tuple[list[Image.Image], list[Image.Image]]:
        """The unsteered pictures of the same prompts and noise, and those of a job."""
        return self.pictures.load(job.unsteered), self.pictures.load(job)

    def _masks_of(self, side: str) -> list[np.ndarray | None] | None:
        """The masks of the thing in the unsteered pictures of a side; None without a segmenter."""
        if self.masks is not None and side not in self._masks_by_side:
            self._masks_by_side[side] = self.masks(self.pictures.load(PictureJob("base", side)))
        return self._masks_by_side.get(side)

    def _try(self, what: str, get: Callable[[], Any]) -> Any:
        """The result of `get`, or None if it is unavailable, which is recorded and not tried again."""
        if what in self._unavailable:
            return None
        try:
            return get()
        except UnavailableError as error:
            self._unavailable.add(what)
            self.skip(f"{what}: {error}")
            return None

    def _changes(self, job: PictureJob) -> tuple[np.ndarray, dict[str, float]]:
        """1 - SSIM of each picture of a job with the unsteered one, and further figures of change."""
        base, steered = self._pair(job)
        pixels = change(base, steered)
        unsteered, latents = (self.pictures.latents(each) for each in (job.unsteered, job))
        figures = {
            "unchanged": float((pixels <= UNCHANGED).mean()),
            "identical": float(similarity.identical(base, steered).mean()),
            "pixel_change": float(pixels.mean()),
        }
        if unsteered is not None and latents is not None:
            figures["latent_change"] = float(similarity.latent_change(unsteered, latents).mean())
        return 1 - similarity.ssim(base, steered), figures

    def _change_around(self, job: PictureJob) -> dict[str, float]:
        """Mean change of 255 around the thing, and the share of other things that look as before.

        Of pictures with a mask of the thing; the share of other things only if the judge recognises them.
        """
        masks = self._masks_of(job.side)
        if masks is None:
            return {}
        base, steered = self._pair(job)
        by_picture = {"change_outside_the_thing": similarity.change_outside(base, steered, masks)}
        if (neighbours_kept := getattr(self.judge, "neighbours_kept", None)) is not None:
            by_picture["neighbours_kept"] = neighbours_kept(base, steered, masks)
        return {name: float(np.mean(values)) for name, values in by_picture.items() if values}

    def _distances(self, job: PictureJob) -> dict[str, float]:
        """Distances between the sets of steered and unsteered control pictures, and the CLIP score."""
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
        """The mean CLIP score of pictures and their prompts, if a CLIP is given."""
        if self._clip_model is None:
            return {}
        scores = similarity.clip_score(self.pictures.load(job), self.pictures.prompts_of(job), self._clip_model)
        return {"clip_score": float(scores.mean())}

    # ---- localisation and robustness --------------------------------------------------------------------------------

    def _localisation(self) -> dict[str, float] | None:
        """Heat of the denoiser's gates in unsteered pictures, compared with their masks."""
        masks, heatmaps = self._masks_of("source"), self.pictures.heat("source")
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
        """Pictures that show the concept although no prompt names it: their number, and the share of them changed."""
        if not self.prompts["unnamed"]:
            return None
        masks = self._masks_of("unnamed")
        if masks is None:
            self.skip("the concept where no prompt names it: it needs masks (masks: …)")
            return None
        undesired = self._judge_job(self.judge, PictureJob("base", "unnamed")) < 0.5
        present = np.array([mask is not None for mask in masks]) & undesired
        if not present.any():
            self.skip("the concept where no prompt names it: no such picture showed it")
            return None
        jobs = [PictureJob(arm, "unnamed", 1.0) for arm in ("dsas", "on")]
        scores = {job.arm: self._judge_job(self.judge, job)[present] for job in jobs if job in self.pictures}
        return {"pictures": int(present.sum()), **{arm: float(values.mean()) for arm, values in scores.items()}}

    def _other_settings(self) -> list[Settings]:
        """Fewer and more steps, less and more guidance, and other schedulers than the concept was learned with."""
        if not self.plan.robustness:
            return []
        steps, guidance = self.settings.steps, self.settings.guidance
        changes: list[dict[str, Any]] = [
            {"steps": max(1, 2 * steps // 3)},
            {"steps": 2 * steps},
            {"guidance": round(guidance * 2 / 3, 2)},
            {"guidance": round(guidance * 5 / 3, 2)},
            *({"scheduler": name} for name in other_schedulers(self.adapter)),
        ]
        others = [replace(self.settings, **changed) for changed in changes]
        return [settings for settings in others if settings != self.settings]

    def _robustness(self, settings: Settings) -> dict[str, Any]:
        """DSAS at strength 1 under other settings."""
        steered = PictureJob("dsas", "source", 1.0, settings)
        jobs = {"base": steered.unsteered, "shown": steered}
        means = {name: float(self._judge_job(self.judge, job).mean()) for name, job in jobs.items()}
        changes = self._changes(PictureJob("dsas", "control", 1.0, settings))[1]
        scheduler = settings.scheduler or type(self.adapter.pipe.scheduler).__name__
        return {**asdict(settings), "scheduler": scheduler, **means, **changes}


def _preserve_of(plan: Plan, adapter: PipelineAdapter, concept: Concept, skip: Callable[[str], object]) -> bool | str:
    """What the plan preserves; nothing of concepts that have no place in pictures, nor in pipelines that cannot."""
    if plan.preserve and not can_preserve(adapter):
        skip("preserve: the pipeline gives no latents after its steps, so all arms are without")
        return False
    if plan.preserve and not localises(concept):
        skip("preserve: the concept's probes see no place of it in pictures, so all arms are without")
        return False
    return plan.preserve
