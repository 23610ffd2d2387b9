"""Evaluating a concept on a pipeline: effect, preservation, localisation, robustness and cost, arm by arm.

Prompts that learning never used are drawn in every arm from the same noise: without steering; rewritten, asking in
words; with a negative prompt; and, on one grid of strengths, with DSAS, with the gate always on, and with the control
arms (`dsas_core.evaluate.arms`). Pictures are kept by content (`dsas_diffusion.drawing`) and judged afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np

from dsas_core.concept import Concept
from dsas_core.evaluate import Cell, Plan, Point, Run, cost, runs, summed_up
from dsas_core.evaluate.arms import doses
from dsas_core.evaluate.localisation import averaged, localisation
from dsas_core.prompts import PromptSet
from dsas_core.requirements import obstacle_to_auto
from dsas_core.strengths import Auto

from . import similarity
from .drawing import Drawings, Job
from .families import family_of, roots_of
from .generation import UNCHANGED, Settings, change, latent_batches, other_schedulers, settings_of
from .judges import PictureJudge
from .masks import Masks
from .metrics import change_outside
from .steer import steer
from .vision import Clip, Unavailable

#: pictures that a report shows of each side
SHOWN = 4
#: control pictures from which on KID says something
ENOUGH = 50


def identity(pipe: Any, concept: Concept, prompts: PromptSet) -> dict[str, Any]:
    """What a run is about: with another model, concept or prompt file it is another run."""
    return runs.identity(roots_of(pipe), concept, prompts)


def evaluate(
    pipe: Any,
    concept: Concept,
    prompts: PromptSet,
    judge: PictureJudge | Sequence[PictureJudge],
    run: Run,
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
    plan = plan or Plan()
    chosen = plan.prompts(concept, prompts)
    negative = next(iter(prompts.sample("negative", 1)), None)
    drawn = Drawings(pipe, concept, chosen, negative, run, settings_of(pipe, steps, guidance, size), plan.seeds)
    judges = list(judge) if isinstance(judge, Sequence) else [judge]
    return _Evaluation(drawn, plan, judges, clip, features, masks).report(prompts.wordings("source"))


class _Evaluation:
    """One concept under measurement."""

    def __init__(
        self,
        drawn: Drawings,
        plan: Plan,
        judges: Sequence[PictureJudge],
        clip: str | None,
        features: similarity.Features | str | None,
        masks: Masks | None,
    ) -> None:
        self.drawn, self.plan, self.judge, self.others = drawn, plan, judges[0], judges[1:]
        self.prompts, self.settings = drawn.prompts, drawn.settings
        self.masks: Masks | None = masks or getattr(self.judge, "masks", None)
        self.skipped: list[str] = []
        self.autos = plan.autos(drawn.concept)
        if plan.targets and not self.autos:
            self._skip(f"strength auto: {obstacle_to_auto(drawn.concept)}")
        self._seen: dict[str, list[np.ndarray | None]] = {}
        self._lacking: set[str] = set()
        self.clip = self._had("CLIP score", lambda: Clip(clip)) if clip else None
        network = getattr(self.judge, "judge", None)
        self.networks = {} if network is None else {"_judge": similarity.judge_features(network)}
        loads = partial(similarity.transformers_features, features) if isinstance(features, str) else lambda: features
        if (loaded := self._had("FID and KID", loads)) is not None:
            self.networks[""] = loaded

    def report(self, templates: Mapping[str, str]) -> dict[str, Any]:
        """Draw what is missing, judge everything; `templates` are those that source prompts come from."""
        others = self._draw()
        figures = self._figures()
        figures["baselines"] = self._baselines()
        figures["dose"] = self._dose()
        figures["oracle"] = "patches" if self.drawn.oracle_sees else "prompts"
        figures["judges"] = [self._as_seen_by(judge) for judge in self.others]
        figures["localisation"] = self._localisation()
        figures["unnamed"] = self._unnamed()
        figures["wordings"] = self._wordings(templates)
        figures["robustness"] = [self._robustness(setting) for setting in others]
        figures["cost"] = self.drawn.run.complete([self._timing()], "timing")[0].values
        figures["samples"] = self._samples()
        if not self.prompts["target"]:
            self._skip("asking in words: source and target templates do not go in pairs")
        if self.drawn.negative is None:
            self._skip("a negative prompt: the prompt file's evaluation names none (negative: [...])")
        return {"prompts": self.prompts, **figures, "skipped": self.skipped}

    def _draw(self) -> list[Settings]:
        """Draw every arm; the other settings that were tried."""
        sides = [side for side in ("source", "control", "unnamed") if self.prompts[side]]
        first = [Job("base", side) for side in sides] + [Job("dsas", side, 1.0) for side in sides]
        first += [Job("dsas", "source")]
        first += [Job("asked", "source")] if self.prompts["target"] else []
        first += [Job("negative", side) for side in ("source", "control") if self.drawn.negative]
        self.drawn.complete(first, "drawing base and DSAS")
        masks = self._masks("source") if "oracle" in self.plan.arms else None
        if masks is not None:
            self.drawn.tell(masks)
        grid = [
            Job(name, side, strength)
            for name in self.plan.arms
            for strength in self.plan.strengths
            for side in ("source", "control")
        ]
        grid += [Job("dsas", side, auto) for auto in self.autos for side in ("source", "control")]
        grid += [Job("on", "unnamed", 1.0)] if self.prompts["unnamed"] and "on" in self.plan.arms else []
        self.drawn.complete(grid, "drawing the arms")
        others = self._other_settings() if self.plan.robustness else []
        jobs = [Job("base", side, 0.0, setting) for setting in others for side in ("source", "control")]
        jobs += [Job("dsas", side, 1.0, setting) for setting in others for side in ("source", "control")]
        self.drawn.complete(jobs, "drawing other settings")
        return others

    def _shown(self, job: Job, judge: PictureJudge | None = None) -> np.ndarray:
        prompts = self.drawn.prompts_of(Job("base", job.side, settings=job.settings))
        return (judge or self.judge).shown(self.drawn.pictures(job), prompts)

    def _masks(self, side: str) -> list[np.ndarray | None] | None:
        """Where each unsteered picture of a side shows the thing; None where nobody knows masks."""
        if self.masks is not None and side not in self._seen:
            self._seen[side] = self.masks(self.drawn.pictures(Job("base", side)))
        return self._seen.get(side)

    def _had(self, what: str, get: Callable[[], Any]) -> Any:
        """What may not be to be had: then None, and it is told; nobody tries a second time."""
        if what in self._lacking:
            return None
        try:
            return get()
        except Unavailable as error:
            self._lacking.add(what)
            self._skip(f"{what}: {error}")
            return None

    def _skip(self, reason: str) -> None:
        if reason not in self.skipped:
            self.skipped.append(reason)

    # ---- arms -----------------------------------------------------------------------------------------------------

    def _figures(self) -> dict[str, Any]:
        arms = {name: [self._point(name, strength) for strength in self.plan.strengths] for name in self.plan.arms}
        asked = self._shown(Job("asked", "source")).tolist() if self.prompts["target"] else None
        base = self._shown(Job("base", "source")).tolist()
        free = [self._point("dsas", auto) for auto in self.autos]
        return summed_up(arms, base, asked, self.drawn.labels("source"), self.drawn.labels("control"), free=free)

    def _point(self, name: str, strength: float | Auto) -> Point:
        source, control = Job(name, "source", strength), Job(name, "control", strength)
        moved, more = self._preserved(control)
        more |= self._around(source)
        if strength == 1.0:
            more |= self._distances(control)
        number = strength.target if isinstance(strength, Auto) else strength
        return Point(number, self._shown(source).tolist(), moved.clip(0, 1).tolist(), more)

    def _preserved(self, job: Job) -> tuple[np.ndarray, dict[str, float]]:
        """1 - SSIM of each control picture, and what else tells how much it changed."""
        base_job = Job("base", job.side, settings=job.settings)
        base, made = self.drawn.pictures(base_job), self.drawn.pictures(job)
        moved = change(base, made)
        codes = similarity.latent_change(self.drawn.latents(base_job), self.drawn.latents(job))
        more = {
            "unchanged": float((moved <= UNCHANGED).mean()),
            "identical": float(similarity.identical(base, made).mean()),
            "pixel_change": float(moved.mean()),
            "latent_change": float(codes.mean()),
        }
        return 1 - similarity.ssim(base, made), more

    def _around(self, job: Job) -> dict[str, float]:
        """Mean change of 255 around the thing, and the share of things beside it that look as before.

        Of pictures that show the thing, where masks are known; neighbours where the judge knows things by name.
        """
        shapes = self._masks(job.side)
        if shapes is None:
            return {}
        base, made = self.drawn.pictures(Job("base", job.side)), self.drawn.pictures(job)
        found = {"change_outside_the_thing": change_outside(base, made, shapes)}
        kept = getattr(self.judge, "neighbours_kept", None)
        if kept is not None:
            found["neighbours_kept"] = kept(base, made, shapes)
        return {name: float(np.mean(values)) for name, values in found.items() if values}

    def _distances(self, job: Job) -> dict[str, float]:
        """Distances between the sets of steered and unsteered control pictures, and fit to prompts."""
        base, made = self.drawn.pictures(Job("base", job.side)), self.drawn.pictures(job)
        found = self._clip_score(job)
        moved = self._had("perceptual distance", lambda: similarity.lpips(base, made))
        if moved is not None:
            found["lpips"] = float(moved.mean())
        for suffix, features in self.networks.items() if len(base) > 1 else ():
            found[f"frechet{suffix}"] = similarity.fid(base, made, features)
            if len(base) < ENOUGH:
                self._skip(f"KID: of {len(base)} control pictures it is noise, {ENOUGH} are needed (--count, --seeds)")
            else:
                found[f"kid{suffix}"] = similarity.kid(base, made, features)
        return found

    def _clip_score(self, job: Job) -> dict[str, float]:
        """How well pictures fit their prompts, where a CLIP is named."""
        if self.clip is None:
            return {}
        return {
            "clip_score": float(
                similarity.clip_score(self.drawn.pictures(job), self.drawn.prompts_of(job), self.clip).mean()
            )
        }

    def _baselines(self) -> dict[str, Any]:
        """What nothing, asking in words, and a negative prompt do: the rivals that need no steering."""
        shown = float(self._shown(Job("base", "source")).mean())
        found: dict[str, Any] = {"no steering": {"shown": shown, **self._clip_score(Job("base", "control"))}}
        if self.prompts["target"]:
            job = Job("asked", "source")
            found["asked in words"] = {"shown": float(self._shown(job).mean()), **self._around(job)}
        if self.drawn.negative is not None:
            job = Job("negative", "source")
            moved, more = self._preserved(Job("negative", "control"))
            told = {"shown": float(self._shown(job).mean()), "cost": float(moved.mean())}
            more |= self._around(job) | self._clip_score(Job("negative", "control"))
            found[f"negative prompt “{self.drawn.negative}”"] = {**told, **more}
        return found

    def _dose(self) -> dict[str, dict[str, float]]:
        """How much of the map each arm lets through, by side."""
        return doses({side: self.drawn.mean_h(side) for side in ("source", "control")}, self.plan.arms)

    def _as_seen_by(self, judge: PictureJudge) -> dict[str, Any]:
        """What another judge says of every arm at strength 1."""
        jobs = {"base": Job("base", "source"), "asked": Job("asked", "source")}
        jobs |= {name: Job(name, "source", 1.0) for name in self.plan.arms}
        shown = {name: float(self._shown(job, judge).mean()) for name, job in jobs.items() if job in self.drawn}
        return {"judge": judge.name, **shown}

    # ---- where, under which settings, at what cost ------------------------------------------------------------------

    def _localisation(self) -> dict[str, float] | None:
        """Heat of the denoiser's gates in unsteered pictures against masks of these."""
        masks, heat = self._masks("source"), self.drawn.heat("source")
        if masks is None or heat is None:
            self._skip("localisation: it needs gates that read patches in late steps, and masks (masks: …)")
            return None
        pairs = zip(heat, masks, strict=True)
        there = [(heat, mask) for heat, mask in pairs if mask is not None and mask.any() and not mask.all()]
        found = [localisation(heat, mask) for heat, mask in there]
        return {**asdict(averaged(found)), "pictures": len(found)} if found else None

    def _unnamed(self) -> dict[str, float] | None:
        """Pictures that show the concept although no prompt names it: how many, and the share that was treated."""
        masks = self._masks("unnamed") if self.prompts["unnamed"] else None
        if masks is None:
            if self.prompts["unnamed"]:
                self._skip("the concept where no prompt names it: it needs masks (masks: …)")
            return None
        there = np.array([mask is not None for mask in masks]) & (self._shown(Job("base", "unnamed")) < 0.5)
        if not there.any():
            self._skip("the concept where no prompt names it: no such picture showed it")
            return None
        found: dict[str, float] = {"pictures": int(there.sum())}
        for name in ("dsas", "on"):
            job = Job(name, "unnamed", 1.0)
            if job in self.drawn:
                found[name] = float(self._shown(job)[there].mean())
        return found

    def _wordings(self, templates: Mapping[str, str]) -> list[dict[str, Any]]:
        """What is shown, by the template that source prompts come from: paraphrases and pairings apart."""
        jobs = {"base": Job("base", "source"), "asked": Job("asked", "source"), "dsas": Job("dsas", "source", 1.0)}
        shown = {name: self._shown(job) for name, job in jobs.items() if job in self.drawn}
        told = np.array([templates[text] for _, text in self.drawn.labels("source")])
        return [
            {"wording": str(wording), "pictures": int((told == wording).sum())}
            | {name: float(values[told == wording].mean()) for name, values in shown.items()}
            for wording in dict.fromkeys(told)
        ]

    def _other_settings(self) -> list[Settings]:
        """Fewer and more steps, less and more guidance, and other schedulers than the concept was learned with."""
        steps, guidance = self.settings.steps, self.settings.guidance
        tried = [
            replace(self.settings, steps=max(1, 2 * steps // 3)),
            replace(self.settings, steps=2 * steps),
            replace(self.settings, guidance=round(guidance * 2 / 3, 2)),
            replace(self.settings, guidance=round(guidance * 5 / 3, 2)),
            *(replace(self.settings, scheduler=name) for name in other_schedulers(self.drawn.pipe)),
        ]
        return [settings for settings in tried if settings != self.settings]

    def _robustness(self, setting: Settings) -> dict[str, Any]:
        base, source = (self._shown(Job(*job, setting)) for job in (("base", "source", 0.0), ("dsas", "source", 1.0)))
        control = self._preserved(Job("dsas", "control", 1.0, setting))[1]
        told = {**asdict(setting), "scheduler": setting.scheduler or type(self.drawn.pipe.scheduler).__name__}
        return {**told, "base": float(base.mean()), "shown": float(source.mean()), **control}

    def _timing(self) -> Cell:
        """Time and memory of one picture."""
        pipe, prompt = self.drawn.pipe, self.prompts["source"][:1]
        device = getattr(pipe, family_of(pipe).denoiser).device

        def make(folder: object) -> dict[str, Any]:
            return cost.compared(
                lambda: list(latent_batches(pipe, prompt, [0], self.settings)),
                lambda: steer(pipe, {self.drawn.concept: 1.0}),
                device,
            )

        key = {"kind": "timing", **self.drawn.about, "concept": self.drawn.concept.digest, "prompt": prompt}
        return Cell({**key, "settings": asdict(self.settings), "device": cost.named(device)}, make)

    def _samples(self) -> list[dict[str, Any]]:
        """Pictures to look at: a few prompts of each side in the arms at the unit, and DSAS at the strongest."""
        strongest = self.plan.strengths[-1]
        rows = []
        for side in ("source", "control", "unnamed"):
            for i, prompt in enumerate(self.prompts[side][:SHOWN]):
                files = {}
                for job in (
                    Job("base", side),
                    *([Job("asked", "source")] if side == "source" else []),
                    *(Job(name, side, 1.0) for name in self.plan.arms if (name, side) != ("oracle", "unnamed")),
                    Job("dsas", side, strongest),
                ):
                    if job in self.drawn:
                        label = f"{job.arm} ×{strongest:g}" if job.strength == strongest != 1.0 else job.arm
                        files[label] = str(self.drawn.file(job, i))
                rows.append({"side": side, "prompt": prompt, "pictures": files})
        return rows
