"""Which words show the concept, where their tokens are, and drafts for a pipeline."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest

import dsas_diffusion as dsas
from dsas_core.errors import PromptError
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_diffusion.learning.prompt_words import PromptWords, own_words
from dsas_diffusion.pipelines.adapter import adapt
from dsas_diffusion.pipelines.prompt_check import unknown_words
from tests.diffusion.steering.test_identities_by_family import pipe_of

CONTROLS = ["a dog at night", "a blurred dog on the grass", "a red hat at night"]


@pytest.mark.parametrize(
    ("source", "target", "spans", "words"),
    [
        (["a cat at night"], ["a blurred cat at night"], (), (("cat",), ("cat",))),
        (["a cat", "two cats"], ["a fox", "two foxes"], (), (("cat", "cats"), ("fox", "foxes"))),
        (["a cat at night"], ["a fox at night"], (), (("cat",), ("fox",))),
        (["a red cat"], ["a blue cat"], ("red cat",), (("red cat",), ("blue",))),
        (["an owl at night"], ["a cat at night"], (), (("owl",), ("cat",))),  # not its article
        (["a dog behind"], ["a dog beside"], (), (("behind",), ("beside",))),  # there is nothing else
        (["a cat at night"], ["a fox at night", "a fox and a hat"], (), (("cat",), ("fox",))),  # not what controls have
        (["a cat at night"], ["a hat at night"], (), (("cat",), ("hat",))),  # but for that
        (["a cat", "a cat on a table"], ["a fox", "a fox on a table"], (), (("cat",), ("fox",))),  # not a place
        (["a hot owl", "a hot owl on a table"], ["a fox"], (), (("hot", "owl"), ("fox",))),  # always together
        (
            ["a cat in snow", "an owl in snow", "a pig in snow", "a cat", "an owl", "a pig"],
            ["a fox"],
            (),
            (("cat", "owl", "pig"), ("fox",)),  # though most have the snow
        ),
        (["a CAT, at night"], ["a grey cat, at night"], (), (("cat",), ("cat",))),
        (["a dog at night"], ["a blurred dog"], (), None),  # a control has all of its words
        (["a cat", "a dog"], ["a fox", "a fox"], (), None),  # one source prompt has none
        (["a catalogue"], ["a blurred cat"], ("cat",), None),  # whole words alone
    ],
)
def test_words_are_those_that_tell_source_from_control(
    source: list[str], target: list[str], spans: Sequence[str], words: tuple[Sequence[str], Sequence[str]] | None
) -> None:
    found = own_words({"source": source, "target": target, "control": CONTROLS}, spans)
    if words is None or found is None:
        assert found == words
    else:
        assert set(found["source"]) == set(words[0])
        assert set(found["target"]) == set(words[1])


def test_labels_are_at_the_tokens_of_words() -> None:
    adapter = adapt(dsas.load_pipeline("builtin:emoji", device="cpu"))
    prompts = {"source": ["a dog and a cat"], "target": ["a dog and a grey cat"], "control": ["a grey dog and a fox"]}
    words = PromptWords(adapter, prompts)
    labels = words.labels()
    assert [i for i, on in enumerate(labels["source"](0, 24)) if on] == [5]
    assert [i for i, on in enumerate(labels["target"](0, 24)) if on] == [6]
    assert [i for i, on in enumerate(words.find("control", 0, 30)) if on] == [1, 2, 3, 4, 5, 6]
    unknown = PromptWords(adapter, {**prompts, "control": ["a cat and a dog"]})
    with pytest.raises(PromptError, match="which words show the concept"):
        unknown.labels()


@pytest.mark.parametrize("phrases", [("guitar", "blurred guitar"), ("fruit", "grey fruit"), ("dog", "cat")])
def test_a_draft_for_a_pipeline_has_words_that_it_knows(
    phrases: tuple[str, str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    pipe = dsas.load_pipeline("builtin:emoji", device="cpu")
    prompts = load_prompts(dsas.draft(pipe, *phrases))
    drawn = prompts.draw(24)
    assert unknown_words(adapt(pipe), [text for texts in drawn.values() for text in texts]) == ()
    assert not any("longer than" in record.getMessage() for record in caplog.records), "of all prompts in one"
    words = PromptWords(adapt(pipe), drawn, prompts.expanded("spans")).words
    assert words is not None
    assert phrases[0] in words["source"] or "banana" in words["source"]


@pytest.mark.parametrize(("family", "known"), [("sd", True), ("pixart", True), ("sana", False)])
def test_words_have_places_where_no_template_is_put_around_prompts(
    family: str, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = adapt(pipe_of(family))
    monkeypatch.setattr(adapter.tokens[0].tokenizer, "model_max_length", 10**30)  # as some have none
    words = PromptWords(adapter, {"source": ["a banana"], "target": ["a dog"], "control": ["a"]})
    assert words.is_plain == known
    assert words.find("source", 0, 12)[-1] != known, "a short prompt ends before, where its end is known"
