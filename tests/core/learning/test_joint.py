"""Joint training on models small enough to be known: optimum, gradients, checkpoints, and what is refused."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dsas_core import Call, Site, methods
from dsas_core.concept.intervention import Intervention
from dsas_core.errors import ArtifactError, DSASError, PromptError, UnsupportedError
from dsas_core.learning.joint.checkpoint import Checkpoint
from dsas_core.learning.joint.runs import HELD_OUT, JointRuns, Row, check_trainable, frozen
from dsas_core.learning.joint.settings import TrainingSettings
from dsas_core.learning.joint.trainer import Aims, JointTrainer
from dsas_core.maps import AffineMap
from dsas_core.methods.training.parts import Scale
from dsas_core.model.early_exit import FinishedError
from dsas_core.probes import ConstantProbe, LinearProbe, Probe, RectifiedProbe
from dsas_core.utils.processes import Share

ROOT, WIDTH = Path(__file__).parents[3], 5
ALWAYS_ON = Aims()


class ToyRuns(JointRuns):
    """Rows of positions, run through a model that takes them as they are."""

    def __init__(self, model: nn.Module, rows: dict[str, torch.Tensor], mask: torch.Tensor | None = None) -> None:
        super().__init__({kind: len(part) for kind, part in rows.items()})
        self.model, self.rows, self.mask = model, rows, mask
        self.x = torch.empty(0)

    @property
    def roots(self) -> dict[str, nn.Module]:
        return {"model": self.model}

    @property
    def module(self) -> nn.Module:
        return self.model

    def _prepare(self, rows: Sequence[Row], moment: int) -> tuple[Call, None]:
        self.x = torch.stack([self.rows[kind][i] for kind, i in rows])
        mask = None if self.mask is None else self.mask[: len(rows)]
        return Call(torch.ones(len(rows)), torch.arange(len(rows)), None, mask), None

    def _run(self) -> None:
        with suppress(FinishedError):
            self.model(self.x)


def rows(seed: int = 0, count: int = 12, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """Source, target and control rows of four positions; controls lie apart in one direction."""
    random = torch.Generator().manual_seed(seed)

    def drawn(shift: float) -> torch.Tensor:
        noise = torch.randn(count, 4, WIDTH, generator=random, dtype=torch.float64)
        return (noise + shift * torch.linspace(-1, 1, WIDTH)).to(dtype)

    sides = {"source": drawn(3), "target": 0.5 * drawn(0) + 1, "control": drawn(-3)}
    return sides | {HELD_OUT + kind: part[:4] for kind, part in sides.items()}


def deep(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Dropout(0.5)) for _ in range(3)]
    return nn.Sequential(*layers).double()


def items(sites: Sequence[str], probe: Probe | None = None) -> list[Intervention]:
    start = AffineMap(torch.zeros(WIDTH, dtype=torch.float64), torch.ones(WIDTH, dtype=torch.float64))
    return [Intervention(Site(site), (probe or ConstantProbe(1.0),), (start,), (1.0,)) for site in sites]


def gate(bias: float = 0.0) -> LinearProbe:
    return LinearProbe(torch.linspace(-1, 1, WIDTH, dtype=torch.float64), torch.tensor(bias, dtype=torch.float64))


def trainer(
    runs: ToyRuns, parts: Sequence[Intervention], aims: Aims = ALWAYS_ON, folder: Path | None = None, **settings: Any
) -> JointTrainer:
    one = Scale(runs.rows["source"].mean(1), runs.rows["target"].mean(1))
    scales = {
        item.site: (one, Scale(runs.rows["source"].flatten(0, 1), runs.rows["target"].flatten(0, 1))) for item in parts
    }
    known = {"aims": repr(aims), "settings": {name: value for name, value in settings.items() if name != "patience"}}
    chosen = TrainingSettings(**{"steps": 40, "batch": 12, **settings})
    return JointTrainer(parts, (), scales, aims, chosen, runs, 0, Checkpoint(folder, known), Share(), False)


IDENTITY = nn.Sequential(nn.Identity())


def test_at_one_site_of_a_model_that_does_nothing_it_finds_linear_act() -> None:
    runs = ToyRuns(IDENTITY, rows())
    runs.rows |= {HELD_OUT + kind: runs.rows[kind] for kind in ("source", "target")}
    runs.counts = {kind: len(part) for kind, part in runs.rows.items()}
    (trained,), found = trainer(runs, items(["model.0"]), steps=600, rate=0.05, patience=99).run()
    means = [runs.rows[side].mean(1) for side in ("source", "target")]
    closed = methods.get("linear-act").fit(*means)
    torch.testing.assert_close(trained.maps[0].slope, closed.slope, atol=1e-3, rtol=0)
    torch.testing.assert_close(trained.maps[0].shift, closed.shift, atol=1e-3, rtol=0)
    assert found["history"][-1]["held_out"] < 0.01 * found["history"][0]["held_out"]


def test_a_mask_says_which_positions_are_steered_and_counted() -> None:
    mask = torch.ones(24, 4)
    mask[:, 2:] = 0
    masked = rows()
    (one,), _ = trainer(ToyRuns(IDENTITY, masked, mask), items(["model.0"])).run()
    cut = {kind: part[:, :2] for kind, part in masked.items()}
    runs = ToyRuns(IDENTITY, cut)
    scales = ToyRuns(IDENTITY, masked)
    other = trainer(scales, items(["model.0"]))
    other.runs = runs
    (two,), _ = other.run()
    torch.testing.assert_close(one.maps[0].shift, two.maps[0].shift)


def test_sites_learn_together() -> None:
    """The second site sees what the first one does, so that both move less than each alone would."""
    sites = ["model.0", "model.1", "model.2"]
    _, found = trainer(ToyRuns(deep(), rows()), items(sites), steps=120).run()
    assert set(found["moved_dimensions"]) == set(sites)
    history = found["history"]
    assert history[-1]["held_out"] < 0.3 * history[0]["held_out"]


@pytest.mark.parametrize("probe", [gate(), RectifiedProbe(gate().weight / 4, gate().bias / 4 + 0.5, clipped=False)])
def test_gradients_are_those_of_finite_differences(probe: Probe) -> None:
    runs = ToyRuns(deep().eval(), rows())
    training = trainer(runs, items(["model.0", "model.1"], probe), Aims(gates=True, gamma=0.7))
    parameters = list(training.parameters.parameters())
    for number, parameter in enumerate(parameters):  # away from where a gate's gradient is 0
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        parameter.data.add_(0.1 * noise)
    sites = [item.site for item in training.items]

    def total() -> torch.Tensor:
        loss = training._measure(0, "", range(12), range(12))
        assert float(loss.preservation) > 0
        return loss.total(0.7)

    with frozen(runs.roots), runs.placed(sites, training.visitor):
        total().backward()
        for parameter in parameters:
            for place in range(parameter.numel()):
                with torch.no_grad():
                    ends = []
                    for step in (1e-5, -1e-5):
                        parameter.view(-1)[place] += step
                        ends.append(float(total()))
                        parameter.view(-1)[place] -= step
                assert parameter.grad is not None
                found = float(parameter.grad.reshape(-1)[place])
                assert found == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-6, rel=1e-4)


def test_with_a_map_that_changes_nothing_the_gate_has_no_gradient_in_the_first_step() -> None:
    runs = ToyRuns(deep().eval(), rows())
    training = trainer(runs, items(["model.0"], gate()), Aims(gates=True))
    with frozen(runs.roots), runs.placed([Site("model.0")], training.visitor):
        training._measure(0, "", range(12), range(12)).total(1.0).backward()
    (map_,), (probe,) = training.parameters.maps[0:1], training.parameters.probes[0:1]
    assert all(
        torch.equal(part.grad, torch.zeros_like(part)) for part in probe[0].parameters() if part.grad is not None
    )
    assert float(map_[0].offset.grad.abs().min()) > 0


def test_a_relu_that_is_closed_everywhere_is_dead() -> None:
    dead = RectifiedProbe(
        torch.zeros(WIDTH, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64), clipped=False
    )
    training = trainer(ToyRuns(deep(), rows()), items(["model.0"], dead), Aims(gates=True))
    before = [part.detach().clone() for part in training.parameters.parameters()]
    training.run()
    assert all(torch.equal(*pair) for pair in zip(before, training.parameters.parameters(), strict=True))


def test_gates_keep_controls_the_more_gamma_says() -> None:
    found = {}
    for gamma in (0.0, 1.0, 100.0):
        runs = ToyRuns(deep(), rows())
        (item,), _ = trainer(runs, items(["model.1"], gate(2.0)), Aims(gates=True, gamma=gamma), steps=150).run()
        with torch.no_grad():
            x = runs.model[:2].eval()(runs.rows["control"])
            found[gamma] = float((item.probes[0].score(x) * item.maps[0].displacement(x)).square().mean())
    assert found[100.0] < found[1.0] < found[0.0]


def test_the_model_is_left_as_it_was() -> None:
    model = deep().train()
    model[1].eval()
    model[0][0].weight.requires_grad_(False)
    before = {name: part.clone() for name, part in model.state_dict().items()}
    flags = [part.training for part in model.modules()], [part.requires_grad for part in model.parameters()]
    trainer(ToyRuns(model, rows()), items(["model.0"]), steps=3).run()
    runs = ToyRuns(model, rows())
    runs.rows["source"][3] = math.nan
    with pytest.raises(DSASError, match=r"the loss of transport is not finite at model\.1: lower the rate"):
        trainer(runs, items(["model.1"]), steps=3).run()
    assert flags == ([part.training for part in model.modules()], [part.requires_grad for part in model.parameters()])
    assert all(torch.equal(before[name], part) for name, part in model.state_dict().items())
    assert all(part.grad is None for part in model.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_a_loss_that_grows_beyond_all_bounds_names_the_site() -> None:
    runs = ToyRuns(IDENTITY, rows(dtype=torch.float32))
    with pytest.raises(DSASError, match=r"not finite at model\.0"):
        trainer(runs, items(["model.0"]), optimiser="sgd", rate=100.0, steps=400).run()


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_an_interrupted_training_ends_in_the_same_bits(optimiser: str, tmp_path: Path) -> None:
    settings = {"steps": 30, "checks": 6, "batch": 5, "optimiser": optimiser, "rate": 0.05, "patience": 99}
    aims = Aims(gates=True, l1=0.001)
    whole, told = trainer(ToyRuns(deep(), rows()), items(["model.0", "model.1"], gate()), aims, **settings).run()

    class StoppedError(Exception):
        pass

    halted = trainer(ToyRuns(deep(), rows()), items(["model.0", "model.1"], gate()), aims, tmp_path, **settings)
    step, count = halted._step, [0]

    def stopping(*args: Any) -> Any:
        count[0] += 1
        if count[0] == 18:  # after the third check, which is of step 15
            raise StoppedError
        return step(*args)

    halted._step = stopping  # type: ignore[method-assign]
    with pytest.raises(StoppedError):
        halted.run()
    resumed, told_again = trainer(
        ToyRuns(deep(), rows()), items(["model.0", "model.1"], gate()), aims, tmp_path, **settings
    ).run()
    assert told == told_again
    for one, two in zip(whole, resumed, strict=True):
        for part, other in ((one.maps[0], two.maps[0]), (one.probes[0], two.probes[0])):
            assert all(torch.equal(*pair) for pair in zip(part.tensors(), other.tensors(), strict=True))
    with pytest.raises(
        ArtifactError, match=r"is of another training \(settings\): choose another folder, or delete it"
    ):
        trainer(ToyRuns(deep(), rows()), items(["model.0"], gate()), aims, tmp_path, **{**settings, "steps": 31}).run()


@pytest.mark.parametrize(
    ("content", "message"), [(b"no tensors", "is damaged"), (None, "holds no training: choose another folder")]
)
def test_a_file_of_another_kind_is_left_alone(content: bytes | None, message: str, tmp_path: Path) -> None:
    from safetensors.torch import save

    file = tmp_path / "training.safetensors"
    file.write_bytes(save({"x": torch.ones(1)}) if content is None else content)
    before = file.read_bytes()
    with pytest.raises(ArtifactError, match=message):
        trainer(ToyRuns(IDENTITY, rows()), items(["model.0"]), folder=tmp_path).run()
    assert file.read_bytes() == before


def test_it_ends_early_where_nothing_gets_better_and_keeps_the_best() -> None:
    runs = ToyRuns(IDENTITY, rows())
    runs.rows[HELD_OUT + "target"] = runs.rows[HELD_OUT + "source"]  # so that every step makes it worse
    (item,), found = trainer(runs, items(["model.0"]), steps=100, checks=100, patience=3).run()
    assert found["steps"] == 3
    assert found["best"]["step"] == 0
    torch.testing.assert_close(item.maps[0].shift, torch.zeros(WIDTH, dtype=torch.float64), atol=1e-12, rtol=0)


class Layer(nn.Module):
    """A layer that can be computed again, as those of diffusers are."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.gradient_checkpointing = nn.Linear(WIDTH, WIDTH).double(), False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def inside(x: torch.Tensor) -> torch.Tensor:
            return self.inner(x).tanh()  # type: ignore[no-any-return]

        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(inside, x)  # type: ignore[no-any-return, operator]
        return inside(x)


@pytest.mark.parametrize("site", ["model.{}", "model.{}.inner"])
def test_activations_that_are_computed_again_give_the_same(site: str) -> None:
    """Also at sites inside of what is computed again."""
    torch.manual_seed(0)
    model = nn.Sequential(*[Layer() for _ in range(3)])
    sites = [site.format(i) for i in range(3)]
    trained = []
    for again in (False, True):
        parts, found = trainer(
            ToyRuns(model, rows()), items(sites, gate()), Aims(gates=True), steps=8, checkpointing=again
        ).run()
        assert found["checkpointing"] is again
        trained.append([part for item in parts for part in (*item.maps[0].tensors(), *item.probes[0].tensors())])
    for one, two in zip(*trained, strict=True):
        torch.testing.assert_close(one, two, atol=1e-12, rtol=0)
    assert not any(part.gradient_checkpointing for part in model)
    assert not any(part.training != model.training for part in model)


def test_it_is_computed_again_where_memory_would_not_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("dsas_core.learning.joint.trainer.free_memory", lambda device: 100.0)
    _, found = trainer(ToyRuns(nn.Sequential(Layer(), Layer()), rows()), items(["model.0"]), steps=2).run()
    assert found["checkpointing"]
    assert found["memory"] > 100
    with pytest.raises(
        UnsupportedError, match="Sequential cannot compute activations again: train with a smaller batch"
    ):
        trainer(ToyRuns(deep(), rows()), items(["model.0"]), steps=2).run()


def test_memory_is_what_autograd_keeps() -> None:
    """Without the model's own parameters, and told in proportion to the batch."""
    _, found = trainer(
        ToyRuns(nn.Sequential(nn.Linear(WIDTH, WIDTH)).double(), rows()), items(["model.0"]), steps=1
    ).run()
    one = 4 * WIDTH * 8  # bytes of an activation of one row
    assert 12 * one <= found["memory"] <= 12 * 40 * one


def test_what_cannot_be_trained_is_refused() -> None:
    few = rows()
    few["target"] = few["target"][:1]
    with pytest.raises(
        PromptError, match="target: joint training compares distributions, and 1 prompt is none: give at"
    ):
        trainer(ToyRuns(IDENTITY, few), items(["model.0"]))

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)

    with pytest.raises(
        UnsupportedError, match=r"model\.0\.weight is packed as integers: load it in bfloat16 or float32"
    ):
        check_trainable({"model": nn.Sequential(Packed())})
    with pytest.raises(UnsupportedError, match="compiled"):
        check_trainable({"model": torch.compile(nn.Linear(2, 2))})

    class Blind(nn.Module):
        @torch.no_grad()
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.inner(x)  # type: ignore[no-any-return]

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()

    with pytest.raises(UnsupportedError, match=r"model\.0\.inner passes no gradient on, as the model runs it without"):
        trainer(ToyRuns(nn.Sequential(Blind()), rows()), items(["model.0.inner"])).run()

    class Unused(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    with pytest.raises(UnsupportedError, match=r"model\.0 was not reached in training: choose other sites"):
        trainer(ToyRuns(Unused(nn.Identity()), rows()), items(["model.0"])).run()


PROCESSES = """
import sys, torch
from accelerate import PartialState
from dsas_core.utils.processes import process_share
from tests.core.learning.test_joint import *
share = process_share(on_cpu=True)
training = trainer(ToyRuns(deep(), rows(count=11)), items(["model.0", "model.1"], gate()), Aims(gates=True), batch=11)
training.share = share
trained, _ = training.run()
if share.process == 0:
    torch.save([part for item in trained for part in (*item.maps[0].tensors(), *item.probes[0].tensors())], sys.argv[1])
"""


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(PROCESSES))
    trained = {}
    for processes in (1, 2):
        out = tmp_path / f"{processes}.pt"
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc_per_node",
            str(processes),
            str(script),
            str(out),
        ]
        alone = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **alone}, capture_output=True, timeout=300)
        trained[processes] = torch.load(out)
    for one, two in zip(trained[1], trained[2], strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)
