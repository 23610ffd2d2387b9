"""What the demo draws, without the page."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dsas_core import Concept, DSASError
from dsas_diffusion import Schedule
from dsas_diffusion.generation.pictures import pictures_of
from dsas_diffusion.generation.settings import Settings
from dsas_diffusion.pipelines.adapter import adapt
from dsas_diffusion.pipelines.prompt_check import check_prompt
from dsas_diffusion.steering.drawing import generate_batches
from dsas_diffusion.steering.steer import steer
from dsas_diffusion.ui.services import picture_service
from dsas_diffusion.ui.services.drawing import Drawing, Order
from dsas_diffusion.ui.services.picture_service import PictureService, slider_ends, steered_sites
from tests.diffusion.steering.test_identities_by_family import concept_of, pipe_of
from tests.diffusion.ui.conftest import SETTINGS
from tests.fixtures.concepts import unseen
from tests.fixtures.judges import random_banana_with_place
from tests.fixtures.pipelines import SIZE, STEPS
from tests.fixtures.visitors import Bare

BANANA = "a banana and a dog"


def order(seed: int = 0, prompt: str = BANANA, **fields: Any) -> Order:
    return Order(prompt, seed, SETTINGS, **fields)


def drawn(service: PictureService, asked: Order) -> Drawing:
    """The last that comes, with both pictures."""
    return list(service.draw(asked, service.concepts))[-1]


def same(a: Image.Image | None, b: Image.Image | None) -> bool:
    assert a is not None
    assert b is not None
    return np.array_equal(np.asarray(a), np.asarray(b))


def test_the_base_comes_first_and_is_what_the_pipeline_draws(service: PictureService, tiny_pipe: Any) -> None:
    first, both = service.draw(order(3, strengths={"patches": 1.0}), service.concepts)
    assert first.steered is None
    assert same(first.base, pictures_of(adapt(tiny_pipe), [BANANA], [3], SETTINGS)[0])
    assert same(both.base, first.base)
    assert not same(both.steered, both.base)
    assert both.moved > 0
    assert Bare.of(tiny_pipe.unet).hooks == 0


def test_a_slider_costs_one_picture(service: PictureService, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    for name in ("pictures_of", "generate_batches"):
        draw = getattr(picture_service, name)
        monkeypatch.setattr(picture_service, name, lambda *a, draw=draw, **o: made.append(a[1][0]) or draw(*a, **o))
    first, again = (drawn(service, order(strengths={"patches": strength})) for strength in (0.5, 1.0))
    assert len(made) == 3
    assert (first.cached, again.cached) == (False, True)
    for other in (order(1), order(prompt="a dog"), replace(order(), settings=replace(SETTINGS, steps=3))):
        assert not drawn(service, other).cached
    assert not same(first.steered, again.steered)


def test_few_base_pictures_are_kept(service: PictureService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_service, "MAX_BASES", 2)
    assert [drawn(service, order(seed)).cached for seed in (0, 1, 0, 2, 0, 1)] == [
        False,
        False,
        True,
        False,
        True,
        False,
    ]


def test_all_at_zero_is_the_base(service: PictureService) -> None:
    drawing = drawn(service, order(strengths={"patches": 0.0, "words": 0.0}))
    assert same(drawing.steered, drawing.base)
    assert drawing.trace is None


@pytest.mark.parametrize("gate", ["dsas", "on", "off"])
def test_gates(service: PictureService, gate: str) -> None:
    drawing = drawn(service, order(strengths={"closed": 1.0}, gate=gate))
    assert same(drawing.steered, drawing.base) == (gate != "on")
    assert gate == "on" or drawing.untouched
    assert drawing.gates[0].mean_h == (1.0 if gate == "on" else 0.0)


def test_what_a_gate_saw(service: PictureService, concepts: list[Concept]) -> None:
    words, patches = drawn(service, order(strengths={"words": 1.0, "patches": 0.5})).gates
    assert (words.concept, words.strength, patches.strength) == ("words", 1.0, 0.5)
    assert 0 < words.mean_h < words.highest_h <= 1
    assert set(words.words) <= {"a", "banana", "and", "dog"}
    assert words.words
    assert patches.words == (), "patches are no words"


def test_layers_that_are_chosen_steer_alone(service: PictureService, concepts: list[Concept]) -> None:
    names = steered_sites([concepts[1]])
    assert len(names) > 1
    one = drawn(service, order(strengths={"patches": 1.0}, sites=names[:1]))
    every = drawn(service, order(strengths={"patches": 1.0}, sites=names))
    assert same(every.steered, drawn(service, order(strengths={"patches": 1.0})).steered)
    assert not same(one.steered, every.steered)
    assert one.trace is not None
    moved = {str(r.site): float(r.change.max()) for r in one.trace.select("patches")}
    assert [change > 0 for change in moved.values()].count(True) == 1
    assert len(moved) == len(names), "the others are watched"


def test_schedules_rows_and_blends_reach_the_picture(service: PictureService) -> None:
    plain = drawn(service, order(strengths={"patches": 1.0, "words": 1.0}))
    never = drawn(service, order(strengths={"patches": 1.0}, schedule=Schedule.constant(0.0)))
    assert same(never.steered, never.base)
    for other in ({"branch": "both"}, {"combine": "blend"}, {"schedule": Schedule.linear(0, 1)}):
        assert not same(drawn(service, order(strengths={"patches": 1.0, "words": 1.0}, **other)).steered, plain.steered)


def test_concepts_that_pull_against_one_another(service: PictureService, concepts: list[Concept]) -> None:
    twin = replace(concepts[1], name="twin")
    asked = order(strengths={"patches": 1.0, "twin": -1.0})
    assert list(service.draw(asked, {**service.concepts, "twin": twin}))[-1].conflicts == (("patches", "twin"),)
    assert drawn(service, order(strengths={"patches": 1.0, "words": 1.0})).conflicts == ()


def test_a_strip(service: PictureService, concepts: list[Concept]) -> None:
    told: list[int] = []
    strip = service.strip(order(), concepts[1], [-1.0, 0.0, 1.0], told.append)
    assert told == [1, 2, 3]
    assert same(strip.pictures[1], drawn(service, order()).base)
    assert same(strip.pictures[2], drawn(service, order(strengths={"patches": 1.0})).steered)
    with Image.open(io.BytesIO(strip.animated(".gif"))) as moving:
        assert moving.n_frames == 4
    assert Image.open(io.BytesIO(strip.as_png())).width > 3 * 160


def test_two_at_once_get_their_own(service: PictureService) -> None:
    alone = {seed: drawn(service, order(seed, strengths={"patches": 1.0})).steered for seed in range(4)}
    together: dict[int, Image.Image | None] = {}

    def visit(seed: int) -> None:
        together[seed] = drawn(service, order(seed, strengths={"patches": 1.0})).steered

    visitors = [threading.Thread(target=visit, args=(seed,)) for seed in range(4)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert all(same(together[seed], alone[seed]) for seed in range(4))


def test_who_goes_away_in_the_middle_keeps_nobody_waiting(service: PictureService, tiny_pipe: Any) -> None:
    abandoned = service.draw(order(9, strengths={"patches": 1.0}), service.concepts)
    next(abandoned)
    assert drawn(service, order(10)).base is not None
    assert Bare.of(tiny_pipe.unet).hooks == 0


def test_an_error_leaves_the_studio_as_it_was(service: PictureService, tiny_pipe: Any) -> None:
    with pytest.raises(DSASError, match="strength"):
        drawn(service, order(strengths={"patches": float("nan")}))
    assert Bare.of(tiny_pipe.unet).hooks == 0
    assert drawn(service, order(strengths={"patches": 1.0})).steered is not None


@pytest.mark.parametrize("copied", [True, False])
def test_who_learns_does_so_apart(
    service: PictureService, tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch, copied: bool
) -> None:
    monkeypatch.setattr(picture_service, "MAX_COPY_BYTES", 2**30 if copied else 0)
    pipe, lock = service.pipeline_for_learning()
    assert (pipe is not tiny_pipe) == copied
    assert (pipe.unet is not tiny_pipe.unet) == copied
    with lock:
        began = threading.Thread(target=drawn, args=(service, order(11)), daemon=True)
        began.start()
        began.join(20 if copied else 0.3)
        assert began.is_alive() != copied
    began.join(20)
    assert not began.is_alive()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": " \n"}, "there is no prompt"),
        ({"prompt": "x" * 2001}, "2001 characters"),
        ({"settings": replace(SETTINGS, steps=101)}, "101 steps"),
    ],
)
def test_orders_that_make_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DSASError, match=message):
        replace(order(), **fields)


def test_concepts_that_cannot_be_used(tiny_pipe: Any, concepts: list[Concept]) -> None:
    with pytest.raises(DSASError, match="two concepts are named 'patches'"):
        PictureService(tiny_pipe, "tiny", [concepts[1], concepts[1]])
    foreign = replace(concepts[1], base={"unet": "0" * 16})
    with pytest.raises(DSASError, match="'patches' was learned on another unet"):
        PictureService(tiny_pipe, "tiny", [foreign])


def test_ends_of_sliders_lie_on_their_steps_and_have_room_for_zero(concepts: list[Concept]) -> None:
    assert slider_ends(concepts[1]) == pytest.approx((-0.95, 1.45))
    assert slider_ends(concepts[0]) == (-1.0, 2.0)
    assert slider_ends(replace(concepts[0], range=(0.2, 1.0))) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("family", "role", "words", "longest"),
    [
        ("sd", "embeddings", ["a", "banana", "and", "dog"], None),
        ("sd3", "text", ["a", "banana", "and", "dog"], None),
        ("pixart", "text", ["a", "banana", "and", "dog"], 10**30),  # as Gemma's tokenizer says
        ("pixart", "embeddings", ["a", "banana", "and", "dog"], 10**30),
        ("zimage", "text", [], None),  # there is a template around the prompt
        ("flux", "image", [], None),
    ],
)
def test_other_families(
    family: str, role: str, words: list[str], longest: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, concept = pipe_of(family), concept_of(family, role)
    if longest is not None:
        monkeypatch.setattr(adapt(pipe).tokens[0].tokenizer, "model_max_length", longest)
    service = PictureService(pipe, family, [concept])
    asked = Order(BANANA, 0, Settings(STEPS, service.defaults.guidance, size=SIZE), {concept.name: 4.0}, gate="on")
    drawing = list(service.draw(asked, service.concepts))[-1]
    assert not same(drawing.base, drawing.steered)
    assert sorted(set(drawing.gates[0].words)) == sorted(words)
    assert drawing.prompt_check.tokens == 5
    assert drawing.trace is not None
    assert drawing.trace.by_step(concept.name)
    service.close()


def test_the_longest_tokenizer_says_what_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipe_of("flux")
    monkeypatch.setattr(pipe.tokenizer_2, "model_max_length", 512)
    assert not check_prompt(adapt(pipe), "a dog and " * 30).cut_off, "CLIP reads less, but T5 all of it"
    monkeypatch.undo()
    assert check_prompt(adapt(pipe), "a dog and " * 30).cut_off


def test_files_go_with_the_studio(tiny_pipe: Any) -> None:
    service = PictureService(tiny_pipe, "tiny")
    one, other = (Path(service.write_download("a.png", content)) for content in (b"one", b"other"))
    assert (one.read_bytes(), other.read_bytes(), one.name) == (b"one", b"other", "a.png")
    later = time.time() + picture_service.DOWNLOAD_SECONDS + 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picture_service.time, "time", lambda: later)
        odd = Path(service.write_download("../a b/\0<c>" * 40 + ".zip", b"odd"))
    assert not one.exists(), "has been fetched long since"
    assert not other.parent.exists()
    assert odd.read_bytes() == b"odd"
    assert odd.parents[1] == Path(service._files.name)
    assert odd.suffix == ".zip"
    service.close()
    assert not odd.exists()


def test_a_concept_from_elsewhere_is_tried_on_every_layer(service: PictureService, concepts: list[Concept]) -> None:
    def narrow(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[..., :8].clone() if tensor.ndim else tensor

    items = tuple(
        replace(
            item,
            maps=tuple(one.map_tensors(narrow) for one in item.maps),
            probes=tuple(one.map_tensors(narrow) for one in item.probes),
        )
        for item in concepts[1].interventions
    )
    for interventions, told in (
        (items, "is 8 wide at .* this model's activation there has .* channels"),
        (
            [replace(concepts[1].interventions[0], site=replace(items[0].site, path="unet.none"))],
            "no module at unet.none",
        ),
    ):
        bad = replace(concepts[1], interventions=tuple(interventions))
        service.check(bad)
        with pytest.raises(DSASError, match=told):
            service.try_concept(bad)
    with pytest.raises(DSASError, match="beyond all numbers"):
        service.try_concept(replace(concepts[1], unit=1e30))
    service.try_concept(concepts[1])
    assert Bare.of(service.pipe.unet).hooks == 0


# ---- the rest of the picture is kept ---------------------------------------------------------------------------------


@pytest.fixture
def placed(tiny_pipe: Any) -> Concept:
    return replace(random_banana_with_place(tiny_pipe), name="placed")


@pytest.fixture
def passes(tiny_pipe: Any) -> Iterator[list[int]]:
    """The calls of the denoiser."""
    calls: list[int] = []
    handle = tiny_pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    yield calls
    handle.remove()


def test_the_rest_is_kept_at_the_cost_of_a_slider(
    service: PictureService, tiny_pipe: Any, placed: Concept, passes: list[int]
) -> None:
    service.concepts["placed"] = placed
    plain = drawn(service, order(3, strengths={"placed": 1.0}))
    service._bases.clear()
    passes.clear()
    first, both = service.draw(order(3, strengths={"placed": 1.0}, preserve=True), service.concepts)
    assert len(passes) == 2 * SETTINGS.steps, "the unsteered picture is drawn once"
    assert same(first.base, plain.base)
    with steer(tiny_pipe, {placed: 1.0}) as steering:
        (made,) = generate_batches(steering, [BANANA], [3], SETTINGS, True)
    assert same(both.steered, made.images[0])
    assert not same(both.steered, plain.steered)
    assert (both.area, both.unplaced, both.cached) == (made.masks[0].mean(), (), False)
    assert 0 < both.area < 1
    assert both.gates[0].mean_h > 0
    passes.clear()
    again = drawn(service, order(3, strengths={"placed": -0.5}, preserve=True))
    assert (len(passes), again.cached) == (SETTINGS.steps, True)
    strip = service.strip(order(3, preserve=True), placed, [-1.0, 0.0, 1.0])
    assert [same(strip.pictures[i], other) for i, other in ((1, plain.base), (2, both.steered))] == [True, True]
    assert len(passes) == 3 * SETTINGS.steps, "0 costs nothing"


def test_an_unsteered_pass_that_is_gone_is_drawn_again(
    service: PictureService, placed: Concept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_service, "MAX_UNSTEERED", 1)
    service.concepts["placed"] = placed
    asked = order(strengths={"placed": 1.0}, preserve=True)
    first = drawn(service, asked)
    drawn(service, replace(asked, seed=1))
    again = drawn(service, asked)
    assert (len(service._unsteered), again.cached, same(first.steered, again.steered)) == (1, False, True)
    another = replace(placed, name="another")
    service.concepts["another"] = another
    both = drawn(service, replace(asked, strengths={"placed": 1.0, "another": 1.0}))
    assert both.area == first.area, "it is looked for in a pass that is drawn for both"


def test_where_nothing_is_seen_the_picture_stays(service: PictureService, placed: Concept) -> None:
    service.concepts["placed"] = unseen(placed)
    drawing = drawn(service, order(strengths={"placed": 1.0}, gate="on", preserve=True))
    assert same(drawing.steered, drawing.base)
    assert (drawing.area, drawing.moved) == (0.0, 0.0)
    assert drawing.gates[0].mean_h == 1.0, "what it read of the unsteered picture"


@pytest.mark.parametrize("before", ["off", "on"])
def test_where_a_concept_is_seen_does_not_depend_on_the_gate_that_steers(
    service: PictureService, placed: Concept, before: str
) -> None:
    """Nor on the one that steered the same picture before."""
    service.concepts["placed"] = placed
    own = order(strengths={"placed": 1.0}, preserve=True)
    other = replace(own, gate=before)
    drawn(service, other)
    told = [drawn(service, own).gates[0].mean_h]
    seen = [service.read_unsteered(asked, placed).mean_h("placed") for asked in (other, own)]
    for kept in (service._unsteered, service._read, service._bases):
        kept.clear()
    told.append(drawn(service, own).gates[0].mean_h)
    seen.append(service.read_unsteered(own, placed).mean_h("placed"))
    assert told[0] == told[1]
    assert seen[0] == seen[1] == seen[2]
    assert 0 < seen[0] < 1


@pytest.mark.filterwarnings("error:.*see no place")
def test_concepts_without_a_place_are_told_and_steer_everywhere(
    service: PictureService, placed: Concept, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.concepts["placed"] = placed
    strengths = {"placed": 1.0, "patches": 1.0}
    drawing, plain = (drawn(service, order(strengths=strengths, preserve=preserve)) for preserve in (True, False))
    assert (drawing.unplaced, drawing.area, plain.unplaced) == (("patches",), None, ())
    assert same(drawing.steered, plain.steered)
    assert drawn(service, order(strengths={"placed": 1.0, "patches": 0.0}, preserve=True)).unplaced == ()
    monkeypatch.setattr(service, "can_preserve", False)
    assert drawn(service, order(strengths={"placed": 1.0}, preserve=True)).unplaced == ("placed",)
