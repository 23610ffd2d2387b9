"""A recipe: how a concept is fitted, of pictures or of texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .. import methods
from ..errors import DSASError, quote
from ..methods.base.gate import Gate
from ..methods.base.traits import COUPLED
from ..utils.numbers import KINDS, accepts, number
from .joint.settings import training_settings

#: how a gate is fitted and read; `methods.gates.dsas` explains each for the `dsas` gate
FORMS = ("paper", "pooled", "token", "product", "prefix", "latch", "text", "message", "last")
#: forms whose state depends on the tokens before; combinations of gates don't have them
STATEFUL_FORMS = ("prefix", "latch", "text", "message")
#: forms for texts only
TEXT_FORMS = (*STATEFUL_FORMS, "last")
POOLINGS = ("gated", "mean", "leading")
MODES = ("clean", "causal", "joint")
#: whether causal learning captures target prompts from the unsteered model, or from the steered one
TARGET_ROWS = ("clean", "steered")
READS = ("site", "prompt")
SUPERVISION = ("prompts", "positions")
WEIGHTS = ("soft", "threshold", "none")


# size: its fields are the settings that users name, kept in every concept
@dataclass(frozen=True)
class Recipe:
    """How a concept is fitted. Its fields are kept with the concept, in the provenance.

    Args:
        method: a map method of `dsas_core.methods`.
        gate: a gate of `dsas_core.methods`, also with settings and combined, "product(dsas, gaps)". None for the
            method's own (of `cast`, `mera`, `fairsteer`, `casteer`), else `dsas`.
        form: how a `dsas` gate, or such a part of a combination, is fitted and read, see `methods.gates.dsas`. Others
            define which rows they are fitted on, and are read at each position; a gate with one decision per row
            (`cast`) is read on the mean, in the form "latch" on the mean of the prompt. In the form "last" any gate is
            read only at the prompt's last token and after it.
        rank: projection of the gate's regression, a number of components, "lda", or "ridge" (all components under a
            penalty); "auto" by cross-validation, in the forms "text" and "message" always "ridge".
        scaler: "std" or "none"; "auto" by cross-validation, in these forms always "std".
        site_weight: "soft", "threshold" or "none"; see `methods.base.gate.Gate.weight`.
        control_h: mean h to allow on held-out control positions, in [0, 1]; None leaves the threshold where the fit
            put it. A gate whose threshold cannot be moved so far keeps it, and so do those of methods that place it
            themselves.
        source_h: h that nearly all held-out positions that show the concept keep at least, in (0, 1): the threshold is
            placed as far from what was fitted on as that allows, so that things which no control shows stay, too.
            Under supervision by positions; None leaves it where `control_h` puts it.
        control_texts: of the forms "text" and "message": share of control texts that the gate may touch, above 0 and
            below 0.5.
        pooling: what the map is fitted on (`methods.base.map_rows`): "gated" for means over positions weighted by the
            gate, "mean" for plain means, the form of the paper; "leading", of texts, for means over the states that are
            about to write what shows the concept.
        top_share: share of a source prompt's positions that a multiple-instance round takes as showing the concept.
        rounds: number of multiple-instance rounds.
        seed: of the cross-validation folds.
        options: of the map method, by name; `dsas methods` lists them.
        keep: how many sites to steer, those that tell source from target best, as ITI chooses heads; None for all, and
            for one with `fairsteer`. A number above that of the sites means all.
        mode: "clean", every site learns from the unsteered model, in one pass over the prompts; "causal", each learns
            while the sites before it steer at map strength 1, in a pass of its own; "joint", affine maps of all sites
            are trained together (`learning.joint`). None for "joint" where method or gate trains, else "clean".
        training: of mode "joint": settings of `learning.joint.settings.TrainingSettings` by name.
        target_rows: in causal learning: "clean", targets are captured from the unsteered model; "steered", from the
            steered one.
        supervision: "prompts", a source prompt is known to show the concept somewhere; "positions", it is known where:
            at the words that the prompt file lists (spans), at the patches that masks mark.
        below: of pictures: steer in steps below this timestep alone, one of those that separate bins; None for all
            steps; "auto", where the embeddings of the prompt are steered, for the lowest that has the effect, and for
            all steps elsewhere. In the first steps things find their places: what is steered later stays there.
        lead: for texts: this many tokens before a marked one, a position counts as showing the concept. 1 is the state
            that is about to write the marked token, 0 the state that has read it.
        cloud: principal components, at most, of the ellipse of target activations that is kept with each map, so that
            steering can stay within it (`maps.envelope.RANK` is a good number); 0 for none.
        reads: "site", every gate reads where its map writes; "prompt", all read at one site without timesteps (of a
            text encoder), the one that tells source from control best, and maps write at the sites with timesteps (of
            the denoiser). Gates must then be of form "pooled": one h for each prompt.

    Raises:
        DSASError: a value that a field does not take, or that conflicts with another field.

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
    source_h: float | None = None
    control_texts: float = 0.01
    pooling: str = "gated"
    top_share: float = 0.1
    rounds: int = 3
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    keep: int | None = None
    mode: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    target_rows: str = "clean"
    supervision: str = "prompts"
    below: float | str | None = "auto"
    lead: int = 1
    cloud: int = 0
    reads: str = "site"

    def __post_init__(self) -> None:
        number("seed", self.seed)
        methods.check_options(self.method, self.options)
        _expect(not methods.mapping(self.method).traits.couples_rows, f"method {self.method!r} {COUPLED}")
        if self.gate is None:
            object.__setattr__(self, "gate", methods.default_gate(self.method, self.options))
        if self.keep is None:
            object.__setattr__(self, "keep", methods.mapping(self.method).traits.max_sites)
        trained = methods.mapping(self.method).traits.trained or self.resolved_gate.traits.trained
        if self.mode is None:
            object.__setattr__(self, "mode", "joint" if trained else "clean")
        self._check_values()
        self._check_training(trained)
        self._check_gate(self.resolved_gate)

    def _check_training(self, trained: bool) -> None:
        _expect(
            self.mode == "joint" or not trained,
            f"learning mode {self.mode!r}: {self.method} with the gate {self.gate!r} is trained: leave mode out",
        )
        gate = self.resolved_gate
        for name, value in self.options.items() if gate.traits.trained else ():
            _expect(
                getattr(gate, name, value) == value,
                f"{name} {value!r} of {self.method}, and {name} {getattr(gate, name, None)!r} of the gate "
                f"{self.gate!r}: give it to the gate, or leave the gate out",
            )
        training_settings(self.training)
        _expect(
            self.mode == "joint" or not self.training,
            f"training {quote(dict(self.training))}: {self.method} with the gate {self.gate!r} is not trained: choose "
            "mode joint, or leave training out",
        )

    def _check_values(self) -> None:
        keep, cloud = self.keep, self.cloud
        _expect(
            keep is None or accepts("count", keep),
            f"keep {quote(keep)}: expected how many sites to steer, from 1 up, or None for all",
        )
        _expect(
            accepts("dimensions", cloud),
            f"cloud {quote(cloud)}: expected a number of components, from 0 (no cloud) up",
        )
        _expect(
            self.site_weight in WEIGHTS
            and accepts("rounds", self.rounds)
            and accepts("share", self.top_share)
            and self.top_share > 0,
            f"site_weight {quote(self.site_weight)}, rounds {quote(self.rounds)}, top_share {quote(self.top_share)}: "
            f"expected one of {', '.join(WEIGHTS)}, at least 1 round (up to {KINDS['rounds'].high}), and a share in "
            "(0, 1]",
        )
        _expect(
            accepts("share", self.control_texts) and 0 < self.control_texts < 0.5,
            f"control_texts {quote(self.control_texts)}: expected a share of control texts, above 0 and below 0.5",
        )
        _expect(
            self.control_h is None or accepts("share", self.control_h),
            f"control_h {quote(self.control_h)}: expected a mean h to allow on control positions, from 0 to 1, or None",
        )
        _expect(
            self.source_h is None or (accepts("share", self.source_h) and 0 < self.source_h < 1),
            f"source_h {quote(self.source_h)}: expected an h to keep, between 0 and 1, or None",
        )
        _expect(
            self.below in (None, "auto") or accepts("timestep", self.below),
            f"below {quote(self.below)}: expected a timestep, from 0 to 1000, auto, or None for all steps",
        )
        _expect(
            isinstance(self.rank, str) or (accepts("dimensions", self.rank) and self.rank > 0),
            f"gate rank {quote(self.rank)}: expected a positive number, lda, ridge or auto",
        )
        _expect(
            self.form in FORMS and self.pooling in POOLINGS,
            f"gate form {self.form!r}, pooling {self.pooling!r}: expected one of {', '.join(FORMS)}, and one of "
            f"{', '.join(POOLINGS)}",
        )
        _expect(
            self.mode in MODES and self.target_rows in TARGET_ROWS,
            f"learning mode {self.mode!r}, target_rows {self.target_rows!r}: expected one of {', '.join(MODES)}, and "
            f"one of {', '.join(TARGET_ROWS)}",
        )
        _expect(
            self.reads in READS and (self.reads == "site" or (self.form == "pooled" and self.mode == "clean")),
            f"reads {self.reads!r}, gate form {self.form!r}, mode {self.mode!r}: expected {' or '.join(READS)}; for "
            "prompt form pooled and mode clean",
        )
        _expect(
            self.supervision in SUPERVISION and accepts("dimensions", self.lead),
            f"supervision {quote(self.supervision)}, lead {quote(self.lead)}: expected one of "
            f"{', '.join(SUPERVISION)}, and a number of tokens, from 0 up",
        )

    def _check_gate(self, gate: Gate) -> None:
        obstacle = gate.obstacle_to(self)
        _expect(obstacle is None, f"gate {self.gate!r} {obstacle}")
        choices = ", ".join(form for form in FORMS if form not in STATEFUL_FORMS)
        _expect(
            self.form not in STATEFUL_FORMS or gate.traits.allows_state,
            f"gate form {self.form!r} goes by the tokens before, no combination does: choose {choices}",
        )

    @property
    def resolved_gate(self) -> Gate:
        """The gate in use: the one that `gate` names."""
        return methods.gate(self.gate or "dsas")

    @property
    def supervised(self) -> bool:
        """Whether it is known which positions show the concept."""
        return self.supervision == "positions"

    def obstacle_to_texts(self) -> str | None:
        """Why gate or map cannot steer texts while they are generated, and the way out; None where they can."""
        obstacle = self.resolved_gate.traits.obstacle_to_texts(self.form)
        if obstacle is not None:
            return f"gate {self.gate!r} {obstacle}"
        return methods.mapping(self.method).obstacle_to_texts(self.options)

    def steers(self, kind: str) -> bool:
        """Whether causal learning captures prompts of a kind while the sites before steer."""
        return kind != "target" or self.target_rows == "steered"


def _expect(holds: bool, message: str) -> None:
    if not holds:
        raise DSASError(message)


def recipe_of(given: Mapping[str, Any] | None, **settings: Any) -> Recipe:
    """A recipe from settings, and from those of the user, which win.

    Args:
        given: the user's fields by name.
        settings: other fields by name.

    Raises:
        DSASError: a field that recipes do not have, or a value that it does not take.

    Example:
        >>> recipe_of({"form": "token"}, form="product", seed=3).form
        'token'
    """
    names = [field.name for field in fields(Recipe)]
    unknown = sorted(set(given or {}) - set(names))
    _expect(not unknown, f"recipe has no field {', '.join(unknown)}; it has {', '.join(names)}")
    return Recipe(**{**settings, **(given or {})})
