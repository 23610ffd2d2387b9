"""A recipe: how a concept is fitted, whatever it is fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .. import methods
from ..errors import DSASError
from ..methods.base.gate import Gate

#: how a gate is fitted and read; what each is to the `dsas` gate is told in `methods.dsas`
FORMS = ("paper", "pooled", "token", "product", "prefix", "latch", "last")
#: forms with state, of the tokens before; no combination of gates has them
REMEMBERING = ("prefix", "latch")
#: forms that are of texts alone
WRITTEN = (*REMEMBERING, "last")
POOLINGS = ("gated", "mean")
MODES = ("clean", "causal")
#: whether the target prompts of causal learning are read from the unsteered model, or steered as well
TARGET_ROWS = ("clean", "steered")
READS = ("site", "prompt")
SUPERVISION = ("prompts", "positions")
WEIGHTS = ("soft", "threshold", "none")


@dataclass(frozen=True)
class Recipe:
    """How a concept is fitted. Its fields are kept with the concept, in the provenance.

    Args:
        method: a map method of `dsas_core.methods`.
        gate: a gate of `dsas_core.methods`, also with settings and combined, "product(dsas, gaps)". None for the
            method's own (of `cast`, `mera`, `fairsteer`, `casteer`), else `dsas`.
        form: how a `dsas` gate, or such a part of a combination, is fitted and read, see `methods.dsas`. Other gates
            say themselves which rows they are fitted on, and are read at each position; one of one decision per row
            (`cast`) is read on the mean, in the form "latch" on that of the prompt. In the form "last" any gate is read
            at the prompt's last token and behind it only.
        rank: projection of the gate's regression, a number of components or "lda"; "auto" by cross-validation.
        scaler: "std" or "none"; "auto" by cross-validation.
        site_weight: "soft", "threshold" or "none"; see `methods.Gate.weight`.
        control_h: mean h to allow on held-out control positions; None leaves the threshold where the fit put it. A
            gate whose threshold cannot be moved so far keeps it, and so do those of methods that place it themselves.
        pooling: what the map is fitted on: "gated" for means over positions weighted by the gate (where the concept
            is; of targets that no longer show it, see `site_fit`), "mean" for plain means, the form of the paper.
        top_share: share of a source prompt's positions that a multiple-instance round takes as showing the concept.
        rounds: multiple-instance rounds.
        seed: of the cross-validation folds.
        options: of the map method, by name; `dsas methods` lists them.
        keep: how many sites to steer, those that tell source from target best, as ITI chooses heads; None for all, and
            for one with `fairsteer`. More than there are is all.
        mode: "clean", every site learns from the unsteered model, in one pass over the prompts; "causal", each learns
            with those before it steering at map strength 1, in a pass of its own.
        target_rows: of causal learning: "clean", targets are what the unsteered model makes of them, "steered".
        supervision: "prompts", of a source prompt it is known that it shows the concept somewhere; "positions", where:
            at the words that the prompt file names (spans), at the patches that masks mark.
        lead: of words: so many tokens before a marked one its position counts as showing the concept. 1 is the state
            that is about to write it, 0 the one that has read it.
        cloud: principal components, at most, of the ellipse of target activations that is kept with each map, so that
            steering can stay within it (`maps.envelope.RANK` is a good number); 0 for none.
        reads: "site", every gate reads where its map writes; "prompt", all read at one site without a clock (of a text
            encoder), that which tells source from control best, and maps write at the sites with one (of the denoiser).
            Gates must then be of form "pooled": one h for each prompt.

    Raises:
        DSASError: a value that a field does not take, or that does not go with another.

    Example:
        >>> Recipe(method="mera", options={"alpha": 0.25}).gate
        'mera(alpha=0.25)'
    """

    method: str = "caa"
    gate: str | None = None
    form: str = "product"
    rank: int | str = "auto"
    scaler: str = "auto"
    site_weight: str = "soft"
    control_h: float | None = 0.01
    pooling: str = "gated"
    top_share: float = 0.1
    rounds: int = 3
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    keep: int | None = None
    mode: str = "clean"
    target_rows: str = "clean"
    supervision: str = "prompts"
    lead: int = 1
    cloud: int = 0
    reads: str = "site"

    def __post_init__(self) -> None:
        methods.check_options(self.method, self.options)
        if self.gate is None:
            object.__setattr__(self, "gate", methods.default_gate(self.method, self.options))
        if self.keep is None:
            object.__setattr__(self, "keep", methods.mapping(self.method).traits.max_sites)
        self._check_sizes()
        self._check_fit()
        self._check_mode()
        self._check_supervision()
        self._check_gate(self.resolved_gate)

    def _check_sizes(self) -> None:
        keep, cloud = self.keep, self.cloud
        if keep is not None and (not isinstance(keep, int) or keep < 1):
            raise DSASError(f"keep {keep!r}: expected how many sites to steer, from 1 up, or None for all")
        if isinstance(cloud, bool) or not isinstance(cloud, int) or cloud < 0:
            raise DSASError(f"cloud {cloud!r}: expected a number of components, from 0 (no cloud) up")

    def _check_fit(self) -> None:
        if self.site_weight not in WEIGHTS or self.rounds < 1 or not 0 < self.top_share <= 1:
            raise DSASError(
                f"site_weight {self.site_weight!r}, rounds {self.rounds}, top_share {self.top_share}: expected one of "
                f"{', '.join(WEIGHTS)}, at least 1 round, and a share in (0, 1]"
            )
        if self.form not in FORMS or self.pooling not in POOLINGS:
            raise DSASError(
                f"gate form {self.form!r}, pooling {self.pooling!r}: expected one of {', '.join(FORMS)}, and one of "
                f"{', '.join(POOLINGS)}"
            )

    def _check_mode(self) -> None:
        if self.mode not in MODES or self.target_rows not in TARGET_ROWS:
            raise DSASError(
                f"learning mode {self.mode!r}, target_rows {self.target_rows!r}: expected one of {', '.join(MODES)}, "
                f"and one of {', '.join(TARGET_ROWS)}"
            )
        if self.reads not in READS or (self.reads == "prompt" and (self.form != "pooled" or self.mode == "causal")):
            raise DSASError(
                f"reads {self.reads!r}, gate form {self.form!r}, mode {self.mode!r}: expected {' or '.join(READS)}; "
                "for prompt form pooled and mode clean"
            )

    def _check_supervision(self) -> None:
        if self.supervision not in SUPERVISION or not isinstance(self.lead, int) or self.lead < 0:
            raise DSASError(
                f"supervision {self.supervision!r}, lead {self.lead!r}: expected one of {', '.join(SUPERVISION)}, and "
                "a number of tokens, from 0 up"
            )

    def _check_gate(self, gate: Gate) -> None:
        obstacle = gate.obstacle_to(self)
        if obstacle is not None:
            raise DSASError(f"gate {self.gate!r} {obstacle}")
        if self.form in REMEMBERING and not gate.traits.allows_state:
            choices = ", ".join(form for form in FORMS if form not in REMEMBERING)
            raise DSASError(f"gate form {self.form!r} goes by the tokens before, no combination does: choose {choices}")

    @property
    def resolved_gate(self) -> Gate:
        """The gate that `gate` names."""
        return methods.gate(self.gate or "dsas")

    @property
    def supervised(self) -> bool:
        """Whether it is known which positions show the concept."""
        return self.supervision == "positions"

    def obstacle_to_texts(self) -> str | None:
        """Why gate or map cannot steer texts as they are written, and the way out; None where they can."""
        obstacle = self.resolved_gate.traits.obstacle_to_texts(self.form)
        if obstacle is not None:
            return f"gate {self.gate!r} {obstacle}"
        return methods.mapping(self.method).obstacle_to_texts(self.options)

    def steers(self, kind: str) -> bool:
        """Whether prompts of a kind are read with the sites before steering, in causal learning."""
        return kind != "target" or self.target_rows == "steered"


def recipe_of(given: Mapping[str, Any] | None, **settings: Any) -> Recipe:
    """A recipe of settings and of what the user gave on top of them.

    Args:
        given: fields by name; they win.
        settings: fields by name.

    Raises:
        DSASError: a field that recipes do not have, or a value that they do not take.

    Example:
        >>> recipe_of({"form": "token"}, form="product", seed=3).form
        'token'
    """
    names = [own.name for own in fields(Recipe)]
    unknown = sorted(set(given or {}) - set(names))
    if unknown:
        known = ", ".join(names)
        raise DSASError(f"recipe has no field {', '.join(unknown)}; it has {known}")
    return Recipe(**{**settings, **(given or {})})
