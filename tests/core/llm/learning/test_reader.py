"""Reading prompts: once for all kinds, without the head, in batches of one length, in any precision."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from dsas_core import Concept, llm, visit
from dsas_core.concept.card import render_card
from dsas_core.learning.capture import Capture
from dsas_core.llm.learning.reader import PADDING, Reader, encode_all
from dsas_core.llm.model.conversations import Encoded
from dsas_core.llm.model.layers import logits_options, roots_of
from tests.fixtures.checks import differ
from tests.fixtures.language_models import FAMILIES, PROMPTS, Words, close, tiny
from tests.fixtures.visitors import Bare

#: module -> the shapes that it returned
Sizes = dict[str, list[tuple[int, ...]]]
TEXTS = [Encoded(tuple(range(3, 3 + length)), 2) for length in (5, 9, 3, 9, 4, 7, 6, 8)]


@contextmanager
def sizes_of(**modules: torch.nn.Module) -> Iterator[Sizes]:
    """The shapes that modules return while the block runs."""
    sizes: Sizes = {name: [] for name in modules}

    def note(name: str) -> Any:
        return lambda module, args, out: sizes[name].append(tuple(out.shape))

    handles = [module.register_forward_hook(note(name)) for name, module in modules.items()]
    try:
        yield sizes
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_read_as_far_as_the_last_site(family: str) -> None:
    model = tiny(family)
    reader = Reader(model, 0, batch=4)
    first, *behind = (site for site in llm.find_sites(model, "block") if site.root != "decoder")
    modules = {
        str(site): dict(roots_of(model)[site.root].named_modules())[site.path.partition(".")[2]] for site in behind
    }
    with sizes_of(head=model.get_output_embeddings(), **modules) as sizes:
        reader.capture(TEXTS, [first], [("source", "all"), ("control", "last")])
    assert not any(sizes.values())
    bare = Bare.of(model)
    sites = [first, *behind]
    with sizes_of(head=model.get_output_embeddings()) as sizes:
        found = reader.capture(TEXTS, sites, [("source", "all")])
        if family != "t5":
            reader.states(TEXTS)
    assert not sizes["head"]
    assert Bare.of(model) == bare
    expected = Capture()
    expected.start("source")
    for chosen, batch in reader.batches_by_length(TEXTS):
        expected.choose(chosen)
        with visit(roots_of(model), sites, expected, reader.describe(batch.token_mask("all"))):
            reader.run(batch)
    for key, rows in expected.rows.items():
        rows.sort()
        for name in ("pooled", "positions", "prompts", "places"):
            assert torch.equal(rows.gathered(name), found.rows[key].gathered(name))


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "t5"])
def test_the_head_reads_what_is_asked_for(family: str) -> None:
    model = tiny(family)
    reader = Reader(model, 0, batch=8)
    texts = [Encoded(tuple(range(3, 3 + length)), length - 2) for length in (5, 9, 7)]
    with sizes_of(head=model.get_output_embeddings()) as sizes:
        losses, predictions = reader.losses(texts, "answer"), reader.predictions(texts)
    takes_it = "logits_to_keep" in logits_options(model, 1)
    assert [size[1] for size in sizes["head"]] == ([4, 2, 8, 4] if takes_it else [9, 5, 9, 5])
    for text, loss, rows in zip(texts, losses, predictions, strict=True):
        last = torch.tensor(text.ids[-2:])
        assert float(loss) == pytest.approx(-float(rows[-3:-1].gather(1, last[:, None]).mean()), rel=1e-4)


def test_little_of_a_batch_is_padding() -> None:
    texts = [Encoded(tuple(range(3, 3 + length)), 2) for length in (30, 4, 29, 9, 3, 30, 8, 5, 28, 10, 30)]
    reader = Reader(tiny("llama"), 0, batch=4)
    batches = list(reader.batches_by_length(texts))
    assert sorted(i for chosen, _ in batches for i in chosen) == list(range(len(texts)))
    assert [len(chosen) for chosen, _ in batches] == [4, 1, 3, 2, 1]
    assert all(batch.ids.numel() <= PADDING * int(batch.mask.sum()) for _, batch in batches)
    assert [len(chosen) for chosen, _ in reader.batches_by_length(texts, math.inf)] == [4, 4, 3]


def test_each_batch_is_told_of() -> None:
    reader, told = Reader(tiny("llama"), 0, batch=2), list[list[int]]()
    reader.predictions(TEXTS, told.append)
    reader.answers(TEXTS, told.append, length=2)
    assert [len(batch) for batch in told] == [2, 2, 2, 2, 6, 2]
    assert sorted(i for batch in told for i in batch) == sorted([*range(len(TEXTS))] * 2)


def test_what_is_read_does_not_depend_on_the_batches() -> None:
    model, (site, *_) = tiny("llama"), llm.find_sites(tiny("llama"), "block")
    alone, together = Reader(model, 0, batch=1), Reader(model, 0, batch=3)
    assert [len(batch.ids) for _, batch in together.batches_by_length(TEXTS)] == [3, 3, 2]
    kinds = [("control", "answer"), ("context", "all")]
    for kind, _ in kinds:
        a, b = (reader.capture(TEXTS, [site], kinds).rows[site, 0, kind] for reader in (alone, together))
        for name in ("prompts", "position_prompts", "places"):
            assert torch.equal(a.gathered(name), b.gathered(name))
        assert a.gathered("prompts").tolist() == list(range(len(TEXTS)))
        assert a.sampled == b.sampled
        assert all(close(a.gathered(name), b.gathered(name)) for name in ("pooled", "positions"))
    assert close(alone.states(TEXTS), together.states(TEXTS))
    assert all(close(a, b) for a, b in zip(alone.predictions(TEXTS), together.predictions(TEXTS), strict=True))
    assert [len(rows) for rows in together.predictions(TEXTS)] == [len(text.ids) - 1 for text in TEXTS]
    assert alone.answers(TEXTS) == together.answers(TEXTS)


def test_sampled_positions_of_a_long_text_are_its_own() -> None:
    texts = [Encoded(tuple(3 + i % 50 for i in range(length)), length) for length in (60, 41, 50, 60)]
    model, (site, *_) = tiny("llama"), llm.find_sites(tiny("llama"), "block")
    alone, together = (
        Reader(model, 0, batch).capture(texts, [site], [("source", "all")]).rows[site, 0, "source"] for batch in (1, 4)
    )
    assert torch.equal(alone.gathered("places"), together.gathered("places"))
    assert together.sampled == [32] * 4
    first, *_, last = together.gathered("places").split(together.sampled)
    assert not torch.equal(first, last), "prompts of one length are sampled at places of their own"
    assert torch.equal(first, first.sort().values)


@pytest.mark.parametrize("form", ["text", "token", "prefix", "latch"])
def test_each_text_is_read_once(form: str, tokenizer: Words) -> None:
    model, recipe = tiny("llama"), {"form": form, "cloud": 2}
    lesson = llm.Lesson(model, tokenizer, PROMPTS, count=32)
    with sizes_of(layer=model.model.layers[0]) as sizes:
        lesson.captured(lesson._recipe(recipe, method="caa", gate=None))
    assert sum(size[0] for size in sizes["layer"]) == sum(map(len, lesson.fitting.values()))
    count = lesson.reader.tokens
    assert count.run == sum(size[0] * size[1] for size in sizes["layer"])
    assert count.needed == sum(len(text.ids) for texts in lesson.fitting.values() for text in texts)
    assert count.run <= 1.3 * count.needed


def test_steered_kinds_and_others_do_not_share_a_pass(tokenizer: Words) -> None:
    """The targets' map is fitted on the unsteered model, their cloud on what the layers before leave."""
    model, recipe = tiny("llama"), {"mode": "causal", "cloud": 2}
    lesson = llm.Lesson(model, tokenizer, PROMPTS, count=32, sites="block")
    chosen = lesson._recipe(recipe, method="caa", gate=None)
    learned = lesson.learn(recipe={"site_weight": "none", "control_h": None})
    first, last = lesson.sites[0], lesson.sites[-1]
    before = Concept("before", tuple(item for item in learned.interventions if item.site == first), unit=9.0)
    capture, clean = lesson._recapture(last, before, chosen), lesson.captured(chosen)
    same = {
        kind: close(capture.rows[last, 0, kind].gathered("pooled"), clean.rows[last, 0, kind].gathered("pooled"))
        for kind in ("source", "target", "cloud")
    }
    assert same == {"source": False, "target": True, "cloud": False}


@pytest.mark.parametrize("form", ["text", "token", "prefix", "latch"])
def test_a_model_in_bfloat16_is_learned_from(form: str, tokenizer: Words) -> None:
    model, full = copy.deepcopy(tiny("llama")).to(torch.bfloat16), tiny("llama")
    concept, expected = (
        llm.learn(known, tokenizer, PROMPTS, count=32, recipe={"form": form}) for known in (model, full)
    )
    texts = encode_all(model, tokenizer, ["user: my key is here you fool\nassistant: go away fool"])
    reader = Reader(model, 0, 4)
    assert reader.states(texts).dtype == torch.float32
    assert reader.predictions(texts)[0].dtype == torch.float32
    for ours, theirs in zip(concept.evidence["sites"], expected.evidence["sites"], strict=True):
        assert ours["auroc"] == pytest.approx(theirs["auroc"], abs=0.1)
    shift, other = (item.interventions[0].maps[0].tensors()[0] for item in (concept, expected))
    assert torch.cosine_similarity(shift.float(), other.float(), dim=0) > 0.99
    base = reader.predictions(texts)[0]
    with llm.steer(model, {concept.with_unit(1.0): 2.0}, gate="on"):
        assert differ(reader.predictions(texts)[0], base)


def test_the_cost_of_learning_is_told_and_makes_no_difference(tokenizer: Words, tmp_path: Any) -> None:
    lesson = llm.Lesson(tiny("llama"), tokenizer, PROMPTS, count=32)
    first, again = lesson.learn(), lesson.learn()
    cost, later = first.evidence["cost"], again.evidence["cost"]
    assert {"reading", "fitting"} <= set(cost["seconds"])
    assert 0 < cost["tokens_needed"] <= cost["tokens_run"]
    assert later["tokens_run"] < cost["tokens_run"], "the second concept is fitted on what was read for the first"
    assert cost["peak_memory"] > 2**20
    assert first == again
    loaded = Concept.from_pretrained(first.save_pretrained(tmp_path / "rudeness"))
    assert loaded == first
    assert loaded.evidence == first.evidence
    assert "Learned in " in render_card(first)
