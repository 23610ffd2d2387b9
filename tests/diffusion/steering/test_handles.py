"""Handles of pipelines: found, ended, attached again, nested, disabled; what they refuse, and how they say it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import dsas_diffusion as dsas
from dsas_core import Concept, DSASError, Site
from dsas_core.errors import UnsupportedError
from dsas_core.model.hooks import find_visitors
from dsas_diffusion import DSASCallback, Schedule, find_sites, steer
from dsas_diffusion.pipelines.adapter import adapt
from dsas_diffusion.pipelines.batch_layout import BatchLayout
from dsas_diffusion.steering.steer import PipelineSteering
from tests.fixtures.checks import differ, same
from tests.fixtures.concepts import random_concept
from tests.fixtures.models import BANANA, build_flow_pipe, latents
from tests.fixtures.visitors import seen_at

S = 0.7
#: groups of sites of two concepts: at other sites, at the same, and in two models
GROUPS = [("cross", "self"), ("cross", "cross"), ("text", "cross")]


def make(pipe: Any, group: str = "cross", name: str = "first", seed: int = 0, **fields: Any) -> Concept:
    return random_concept(seen_at(pipe, find_sites(pipe, group)), unit=0.5, name=name, seed=seed, **fields)


@pytest.fixture(scope="module")
def pair(tiny_pipe: Any) -> tuple[Concept, Concept]:
    """Two concepts at the same sites."""
    return make(tiny_pipe), make(tiny_pipe, name="second", seed=1)


@pytest.fixture(autouse=True)
def untouched(tiny_pipe: Any) -> Iterator[None]:
    yield
    assert dsas.detach(tiny_pipe) == []
    assert find_visitors(adapt(tiny_pipe).roots) == []
    assert not {"encode_prompt", "check_inputs", "prepare_latents", "maybe_free_model_hooks"} & set(vars(tiny_pipe))


def test_outside_of_a_block_it_steers_until_it_is_detached_from_anywhere(tiny_pipe: Any, pair: Any) -> None:
    base = latents(tiny_pipe, BANANA)
    assert dsas.steered(tiny_pipe) == []
    steering = steer(tiny_pipe, {pair[0]: S})
    assert differ(latents(tiny_pipe, BANANA), base)
    assert dsas.steered(tiny_pipe) == [steering]
    assert dsas.steered(adapt(tiny_pipe)) == [steering]
    assert dsas.detach(tiny_pipe) == [steering]
    assert torch.equal(latents(tiny_pipe, BANANA), base)
    assert repr(steering) == f"PipelineSteering({{'first': {float(np.float32(S))}}}, ended)"


def test_a_pipeline_whose_parts_were_replaced_is_still_detached(tmp_path: Any) -> None:
    pipe, other = build_flow_pipe(tmp_path / "a"), build_flow_pipe(tmp_path / "b")
    steering = steer(pipe, {make(pipe): S})
    own, pipe.unet = pipe.unet, other.unet
    assert dsas.steered(pipe) == [steering]
    assert dsas.detach(pipe) == [steering]
    assert "encode_prompt" not in vars(pipe)
    with pytest.raises(DSASError, match=r"has another unet since: steer it anew"), steering:
        pass
    pipe.unet = own
    assert find_visitors(adapt(pipe).roots) == []


@pytest.mark.parametrize("attach", ["hooks", "processor"])
def test_a_block_entered_twice_does_the_same_twice(tiny_pipe: Any, pair: Any, attach: str) -> None:
    base = latents(tiny_pipe, BANANA)
    steering = steer(tiny_pipe, {pair[0]: S}, attach=attach, trace=True)
    made, seen = [], []
    for _ in range(2):
        with steering:
            with steering:  # which changes nothing
                pass
            made.append(latents(tiny_pipe, BANANA))
            seen.append(steering.trace.mean_h("first"))
        assert torch.equal(latents(tiny_pipe, BANANA), base)
    assert torch.equal(*made)
    assert differ(made[0], base)
    assert seen[0] == seen[1] > 0


def test_words_are_attached_again(tiny_pipe: Any, pair: Any) -> None:
    steering, made = steer(tiny_pipe, {pair[0]: S}, words={"first": "banana"}), []
    for _ in range(2):
        with steering:
            made.append(latents(tiny_pipe, BANANA))
    assert torch.equal(*made)


# ---- one within another ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", GROUPS, ids="-".join)
def test_nested_handles_are_one_with_both_concepts(tiny_pipe: Any, groups: tuple[str, str]) -> None:
    first, second = (make(tiny_pipe, g, n, i) for i, (g, n) in enumerate(zip(groups, ("first", "second"), strict=True)))
    prompts, seeds = [BANANA, "a dog"], (0, 1)
    with steer(tiny_pipe, {first: S, second: [-0.5, 1.0]}):
        both = latents(tiny_pipe, prompts, seeds)
    with steer(tiny_pipe, {first: S}, trace=True) as outer:
        alone = latents(tiny_pipe, prompts, seeds)
        with steer(tiny_pipe, {second: [-0.5, 1.0]}, trace=True) as inner:
            assert dsas.steered(tiny_pipe) == [outer, inner]
            assert same(latents(tiny_pipe, prompts, seeds), both)
            assert {record.concept for record in outer.trace.records} == {"first"}
            assert {record.concept for record in inner.trace.records} == {"second"}
            inner.disable()
            assert torch.equal(latents(tiny_pipe, prompts, seeds), alone)
            inner.enable()
            assert same(latents(tiny_pipe, prompts, seeds), both)
        assert torch.equal(latents(tiny_pipe, prompts, seeds), alone)


def test_the_outer_one_may_end_first_and_come_again(tiny_pipe: Any, pair: Any) -> None:
    with steer(tiny_pipe, {pair[1]: S}):
        second = latents(tiny_pipe, BANANA)
    outer, inner = steer(tiny_pipe, {pair[0]: S}), steer(tiny_pipe, {pair[1]: S})
    both = latents(tiny_pipe, BANANA)
    outer.detach()
    assert dsas.steered(tiny_pipe) == [inner]
    assert torch.equal(latents(tiny_pipe, BANANA), second)
    with outer:
        assert dsas.steered(tiny_pipe) == [inner, outer]
        assert torch.allclose(latents(tiny_pipe, BANANA), both, atol=1e-4), "the order of a sum alone"
    inner.detach()


def test_a_method_of_the_pipelines_own_comes_back_whoever_ends_first(tiny_pipe: Any, pair: Any) -> None:
    def encode_prompt(*args: Any, **kwargs: Any) -> Any:
        return type(tiny_pipe).encode_prompt(tiny_pipe, *args, **kwargs)

    for order in ([0, 1], [1, 0]):
        tiny_pipe.encode_prompt = encode_prompt
        try:
            handles = [steer(tiny_pipe, {concept: S}) for concept in pair]
            for number in order:
                handles[number].detach()
            assert vars(tiny_pipe)["encode_prompt"] is encode_prompt
        finally:
            del tiny_pipe.encode_prompt


def test_what_cannot_be_nested_says_so(tiny_pipe: Any, pair: Any) -> None:
    first, second = pair
    with steer(tiny_pipe, {first: S}, attach="processor") as steering:
        made = latents(tiny_pipe, BANANA)
        with pytest.raises(DSASError, match=r"'first' is steering this model already.*dsas\.detach\(pipe\)"):
            steer(tiny_pipe, {first: 1.0}, attach="hooks")
        with pytest.raises(UnsupportedError, match="a processor steers attention layers already: pass all concepts"):
            steer(tiny_pipe, {second: 1.0}, attach="processor")
        with (
            pytest.raises(DSASError, match=r"drawn with for learning.*dsas\.detach\(pipe\)"),
            BatchLayout(adapt(tiny_pipe)),
        ):
            pass
        with pytest.raises(DSASError, match=r"drawing samples needs the model by itself, and PipelineSteering\("):
            dsas.illustrate(tiny_pipe, first)
        with (
            steer(tiny_pipe, {second: 1.0}) as inner,
            pytest.raises(UnsupportedError, match=r"preserve= puts back .* pass all concepts to one steer\(\)"),
        ):
            inner.generate(BANANA, preserve=True)
        assert torch.equal(latents(tiny_pipe, BANANA), made), "what was refused has left nothing"
        assert dsas.steered(tiny_pipe) == [steering]
    with BatchLayout(adapt(tiny_pipe)), pytest.raises(DSASError, match="drawn with for learning"):
        steer(tiny_pipe, {first: S})


# ---- strengths ------------------------------------------------------------------------------------------------------


def test_disabled_is_strength_0_bit_for_bit_and_keeps_the_strengths(tiny_pipe: Any, pair: Any) -> None:
    base = latents(tiny_pipe, BANANA)
    with steer(tiny_pipe, {pair[0]: 0.5}) as steering:
        made = latents(tiny_pipe, BANANA)
        steering.disable()
        assert not steering.enabled
        assert repr(steering) == "PipelineSteering({'first': 0.5}, attached, disabled)"
        assert torch.equal(latents(tiny_pipe, BANANA), base)
        steering.strengths["first"] = 0.25
        assert torch.equal(latents(tiny_pipe, BANANA), base)
        steering.set_strengths({"first": 0.5})
        steering.enable()
        assert torch.equal(latents(tiny_pipe, BANANA), made)


def test_several_strengths_are_set_all_or_none(tiny_pipe: Any, pair: Any) -> None:
    with steer(tiny_pipe, dict.fromkeys(pair, 0.0)) as steering:
        steering.set_strengths({"first": 0.5, "second": [0.0, 1.0]})
        held = dict(steering.strengths)
        assert held == {"first": 0.5, "second": [0.0, 1.0]}
        for wrong, why in [
            ({"first": 1.0, "secnd": 1.0}, "no concept 'secnd' is attached; .*; did you mean second\\?"),
            ({"first": 1.0, "second": float("nan")}, "strength of 'second': expected a finite number"),
            ([("first", 1.0)], r"strengths: expected \{name: strength\}"),
        ]:
            with pytest.raises(DSASError, match=why):
                steering.set_strengths(wrong)  # type: ignore[arg-type]
            assert dict(steering.strengths) == held


def test_beyond_the_range_python_warns_once_for_each_end(tiny_pipe: Any) -> None:
    concept = make(tiny_pipe, range=(-1.0, 2.0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with steer(tiny_pipe, {concept: [2.0, 3.0]}) as steering:
            for strength in (-1.0, 0.0, 4.0, -2.0, "auto"):
                steering.strengths["first"] = strength
            callback = DSASCallback(steering, {"first": lambda progress: 5 + progress})
            latents(tiny_pipe, BANANA, callback_on_step_end=callback)
            steering.set_strengths({"first": -3.0})
    said = [str(entry.message) for entry in caught if "range" in str(entry.message)]
    assert said == [
        f"strength {strength} of 'first' is beyond its range, -1 to 2: results may fall apart, or no longer change"
        for strength in (3, -2)
    ]


# ---- what has ended, and names that nothing has ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("use", "why"),
    [
        (lambda it: it.set_strengths({"first": 1.0}), "this steering has ended, so its strengths change nothing"),
        (lambda it: it.strengths.__setitem__("first", 1.0), "this steering has ended, so its strengths change nothing"),
        (lambda it: DSASCallback(it, {"first": {0: 1.0}}), "this steering has ended, so its strengths change nothing"),
        (lambda it: it.disable(), "this steering has ended: call disable"),
        (lambda it: it.enable(), "this steering has ended: call enable"),
        (lambda it: it.generate(BANANA), "this steering has ended: call generate"),
    ],
)
def test_after_the_end_nothing_is_silent(tiny_pipe: Any, pair: Any, use: Callable[..., Any], why: str) -> None:
    with steer(tiny_pipe, {pair[0]: S}) as steering:
        pass
    with pytest.raises(DSASError, match=why):
        use(steering)
    with steering:
        steering.strengths["first"] = 0.25
    assert dict(steering.strengths) == {"first": 0.25}


@pytest.mark.parametrize(
    ("use", "why"),
    [
        (lambda pipe, it: it.strengths["frist"], "no concept 'frist' is attached; there is first; did you mean first?"),
        (lambda pipe, it: DSASCallback(it, {"Fist": {0: 1.0}}), "did you mean first?"),
        (
            lambda pipe, it: it.trace.heat("frist", (64, 64)),
            "no concept 'frist' is traced; there is first; did you mean",
        ),
        (lambda pipe, it: it.trace.mean_h("frist"), "did you mean first?"),
        (
            lambda pipe, it: steer(pipe, {make(pipe): 1.0}, schedule={"frist": Schedule.constant(1)}),
            "did you mean first",
        ),
        (lambda pipe, it: steer(pipe, {make(pipe): 1.0}, words={"frist": "banana"}), "did you mean first?"),
        (lambda pipe, it: steer(pipe, {"builtin:bananas-blur": 1.0}), "did you mean builtin:banana-blur?"),
        (lambda pipe, it: steer(pipe, {"bananablur": 1.0}), "did you mean builtin:banana-blur?"),
    ],
)
def test_a_wrong_name_offers_the_nearest(tiny_pipe: Any, pair: Any, use: Callable[..., Any], why: str) -> None:
    with steer(tiny_pipe, {pair[0]: S}, trace=True) as steering, pytest.raises(DSASError, match=re.escape(why)):
        use(tiny_pipe, steering)


def test_the_nearest_may_be_a_folder_beside(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    random_concept({Site("unet.mid"): 4}, name="grey-cat").save_pretrained(tmp_path / "grey-cat")
    monkeypatch.chdir(tmp_path)
    for name, near in [("grey-cats", "grey-cat"), (str(tmp_path / "gray-cat"), str(tmp_path / "grey-cat"))]:
        with pytest.raises(DSASError, match=re.escape(f"did you mean {near}?")):
            Concept.from_pretrained(name)


def test_without_a_trace_the_error_says_how_to_have_one(tiny_pipe: Any, pair: Any) -> None:
    with steer(tiny_pipe, {pair[0]: S}) as steering:
        assert isinstance(steering, PipelineSteering)
        with pytest.raises(DSASError, match="steer with trace=True"):
            steering.trace.heatmap("first", None)
