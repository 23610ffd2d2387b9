"""Handles of language models: found, ended, attached again, nested and disabled."""

from __future__ import annotations

import copy
import gc
import io
import warnings
import weakref

import pytest
import torch

from dsas_core import DSASError, llm
from dsas_core.model.hooks import find_visitors
from tests.fixtures.checks import differ, same_but_rounding
from tests.fixtures.language_models import IDS, concept_for, tiny, written


def test_found_ended_and_attached_again() -> None:
    model = tiny("llama")
    concept, base = concept_for(model), written(model)
    steering = llm.steer(model, {concept: 1.0})
    made = written(model)
    assert differ(made, base)
    assert llm.steered(model) == [steering]
    assert llm.detach(model) == [steering]
    assert torch.equal(written(model), base)
    with pytest.raises(DSASError, match="this steering has ended, so its strengths change nothing"):
        steering.set_strengths({concept.name: 0.5})
    for _ in range(2):
        with steering:
            assert torch.equal(written(model), made)
            steering.disable()
            assert torch.equal(written(model), base)
            steering.enable()
        assert torch.equal(written(model), base)
    assert llm.steered(model) == [] == find_visitors(model)


def test_nested_handles_are_one_with_both_concepts() -> None:
    model = tiny("llama")
    first, second = concept_for(model), concept_for(model, name="second", seed=1)
    with llm.steer(model, {first: 1.0, second: 0.5}):
        both = written(model)
    with llm.steer(model, {first: 1.0}) as outer:
        alone = written(model)
        with llm.Monitor(model, [first], io.StringIO()):
            assert llm.steered(model) == [outer], "a monitor steers nothing"
            with llm.steer(model, {second: 0.5}):
                assert same_but_rounding(written(model), both)
                with pytest.raises(DSASError, match=r"is steering this model already.*llm\.detach\(model\)"):
                    llm.steer(model, {first: 1.0})
        assert torch.equal(written(model), alone)


def test_what_has_ended_holds_no_model_and_says_that_it_is_gone() -> None:
    model = copy.deepcopy(tiny("llama"))
    with llm.steer(model, {concept_for(model): 1.0}) as steering:
        pass
    held = weakref.ref(model)
    del model
    gc.collect()
    assert held() is None
    with pytest.raises(DSASError, match="is gone"), steering:
        pass


def test_names_ranges_and_traces() -> None:
    model = tiny("llama")
    concept = concept_for(model, name="polite", range=(-1.0, 1.0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        steering = llm.steer(model, {concept: 5.0}, trace=True)
        steering.strengths["polite"] = 6.0
    assert [str(entry.message)[:46] for entry in caught] == ["strength 5 of 'polite' is beyond its range, -1"]
    with steering:
        model(IDS)
        for use in (
            lambda: steering.strengths["polit"],
            lambda: steering.trace.tokens(concept="polit"),
            lambda: steering.trace.mean_h("polit"),
        ):
            with pytest.raises(DSASError, match="did you mean polite"):
                use()
    with llm.steer(model, {concept: 0.5}) as plain, pytest.raises(DSASError, match="steer with trace=True"):
        plain.trace.tokens()
    with llm.steer(model, {concept: 0.5}), pytest.raises(DSASError, match="learning needs the model by itself"):
        llm.learn(model, None, {})
