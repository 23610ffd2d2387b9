"""Capture: which rows are kept, in which bin, under which mask, at which places."""

from __future__ import annotations

import pytest
import torch

from dsas_core import Call, DSASError, Site
from dsas_core.concept.intervention import bin_of
from dsas_core.learning.capture import Capture

HERE, THERE = Site("unet.here"), Site("unet.there")


def show(capture: Capture, x: torch.Tensor, **call: torch.Tensor) -> None:
    """One call of the root "unet" that brings x by at both sites."""
    rows = call.pop("rows", torch.ones(len(x)))
    prompts = call.pop("prompts", torch.arange(len(x)))
    capture.begin("unet", Call(rows, prompts, call.get("timestep"), call.get("mask")))
    for i, site in enumerate((HERE, THERE)):
        assert capture.visit(site, x + i) is None


def test_steered_rows_are_kept_pooled_with_their_prompts() -> None:
    capture = Capture(positions_per_row=0)
    capture.start("source")
    x = torch.randn(4, 5, 3)
    show(capture, x, rows=torch.tensor([0.0, 0, 1, 1]), prompts=torch.tensor([0, 1, 0, 1]))
    capture.offset = 2
    show(capture, x * 2, rows=torch.tensor([0.0, 0, 1, 1]), prompts=torch.tensor([0, 1, 0, 1]))
    rows = capture.rows[HERE, 0, "source"]
    torch.testing.assert_close(rows.gathered("pooled"), torch.cat([x[2:].mean(1), 2 * x[2:].mean(1)]))
    assert rows.gathered("prompts").tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(capture.rows[THERE, 0, "source"].pooled[0], x[2:].mean(1) + 1)
    assert rows.positions == []


def test_a_call_without_steered_rows_leaves_nothing() -> None:
    capture = Capture()
    capture.start("source")
    show(capture, torch.randn(2, 5, 3), rows=torch.zeros(2))
    assert not capture.rows


def test_starting_a_kind_begins_again_at_the_first_prompt() -> None:
    capture = Capture()
    for kind in ("source", "control"):
        capture.start(kind)
        show(capture, torch.randn(2, 5, 3))
        capture.offset += 2
    for kind in ("source", "control"):
        assert capture.rows[HERE, 0, kind].gathered("prompts").tolist() == [0, 1]


@pytest.mark.parametrize(
    ("timestep", "expected"), [(0.0, 0), (249.9, 0), (250.0, 1), (500.0, 1), (750.0, 2), (1000.0, 2)]
)
def test_bins(timestep: float, expected: int) -> None:
    assert int(bin_of(torch.tensor(timestep), (250, 750))) == expected
    capture = Capture(edges=(250, 750))
    capture.start("source")
    show(capture, torch.randn(1, 5, 3), timestep=torch.tensor(timestep))
    assert {bin_ for _, bin_, _ in capture.rows} == {expected}


@pytest.mark.parametrize("edges", [(700, 300), (500, 500)])
def test_edges_must_ascend(edges: tuple[float, float]) -> None:
    with pytest.raises(DSASError, match="expected ascending numbers, each once"):
        Capture(edges)


def test_without_a_clock_or_edges_there_is_one_bin() -> None:
    assert int(bin_of(None, (250, 750))) == 0
    assert int(bin_of(torch.tensor(600.0), ())) == 0


def test_masked_positions_are_neither_pooled_nor_sampled() -> None:
    capture = Capture(positions_per_row=4)
    capture.start("source")
    x = torch.randn(2, 6, 3)
    mask = torch.tensor([[0.0, 1, 1, 0, 0, 0], [0.0, 1, 1, 1, 1, 1]])
    x[mask == 0] = 1e6
    show(capture, x, mask=mask)
    rows = capture.rows[HERE, 0, "source"]
    torch.testing.assert_close(rows.gathered("pooled"), torch.stack([x[0, 1:3].mean(0), x[1, 1:].mean(0)]))
    prompts, places = rows.gathered("position_prompts"), rows.gathered("places")
    assert prompts.tolist() == [0, 0, 1, 1, 1, 1]
    assert sorted(places[prompts == 0].tolist()) == [1, 2]
    torch.testing.assert_close(rows.gathered("positions"), x[prompts, places])


@pytest.mark.parametrize(("wanted", "kept"), [(4, 4), (9, 9), (50, 9)])
def test_sampled_positions_are_different_and_belong_to_their_place(wanted: int, kept: int) -> None:
    capture = Capture(positions_per_row=wanted)
    capture.start("source")
    x = torch.randn(3, 9, 2)
    show(capture, x, rows=torch.tensor([0.0, 1, 1]), prompts=torch.tensor([0, 1, 2]))
    rows = capture.rows[HERE, 0, "source"]
    prompts, places = rows.gathered("position_prompts"), rows.gathered("places")
    assert prompts.tolist() == [1] * kept + [2] * kept
    assert len(set(places[:kept].tolist())) == kept
    assert torch.equal(rows.gathered("positions"), x[prompts, places])


def test_every_kind_is_sampled_at_the_same_places_and_the_seed_moves_them() -> None:
    def places(seed: int) -> list[list[int]]:
        capture = Capture(positions_per_row=4, seed=seed)
        for kind in ("source", "target", "control"):
            capture.start(kind)
            for _ in range(3):
                show(capture, torch.randn(2, 64, 3))
        return [capture.rows[HERE, 0, kind].gathered("places").tolist() for kind in ("source", "target", "control")]

    first = places(0)
    assert first[0] == first[1] == first[2]
    assert places(0) == first
    assert places(1) != first


def test_half_precision_is_kept_in_float32() -> None:
    capture = Capture()
    capture.start("source")
    show(capture, torch.randn(2, 5, 3).half())
    rows = capture.rows[HERE, 0, "source"]
    assert rows.gathered("pooled").dtype == rows.gathered("positions").dtype == torch.float32


def test_marks_follow_the_sampled_positions() -> None:
    """Whatever is sampled, in whatever order: a label is that of its prompt at its place."""
    capture, mask = Capture(positions_per_row=4), torch.ones(3, 9)
    mask[1, :6] = 0  # fewer positions than are sampled
    for kind in ("source", "control"):
        capture.start(kind)
        for offset in (0, 3):
            capture.offset = offset
            show(capture, torch.randn(3, 9, 2), mask=mask)
    asked: list[tuple[int, int]] = []

    def told(prompt: int, count: int) -> list[bool]:
        asked.append((prompt, count))
        return [(prompt + place) % 3 == 0 for place in range(count)]

    capture.mark("source", told)
    assert set(asked) == {(prompt, 9) for prompt in range(6)}
    for site in (HERE, THERE):
        rows = capture.rows[site, 0, "source"]
        expected = (rows.gathered("position_prompts") + rows.gathered("places")) % 3 == 0
        assert torch.equal(rows.gathered("labels"), expected)
        assert [len(part) for part in rows.labels] == [len(part) for part in rows.positions]
        assert capture.rows[site, 0, "control"].labels == []
