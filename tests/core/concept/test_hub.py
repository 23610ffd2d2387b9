"""Concepts on the Hub: downloaded by name, and pushed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dsas_core import Concept, DSASError
from dsas_core.concept.card import render_card
from dsas_core.concept.concept import CARD, CONFIG, TENSORS
from dsas_core.concept.samples import STRIP, Samples
from tests.core.concept.conftest import concept
from tests.fixtures.every_part import make_strip


def test_a_name_is_downloaded_from_the_hub(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def snapshot_download(name: str, *, revision: Any, token: Any, allow_patterns: list[str]) -> str:
        asked.append((name, revision, token, sorted(allow_patterns)))
        return str(saved)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert Concept.from_pretrained("somebody/banana", revision="v1", token="hf_x") == concept()
    assert asked == [("somebody/banana", "v1", "hf_x", sorted([CONFIG, TENSORS, CARD, STRIP]))]


def test_a_repository_that_holds_no_concept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(DSASError, match=r"is no concept: it has no config\.json"):
        Concept.from_pretrained("somebody/banana")


def test_the_hub_gives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*_: Any, **__: Any) -> None:
        raise LocalEntryNotFoundError("no connection\nand a long story")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(DSASError, match=r"the Hub gave none \(no connection\)"):
        Concept.from_pretrained("somebody/banana")


@pytest.mark.parametrize("name", ["no-such-folder", "./no/such/folder", "/no/such", "a/b/c", "~/mine"])
def test_what_can_only_be_a_folder_is_not_asked_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", forbidden)
    with pytest.raises(DSASError, match="no such folder, and it is no Hub name"):
        Concept.from_pretrained(name)


def test_pushing_uploads_the_whole_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Api:
        def __init__(self, token: str | None) -> None:
            assert token == "hf_x"

        def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> SimpleNamespace:
            assert (private, exist_ok) == (True, True)
            return SimpleNamespace(repo_id=f"somebody/{repo_id}")

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str, **_: Any) -> str:
            shutil.copytree(folder_path, tmp_path / "uploaded")
            return f"https://huggingface.co/{repo_id}/commit/{commit_message}"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    whole = concept(samples=Samples(("a", "b"), (0.0, 1.0), strip=make_strip()))
    address = whole.push_to_hub("banana", private=True, token="hf_x", commit_message="first")
    assert address == "https://huggingface.co/somebody/banana/commit/first"
    assert {path.name for path in (tmp_path / "uploaded").iterdir()} == {CONFIG, TENSORS, CARD, STRIP}
    assert (tmp_path / "uploaded" / CARD).read_text() == render_card(whole), "not the card that the mixin would write"
    uploaded = Concept.from_pretrained(tmp_path / "uploaded")
    assert uploaded == whole
    assert uploaded.samples == whole.samples


def test_copies_with_changes_stay_whole() -> None:
    assert replace(concept(), name="b").interventions[0].site == concept().interventions[0].site
    assert repr(concept()) == "Concept('random', caa+dsas, 2 sites, unit 1)"
    assert len({concept(): 1, concept(name="b"): 2, concept(): 3}) == 2
