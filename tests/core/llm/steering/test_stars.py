"""STARS in language models: which rows are runs of one prompt, and that all else is as it is for other concepts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dsas_core import Concept, DSASError, llm
from dsas_core.errors import UnsupportedError
from tests.fixtures.checks import differ
from tests.fixtures.language_models import DIFFERENT, IDS, close, tiny, written

#: two runs of each of two prompts
RUNS = IDS.repeat_interleave(2, 0)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("llama")


@pytest.mark.parametrize("family", DIFFERENT)
def test_runs_of_a_prompt_are_pushed_apart(family: str) -> None:
    """With offsets of each prompt's own; the prompt itself is read as it is, and cached decoding is a full forward."""
    model = tiny(family)
    concept, base = llm.stars(model), written(model, RUNS)
    assert torch.equal(base[0], base[1]), "greedy runs of a prompt are alike"
    with llm.steer(model, {concept: 0.0}) as steering:
        assert torch.equal(written(model, RUNS), base), "strength 0 is exact"
        steering.strengths["stars"] = 4.0
        steered = written(model, RUNS)
        assert differ(steered[0], steered[1])
        assert differ(steered[2], steered[3])
        singles = [written(model, ids[None].expand(2, -1)) for ids in IDS]
        assert close(torch.cat(singles), steered), "prompts do not go by one another"
        if family != "t5":
            assert close(written(model, RUNS, use_cache=False), steered), "cached decoding is a full forward"
        steering.strengths["stars"] = -4.0
        assert differ(written(model, RUNS), steered), "+s is not -s"
    assert torch.equal(written(model, RUNS), base), "detached, nothing is left"


def test_padding_on_either_side_is_no_run(model: Any) -> None:
    concept = llm.stars(model)
    with llm.steer(model, {concept: 4.0}):
        steered = written(model, RUNS)
        padded = torch.nn.functional.pad(RUNS, (3, 0), value=1)
        mask = (torch.arange(padded.shape[1]) >= 3).long().expand(4, -1)
        assert close(written(model, padded, mask), steered)
        # a shorter prompt beside a longer one
        mixed = torch.stack([padded[0], padded[0], *torch.randint(3, 50, (1, padded.shape[1])).expand(2, -1)])
        mask = torch.cat([mask[:2], torch.ones_like(mask[2:])])
        assert close(written(model, mixed, mask)[:2], steered[:2])


def test_only_what_writes_is_moved_unless_a_phase_is_given(model: Any) -> None:
    concept = llm.stars(model)
    base = model(RUNS).logits
    with llm.steer(model, {concept: 4.0}):
        assert torch.equal(model(RUNS).logits[:, :-1], base[:, :-1])
    with llm.steer(model, {concept: 4.0}, phase="all"):
        assert differ(model(RUNS).logits[:, :-1], base[:, :-1])


def test_samples_of_a_prompt_follow_one_another(model: Any) -> None:
    concept = llm.stars(model)
    options: dict[str, Any] = {"do_sample": True, "top_k": 1, "num_return_sequences": 2}
    with llm.steer(model, {concept: 4.0}):
        assert close(written(model, IDS, **options), written(model, RUNS))


def test_groups_say_which_rows_belong_together(model: Any) -> None:
    concept, four = llm.stars(model), IDS[:1].expand(4, -1)
    with llm.steer(model, {concept: 4.0}, groups=[0, 1, 0, 1]):
        paired = written(model, four)
    with llm.steer(model, {concept: 4.0}):
        assert differ(written(model, four), paired), "four runs of one prompt are one group"
        pair = written(model, four[:2])
    assert close(paired[[0, 2]], pair)
    assert close(paired[[1, 3]], pair)
    with llm.steer(model, {concept: 4.0}, groups=torch.tensor([0, 0])):  # type: ignore[arg-type]
        different = written(model, IDS)
    assert differ(different[0], written(model, IDS)[0]), "prompts that differ can be one group, too"
    with llm.steer(model, {concept: 4.0}, groups=[0, 0, 0]), pytest.raises(DSASError, match=r"for 3 rows, but .* 4$"):
        written(model, four)
    for wrong in ([], [0, -1], [0.5], "01", 3):
        with pytest.raises(DSASError, match=r"^groups .*: expected a number from 0 up for each row"):
            llm.steer(model, {concept: 1.0}, groups=wrong)  # type: ignore[arg-type]


def test_a_run_by_itself_is_refused(model: Any) -> None:
    with llm.steer(model, {llm.stars(model): [1.0, 0.0]}) as steering:
        with pytest.raises(DSASError, match=r"'stars' goes by several runs of one prompt: found 1 run, expected"):
            written(model, IDS)
        steering.strengths["stars"] = 0.0
        off = written(model, IDS)
    assert torch.equal(written(model, IDS), off)


def test_rows_that_come_later_need_groups(model: Any) -> None:
    with llm.steer(model, {llm.stars(model): 1.0}):
        cache = model(RUNS).past_key_values
        cache.batch_select_indices(torch.tensor([0, 1, 2]))
        with pytest.raises(UnsupportedError, match=r"4 rows read the prompt and 3 go on, .* give groups="):
            model(RUNS[:3, :1], past_key_values=cache)


def test_runs_that_have_ended_push_no_more(model: Any) -> None:
    """What follows an end token is padding, so the other run is alone from there on, and stays as it is."""
    concept = llm.stars(model)
    end = int(model.generation_config.eos_token_id or 2)
    step = torch.tensor([[7], [9]])
    ended = torch.tensor([[end], [9]])
    with llm.steer(model, {concept: 4.0}):
        results = []
        for next_ids in (step, ended):
            out = model(IDS[:1].expand(2, -1))
            out = model(next_ids, past_key_values=out.past_key_values)
            out = model(torch.tensor([[5], [5]]), past_key_values=out.past_key_values)
            results.append(out.logits[1, -1])
    assert differ(*results)


@pytest.mark.parametrize("gate", ["on", "stars", "stars(least=0.5)"])
def test_saved_and_loaded_it_is_the_same(model: Any, gate: str, tmp_path: Path) -> None:
    concept = llm.stars(model, c=0.1, gate=gate, seed=3, name="apart")
    loaded = Concept.from_pretrained(concept.save_pretrained(tmp_path / "it"))
    assert loaded == concept
    assert loaded.couples_rows
    out = []
    for one in (concept, loaded):
        with llm.steer(model, {one: 4.0}, trace=True) as steering:
            out.append(written(model, RUNS))
            assert [token.counted for token in steering.trace.tokens(0, "apart")].count(True) > 0
    assert torch.equal(*out)
    assert differ(out[0][0], out[0][1])


def test_what_it_cannot_be_made_of(model: Any) -> None:
    with pytest.raises(DSASError, match=r"gate 'dsas': expected on, stars or stars\(least=…\), as nothing is learned"):
        llm.stars(model, gate="dsas")
    with pytest.raises(DSASError, match="STARS option c: expected a number above 0"):
        llm.stars(model, c=-1.0)
    with llm.steer(model, {llm.stars(model, site="heads"): 1.0}), pytest.raises(UnsupportedError, match="wider site"):
        written(model, IDS[:1].expand(9, -1))


@pytest.mark.slow
@pytest.mark.parametrize("gate", ["on", "stars"])
def test_compiled_it_is_one_graph(model: Any, gate: str) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    with torch.no_grad(), llm.steer(model, {llm.stars(model, gate=gate): 4.0}):
        steered = model(RUNS).logits
        assert close(torch.compile(model, backend="aot_eager")(RUNS).logits, steered)
    assert not counters["graph_break"]
    torch._dynamo.reset()
