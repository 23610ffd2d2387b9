"""What concepts keep of their prompts: hashes tell what was used, to whoever has the texts, and are all there is."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dsas_core import Concept, DSASError, Site
from dsas_core.concept.card import render_card
from dsas_core.concept.samples import Samples
from dsas_core.errors import PromptError
from dsas_core.evaluation.plan import Plan
from dsas_core.learning.calibration.slider_range import prompts_of
from dsas_core.learning.illustrate import sample_prompts, try_illustrate
from dsas_core.learning.prompts.held_out import split_held_out
from dsas_core.learning.prompts.kept import hash_prompt, kept_prompts, record_prompts, what_to_keep
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_core.learning.prompts.prompt_set import SIDES, PromptSet
from tests.fixtures.concepts import random_concept

COUNT, SEED = 16, 3
FILE = PromptSet(
    "slurs",
    source=("you secret {n}", "a secret {n} is you"),
    target=("you friend {n}", "a friend {n} is you"),
    control=("the hat {n}", "a shoe {n}"),
    placeholders={"n": tuple(map(str, range(30)))},
)
#: another file, which shares half of its prompts with the first
OTHER = replace(FILE, source=FILE.source[:1], target=FILE.target[:1], control=FILE.control[:1])


def concept_of(prompts: PromptSet, keep: str) -> Concept:
    provenance = {**record_prompts(prompts, COUNT, SEED, keep), "count": COUNT, "seed": SEED}
    return random_concept({Site("model"): 4}, name="secret-keeper", provenance=provenance)


@pytest.fixture
def hashed() -> Concept:
    return concept_of(FILE, "hash")


@pytest.fixture
def whole() -> Concept:
    return concept_of(FILE, "all")


def test_by_default_private_files_are_hashed_and_others_kept() -> None:
    private = load_prompts({**FILE.to_dict(), "private": True})
    assert (what_to_keep(None, FILE), what_to_keep(None, private)) == ("all", "hash")
    assert (what_to_keep("hash", FILE), what_to_keep("all", private)) == ("hash", "all")
    assert load_prompts(private.to_dict()) == private
    with pytest.raises(DSASError, match="keep_prompts 'some': expected all or hash, or None"):
        what_to_keep("some", FILE)
    with pytest.raises(PromptError, match="prompts: private must be true or false, found 'yes'"):
        load_prompts({**FILE.to_dict(), "private": "yes"})


def test_a_folder_with_hashes_has_no_prompt_in_it(hashed: Concept, tmp_path: Path) -> None:
    folder = hashed.save_pretrained(tmp_path / "c")
    assert Concept.from_pretrained(folder) == hashed
    text = "".join(path.read_text(errors="replace") for path in folder.iterdir())
    assert all(prompt not in text for side in SIDES for prompt in FILE.expanded(side))
    assert all(template not in text for side in SIDES for template in getattr(FILE, side))
    assert hash_prompt(FILE.draw(COUNT, SEED)["source"][0]) in (folder / "config.json").read_text()
    card = (folder / "README.md").read_text()
    assert '"counts": {"source": 60, "target": 60, "control": 60}' in card
    assert hash_prompt(FILE.draw(COUNT, SEED)["source"][0]) not in card, "a page of digits for nobody"


def test_with_its_file_a_concept_is_calibrated_on_what_was_held_out(hashed: Concept, whole: Concept) -> None:
    with pytest.raises(
        PromptError, match="'secret-keeper' keeps hashes of its prompts only: give the prompt file that"
    ):
        prompts_of(hashed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        renamed = replace(FILE, name="renamed", description="of the same prompts")
        assert prompts_of(hashed, renamed) == prompts_of(whole)


@pytest.mark.parametrize(("given", "seed"), [(FILE, 9), (OTHER, None)])
def test_other_draws_and_other_files_leave_out_what_was_fitted_on(
    hashed: Concept, whole: Concept, given: PromptSet, seed: int | None
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn, _ = prompts_of(hashed, given, 8, seed)
    assert drawn == prompts_of(whole, given, 8, seed)[0]
    fitted, _ = split_held_out(FILE.draw(COUNT, SEED))
    assert not {text for side in SIDES for text in drawn[side]} & {text for side in SIDES for text in fitted[side]}


def test_another_file_is_warned_of(hashed: Concept) -> None:
    shared = {text for side in FILE.draw(COUNT, SEED).values() for text in side} & {
        text for side in SIDES for text in OTHER.expanded(side)
    }
    with pytest.warns(UserWarning, match=f"'slurs' is not the one that concept .*: {len(shared)} of its prompts were"):
        Plan(count=4).prompts(hashed, OTHER)


def test_evaluation_leaves_out_what_learning_used(hashed: Concept, whole: Concept) -> None:
    chosen = Plan(count=12).prompts(hashed, FILE)
    assert chosen == Plan(count=12).prompts(whole, FILE)
    used = {text for side in FILE.draw(COUNT, SEED).values() for text in side}
    assert not used & {*chosen["source"], *chosen["control"]}


def test_unseen_parts_of_a_file_are_among_what_is_left_out() -> None:
    """A file may list under its evaluation what another file, of which the concept was learned, has as sources."""
    hashed = concept_of(FILE, "hash")
    (used, *_) = FILE.draw(COUNT, SEED)["source"]
    given = replace(OTHER, evaluation={"unseen_source": (used, "you stranger {n}")})
    kept = kept_prompts(hashed)
    assert kept is not None
    with pytest.warns(UserWarning, match="is not the one"):
        assert used in kept.used_in(given)


@pytest.mark.parametrize("damage", [{"drawn": None}, {"drawn": {"source": []}}, {"sha256": "0"}, "nothing"])
def test_a_damaged_record_says_so(hashed: Concept, damage: Any) -> None:
    hashes = damage if isinstance(damage, str) else {k: v for k, v in damage.items() if v is not None}
    concept = replace(hashed, provenance={**hashed.provenance, "prompt_hashes": hashes})
    with pytest.raises(PromptError, match="its hashes of prompts are damaged"):
        prompts_of(concept, FILE)
    assert "Limits" in render_card(concept), "the card of what a stranger made does not break"


# ---- cards -----------------------------------------------------------------------------------------------------------


def test_no_card_shows_private_prompts_even_where_the_concept_keeps_them(whole: Concept) -> None:
    private = concept_of(replace(FILE, private=True), "all")
    samples = Samples(("you secret 1", "the hat 1"), (0.0, 1.0), (("a", "b"), ("c", "d")))
    assert "you secret" in render_card(replace(whole, samples=samples))
    assert "secret {n}" in render_card(whole)
    for concept in (private, concept_of(FILE, "hash")):
        assert concept.is_private
        card = render_card(replace(concept, samples=samples))
        assert "you secret" not in card
        assert "the hat" not in card
    assert private.provenance["prompts"]["source"] == list(FILE.source)


@pytest.mark.parametrize("keep", ["all", "hash"])
def test_no_samples_are_made_of_private_prompts(keep: str) -> None:
    concept = concept_of(replace(FILE, private=True), keep)
    with pytest.raises(PromptError, match="'secret-keeper' was learned from private prompts, of which no card shows"):
        sample_prompts(concept)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert try_illustrate(concept, lambda _: pytest.fail("drawn")).samples is None


def test_what_was_saved_before_reads_as_before(whole: Concept) -> None:
    assert "prompt_hashes" not in whole.provenance
    assert json.dumps(whole.provenance["prompts"]) == json.dumps(FILE.to_dict())
    assert "private" not in whole.provenance["prompts"]
    silent = replace(whole, provenance={"count": COUNT, "seed": SEED})
    assert kept_prompts(silent) is None
    assert Plan(count=12).prompts(silent, FILE) == Plan(count=12).prompts(whole, FILE)
    with pytest.raises(PromptError, match="does not tell from which prompts"):
        prompts_of(silent)
