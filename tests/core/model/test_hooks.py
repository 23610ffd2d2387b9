"""Visiting a model and letting go of it; steering a language model through nothing but `visit`."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from dsas_core import Call, Concept, DSASError, Intervention, Site, Steering, visit
from dsas_core.learning.capture import Capture
from dsas_core.maps import AffineMap
from dsas_core.model.hooks import find_visitors
from dsas_core.probes import ConstantProbe, LinearProbe, PrefixProbe
from dsas_core.steering.trace import Trace
from tests.fixtures.checks import differ, same
from tests.fixtures.concepts import random_concept
from tests.fixtures.language_models import tiny
from tests.fixtures.visitors import Bare, Doubler, Recorder

# ---- placing and removing -------------------------------------------------------------------------------------------

X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
MIDDLE = Site("model.1")
BEFORE = Site("model.1", side="input")


def stack() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))


def test_a_visitor_sees_what_comes_by() -> None:
    model, recorder = stack(), Recorder()
    with visit(model, [MIDDLE, BEFORE], recorder) as placed:
        out = model(X)
    assert torch.equal(recorder.seen[BEFORE][0], model[0](X))
    assert torch.equal(recorder.seen[MIDDLE][0], model[1](model[0](X)))
    assert placed.visited == {MIDDLE, BEFORE}
    assert torch.equal(out, model(X))


@pytest.mark.parametrize("site", [MIDDLE, BEFORE], ids=str)
def test_a_visitor_changes_what_goes_on(site: Site) -> None:
    model = stack()
    expected = model[2](2 * model[1](model[0](X)) if site == MIDDLE else model[1](2 * model[0](X)))
    with visit(model, [site], Doubler()):
        torch.testing.assert_close(model(X), expected)


def test_the_call_is_told_before_the_sites() -> None:
    model, recorder = stack(), Recorder()
    call = Call(torch.ones(2), torch.arange(2))
    described: list[Any] = []

    def describe_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        assert not recorder.seen
        described.append((args, kwargs))
        return call

    with visit({"root": model}, [Site("root.0")], recorder, {"root": describe_call}):
        model(input=X)
    assert recorder.calls == [("root", call)]
    assert described[0][0] == ()
    assert described[0][1]["input"] is X


def test_letting_go_leaves_no_trace() -> None:
    model = stack()
    before, bare, weights = model(X), Bare.of(model), copy.deepcopy(model.state_dict())
    placed = visit(model, [MIDDLE, BEFORE], Doubler(), {"model": lambda *_: Call(torch.ones(2), torch.arange(2))})
    assert Bare.of(model).hooks > bare.hooks
    assert Bare.of(model).attributes == bare.attributes, "hooks only: no attribute, no patched forward"
    assert not torch.equal(model(X), before)
    placed.detach()
    placed.detach()
    assert Bare.of(model) == bare
    assert torch.equal(model(X), before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_letting_go_takes_its_own_hooks_only() -> None:
    model = stack()
    theirs = model[1].register_forward_hook(lambda module, args, output: output + 1)
    before = model(X)
    first, second = visit(model, [MIDDLE], Doubler()), visit(model, [MIDDLE], Doubler())
    first.detach()
    with_one = model(X)
    second.detach()
    assert torch.equal(model(X), before)
    assert not torch.equal(with_one, before)
    theirs.remove()


def test_a_visit_that_fails_half_way_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = stack()
    bare = Bare.of(model)

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("no more hooks")

    with monkeypatch.context() as patch:
        patch.setattr(model[2], "register_forward_hook", full)
        with pytest.raises(RuntimeError, match="no more hooks"):
            visit(model, [MIDDLE, BEFORE, Site("model.2")], Doubler(), {"model": lambda *_: None})
    assert Bare.of(model) == bare


def test_a_site_that_is_not_there_names_its_like() -> None:
    model = nn.ModuleDict({"a": nn.ModuleDict({"attn": nn.Identity()}), "b": nn.ModuleDict({"attn": nn.Identity()})})
    with pytest.raises(DSASError, match=r"no module at model\.c\.attn; this model has model\.a\.attn, model\.b\.attn"):
        visit(model, [Site("model.a.attn"), Site("model.c.attn")], Doubler())
    assert Bare.of(model).hooks == 0


def test_an_error_inside_the_block_lets_go() -> None:
    model = stack()
    with pytest.raises(KeyboardInterrupt), visit(model, [MIDDLE], Doubler()):
        raise KeyboardInterrupt
    assert Bare.of(model).hooks == 0


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_a_copy_of_the_model_does_not_carry_the_visitor(copied: Any) -> None:
    model, doubler = stack(), Doubler()
    base = model(X)
    with visit(model, [MIDDLE, BEFORE], doubler, {"model": lambda *_: Call(torch.ones(2), torch.arange(2))}):
        other = copied(model)
        assert torch.equal(other(X), base)
        assert doubler.calls == []
        assert find_visitors(other) == []
        assert find_visitors(model) == [doubler]
        assert not torch.equal(model(X), base)
    assert find_visitors(model) == []


def test_a_module_that_was_replaced_is_known() -> None:
    model, wrapped = stack(), nn.Sequential(nn.Identity())
    with visit(model, [MIDDLE, Site("model.2")], Doubler()) as placed:
        assert placed.find_replaced(model) == []
        wrapped[0], model[1] = model[1], wrapped
        assert placed.find_replaced(model) == [MIDDLE]
        model[1] = wrapped[0]
        assert placed.find_replaced(model) == []


def test_a_visitor_of_calls_alone_is_known_too() -> None:
    model, recorder = stack(), Recorder()
    with visit(model, [], recorder, {"model": lambda *_: Call(torch.ones(2), torch.arange(2))}):
        assert find_visitors(model) == [recorder]
    assert find_visitors(model) == []


def test_rows_that_the_call_has_not_are_refused() -> None:
    model, steering = stack(), Steering({random_concept({MIDDLE: 4}): 1.0})
    with (
        visit(model, [MIDDLE], steering, {"model": lambda *_: Call(torch.ones(3), torch.arange(3))}),
        pytest.raises(DSASError, match=r"2 rows reach model\.1, but 'model' was called with 3"),
    ):
        model(X)


@pytest.mark.usefixtures("fresh_graphs")
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("part", [False, True])
def test_a_compiled_module_is_refused_with_the_remedy(in_place: bool, part: bool) -> None:
    model = stack()
    if in_place:
        (model[0] if part else model).compile(backend="eager")
    elif part:
        model[0] = torch.compile(model[0], backend="eager")
    else:
        model = torch.compile(model, backend="eager")
    with pytest.raises(DSASError, match="compiled, and torch ignores hooks that come later: attach first"):
        visit(model, [MIDDLE], Doubler())
    assert Bare.of(model).hooks == 0


# ---- a language model, with the same classes ------------------------------------------------------------------------

LAYERS = [Site("model.model.layers.0"), Site("model.model.layers.1")]
WIDTH = 32
IDS = torch.tensor([[3, 14, 15, 9, 26, 5], [35, 8, 9, 7, 9, 32]])


@pytest.fixture
def tiny_llama() -> nn.Module:
    return tiny("llama")


def describe(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
    """Every row of a language model is steered; padding does not count."""
    batch = len(kwargs["input_ids"])
    mask = kwargs.get("attention_mask")
    return Call(torch.ones(batch), torch.arange(batch), mask=None if mask is None else mask.float())


@contextmanager
def steered(model: nn.Module, concept: Concept, strength: Any, **settings: Any) -> Iterator[Steering]:
    steering = Steering({concept: strength}, **settings)
    with visit(model, steering.sites, steering, {"model": describe}):
        yield steering


def logits(model: nn.Module, ids: torch.Tensor = IDS, **inputs: Any) -> torch.Tensor:
    return model(input_ids=ids, **inputs).logits


def llama_concept(form: str = "linear", **fields: Any) -> Concept:
    return random_concept(dict.fromkeys(LAYERS, WIDTH), form=form, **fields)


@pytest.mark.parametrize("form", ["linear", "pooled", "product"])
def test_llama_strength_zero_and_letting_go_are_exact(tiny_llama: nn.Module, form: str) -> None:
    base, bare = logits(tiny_llama), Bare.of(tiny_llama)
    with steered(tiny_llama, llama_concept(form), 0.0) as steering:
        assert torch.equal(logits(tiny_llama), base)
        steering.strengths["random"] = 1.0
        assert differ(logits(tiny_llama), base)
    assert torch.equal(logits(tiny_llama), base)
    assert Bare.of(tiny_llama) == bare


@pytest.mark.parametrize("form", ["linear", "pooled", "product"])
def test_a_model_may_be_spread_over_devices(form: str) -> None:
    class Spread(nn.Module):
        """Its second layer computes elsewhere; torch refuses to mix devices."""

        def __init__(self) -> None:
            super().__init__()
            self.near, self.far = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, device="meta")

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.far(self.near(input_ids).to("meta"))

    model, sites = Spread(), [Site("model.near"), Site("model.far")]
    concept = random_concept(dict.fromkeys(sites, WIDTH), form=form, edges=(500.0,))

    def with_clock(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        rows = torch.ones(2)
        return Call(rows, torch.arange(2), timestep=torch.tensor(700.0), mask=torch.ones(2, 3))

    steering = Steering({concept: [1.0, 0.5]})
    with visit(model, sites, steering, {"model": with_clock}) as placed:
        for _ in range(2):
            assert model(input_ids=torch.randn(2, 3, WIDTH)).device.type == "meta"
        assert placed.visited == set(sites)


def test_a_part_that_is_called_past_its_root_says_so(tiny_llama: nn.Module) -> None:
    with steered(tiny_llama, llama_concept(), 1.0), pytest.raises(DSASError, match="'model' itself was not called"):
        tiny_llama.model(input_ids=IDS)  # type: ignore[operator]


def test_llama_gate_off_is_the_base_model(tiny_llama: nn.Module) -> None:
    base = logits(tiny_llama)
    with steered(tiny_llama, llama_concept(), 3.0, gate="off"):
        assert torch.equal(logits(tiny_llama), base)


@pytest.mark.parametrize("strength", [1.5, -1.5])
def test_llama_gate_on_adds_the_vector(tiny_llama: nn.Module, strength: float) -> None:
    concept = random_concept({LAYERS[0]: WIDTH}, kind="additive", unit=2.0)
    vector, recorder = concept.interventions[0].maps[0].shift, Recorder()
    with visit(tiny_llama, [LAYERS[0]], recorder):  # registered first, so it sees what steering leaves
        logits(tiny_llama)
        with steered(tiny_llama, concept, strength, gate="on"):
            logits(tiny_llama)
    base, made = recorder.seen[LAYERS[0]]
    torch.testing.assert_close(made, base + 2.0 * strength * vector)


def test_llama_site_weight_scales_the_gate(tiny_llama: nn.Module) -> None:
    made = []
    for weight, strength in ((0.25, 2.0), (1.0, 0.5)):
        with steered(tiny_llama, random_concept({LAYERS[0]: WIDTH}, weight=weight), strength):
            made.append(logits(tiny_llama))
    assert same(*made)
    assert differ(made[0], logits(tiny_llama))


def test_llama_signs_go_different_ways(tiny_llama: nn.Module) -> None:
    made = []
    for strength in (1.0, -1.0):
        with steered(tiny_llama, llama_concept(), strength):
            made.append(logits(tiny_llama))
    assert differ(*made)


@pytest.mark.parametrize("form", ["linear", "pooled", "product"])
def test_llama_batch_of_two_equals_two_singles(tiny_llama: nn.Module, form: str) -> None:
    with steered(tiny_llama, llama_concept(form), [1.0, 1.0]):
        both = logits(tiny_llama)
    with steered(tiny_llama, llama_concept(form), 1.0):
        singles = torch.cat([logits(tiny_llama, IDS[:1]), logits(tiny_llama, IDS[1:])])
    assert same(both, singles)


def test_llama_strengths_of_their_own_for_each_row(tiny_llama: nn.Module) -> None:
    base = logits(tiny_llama)
    with steered(tiny_llama, llama_concept(), [0.0, 2.0]):
        made = logits(tiny_llama)
    with steered(tiny_llama, llama_concept(), 2.0):
        alone = logits(tiny_llama)
    assert torch.equal(made[0], base[0])
    assert torch.equal(made[1], alone[1])


@pytest.mark.parametrize("form", ["linear", "pooled", "product"])
def test_llama_left_and_right_padding_agree(tiny_llama: nn.Module, form: str) -> None:
    pads = torch.zeros(1, 3, dtype=torch.long)
    made = []
    for left in (True, False):
        parts = (pads, IDS[:1]) if left else (IDS[:1], pads)
        mask = torch.cat([torch.zeros_like(pads), torch.ones_like(IDS[:1])][:: 1 if left else -1], 1)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        with steered(tiny_llama, llama_concept(form), 1.0):
            out = logits(tiny_llama, torch.cat(parts, 1), attention_mask=mask, position_ids=positions)
        made.append(out[mask.bool()])
    assert same(*made)
    assert differ(made[0], logits(tiny_llama, IDS[:1])[0])


def test_llama_cached_decoding_equals_a_full_forward(tiny_llama: nn.Module) -> None:
    with steered(tiny_llama, llama_concept("linear"), 1.0):
        full = logits(tiny_llama)
        cached = tiny_llama(input_ids=IDS[:, :3], use_cache=True)
        pieces, cache = [cached.logits], cached.past_key_values
        for i in range(3, IDS.shape[1]):
            step = tiny_llama(input_ids=IDS[:, i : i + 1], past_key_values=cache, use_cache=True)
            pieces.append(step.logits)
            cache = step.past_key_values
    assert same(torch.cat(pieces, 1), full)
    assert differ(full, logits(tiny_llama))


def test_llama_generates_steered(tiny_llama: nn.Module) -> None:
    def generate() -> list[int]:
        return tiny_llama.generate(IDS[:1], max_new_tokens=8, do_sample=False, pad_token_id=0)[0].tolist()

    base = generate()
    with steered(tiny_llama, llama_concept(), 0.0) as steering:
        assert generate() == base
        steering.strengths["random"] = 5.0
        assert generate() != base


def test_llama_two_concepts_at_one_site_add_up(tiny_llama: nn.Module) -> None:
    first = random_concept({LAYERS[0]: WIDTH}, name="first", seed=1)
    second = random_concept({LAYERS[0]: WIDTH}, name="second", seed=2)
    recorder = Recorder()
    with visit(tiny_llama, [LAYERS[0]], recorder):
        logits(tiny_llama)
        for concepts in ({first: 1.0}, {second: -0.5}, {first: 1.0, second: -0.5}):
            steering = Steering(concepts)
            with visit(tiny_llama, steering.sites, steering, {"model": describe}):
                logits(tiny_llama)
    base, one, other, both = recorder.seen[LAYERS[0]]
    torch.testing.assert_close(both, one + other - base)


def test_llama_slices_of_channels_are_steered_apart(tiny_llama: nn.Module) -> None:
    head = Site("model.model.layers.0", channels=(4, 8))
    recorder = Recorder()
    with visit(tiny_llama, [LAYERS[0]], recorder):
        logits(tiny_llama)
        with steered(tiny_llama, random_concept({head: 4}), 1.0):
            logits(tiny_llama)
    moved = (recorder.seen[LAYERS[0]][1] != recorder.seen[LAYERS[0]][0]).any(1).any(0)
    assert moved.tolist() == [4 <= i < 8 for i in range(WIDTH)]


def test_llama_trace_records_h_and_change(tiny_llama: nn.Module) -> None:
    trace = Trace()
    concept = random_concept(dict.fromkeys(LAYERS, WIDTH), weight=0.5)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    with steered(tiny_llama, concept, [0.0, 1.0], trace=trace):
        logits(tiny_llama, attention_mask=mask)
    assert [str(record.site) for record in trace.records] == [str(site) for site in LAYERS]
    for record in trace.records:
        assert record.h.shape == record.change.shape == (2, 6)
        assert record.timestep is None
        assert record.prompts.tolist() == [0, 1]
        assert bool((record.h[0, :2] == 0).all()), "padding is not steered"
        assert bool(((record.h[1] > 0) & (record.h[1] < 0.5)).all())
        assert bool((record.change[0] == 0).all())
        assert bool((record.change[1] > 0).all())
    expected = sum(float((r.h * mask).sum()) for r in trace.records) / (2 * float(mask.sum()))
    assert trace.mean_h("random") == pytest.approx(expected)
    assert trace.mean_h("random", site=str(LAYERS[0])) != trace.mean_h("random", site=str(LAYERS[1]))
    with pytest.raises(DSASError, match="no concept 'randon' is traced; there is random; did you mean random"):
        trace.mean_h("randon")


def test_more_prompts_than_strengths(tiny_llama: nn.Module) -> None:
    with (
        steered(tiny_llama, llama_concept(), [1.0, 2.0]),
        pytest.raises(DSASError, match="strength of 'random' is given for 2 prompts, but the call has 4"),
    ):
        logits(tiny_llama, torch.cat([IDS, IDS]))


class Repeated(nn.Module):
    """A layer that is applied several times, or to more positions or rows than the call has."""

    def __init__(self, times: int = 1, positions: int = 0, rows: int = 0) -> None:
        super().__init__()
        self.layer = nn.Identity()
        self.times, self.positions, self.rows = times, positions, rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.pad(x, (0, 0, 0, self.positions, 0, self.rows))
        for _ in range(self.times):
            x = self.layer(x)
        return x


def describe_all(args: tuple[Any, ...], kwargs: Any) -> Call:
    ones = torch.ones(args[0].shape[:2])
    return Call(torch.ones(len(ones)), torch.arange(len(ones)), None, ones, torch.zeros_like(ones))


@pytest.mark.parametrize(("more", "match"), [({"positions": 2}, "5 positions reach"), ({"rows": 1}, "3 rows reach")])
@pytest.mark.parametrize("count", [1, 3])
def test_rows_and_positions_that_the_call_has_not_are_refused(more: dict[str, int], match: str, count: int) -> None:
    """By steering and by learning, and not spread over those that there are, where the call has one."""
    model, site = Repeated(**more), Site("model.layer")
    match = match.replace("5", str(count + 2))
    visitors: list[Any] = [Capture(), Steering({random_concept({site: 4}): 1.0})]
    visitors[0].start("source")
    with visit(model, [site], visitors[0], {"model": describe_all}), pytest.raises(DSASError, match=match):
        model(torch.zeros(2, count, 4))
    with visitors[1].attach({"model": model}, {"model": describe_all}), pytest.raises(DSASError, match=match):
        model(torch.zeros(2, count, 4))


def test_a_layer_that_is_applied_several_times_is_steered_each_time_but_remembers_nothing() -> None:
    """What is remembered of a text would be of the text as often."""
    model, site, x = Repeated(times=3), Site("model.layer"), torch.zeros(2, 3, 4)
    shift = Intervention(site, (ConstantProbe(1.0),), (AffineMap(torch.ones(4)),), (1.0,))
    with Steering({Concept("shift", (shift,)): 1.0}).attach({"model": model}, {"model": describe_all}):
        assert torch.equal(model(x), x + 3)
    probe = PrefixProbe(LinearProbe(torch.ones(4), torch.tensor(0.0)))
    item = Intervention(site, (probe,), (AffineMap(torch.ones(4)),), (1.0,))
    steering = Steering({Concept("prefix", (item,)): 1.0})
    steering._state.reset("model", 2, x.device)
    with (
        steering.attach({"model": model}, {"model": describe_all}),
        pytest.raises(DSASError, match=r"is reached several times in one call.* or learn with form token"),
    ):
        model(x)
