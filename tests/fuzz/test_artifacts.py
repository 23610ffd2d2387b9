"""Damaged concepts are refused in one line, or they can be shown, saved, attached, and leave a model alone at 0."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from unittest import mock

import pytest
import torch
from hypothesis import event
from hypothesis import strategies as st

from dsas_core import Concept, DSASError, Steering
from dsas_core.concept.card import render_card
from dsas_core.errors import ModelMismatchError
from dsas_diffusion.cli.concept_report import describe_concept, report_concept
from dsas_diffusion.steering.concept_masks import MaskRule
from dsas_diffusion.ui.page.markup import render_evidence
from dsas_diffusion.ui.services import uploads
from tests.fixtures.every_part import describe_call, make_inputs, make_roots
from tests.fuzz.artifacts import CONFIG, TENSORS, damage, draw_files
from tests.fuzz.campaign import campaign, works_or_is_refused

RANDOM = st.randoms(use_true_random=False)


def check_fields(concept: Concept) -> None:
    """Nothing is out of the bounds that its documentation names."""
    edges, ends, name = concept.edges, concept.range, concept.name
    assert 0 < concept.unit < 1e7
    assert list(edges) == sorted(set(edges))
    assert all(0 < edge < 1000 for edge in edges)
    assert ends is None or (-1e7 < ends[0] <= 0 <= ends[1] < 1e7 and ends[0] < ends[1])
    assert 0 < len(name) <= 100
    assert name.isprintable()
    assert not set(name) & set("/\\")
    assert name[0] != "."
    for item in concept.interventions:
        assert all(0 <= weight <= 1 for weight in item.weights)


def check_shown(concept: Concept) -> None:
    """The card, what `dsas show` prints, the demo's table, and how masks are made."""
    for text in (render_card(concept), render_evidence(concept)):
        text.encode()
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")):
        report_concept(describe_concept(concept, Path("nowhere")))
    with contextlib.suppress(DSASError):
        MaskRule.of(concept)


def check_saved(concept: Concept, folder: Path) -> None:
    again = Concept.from_pretrained(concept.save_pretrained(folder))
    assert again == concept, "saved and loaded it is another"
    assert again.samples == concept.samples


def run(concept: Concept, strength: float, wider: int = 0, scale: float = 1.0) -> list[tuple[torch.Tensor, ...]]:
    """What goes into the modules of a tiny model, and what comes out of them steered."""
    roots, inputs = make_roots(), make_inputs(wider, scale)
    with Steering({concept: strength}).attach(roots, dict.fromkeys(roots, describe_call)) as steering:
        for root in roots:  # as a text begins
            steering._state.reset(root, 2, torch.device("cpu"))
            steering._state.maps.reset(root, 2, torch.device("cpu"))
        return [
            (inputs[root][name], out)
            for root in ("text_encoder", "unet")
            for name, out in roots[root](inputs[root]).items()
        ]


def check_attached(concept: Concept) -> None:
    """Strength 0 gives back all bits, others finite numbers; and what is not as wide as the model is refused."""
    try:
        for scale in (1.0, 1e4):
            for before, after in run(concept, 0.0, scale=scale):
                assert torch.equal(before.view(torch.int32), after.contiguous().view(torch.int32)), (
                    "0 changes something"
                )
        for before, after in run(concept, 1.0):
            assert after.shape == before.shape
            assert after.isfinite().all(), "it overflows"
    except ModelMismatchError:
        event("of another model")
        return
    widths = [
        item.width for item in concept.interventions if not (item.site.channels or item.site.argument or item.read_only)
    ]
    if any(widths):
        with pytest.raises(DSASError):
            run(concept, 1.0, wider=1)


def try_artifact(random: Random, parent: Path) -> None:
    """One damaged concept, through the folder."""
    files = draw_files(random)
    event(damage(files, random))
    folder = parent / "it"
    folder.mkdir()
    files.write(folder)
    concept = Concept.from_pretrained(folder)
    check_fields(concept)
    check_shown(concept)
    check_saved(concept, parent / "again")
    event("loads")
    check_attached(concept)


@campaign(11_000, random=RANDOM)
def test_damaged_concepts(random: Random) -> None:
    with tempfile.TemporaryDirectory() as parent, warnings.catch_warnings(action="ignore"), works_or_is_refused():
        try_artifact(random, Path(parent))


@contextlib.contextmanager
def names_no_path(folder: str) -> Iterator[None]:
    try:
        yield
    except DSASError as error:
        told = str(error)
        if folder in told or "/tmp" in told:
            raise AssertionError(f"it names a path of the server: {told}") from None
        raise


@campaign(1_500, random=RANDOM)
def test_damaged_uploads(random: Random) -> None:
    """The demo's reader: the same, and no path of the server in what it tells."""
    files = draw_files(random)
    event(damage(files, random))
    with tempfile.TemporaryDirectory() as parent, mock.patch.dict(os.environ, GRADIO_TEMP_DIR=parent):
        files.write(Path(parent))
        names = [name for name in (CONFIG, TENSORS) if os.path.lexists(Path(parent, name))]
        with works_or_is_refused():
            with names_no_path(parent):
                concept = uploads.read_concept([str(Path(parent, name)) for name in names])
            check_fields(concept)
            check_shown(concept)
            assert zipfile.ZipFile(io.BytesIO(uploads.zip_concept(concept))).testzip() is None
