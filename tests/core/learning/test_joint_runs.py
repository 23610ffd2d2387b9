"""How joint training runs: interrupted, among processes, within memory; and what it leaves, and refuses."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from dsas_core.errors import ArtifactError, DSASError, PromptError, UnsupportedError
from dsas_core.learning.joint.runs import check_trainable
from dsas_core.learning.joint.trainer import Aims
from dsas_core.utils.processes import Share
from tests.fixtures.joint import IDENTITY, WIDTH, ToyRuns, deep, gate, items, rows, trainer

ROOT = Path(__file__).parents[3]


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
    file = tmp_path / "training.safetensors"
    file.write_bytes(save({"x": torch.ones(1)}) if content is None else content)
    before = file.read_bytes()
    with pytest.raises(ArtifactError, match=message):
        trainer(ToyRuns(IDENTITY, rows()), items(["model.0"]), folder=tmp_path).run()
    assert file.read_bytes() == before


def _rewrite(file: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], object]) -> None:
    with safe_open(file, framework="pt") as opened:
        metadata, tensors = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    change(tensors, metadata)
    file.write_bytes(save(tensors, metadata=metadata))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, metadata: tensors.pop("now.0.offset"), "is of a training of other sites or widths"),
        (lambda tensors, metadata: tensors.update({"best.0.slope": torch.ones(7)}), "of other sites or widths"),
        (lambda tensors, metadata: tensors.update({"optimiser.0.exp_avg": torch.ones(7)}), "'0.exp_avg' has another"),
        (lambda tensors, metadata: tensors.update({"optimiser.x.step": torch.ones(())}), "it has no parameter 'x'"),
        (lambda tensors, metadata: tensors.update({"optimiser.99.step": torch.ones(())}), "it has no parameter '99'"),
        (lambda tensors, metadata: tensors.update(other=torch.ones(1)), "it has a tensor 'other'"),
        (lambda tensors, metadata: metadata.update(about="{"), "is damaged"),
        (lambda tensors, metadata: metadata.update(about="[1]"), "is damaged"),
        (lambda tensors, metadata: metadata.update(progressed="[1, 2]"), "is damaged"),
        (lambda tensors, metadata: metadata.update(progressed='["a", [], null, 1.0]'), "is damaged"),
    ],
)
def test_a_damaged_checkpoint_is_told_and_kept(change: Any, message: str, tmp_path: Path) -> None:
    def run() -> object:
        return trainer(ToyRuns(deep(), rows()), items(["model.0"]), folder=tmp_path, steps=4).run()

    run()
    file = tmp_path / "training.safetensors"
    _rewrite(file, change)
    before = file.read_bytes()
    with pytest.raises(ArtifactError, match=rf"{message}.*: choose another folder, or delete it") as caught:
        run()
    assert "\n" not in str(caught.value)
    assert file.read_bytes() == before


def test_a_checkpoint_goes_on_in_the_units_that_it_began_in(tmp_path: Path) -> None:
    """Activations that were captured again may differ in their last bits."""
    first = trainer(ToyRuns(deep(), rows()), items(["model.0"]), folder=tmp_path, steps=4)
    first.run()
    again = trainer(ToyRuns(deep(), rows()), items(["model.0"]), folder=tmp_path, steps=4)
    again.parameters.maps[0][0].scale.deviation *= 1.001
    again.run()
    assert torch.equal(*(part.parameters.maps[0][0].scale.deviation for part in (first, again)))


class Layer(nn.Module):
    """A layer that can be computed again, as those of transformers are: in training, where it has dropout as well."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.gradient_checkpointing = nn.Linear(WIDTH, WIDTH).double(), False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def inside(x: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(self.inner(x).tanh(), 0.5, training=self.training)

        if self.gradient_checkpointing and self.training:
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

    parameter, buffer = nn.Module(), nn.Module()  # as bitsandbytes keeps weights, and as GPTQ and AWQ do
    parameter.register_parameter("weight", nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False))
    buffer.register_buffer("weight", torch.ones(2, 2, dtype=torch.int32))
    for packed in (parameter, buffer):
        with pytest.raises(
            UnsupportedError, match=r"model\.0\.weight is packed as integers: load it in bfloat16 or float32"
        ):
            check_trainable({"model": nn.Sequential(packed)})
    indices = nn.Module()
    indices.register_buffer("position_ids", torch.arange(5)[None])
    indices.register_buffer("causal_mask", torch.ones(5, 5, dtype=torch.bool))
    check_trainable({"model": indices})
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


def test_processes_that_would_have_no_prompt_are_refused() -> None:
    with pytest.raises(
        PromptError, match="5 processes share 12 source prompts, 4 that are held out, and batches of 12: st"
    ):
        trainer(ToyRuns(IDENTITY, rows()), items(["model.0"]), share=Share(0, 5))


PROCESSES = """
import sys, torch
from pathlib import Path
from dsas_core.errors import DSASError
from dsas_core.utils.processes import process_share
from tests.fixtures.joint import *
share, (out, stop) = process_share(on_cpu=True), sys.argv[1:]
folder = Path(out).parent / f"{share.processes} processes, of process {share.process}"
training = trainer(
    ToyRuns(deep(), rows(count=11)), items(["model.0", "model.1"], gate()), Aims(gates=True), folder, share, batch=11
)
step = training._step
def stopping(now, optimiser):
    if now.step == int(stop):
        raise DSASError("stopped")
    return step(now, optimiser)
training._step = stopping
try:
    trained, _ = training.run()
except DSASError:
    sys.exit()
assert share.from_first(lambda: share.process) == 0
def fail():
    raise DSASError("of the first")
try:
    share.from_first(fail)
except DSASError as error:
    assert str(error) == "of the first"
if share.process == 0:
    torch.save([part for item in trained for part in (*item.maps[0].tensors(), *item.probes[0].tensors())], out)
"""


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    """Also if they were interrupted, and one does not see the checkpoint, as on another machine."""
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(PROCESSES))
    trained = {}
    for processes, stop in ((1, -1), (2, 15), (2, -1)):
        out = tmp_path / f"{processes}.pt"
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", processes, script, out, stop]
        alone = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        subprocess.run(
            list(map(str, command)), check=True, cwd=ROOT, env={**os.environ, **alone}, capture_output=True, timeout=300
        )
        assert out.is_file() == (stop < 0)
        if stop < 0:
            trained[processes] = torch.load(out)
    assert [path.name for path in tmp_path.glob("2 *")] == ["2 processes, of process 0"]
    for one, two in zip(trained[1], trained[2], strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)
