"""`learn(model, tokenizer, prompts)`: a concept from a few dozen texts or conversations.

Every prompt is read once while its activations are captured; maps and gates are fitted as everywhere
(`dsas_core.learn`); then the unit of strength is chosen on other prompts of the same file, by what the steered model
answers, as it reads it itself when it is not steered, and by how far its predictions move on control prompts.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..capture import Capture
from ..cloud import clouded
from ..concept import Concept, fingerprint
from ..errors import DSASError
from ..hooks import visit
from ..learn import UNSEEN, Recipe, SiteEvidence, fit_sites, recipe_of
from ..progress import progress_bar
from ..prompts import PromptSet, read
from ..provenance import versions
from ..sites import Site
from ..unit import TRIALS, held_back, units_of
from .layers import bare, find_sites, positions_of, roots_of
from .prompts import POOLINGS, Encoded, encode, marked, pad_token
from .reader import Reader, choose_unit
from .steer import steer

#: source and target prompts to draw
COUNT = 48
NEAR_CHANCE, FIRING, TOLD_BY_LENGTH = 0.65, 0.05, 0.95
#: how a gate may read a text: no further than it is written
FORMS = ("token", "prefix", "latch", "last", "paper")


def learn(
    model: nn.Module,
    tokenizer: Any,
    prompts: str | Path | Mapping[str, Any] | PromptSet,
    *,
    method: str = "caa",
    gate: str | None = None,
    sites: str | Sequence[str] | None = None,
    pooling: str | None = None,
    seed: int = 0,
    count: int = COUNT,
    drift: float = 0.01,
    batch: int = 16,
    recipe: Mapping[str, Any] | None = None,
    show_progress: bool = False,
) -> Concept:
    """Learn a concept.

    Args:
        model: a transformers language model. tokenizer: its own.
        prompts: a prompt file (dsas_core/prompts.py), or its content; conversations as in dsas_core/llm/prompts.py.
            With parts `unseen_source` and `unseen_control` in its evaluation, the evidence tells how the gates do on
            these.
        method, gate: names in `dsas_core.methods`; gates also combined, "product(dsas, gaps)". Without a gate it is the
            method's own, or `dsas`.
        sites: see `dsas_core.llm.layers.find_sites`; None for the outputs of the middle third of the layers.
        pooling: what is read of source and target prompts: "answer", "prompt", "last" or "all" tokens; None for
            answers where prompts have them. The gate of form "prefix" is fitted on all tokens, that of form "latch" on
            the prompt, and that of form "last" on the states that write the answer, as they read. Of control prompts
            every token that a gate will meet takes part in placing its threshold.
        seed: of prompt choice and cross-validation.
        count: source and target prompts; controls are twice as many. A quarter is kept for choosing the unit.
        drift: mean Kullback-Leibler divergence per control token, in nats, that the unit may cost.
        batch: prompts per forward pass.
        recipe: further fields of `dsas_core.learn.Recipe` (form, rank, site_weight, …).

    Returns:
        The concept, its unit chosen and its evidence in it; not saved yet. Without conversations in the prompt file
        nothing tells when enough is done, and the unit is 1: the mean difference itself.

    Raises:
        DSASError: bad prompts, names or sites; no site tells source from control.
    """
    content = read(prompts)
    chosen = recipe_of(recipe, form="token", pooling="mean", top_share=0.25, method=method, gate=gate, seed=seed)
    if "form" not in (recipe or {}):
        chosen = replace(chosen, form=chosen.worn.text_form)
    if chosen.form not in FORMS:
        raise DSASError(f"gate form {chosen.form!r} reads tokens that are not written yet: choose {', '.join(FORMS)}")
    if chosen.worn.whole and not (chosen.worn.once and chosen.form == "latch"):
        way_out = "choose form latch" if chosen.worn.once else "choose another"
        raise DSASError(
            f"gate {chosen.gate!r} goes by all positions at once, and tokens are written one by one: {way_out}"
        )
    if chosen.options.get("spatial") == "mean shift":
        raise DSASError("option spatial=mean shift goes by all positions at once: leave it elementwise for texts")
    wanted = _readable(model, find_sites(model, sites), sites)
    drawn = content.draw(count, seed)
    limit = positions_of(model)
    texts = {side: [encode(tokenizer, prompt, limit) for prompt in found] for side, found in drawn.items()}
    unseen = {kind: [encode(tokenizer, text, limit) for text in content.sample(kind, count, seed)] for kind in UNSEEN}
    answered = all(text.answer < len(text.ids) for side in ("source", "target") for text in texts[side])
    pooling = pooling or ("answer" if answered else "all")
    if pooling not in POOLINGS or (pooling == "answer" and not answered):
        raise DSASError(
            f"pooling {pooling!r}: expected one of {', '.join(POOLINGS)}; answer needs an assistant's turn at the end "
            "of each source and target prompt"
        )
    fitting, held_out = held_back(texts)
    shown = drawn["source"][: len(fitting["source"])]
    marks = _marks(tokenizer, content, shown, chosen.lead) if chosen.supervised else []
    pad = pad_token(tokenizer)

    walk = _Walk(Reader(model, pad, batch), {**fitting, **unseen}, marks, pooling, chosen, seed, show_progress)
    capture = walk.captured(wanted, "capturing")
    with progress_bar(len(wanted), "fitting", show_progress) as bar:
        interventions, evidence = fit_sites(capture, chosen, bar.update, recapture=walk.behind)
    if chosen.cloud:
        interventions = clouded(interventions, capture, chosen.cloud)
    told_by_length = _auroc([len(text.ids) for text in texts["source"]], [len(text.ids) for text in texts["control"]])
    _warn(evidence if chosen.worn.looks else [], told_by_length)
    roots = roots_of(model)
    concept = Concept(
        name=content.name,
        description=content.description,
        interventions=tuple(interventions),
        method=chosen.method,
        gate=str(chosen.gate),
        base={root: fingerprint(roots[root]) for root in sorted({item.site.root for item in interventions})},
        evidence={"sites": [asdict(found) for found in evidence], "length_auroc": told_by_length},
        provenance={
            "model": str(getattr(bare(model), "name_or_path", "") or type(bare(model)).__name__),
            "prompts": content.to_dict(),
            "count": count,
            "prompts_used": {side: len(found) for side, found in fitting.items()},
            "recipe": asdict(chosen),
            "pooling": pooling,
            "seed": seed,
            "versions": versions("transformers"),
        },
    )
    if "encoder" in roots or not answered:
        return concept
    with progress_bar(min(TRIALS, len(units_of(concept.method))), "choosing the unit", show_progress) as bar:
        unit, trials = choose_unit(walk.reader, concept, fitting, held_out, drift, bar.update)
    if not trials["trials"]:
        warnings.warn(
            "the model answers source prompts much as it answers control prompts, so nothing tells when enough is "
            "done: the unit is 1, the mean difference itself",
            stacklevel=2,
        )
    return replace(concept, unit=unit, evidence={**concept.evidence, "unit": trials})


@dataclass(frozen=True)
class _Walk:
    """Every prompt through the model, its activations kept.

    Args:
        prompts: by kind: source, target and control, and perhaps those of another domain.
        marks: of each source prompt, which tokens show the concept; empty where nobody told.
        pooling: what is read of source and target prompts.
    """

    reader: Reader
    prompts: Mapping[str, Sequence[Encoded]]
    marks: Sequence[Sequence[bool]]
    pooling: str
    recipe: Recipe
    seed: int
    show_progress: bool

    def captured(self, sites: Sequence[Site], label: str, learned: Concept | None = None) -> Capture:
        """The activations at some sites, while a concept steers the kinds that the recipe has it steer."""
        same = {"context": "control", "moved": "source", "cloud": "target"}
        shown = {**self.prompts, **{kind: self.prompts[side] for kind, side in same.items()}}
        runs = [(kind, how) for kind, how in self._readings() if shown[kind]]
        capture, reader = Capture(seed=self.seed), self.reader
        with progress_bar(sum(len(shown[kind]) for kind, _ in runs), label, self.show_progress) as bar:
            for kind, how in runs:
                capture.start(kind)
                steering = learned if self.recipe.steers(kind) else None
                with nullcontext() if steering is None else steer(reader.model, {steering: 1.0}):
                    for piece in reader.batches(shown[kind]):
                        with visit(roots_of(reader.model), sites, capture, reader.describe(piece.counted(how))):
                            reader.run(piece)
                        capture.offset += len(piece.ids)
                        bar.update(len(piece.ids))
        if self.marks:
            capture.mark("source", lambda prompt, _: self.marks[prompt])
        return capture

    def behind(self, site: Site, learned: Concept) -> Capture:
        """The activations at a site behind others that steer."""
        return self.captured([site], f"capturing at {site}", learned)

    def _readings(self) -> list[tuple[str, str]]:
        """Kinds of rows, and which tokens of theirs are read."""
        form = self.recipe.form
        read_at = {"latch": "prompt", "prefix": "all", "last": "answer"}.get(form, self.pooling)
        runs = [("source", read_at), ("target", self.pooling), ("control", read_at)]
        runs += [("context", "all")] if form != "last" else []  # it does not meet what was given
        runs += [("moved", self.pooling)] if read_at != self.pooling else []
        runs += [("cloud", "all")] if self.recipe.cloud else []  # whatever is read, all tokens are moved
        return [*runs, *((kind, read_at if form in ("latch", "last") else "all") for kind in UNSEEN)]


def _marks(tokenizer: Any, content: PromptSet, prompts: Sequence[str], lead: int) -> list[tuple[bool, ...]]:
    """Which positions of each prompt show the concept: those that are `lead` tokens before a word of its spans.

    Raises:
        DSASError: a prompt file without spans, or none of which is in any of the prompts.
    """
    if not content.spans:
        raise DSASError(
            f"prompt file {content.name!r} has no spans, the words of source prompts that show the concept: add them, "
            "or leave supervision to prompts"
        )
    found = [marked(tokenizer, prompt, content.expanded("spans")) for prompt in prompts]
    if not any(map(any, found)):
        raise DSASError(
            f"prompt file {content.name!r}: none of its spans is in a source prompt, the first is "
            f"{content.expanded('spans')[0]!r}: write them as they stand there, as whole words"
        )
    return [(*marks[lead:], *(False,) * lead) for marks in found]


def _auroc(source: Sequence[int], control: Sequence[int]) -> float:
    """How well a number alone tells source from control: 0.5 is not at all, 1 and 0 are wholly."""
    pairs = [(a > b) + 0.5 * (a == b) for a in source for b in control]
    return sum(pairs) / len(pairs)


def _warn(evidence: Sequence[SiteEvidence], told_by_length: float) -> None:
    """Warn of what makes a gate weak, or strong for the wrong reason."""
    best = max(evidence, key=lambda found: found.balanced_accuracy, default=None)
    if best is not None and best.balanced_accuracy < NEAR_CHANCE and best.weight > 0:
        warnings.warn(
            f"the best site, {best.site}, tells source from control with balanced accuracy "
            f"{best.balanced_accuracy:.2f} only: add prompts, or choose other sites",
            stacklevel=3,
        )
    firing = [found for found in evidence if found.weight > 0 and found.control_h > FIRING]
    if firing:
        worst = max(firing, key=lambda found: found.control_h)
        warnings.warn(
            f"the gate fires on control tokens (mean h {worst.control_h:.2f} at {worst.site}): add controls that are "
            "more like the source",
            stacklevel=3,
        )
    if not 1 - TOLD_BY_LENGTH < told_by_length < TOLD_BY_LENGTH:
        warnings.warn(
            f"length alone tells source from control prompts (AUROC {told_by_length:.2f}): the gate may have learned "
            "nothing else; make them of about the same length",
            stacklevel=3,
        )


def _readable(model: nn.Module, found: list[Site], asked: object) -> list[Site]:
    """Sites that a prompt reaches: of a model with an encoder, the encoder's."""
    if "encoder" not in roots_of(model):
        return found
    readable = [site for site in found if site.root == "encoder"]
    if not readable or (asked is not None and len(readable) < len(found)):
        raise DSASError(
            "prompts go through the encoder: choose encoder sites to learn at (encoder.*), found decoder sites"
        )
    return readable
