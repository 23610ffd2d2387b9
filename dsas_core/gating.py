"""The gate of one site and timestep bin, from captured rows: fitted, judged, its threshold placed on controls.

The `dsas` gate's direction comes from logistic regression; its form decides on which rows, and how it is read:

- "paper": fitted on the mean over positions, read at each position, as DSAS describes it.
- "pooled": fitted on the mean, read on the mean: one decision for the whole picture or text.
- "token": fitted on positions, read at each position. Which positions of a source prompt show the concept is not
  known; they are found by multiple-instance rounds: those that the last probe scores highest are taken as positive.
- "product": token times pooled: the concept must be in the picture, and here.
- "prefix": of texts; fitted on the mean, read on the mean of the positions so far. "latch": read once, on the mean of
  the prompt.
- "last": of texts; token, read at the prompt's last token and at each that is written, and fitted on these.

Other gates say themselves which rows they are fitted on, and are read at each position; one of one decision per row
(`cast`) is read on the mean, in the form "latch" on that of the prompt. In the form "last" any gate is read there only.

Where somebody told which positions of source prompts show the concept (supervision "positions": words of a text, masks
of a picture), gates that are fitted on positions take these for it, and the others of the same prompts for what it is
not: nothing is left to find.

A probe fitted on means has its threshold in the wrong place for positions, so it is lowered until the mean h of control
positions that the probe was not fitted on is at most the recipe's `control_h`. h of each dimension counts by its mean
over dimensions, here and in all evidence.

Of a combination every part is fitted as if it stood alone, and so are thresholds placed: of a product and of `all` the
first part's, as the others can only close it further; of `any` every part's, for its share of `control_h`; of a
complement that of what it turns round. One shift for all parts would mix their units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .capture import Rows
from .errors import DSASError
from .methods._gate import Evidence, Fitted, Gate, Groups, RefusedError, by_prompt, evidence_of
from .methods.combine import Combined
from .methods.dsas import DSAS
from .probes import LatchProbe, LinearProbe, PooledProbe, PrefixProbe, Probe, ProductProbe, RunningProbe

if TYPE_CHECKING:
    from .recipe import Recipe

FORMS = ("paper", "pooled", "token", "product", "prefix", "latch", "last")
#: forms that remember the tokens before, which no combination does
REMEMBERING = ("prefix", "latch")
#: forms that are of texts alone
WRITTEN = (*REMEMBERING, "last")
#: a gate that is still open when it is lowered so far is let be
FARTHEST = 1e6


@dataclass(frozen=True)
class Gated:
    """A gate whose threshold is still to be placed.

    `at(control_h)` gives the probe with its threshold placed (None: where the fit put it), and h of what it meets in
    controls by probes that had not seen it, [n, 1 or width]: positions, those of control prompts first; of rows where
    it decides on means. `scores` are mean h of source and of control prompts that the probe had not seen. `refused`
    says why it must not steer here.
    """

    at: Callable[[float | None], tuple[Probe, torch.Tensor]]
    evidence: Evidence
    scores: tuple[torch.Tensor, torch.Tensor]
    of_rows: bool = False
    refused: str = ""


def fit_gate(gate: Gate, source: Rows, met: Sequence[Rows], recipe: Recipe) -> Gated:
    """Fit a gate on source rows and on those that it meets in control prompts: "control", and perhaps "context"."""
    if isinstance(gate, DSAS):
        return _dsas(gate, source, met, recipe)
    if isinstance(gate, Combined):
        return _combined(gate, source, met, recipe)
    control = met[0]
    pooled = gate.rows == "pooled"
    owner = "prompts" if pooled else "position_prompts"
    if pooled:
        rows = source.gathered("pooled"), control.gathered("pooled")
        owners: Groups = (source.gathered(owner).tolist(), control.gathered(owner).tolist())
    else:
        rows, owners = _positions(source, met, recipe)
    refused = ""
    try:
        fitted = gate.cross_fit(*rows, groups=owners, seed=recipe.seed)
    except RefusedError as error:
        fitted, refused = error.fitted, str(error)
    own = len(control.gathered(owner))  # evidence is of control prompts alone, not of what else the gate meets
    kept = by_prompt(fitted.control_logits[:own].sigmoid(), owners[1][:own])
    scores = by_prompt(fitted.source_logits.sigmoid(), owners[0]), kept
    if not gate.looks:
        return Gated(_at(fitted.probe, fitted.control_h), fitted.evidence, scores, of_rows=True)
    if gate.once:
        at = _at(gate.reading(fitted.probe, recipe.form), fitted.control_h, gate.settled)
        return Gated(at, evidence_of(*scores), scores, of_rows=True, refused=refused)
    if not pooled:
        count = sum(len(each.gathered("positions")) for each in met)
        at = _at(fitted.probe, lambda shift: fitted.control_h(shift)[:count], gate.settled)
        return Gated(at, evidence_of(*scores), scores, refused=refused)
    texts = [row for each in met for row in each.gathered("positions").split(each.sampled)]

    def control_h(shift: float) -> torch.Tensor:
        probe = fitted.probe.with_lower_bias(shift)
        return torch.cat([probe.score(text[None])[0].expand(len(text), -1) for text in texts])

    return Gated(_at(fitted.probe, control_h, gate.settled), fitted.evidence, scores, refused=refused)


def _dsas(gate: DSAS, source: Rows, met: Sequence[Rows], recipe: Recipe) -> Gated:
    control = met[0]
    groups = source.gathered("prompts").tolist(), control.gathered("prompts").tolist()
    pooled = gate.cross_fit(
        source.gathered("pooled"),
        control.gathered("pooled"),
        rank=recipe.rank,
        scaler=recipe.scaler,
        groups=groups,
        seed=recipe.seed,
    )
    linear = pooled.probe
    scores = by_prompt(pooled.source_logits.sigmoid(), groups[0]), by_prompt(pooled.control_logits.sigmoid(), groups[1])
    if recipe.form in ("pooled", *REMEMBERING):
        kinds: dict[str, type[PooledProbe | RunningProbe]] = {"prefix": PrefixProbe, "latch": LatchProbe}
        kind = kinds.get(recipe.form, PooledProbe)
        return Gated(_at(kind(linear), _lowered(pooled.control_logits)), pooled.evidence, scores, of_rows=True)
    if recipe.form == "paper":
        logits = linear.logit(torch.cat([rows.gathered("positions") for rows in met]))[:, 0]
        return Gated(_at(linear, _lowered(logits)), pooled.evidence, scores)
    found, owners = _token_probe(gate, linear, source, met, recipe)
    token, logits = found.probe, found.control_logits[: sum(len(rows.gathered("positions")) for rows in met)]
    if recipe.form in ("token", "last"):
        if not recipe.supervised:
            return Gated(_at(token, _lowered(logits)), pooled.evidence, scores)
        own = control.gathered("position_prompts").tolist()
        told = by_prompt(found.source_logits.sigmoid(), owners[0]), by_prompt(logits[: len(own)].sigmoid(), own)
        return Gated(_at(token, _lowered(logits)), evidence_of(*told), told)
    counts = torch.tensor(control.sampled)
    factor = pooled.control_logits.sigmoid().to(logits).repeat_interleave(counts)
    probe = ProductProbe((token, PooledProbe(linear)))
    return Gated(_at(probe, _lowered(logits[: int(counts.sum())], factor)), pooled.evidence, scores)


def _combined(gate: Combined, source: Rows, met: Sequence[Rows], recipe: Recipe) -> Gated:
    parts = [fit_gate(part, source, met, recipe) for part in gate.parts]
    counts = torch.tensor(met[0].sampled)

    def at(target: float | None) -> tuple[Probe, torch.Tensor]:
        placed = [part.at(share) for part, share in zip(parts, gate.shares(target), strict=True)]
        said = [
            h.repeat_interleave(counts, 0) if part.of_rows else h for part, (_, h) in zip(parts, placed, strict=True)
        ]
        shared = min(map(len, said))  # some know control prompts only, and not the context
        return gate.probe([probe for probe, _ in placed]), gate.h([h[:shared] for h in said])

    scores = gate.h([part.scores[0] for part in parts]), gate.h([part.scores[1] for part in parts])
    evidence = gate.evidence([part.evidence for part in parts], scores)
    return Gated(at, evidence, scores, refused=next((part.refused for part in parts if part.refused), ""))


def reads_positions(gate: Gate, form: str) -> bool:
    """Whether a gate, or a part of a combination, is fitted on single positions."""
    if isinstance(gate, Combined):
        return any(reads_positions(part, form) for part in gate.parts)
    return form in ("token", "product", "last") if isinstance(gate, DSAS) else gate.rows == "positions"


def _at(
    probe: Probe, control_h: Callable[[float], torch.Tensor], settled: bool = False
) -> Callable[[float | None], tuple[Probe, torch.Tensor]]:
    """A probe, and h of controls by how far it is lowered, by the mean h of controls that is wanted.

    With `settled` it stays where the fit put it.
    """

    def at(target: float | None) -> tuple[Probe, torch.Tensor]:
        shift = calibrate(control_h, None if settled else target)
        return probe.with_lower_bias(shift), control_h(shift)

    return at


def _lowered(logits: torch.Tensor, factor: torch.Tensor | None = None) -> Callable[[float], torch.Tensor]:
    """h of held-out logits [n], times a factor [n] that does not move, by how far the gate is lowered: [n, 1]."""
    factor = torch.ones_like(logits) if factor is None else factor
    return lambda shift: (factor * (logits - shift).sigmoid())[:, None]


def _token_probe(
    gate: DSAS, start: LinearProbe, source: Rows, met: Sequence[Rows], recipe: Recipe
) -> tuple[Fitted[LinearProbe], Groups]:
    """A probe of single positions, and whose they are.

    Which positions of the source show the concept is told, or found by multiple-instance rounds.
    """
    rank = "lda" if recipe.rank == "auto" else recipe.rank
    scaler = "std" if recipe.scaler == "auto" else recipe.scaler
    (shown, kept), owners = _positions(source, met, recipe)
    if recipe.supervised:
        return gate.cross_fit(shown, kept, rank=rank, scaler=scaler, groups=owners, seed=recipe.seed), owners

    def highest(probe: LinearProbe) -> torch.Tensor:
        """Indices of the positions of each row of each call that the probe scores highest."""
        chosen, begin = [], 0
        for row in shown.split(source.sampled):
            count = max(1, round(recipe.top_share * len(row)))
            chosen.append(probe.logit(row)[:, 0].topk(count).indices + begin)
            begin += len(row)
        return torch.cat(chosen)

    probe = start
    for _ in range(recipe.rounds - 1):
        probe = gate.fit(shown[highest(probe)], kept, rank=rank, scaler=scaler)
    positive = highest(probe)
    groups: Groups = (source.gathered("position_prompts")[positive].tolist(), owners[1])
    return gate.cross_fit(shown[positive], kept, rank=rank, scaler=scaler, groups=groups, seed=recipe.seed), groups


def _positions(source: Rows, met: Sequence[Rows], recipe: Recipe) -> tuple[tuple[torch.Tensor, torch.Tensor], Groups]:
    """Positions for h = 1 and for h = 0 with the prompt of each; where labels count, unmarked ones come last of these.

    Raises:
        DSASError: no position is marked.
    """
    shown, kept = source.gathered("positions"), torch.cat([rows.gathered("positions") for rows in met])
    owners = source.gathered("position_prompts")
    others = torch.cat([rows.gathered("position_prompts") for rows in met]).tolist()
    if not recipe.supervised:
        return (shown, kept), (owners.tolist(), others)
    marked = source.gathered("labels") if source.labels else torch.zeros(len(shown), dtype=torch.bool)
    if not marked.any():
        raise DSASError("supervision by positions: no position of a source prompt is marked as showing the concept")
    # control prompts are numbered from behind the sources on; these are to be of the same prompts as those marked
    behind = owners[~marked] - 1 - int(owners[marked].max())
    return (shown[marked], torch.cat([kept, shown[~marked]])), (owners[marked].tolist(), [*others, *behind.tolist()])


def calibrate(h: Callable[[float], torch.Tensor], target: float | None) -> float:
    """How far to lower a gate so that the mean of h(shift) [n, 1 or width] is at most `target`.

    0 when the mean is low enough already, `target` is None, or lowering does not get it there.
    """
    if target is None or float(h(0.0).mean()) <= target or float(h(FARTHEST).mean()) > target:
        return 0.0
    low, shift = 0.0, 60.0
    while float(h(shift).mean()) > target:
        low, shift = shift, 2 * shift
    for _ in range(50):
        middle = (low + shift) / 2
        low, shift = (middle, shift) if float(h(middle).mean()) > target else (low, middle)
    return shift
