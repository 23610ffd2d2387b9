"""The base of every gate: fitting, cross-validated evidence, and a threshold that can be placed on control prompts.

A gate is a subclass of `Gate` with `traits` and `_fit`; the rest follows from fitting it again on folds of prompts. A
gate that can do better than that overrides the method in question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Generic, TypeVar

import torch

from ...errors import DSASError
from ...probes import Probe
from .checks import check_rows
from .cross_validation import Evidence, LabelledRows, PromptIds, evidence_of, logit_of, mean_by_prompt
from .gate_fit import GateFit, GateRows, GateSettings, HByShift, make_placer, position_rows
from .traits import GateTraits

ProbeT = TypeVar("ProbeT", bound=Probe)


@dataclass(frozen=True)
class CrossFitted(Generic[ProbeT]):
    """A fitted gate, its evidence, and its scores of held-out rows.

    Args:
        probe: fitted on all rows.
        evidence: of the held-out rows.
        source_logits: [n], held-out logits of h, of its mean over dimensions where it differs by dimension.
        control_logits: [m], likewise.
        control_h: held-out h of the control rows by the shift that is taken off the logit, [m, 1] or [m, width].
    """

    probe: ProbeT
    evidence: Evidence
    source_logits: torch.Tensor
    control_logits: torch.Tensor
    control_h: HByShift

    def scores(self, prompts: PromptIds, controls: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean h of each source prompt, and of each prompt of the first `controls` control rows (None: of all)."""
        control = mean_by_prompt(self.control_logits[:controls].sigmoid(), prompts[1][:controls])
        return mean_by_prompt(self.source_logits.sigmoid(), prompts[0]), control


class RefusedError(DSASError):
    """A gate that must not steer at a site; `fitted` is the gate as it was fitted."""

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
        """Fit on rows; computed in float64, returned in the dtype of the source.

        Args:
            source: [n, width], where h is to be 1.
            control: [m, width], where h is to be 0.

        Raises:
            DSASError: rows that are not finite, or not of one width.
        """
        return cast_probe(self._fit(*check_rows(source=source, control=control)), source.dtype)

    def _fit(self, source: torch.Tensor, control: torch.Tensor) -> Probe:
        """The probe of checked float64 rows."""
        raise NotImplementedError

    def cross_fit(
        self,
        source: torch.Tensor,
        control: torch.Tensor,
        *,
        groups: PromptIds | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> CrossFitted[Any]:
        """As `fit`, with evidence from fitting again without a fifth of the prompts, five times.

        Args:
            source: [n, width], where h is to be 1.
            control: [m, width], where h is to be 0.
            groups: the prompt of each source and each control row, so that a prompt's rows share a fold; by default
                every row is its own.
            seed: of the folds.
            settings: `rank` and `scaler` of the gate `dsas`; the others take none.

        Raises:
            DSASError: rows that are not finite, or not of one width.
            PromptError: fewer prompts of a side than folds.
        """
        return self.cross_fit_rows(LabelledRows(source, control, groups, seed), **settings)

    def cross_fit_rows(self, data: LabelledRows) -> CrossFitted[Any]:
        """See `cross_fit`."""
        rows, labels, _, folds = data.split()
        count = len(data.source)
        logits = torch.zeros(len(rows), dtype=torch.float64)
        parts: list[tuple[Probe, torch.Tensor, torch.Tensor]] = []  # probe, indices of control rows, their logits
        for train, test in folds:
            probe = self._fit(*(rows[train[labels[train] == label]] for label in (1, 0)))
            z = probe.logit(rows[test])
            logits[test] = logit_of(probe.link(z))
            kept = labels[test] == 0
            parts.append((probe, torch.from_numpy(test[kept] - count), z[torch.from_numpy(kept)]))

        def control_h(shift: float) -> torch.Tensor:
            h = torch.cat([probe.link(z - shift) for probe, _, z in parts])
            return torch.empty_like(h).index_copy_(0, torch.cat([places for _, places, _ in parts]), h)

        sides = logits[:count], logits[count:]
        evidence = evidence_of(*map(mean_by_prompt, (side.sigmoid() for side in sides), data.prompts))
        probe = cast_probe(self._fit(rows[:count], rows[count:]), data.source.dtype)
        return CrossFitted(probe, evidence, *sides, control_h)

    def fit_on(self, source: GateRows, controls: Sequence[GateRows], settings: GateSettings) -> GateFit:
        """Fit on captured activations of one site and timestep bin.

        Args:
            source: activations of source prompts.
            controls: those of control prompts, and perhaps of the context that the gate reads in control prompts.
            settings: of the recipe.
        """
        traits, refused = self.traits, ""
        pooled = traits.fitted_on == "pooled"
        data = pooled_rows(source, controls[0], settings) if pooled else position_rows(source, controls, settings)
        try:
            fitted = self.cross_fit_rows(data)
        except RefusedError as error:
            fitted, refused = error.fitted, str(error)
        # evidence is of control prompts alone, not of their context
        scores = fitted.scores(data.prompts, len(controls[0].gathered("pooled" if pooled else "positions")))
        evidence = fitted.evidence if pooled and not traits.per_prompt else evidence_of(*scores)
        per_row = traits.per_prompt or not traits.reads_activations
        if pooled and not per_row:
            control_h = _read_at_positions(fitted.probe, controls)
        else:
            count = None if per_row else sum(len(rows.gathered("positions")) for rows in controls)
            control_h = _read_first(fitted.control_h, count)
        place_at = make_placer(self.in_form(fitted.probe, settings.form), control_h, traits.fixed_threshold)
        return GateFit(place_at, evidence, scores, per_row, refused)

    def in_form(self, probe: Any, form: str) -> Probe:
        """A fitted probe as it is read in a form (`Recipe.form`)."""
        return probe

    def reads_positions(self, form: str) -> bool:
        """Whether the gate, in a form, is fitted on single positions, so that it can learn from marked positions."""
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


def gate_settings(gate: object) -> dict[str, Any]:
    """The settings of a gate, the fields of its dataclass, with their defaults; none of anything else."""
    return {field.name: field.default for field in fields(gate) if field.init} if is_dataclass(gate) else {}


def pooled_rows(source: GateRows, control: GateRows, settings: GateSettings) -> LabelledRows:
    """Means over positions to fit a gate on, with the prompt of each."""
    groups = source.gathered("prompts").tolist(), control.gathered("prompts").tolist()
    return LabelledRows(source.gathered("pooled"), control.gathered("pooled"), groups, settings.seed)


def cast_probe(probe: Probe, dtype: torch.dtype) -> Any:
    """The probe with its tensors in a dtype."""
    return probe.map_tensors(lambda tensor: tensor.to(dtype))


def _read_first(control_h: Callable[[float], torch.Tensor], count: int | None) -> Callable[[float], torch.Tensor]:
    """h of the first control rows, by shift; of all for None."""
    return lambda shift: control_h(shift)[:count]


def _read_at_positions(probe: Probe, controls: Sequence[GateRows]) -> HByShift:
    """h at control positions of a probe that was fitted on means, by the shift that is taken off its logit."""
    rows = [row for control in controls for row in control.gathered("positions").split(control.sampled)]

    def control_h(shift: float) -> torch.Tensor:
        lowered = probe.with_lower_bias(shift)
        return torch.cat([lowered.score(row[None])[0].expand(len(row), -1) for row in rows])

    return control_h
