"""What every gate has: how it is fitted, cross-validated evidence, and a threshold that can be placed on controls.

A gate is a subclass of `Gate` with `traits` and `_fit`; the rest follows from fitting it again on folds of prompts. One
that has something better overrides the method in question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from ...errors import DSASError
from ...probes import Probe
from .checks import check_rows
from .cross_validation import Evidence, PromptIds, by_prompt, evidence_of, logit_of, split_folds
from .gate_fit import GateFit, GateRows, GateSettings, placing, position_rows
from .traits import GateTraits

ProbeT = TypeVar("ProbeT", bound=Probe)


@dataclass(frozen=True)
class CrossFitted(Generic[ProbeT]):
    """A fitted gate, its evidence, and what probes say of rows whose prompts they had not seen.

    Args:
        probe: fitted on all rows.
        evidence: of the held-out rows.
        source_logits: [n], logits of h, of its mean over dimensions where it differs by dimension.
        control_logits: [m], likewise.
        control_h: h of the control rows by the shift that is taken off the logit, [m, 1] or [m, width].
    """

    probe: ProbeT
    evidence: Evidence
    source_logits: torch.Tensor
    control_logits: torch.Tensor
    control_h: Callable[[float], torch.Tensor]

    def scores(self, groups: PromptIds, controls: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean h of each source prompt, and of each prompt of the first `controls` control rows (None: of all)."""
        control = by_prompt(self.control_logits[:controls].sigmoid(), groups[1][:controls])
        return by_prompt(self.source_logits.sigmoid(), groups[0]), control


class RefusedError(DSASError):
    """A gate that does not earn its place at a site; `fitted` is what it came to."""

    def __init__(self, message: str, fitted: CrossFitted[Any]) -> None:
        super().__init__(message)
        self.fitted = fitted


class Gate:
    """Base of every gate. Settings are the fields of its dataclass, and can be given by name: "quantile(q=0.95)".

    Attributes:
        traits: what `learn` has to know of it.
    """

    traits: GateTraits

    def fit(self, source: torch.Tensor, control: torch.Tensor) -> Probe:
        """Fit on rows; float64 inside, the source's dtype out.

        Args:
            source: [n, width], where h is to be 1.
            control: [m, width], where h is to be 0.

        Raises:
            DSASError: rows that are not finite, or not of one width.
        """
        positive, negative = check_rows("source", source), check_rows("control", control, source.shape[-1])
        return _stored(self._fit(positive, negative), source.dtype)

    def _fit(self, source: torch.Tensor, control: torch.Tensor) -> Probe:
        """The probe of checked float64 rows."""
        raise NotImplementedError

    def cross_fit(
        self, source: torch.Tensor, control: torch.Tensor, *, groups: PromptIds | None = None, seed: int = 0
    ) -> CrossFitted[Any]:
        """As `fit`, with evidence from fitting again without a fifth of the prompts, five times.

        Args:
            source: [n, width], where h is to be 1.
            control: [m, width], where h is to be 0.
            groups: the prompt of each source and each control row, so that a prompt's rows share a fold; by default
                every row is its own.
            seed: of the folds.

        Raises:
            PromptError: fewer prompts of a side than folds.
        """
        positive, negative = check_rows("source", source), check_rows("control", control, source.shape[-1])
        rows, labels, prompts, folds = split_folds(positive, negative, groups, seed)
        held_out = torch.zeros(len(rows), dtype=torch.float64)
        parts: list[tuple[Probe, torch.Tensor, torch.Tensor]] = []  # probe, places in control, its logits there
        for train, test in folds:
            probe = self._fit(rows[train[labels[train] == 1]], rows[train[labels[train] == 0]])
            z = probe.logit(rows[test])
            held_out[test] = logit_of(probe.link(z))
            kept = labels[test] == 0
            parts.append((probe, torch.from_numpy(test[kept] - len(positive)), z[torch.from_numpy(kept)]))

        def control_h(shift: float) -> torch.Tensor:
            h = torch.cat([probe.link(z - shift) for probe, _, z in parts])
            return torch.empty_like(h).index_copy_(0, torch.cat([places for _, places, _ in parts]), h)

        logits = held_out[: len(positive)], held_out[len(positive) :]
        means = [
            by_prompt(side.sigmoid(), prompts[labels == label]) for side, label in zip(logits, (1, 0), strict=True)
        ]
        probe = _stored(self._fit(positive, negative), source.dtype)
        return CrossFitted(probe, evidence_of(*means), *logits, control_h)

    def fit_on(self, source: GateRows, controls: Sequence[GateRows], settings: GateSettings) -> GateFit:
        """Fit on captured rows of one site and timestep bin.

        Args:
            source: rows of source prompts.
            controls: what the gate meets in control prompts: their rows, and perhaps their context.
            settings: of the recipe.
        """
        control, traits, refused = controls[0], self.traits, ""
        pooled = traits.fitted_on == "pooled"
        owner = "prompts" if pooled else "position_prompts"
        if pooled:
            rows = source.gathered("pooled"), control.gathered("pooled")
            groups: PromptIds = source.gathered(owner).tolist(), control.gathered(owner).tolist()
        else:
            rows, groups = position_rows(source, controls, settings)
        try:
            fitted = self.cross_fit(*rows, groups=groups, seed=settings.seed)
        except RefusedError as error:
            fitted, refused = error.fitted, str(error)
        # evidence is of control prompts alone, not of what else the gate meets
        scores = fitted.scores(groups, len(control.gathered(owner)))
        evidence = fitted.evidence if pooled and not traits.per_prompt else evidence_of(*scores)
        per_row = traits.per_prompt or not traits.reads_activations
        if per_row:
            control_h = fitted.control_h
        elif pooled:
            control_h = _read_at_positions(fitted.probe, controls)
        else:
            count = sum(len(each.gathered("positions")) for each in controls)
            control_h = lambda shift: fitted.control_h(shift)[:count]  # noqa: E731
        at = placing(self.in_form(fitted.probe, settings.form), control_h, traits.fixed_threshold)
        return GateFit(at, evidence, scores, per_row, refused)

    def in_form(self, probe: Any, form: str) -> Probe:
        """A fitted probe as it is read in a form (`Recipe.form`)."""
        read: Probe = probe
        return read

    def reads_positions(self, form: str) -> bool:
        """Whether the gate, in a form, is fitted on single positions, so that marked positions tell it something."""
        return self.traits.fitted_on == "positions"

    def obstacle_to(self, settings: GateSettings) -> str | None:
        """Why the gate cannot be learned by a recipe: what follows its name in the error; None where it can."""
        return self.traits.obstacle_to(settings, self.reads_positions(settings.form))

    def weight(self, evidence: Evidence, rule: str) -> float:
        """The site's weight, see `Evidence.weight` and `GateTraits`."""
        if not self.traits.reads_activations:
            return 1.0
        if self.traits.fixed_threshold and rule == "soft":
            error = evidence.balanced_accuracy - evidence.lower
            return float(evidence.balanced_accuracy - 3 * error > 0.5)
        return evidence.weight(rule)


def _read_at_positions(probe: Probe, controls: Sequence[GateRows]) -> Callable[[float], torch.Tensor]:
    """h of control positions of a probe that was fitted on means, by how far it is lowered."""
    rows = [row for each in controls for row in each.gathered("positions").split(each.sampled)]

    def control_h(shift: float) -> torch.Tensor:
        lowered = probe.with_lower_bias(shift)
        return torch.cat([lowered.score(row[None])[0].expand(len(row), -1) for row in rows])

    return control_h


def _stored(probe: Probe, dtype: torch.dtype) -> Probe:
    return probe.map_tensors(lambda tensor: tensor.to(dtype))
