"""Evaluating a concept on a pipeline: effect, preservation, localisation, robustness and cost, arm by arm.

Prompts that learning never used are drawn in every arm from the same noise: without steering; rewritten, asking in
words; with a negative prompt; and, on one grid of strengths, with DSAS, with the gate always on, and with the control
arms (`dsas_core.evaluate.arms`). Pictures are kept by content (`dsas_core.evaluate.runs`) and judged afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dsas_core.concept import Concept, weights_digest
from dsas_core.evaluate import Cell, Done, Plan, Point, Run, arm, runs, summed_up
from dsas_core.evaluate.arms import BLIND, Scores, load_scores, save_scores, scores_of
from dsas_core.evaluate.localisation import averaged, localisation
from dsas_core.prompts import PromptSet

from . import similarity
from .families import roots_of
from .generation import UNCHANGED, Settings, change, decode, latent_batches, seeds_for, settings_of
from .judges import PictureJudge
from .metrics import change_outside
from .steer import steer
from .vision import Unavailable
from .viz import PictureTrace

#: heat is compared with masks over the steps from this timestep on: before, there is no picture to see
BELOW = 500.0
BATCH = 8
#: pictures without steering, of rewritten prompts, and with a negative prompt
BASELINES = ("base", "asked", "negative")
#: pictures that a report shows of each side
SHOWN = 4


def identity(pipe: Any, concept: Concept, prompts: PromptSet) -> dict[str, Any]:
    """What a run is about: with another model, concept or prompt file it is another run."""
    return runs.identity(roots_of(pipe), concept, prompts)


def evaluate(
    pipe: Any,
    concept: Concept,
    prompts: PromptSet,
    judge: PictureJudge,
    run: Run,
    plan: Plan | None = None,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    clip: str | None = None,
) -> dict[str, Any]:
    """Measure a concept.

    Args:
        pipe: the pipeline that it was learned on.
        prompts: the prompt file; see `PromptSet.fresh` for what is drawn from it.
        judge: tells whether a picture shows what is wanted.
        run: where pictures are kept; of `identity(pipe, concept, prompts)`.
        plan: how much is drawn.
        steps, guidance: as in `generation.settings_of`.
        clip: a CLIP model by folder or Hub name, for how well pictures fit their prompts.

    Returns:
        Plain data: `summed_up`'s figures with `baselines`, `localisation`, `unnamed`, `robustness`, `cost`, `samples`
        (picture files by arm) and `skipped` (what could not be measured, and why).

    Raises:
        DSASError: no prompts for an arm.
    """
    settings = settings_of(pipe, steps, guidance)
    return _Evaluation(pipe, concept, prompts, judge, run, plan or Plan(), settings, clip).report()


@dataclass(frozen=True)
class _Job:
    """Pictures of one arm on one side."""

    arm: str
    side: str
    strength: float = 0.0
    settings: Settings | None = None


class _Evaluation:
    """One concept under measurement."""

    def __init__(
        self,
        pipe: Any,
        concept: Concept,
        prompts: PromptSet,
        judge: PictureJudge,
        run: Run,
        plan: Plan,
        settings: Settings,
        clip: str | None,
    ) -> None:
        self.pipe, self.concept, self.judge, self.run, self.plan = pipe, concept, judge, run, plan
        self.settings, self.clip = settings, clip
        self.prompts = plan.prompts(concept, prompts)
        self.negative = next(iter(prompts.sample("negative", 1)), None)
        self.model = weights_digest(roots_of(pipe))
        self.skipped: list[str] = []
        self.done: dict[_Job, Done] = {}
        self._seen: dict[str, list[np.ndarray | None]] = {}

    # ---- drawing --------------------------------------------------------------------------------------------------

    def _prompts(self, job: _Job) -> list[str]:
        """The prompts of a job, once for each seed; other settings than usual are tried with one seed."""
        texts = self.prompts["target" if job.arm == "asked" else job.side]
        return texts * (1 if job.settings else self.plan.seeds)

    def _noise(self, job: _Job) -> list[int]:
        texts = self.prompts[job.side]
        return [number for seed in range(1 if job.settings else self.plan.seeds) for number in seeds_for(texts, seed)]

    def _labels(self, side: str) -> list[tuple[int, str]]:
        """Seed and prompt of each picture."""
        return [(seed, text) for seed in range(self.plan.seeds) for text in self.prompts[side]]

    def _cell(self, job: _Job) -> Cell:
        key = {
            "kind": "pictures",
            "model": self.model,
            "concept": None if job.arm in BASELINES else self.concept.digest,
            "arm": job.arm,
            "strength": job.strength,
            "prompts": self._prompts(job),
            "noise": self._noise(job),
            "settings": asdict(job.settings or self.settings),
            "negative": self.negative if job.arm == "negative" else None,
        }
        return Cell(key, lambda folder: self._draw(job, folder))

    def _draw(self, job: _Job, folder: Path) -> dict[str, Any]:
        """Draw and keep pictures and latents; with DSAS at the unit also heat, and what the gates said."""
        prompts, noise = self._prompts(job), self._noise(job)
        traced = job == _Job("dsas", job.side, 1.0)
        attached: Any = nullcontext()
        if job.arm not in BASELINES:
            concept, gate = arm(self.concept, job.arm, self._scores(job.arm))
            attached = steer(self.pipe, {concept: job.strength}, gate=gate, trace=traced)
        negative = self.negative if job.arm == "negative" else None
        latents: list[torch.Tensor] = []
        heats: list[np.ndarray] = []
        banks: list[Scores] = []
        with attached as steering:
            for made in latent_batches(self.pipe, prompts, noise, job.settings or self.settings, BATCH, negative):
                latents.append(made.float().cpu())
                if traced:
                    heats += self._heats(steering.trace, len(made))
                    banks.append(scores_of(steering.trace, self.concept))
        codes = torch.cat(latents)
        for i, picture in enumerate(decode(self.pipe, codes.to(self.pipe.vae.device))):
            picture.convert("RGB").save(folder / f"{i:03d}.png")
        np.save(folder / "latents.npy", codes.numpy())
        if heats:
            np.save(folder / "heat.npy", np.stack(heats).astype(np.float16))
        if banks:
            save_scores(banks, folder / "scores.safetensors")
        return {"pictures": len(codes)}

    def _heats(self, trace: PictureTrace, count: int) -> list[np.ndarray]:
        """Where the denoiser's gates saw the concept in each picture; [] where none reads patches."""
        if all(site.root == "text_encoder" for site in self.concept.sites):
            return []
        size = self.pipe.vae_scale_factor * self.pipe.unet.config.sample_size
        return [trace.heat(self.concept.name, (size, size), image=i, below=BELOW) for i in range(count)]

    def _scores(self, name: str) -> Scores | None:
        """What the gates said of the source prompts at the unit, for the arms that say the same blindly."""
        if name not in BLIND:
            return None
        return load_scores(self.done[_Job("dsas", "source", 1.0)].folder / "scores.safetensors")

    def _complete(self, jobs: Sequence[_Job], label: str) -> None:
        found = self.run.complete([self._cell(job) for job in jobs], label)
        self.done |= dict(zip(jobs, found, strict=True))

    def _pictures(self, job: _Job) -> list[Image.Image]:
        done = self.done[job]
        return [Image.open(done.folder / f"{i:03d}.png").convert("RGB") for i in range(done.values["pictures"])]

    def _latents(self, job: _Job) -> torch.Tensor:
        return torch.from_numpy(np.load(self.done[job].folder / "latents.npy"))

    # ---- judging --------------------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """Draw what is missing, judge everything."""
        sides = [side for side in ("source", "control", "unnamed") if self.prompts[side]]
        first = [_Job("base", side) for side in sides] + [_Job("dsas", side, 1.0) for side in sides]
        first += [_Job("asked", "source")] if self.prompts["target"] else []
        first += [_Job("negative", side) for side in ("source", "control") if self.negative]
        self._complete(first, "drawing base and DSAS")
        grid = [
            _Job(name, side, strength)
            for name in self.plan.arms
            for strength in self.plan.strengths
            for side in ("source", "control")
        ]
        grid += [_Job("on", "unnamed", 1.0)] if self.prompts["unnamed"] and "on" in self.plan.arms else []
        self._complete([job for job in grid if job not in self.done], "drawing the arms")
        others = self._other_settings() if self.plan.robustness else []
        self._complete([job for setting in others for job in _robust(setting)], "drawing other settings")
        figures = self._figures()
        figures["baselines"] = self._baselines()
        figures["localisation"] = self._localisation()
        figures["unnamed"] = self._unnamed()
        figures["robustness"] = [self._robustness(setting) for setting in others]
        figures["cost"] = self.run.complete([self._timing()], "timing")[0].values
        figures["samples"] = self._samples()
        if not self.prompts["target"]:
            self.skipped.append("asking in words: source and target templates do not go in pairs")
        if self.negative is None:
            self.skipped.append("a negative prompt: the prompt file's evaluation names none (negative: [...])")
        return {"prompts": self.prompts, **figures, "skipped": self.skipped}

    def _shown(self, job: _Job) -> np.ndarray:
        return self.judge.shown(self._pictures(job), self._prompts(_Job("base", job.side, settings=job.settings)))

    def _preserved(self, job: _Job) -> tuple[np.ndarray, dict[str, float]]:
        """1 - SSIM of each control picture, and what else tells how much it changed."""
        base_job = _Job("base", job.side, settings=job.settings)
        base, made = self._pictures(base_job), self._pictures(job)
        moved = change(base, made)
        codes = similarity.latent_change(self._latents(base_job), self._latents(job))
        more = {
            "unchanged": float((moved <= UNCHANGED).mean()),
            "identical": float(similarity.identical(base, made).mean()),
            "pixel_change": float(moved.mean()),
            "latent_change": float(codes.mean()),
        }
        return 1 - similarity.ssim(base, made), more

    def _point(self, name: str, strength: float) -> Point:
        source, control = _Job(name, "source", strength), _Job(name, "control", strength)
        cost, more = self._preserved(control)
        outside = self._outside(source)
        if outside is not None:
            more["change_outside_the_thing"] = outside
        if strength == 1.0:
            more |= self._distances(control)
        return Point(strength, self._shown(source).tolist(), cost.clip(0, 1).tolist(), more)

    def _outside(self, job: _Job) -> float | None:
        """Mean change of 255 around the thing, where the judge knows masks and the thing is there."""
        masks = self._masks(job.side)
        if masks is None:
            return None
        found = change_outside(self._pictures(_Job("base", job.side)), self._pictures(job), masks)
        return float(np.mean(found)) if found else None

    def _masks(self, side: str) -> list[np.ndarray | None] | None:
        """Where the judge sees the thing in each unsteered picture of a side; None where it knows no masks."""
        masks = getattr(self.judge, "masks", None)
        if masks is not None and side not in self._seen:
            self._seen[side] = masks(self._pictures(_Job("base", side)))
        return self._seen.get(side)

    def _distances(self, job: _Job) -> dict[str, float]:
        """Distances between the sets of steered and unsteered control pictures, and fit to prompts."""
        base, made = self._pictures(_Job("base", job.side)), self._pictures(job)
        network = getattr(self.judge, "judge", None)
        found: dict[str, float] = {}
        if network is not None and len(base) > 1:
            features = similarity.judge_features(network)
            found["frechet_judge"] = similarity.fid(base, made, features)
        for name, measure in (
            ("lpips", lambda: similarity.lpips(base, made)),
            ("clip_score", lambda: similarity.clip_score(made, self._prompts(job), self.clip or "")),
        ):
            if name == "clip_score" and self.clip is None:
                continue
            try:
                found[name] = float(np.mean(measure()))
            except Unavailable as error:
                self._skip(f"{name}: {error}")
        return found

    def _skip(self, reason: str) -> None:
        if reason not in self.skipped:
            self.skipped.append(reason)

    def _figures(self) -> dict[str, Any]:
        arms = {name: [self._point(name, strength) for strength in self.plan.strengths] for name in self.plan.arms}
        asked = self._shown(_Job("asked", "source")).tolist() if self.prompts["target"] else None
        base = self._shown(_Job("base", "source")).tolist()
        return summed_up(arms, base, asked, self._labels("source"), self._labels("control"))

    def _baselines(self) -> dict[str, Any]:
        """What asking in words, and a negative prompt, do: the rivals that need no steering."""
        found: dict[str, Any] = {}
        if self.prompts["target"]:
            job = _Job("asked", "source")
            shown = float(self._shown(job).mean())
            found["asked in words"] = {"shown": shown, "change_outside_the_thing": self._outside(job)}
        if self.negative is not None:
            _, more = self._preserved(_Job("negative", "control"))
            shown = float(self._shown(_Job("negative", "source")).mean())
            outside = self._outside(_Job("negative", "source"))
            found[f"negative prompt “{self.negative}”"] = {"shown": shown, **more, "change_outside_the_thing": outside}
        return found

    def _localisation(self) -> dict[str, float] | None:
        """Heat of the denoiser's gates against the judge's masks of the unsteered pictures."""
        masks = self._masks("source")
        path = self.done[_Job("dsas", "source", 1.0)].folder / "heat.npy"
        if masks is None or not path.is_file():
            self._skip("localisation: it needs gates that read patches, and a judge that knows masks")
            return None
        pairs = zip(np.load(path).astype(np.float32), masks, strict=True)
        there = [(heat, mask) for heat, mask in pairs if mask is not None and mask.any() and not mask.all()]
        found = [localisation(heat, mask) for heat, mask in there]
        return {**asdict(averaged(found)), "pictures": len(found)} if found else None

    def _unnamed(self) -> dict[str, float] | None:
        """Pictures that show the concept although no prompt names it: how many, and the share that was treated."""
        masks = self._masks("unnamed") if self.prompts["unnamed"] else None
        if masks is None:
            return None
        there = np.array([mask is not None for mask in masks]) & (self._shown(_Job("base", "unnamed")) < 0.5)
        if not there.any():
            self._skip("the concept where no prompt names it: no such picture showed it")
            return None
        found: dict[str, float] = {"pictures": int(there.sum())}
        for name in ("dsas", "on"):
            job = _Job(name, "unnamed", 1.0)
            if job in self.done:
                found[name] = float(self._shown(job)[there].mean())
        return found

    def _other_settings(self) -> list[Settings]:
        """Fewer and more steps, less and more guidance than the concept was learned with."""
        steps, guidance = self.settings.steps, self.settings.guidance
        return [
            Settings(max(2, 2 * steps // 3), guidance),
            Settings(2 * steps, guidance),
            Settings(steps, round(guidance * 2 / 3, 2)),
            Settings(steps, round(guidance * 5 / 3, 2)),
        ]

    def _robustness(self, setting: Settings) -> dict[str, Any]:
        base, source, control = (
            self._shown(_Job("base", "source", 0.0, setting)),
            self._shown(_Job("dsas", "source", 1.0, setting)),
            self._preserved(_Job("dsas", "control", 1.0, setting))[1],
        )
        return {**asdict(setting), "shown": float(source.mean()), "base": float(base.mean()), **control}

    def _timing(self) -> Cell:
        """Wall time of steered pictures, attaching included, over unsteered ones, interleaved."""
        prompt, rounds = self.prompts["source"][:1], 5

        def make(folder: Path) -> dict[str, Any]:
            times: dict[bool, list[float]] = {True: [], False: []}
            for number in range(2 * rounds + 2):
                steered = number % 2 == 1
                began = time.perf_counter()
                with steer(self.pipe, {self.concept: 1.0}) if steered else nullcontext():
                    list(latent_batches(self.pipe, prompt, [0], self.settings))
                if self.pipe.unet.device.type == "cuda":
                    torch.cuda.synchronize()
                if number >= 2:
                    times[steered].append(time.perf_counter() - began)
            ratios = np.array(times[True]) / np.array(times[False])
            return {"time_ratio": float(np.median(ratios)), "rounds": rounds, "device": str(self.pipe.unet.device)}

        about = {"model": self.model, "concept": self.concept.digest, "prompt": prompt}
        where = {"settings": asdict(self.settings), "device": str(self.pipe.unet.device)}
        return Cell({"kind": "timing", **about, **where}, make)

    def _samples(self) -> list[dict[str, Any]]:
        """Pictures to look at: a few prompts of each side in the arms at the unit, and DSAS at the strongest."""
        strongest = self.plan.strengths[-1]
        rows = []
        for side in ("source", "control", "unnamed"):
            for i, prompt in enumerate(self.prompts[side][:SHOWN]):
                files = {}
                for job in (
                    _Job("base", side),
                    *([_Job("asked", "source")] if side == "source" else []),
                    *(_Job(name, side, 1.0) for name in self.plan.arms),
                    _Job("dsas", side, strongest),
                ):
                    if job in self.done:
                        label = f"{job.arm} ×{strongest:g}" if job.strength == strongest != 1.0 else job.arm
                        files[label] = str(self.done[job].folder / f"{i:03d}.png")
                rows.append({"side": side, "prompt": prompt, "pictures": files})
        return rows


def _robust(setting: Settings) -> list[_Job]:
    """What is drawn at other settings."""
    sides = [_Job("base", side, 0.0, setting) for side in ("source", "control")]
    return sides + [_Job("dsas", side, 1.0, setting) for side in ("source", "control")]
