"""Judges of pictures: the built-in one, CLIPs and classifiers from tiny random weights, functions, and plain data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import dsas_diffusion as dsas
from dsas_core import DSASError
from dsas_core.errors import UnavailableError
from dsas_diffusion.builtin.judge import Judge, Verdict
from dsas_diffusion.builtin.scenes import CATEGORIES, COLOURS, STYLES, THINGS
from dsas_diffusion.generation.pictures import pictures_of, seeds_for
from dsas_diffusion.generation.settings import settings_of
from dsas_diffusion.pipelines.adapter import adapt
from dsas_diffusion.vision import image_models
from dsas_diffusion.vision.builtin_judge import BuiltinJudge, ExpectedScene
from dsas_diffusion.vision.image_models import Clip
from dsas_diffusion.vision.judges import judge_from
from dsas_diffusion.vision.model_judges import ClassifierJudge, ClipJudge
from dsas_diffusion.vision.picture_judge import CallableJudge, PictureJudge
from tests.fixtures.vision_models import SMALL, noise_pictures, save_processor

FRUIT = {thing for thing, (_, category) in THINGS.items() if category == "fruit"}


class Fixed(Judge):
    """A judge that says what it is told: of each picture, thing -> (style, mask)."""

    def __init__(self, *scenes: dict[str, str | tuple[str, np.ndarray]]) -> None:
        self.scenes = scenes

    def look(self, pictures: list[Image.Image] | np.ndarray, batch: int = 64) -> list[Verdict]:
        result = []
        for picture, scene in zip(pictures, self.scenes, strict=True):
            nowhere = np.zeros(np.asarray(picture).shape[:2], bool)
            things = {thing: (saw, nowhere) if isinstance(saw, str) else saw for thing, saw in scene.items()}
            masks = {thing: mask for thing, (_, mask) in things.items()}
            result.append(Verdict({thing: style for thing, (style, _) in things.items()}, {}, masks))
        return result


def block(top: int, left: int, bottom: int, right: int, size: int = 16) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[top:bottom, left:right] = True
    return mask


def flat(count: int, colour: tuple[int, int, int] = (128, 128, 128), size: int = 16) -> list[Image.Image]:
    return [Image.new("RGB", (size, size), colour) for _ in range(count)]


# ---- what is wished ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "scene", "expected"),
    [
        (ExpectedScene(("banana",)), {"banana": "grey"}, True),
        (ExpectedScene(("banana",)), {"dog": "sharp"}, False),
        (ExpectedScene(("banana",)), {}, False),
        (ExpectedScene(("banana", "dog")), {"dog": "sharp"}, True),
        (ExpectedScene(("fruit",)), {"lemon": "sharp", "dog": "sharp"}, True),
        (ExpectedScene(("fruit",)), {"house": "sharp"}, False),
        # the style is that of the thing that is wanted, not that of its neighbour
        (ExpectedScene(("banana",), "blurred"), {"banana": "sharp", "dog": "blurred"}, False),
        (ExpectedScene(("banana",), "blurred"), {"banana": "blurred", "dog": "sharp"}, True),
        (ExpectedScene(("banana",), "sharp"), {"banana": "sharp"}, True),
        (ExpectedScene(("fruit",), "grey"), {"lemon": "sharp", "pear": "grey"}, True),
        (ExpectedScene(style="grey"), {"lemon": "sharp", "hat": "grey"}, True),
        (ExpectedScene(style="grey"), {"lemon": "sharp"}, False),
        (ExpectedScene(gone=("banana",)), {"banana": "blurred"}, False),
        (ExpectedScene(gone=("banana",)), {}, True),
        (ExpectedScene(gone=("animal",)), {"hat": "sharp", "fox": "sharp"}, False),
        # a name counts more than its category
        (ExpectedScene(("pear",), gone=("fruit",)), {"pear": "sharp"}, True),
        (ExpectedScene(("pear",), gone=("fruit",)), {"pear": "sharp", "lemon": "sharp"}, False),
        (ExpectedScene(("fruit",), gone=("banana",)), {"banana": "sharp"}, False),
        (ExpectedScene(("fruit",), gone=("banana",)), {"apple": "sharp"}, True),
    ],
)
def test_expected_scenes(wish: ExpectedScene, scene: dict[str, Any], expected: bool) -> None:
    result = BuiltinJudge(wish, Fixed(scene)).target_scores(flat(1), ["a picture"])
    assert result.dtype == np.float64
    assert result.tolist() == [expected]


@pytest.mark.parametrize("name", COLOURS)
def test_each_colour_is_nearest_to_itself(name: str) -> None:
    nudged = tuple(min(255, max(0, level + shift)) for level, shift in zip(COLOURS[name], (9, -9, 9), strict=True))
    for wished in COLOURS:
        judge = BuiltinJudge(ExpectedScene(background=wished), Fixed({}))
        assert judge.target_scores(flat(1, nudged), [""]).tolist() == [wished == name]


def test_the_background_is_what_belongs_to_no_thing() -> None:
    pixels = np.empty((16, 16, 3), np.uint8)
    pixels[:] = COLOURS["red"]  # a large red thing
    pixels[:, :5] = COLOURS["blue"]
    pixels[:2, :2] = COLOURS["white"]  # specks do not move the median
    thing = ("sharp", block(0, 5, 16, 16))
    whole = ("sharp", np.ones((16, 16), bool))
    picture = Image.fromarray(pixels)
    for scene, background in (({"heart": thing}, "blue"), ({}, "red"), ({"heart": whole}, None)):
        result = [
            BuiltinJudge(ExpectedScene(background=c), Fixed(scene)).target_scores([picture], [""])[0] for c in COLOURS
        ]
        assert result == [colour == background for colour in COLOURS]


def test_every_part_of_an_expected_scene_must_hold() -> None:
    scene = {"hat": ("grey", block(0, 0, 8, 8)), "dog": ("sharp", block(8, 8, 16, 16))}
    pictures = flat(1, COLOURS["green"])
    fulfilled = dict(things=("hat",), style="grey", background="green", gone=("cat",))
    assert BuiltinJudge(ExpectedScene(**fulfilled), Fixed(scene)).target_scores(pictures, [""]) == [1]
    for change in (dict(things=("car",)), dict(style="sharp"), dict(background="red"), dict(gone=("dog",))):
        assert BuiltinJudge(ExpectedScene(**{**fulfilled, **change}), Fixed(scene)).target_scores(pictures, [""]) == [0]


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (dict(things=("unicorn",)), "things: unknown 'unicorn'; there is banana, .*fruit, animal, vehicle"),
        (dict(gone=("banana", "unicorn")), "gone: unknown 'unicorn'"),
        (dict(style="shiny"), "style: unknown 'shiny'; there is sharp, blurred, pixelated, grey"),
        (dict(background="teal"), "background: unknown 'teal'; there is white, blue"),
        (dict(background=["red"]), "background: unknown"),
        (dict(things="banana"), "things: expected a list of names, found 'banana'"),
        (dict(things=("banana",), gone=("banana",)), "banana: cannot be wanted and gone at once"),
        (dict(), "needs things"),
    ],
)
def test_invalid_expected_scenes(wish: dict[str, Any], message: str) -> None:
    with pytest.raises(DSASError, match=message):
        ExpectedScene(**wish)


@pytest.mark.parametrize(
    ("wish", "about"),
    [
        (ExpectedScene(("banana",), "blurred"), {"banana"}),
        (ExpectedScene(("fruit",)), FRUIT),
        (ExpectedScene(("pear",), gone=("fruit",)), FRUIT),
        (ExpectedScene(style="grey"), set(THINGS)),
        (ExpectedScene(background="red"), set()),
    ],
)
def test_masks_are_of_the_expected_things(wish: ExpectedScene, about: set[str]) -> None:
    where = {"banana": block(0, 0, 4, 4), "pear": block(2, 2, 8, 8), "dog": block(8, 8, 16, 16)}
    scene = {thing: ("sharp", mask) for thing, mask in where.items()}
    first, second = BuiltinJudge(wish, Fixed(scene, {"car": ("sharp", block(0, 0, 1, 1))})).masks(flat(2))
    expected = [mask for thing, mask in where.items() if thing in about]
    if expected:
        assert first is not None
        assert first.dtype == bool
        assert np.array_equal(first, sum(expected) > 0)
    else:
        assert first is None
    assert (second is None) == ("car" not in about)


def test_neighbours_are_kept_where_they_look_as_before() -> None:
    before: list[dict[str, Any]] = [{"banana": "sharp", "dog": "sharp", "car": "grey"}] * 3 + [{"banana": "sharp"}]
    after: list[dict[str, Any]] = [
        {"banana": "blurred", "dog": "sharp", "car": "grey"},
        {"banana": "blurred", "dog": "blurred", "car": "grey", "hat": "sharp"},
        {"banana": "sharp"},
        {},
    ]
    judge = BuiltinJudge(ExpectedScene(("banana",), "blurred"), Fixed(*before))
    shapes = judge.masks(flat(4))
    judges = iter([Fixed(*before), Fixed(*after)])
    judge.judge = type("Both", (), {"look": lambda self, pictures: next(judges).look(pictures)})()  # type: ignore[assignment]
    assert judge.neighbours_kept(flat(4), flat(4), shapes) == [1.0, 0.5, 0.0], "the last has no neighbour"
    judges = iter([Fixed(*before), Fixed(*after)])
    assert judge.neighbours_kept(flat(4), flat(4), [None, *shapes[1:]]) == [0.5, 0.0], "the first shows no banana"


def test_the_shipped_judge_on_drawn_pictures() -> None:
    pipe = dsas.load_pipeline("builtin:emoji", device="cpu")
    prompts = ["a hat on a red background", "a blurred dog on a blue background"]
    pictures = pictures_of(adapt(pipe), prompts, seeds_for(prompts, 0), settings_of(pipe))
    wishes = {
        ExpectedScene(("hat",), "sharp", "red", ("animal",)): [1, 0],
        ExpectedScene(("animal",), "blurred", "blue", ("hat",)): [0, 1],
        ExpectedScene(("hat", "dog")): [1, 1],
        ExpectedScene(gone=("hat", "dog")): [0, 0],
    }
    for wish, expected in wishes.items():
        assert BuiltinJudge(wish).target_scores(pictures, prompts).tolist() == expected
    hat, none = BuiltinJudge(ExpectedScene(("hat",))).masks(pictures)
    assert none is None
    assert hat is not None
    assert 0.05 < hat.mean() < 0.6


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ([*flat(1), *flat(1, size=32)], "to have one size"),
        (flat(2, size=15), "a picture of 15 x 15"),
        (flat(1), "1 pictures, but 2 prompts"),
    ],
)
def test_pictures_that_the_builtin_judge_cannot_see(pictures: list[Image.Image], message: str) -> None:
    with pytest.raises(DSASError, match=message):
        BuiltinJudge(ExpectedScene(style="grey"), Fixed({}, {})).target_scores(pictures, ["", ""])


def test_the_builtin_judge_without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Judge:
        raise UnavailableError("no judge: `make train-builtin` trains one")

    monkeypatch.setattr(Judge, "load", missing)
    with pytest.raises(DSASError, match="make train-builtin"):
        BuiltinJudge(ExpectedScene(style="grey"))


# ---- models of transformers -------------------------------------------------------------------------------------


def save_classifier(folder: Path, labels: list[str], problem: str | None = None) -> Any:
    """A tiny random image classifier, saved with its image processor."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(image_size=32, patch_size=8, problem_type=problem, id2label=dict(enumerate(labels)), **SMALL)
    model = ViTForImageClassification(config).eval()
    model.save_pretrained(folder)
    save_processor(folder)
    return model


def test_clip_judge_is_the_softmax_of_transformers(clip_folder: Path) -> None:
    from transformers import AutoProcessor, CLIPModel

    pictures, texts = noise_pictures(5), ["a banana", "a sharp banana and a hat"]
    inputs = AutoProcessor.from_pretrained(clip_folder)(text=texts, images=pictures, return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(clip_folder)(**inputs).logits_per_image.softmax(-1)
    judge = ClipJudge(clip_folder, *texts)
    assert judge.target_scores(pictures, [""] * 5) == pytest.approx(expected[:, 0].numpy(), abs=1e-4)
    assert ClipJudge(Clip(clip_folder), *texts[::-1]).target_scores(pictures, [""] * 5) == pytest.approx(
        expected[:, 1].numpy(), abs=1e-4
    )
    assert expected[:, 0].std() > 0.1
    assert judge.target_scores([], []).shape == (0,)


@pytest.mark.parametrize("texts", [("", "a dog"), ("a dog", " "), ("a dog", "a dog ")])
def test_clip_judge_needs_two_texts(texts: tuple[str, str], clip_folder: Path) -> None:
    with pytest.raises(DSASError, match="two different texts"):
        ClipJudge(clip_folder, *texts)


@pytest.mark.parametrize(
    ("labels", "problem", "function"),
    [
        (["cat", "Dog", "tabby, cat"], None, lambda logits: logits.softmax(-1)),
        (["cat", "Dog", "tabby, cat"], "multi_label_classification", torch.sigmoid),
        (["Dog"], None, torch.sigmoid),
    ],
)
def test_classifier_judge_is_the_probability_of_transformers(
    labels: list[str], problem: str | None, function: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_classifier(tmp_path, labels, problem)
    pictures, number = noise_pictures(5), labels.index("Dog")
    with torch.no_grad():
        expected = function(model(**save_processor(tmp_path)(images=pictures, return_tensors="pt")).logits)
    monkeypatch.setattr(image_models, "BATCH", 2)
    for label in ("dog", number, str(number)):
        result = ClassifierJudge(tmp_path, label).target_scores(pictures, [""] * 5)
        assert result == pytest.approx(expected[:, number].numpy(), abs=1e-5)
    assert result.std() > 1e-3


@pytest.mark.parametrize(
    ("labels", "label", "message"),
    [
        (["cat", "dog"], "bird", "has no label 'bird'; it has 0: cat, 1: dog$"),
        (["cat", "dog"], 2, "has no label 2; it has"),
        (["cat", "dog"], -1, "has no label -1; it has"),
        (["crane", "dog", "Crane"], "crane", "several labels 'crane': give the number, one of 0, 2"),
        ([f"thing {i}" for i in range(30)], "bird", r"19: thing 19, … \(30 in all\)"),
    ],
)
def test_labels_that_a_classifier_has_not(labels: list[str], label: str | int, message: str, tmp_path: Path) -> None:
    save_classifier(tmp_path, labels)
    with pytest.raises(DSASError, match=message):
        ClassifierJudge(tmp_path, label)


def test_a_label_by_number_where_names_are_numbers(tmp_path: Path) -> None:
    save_classifier(tmp_path, ["1", "0", "dog"])
    assert ClassifierJudge(tmp_path, "0").label == 1  # a name before a number
    assert ClassifierJudge(tmp_path, 2).label == 2


def test_what_is_no_classifier(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    ViTModel(ViTConfig(image_size=32, patch_size=8, **SMALL), add_pooling_layer=False).save_pretrained(tmp_path)
    save_processor(tmp_path)
    with pytest.raises(UnavailableError, match="is no image classifier: it lacks classifier"):
        ClassifierJudge(tmp_path, "dog")


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    model = save_classifier(tmp_path, ["cat", "dog"])
    model.classifier.bias.data.fill_(float("nan"))
    model.save_pretrained(tmp_path)
    with pytest.raises(DSASError, match="expected numbers in \\[0, 1\\], found nan"):
        ClassifierJudge(tmp_path, "dog").target_scores(noise_pictures(1), [""])


# ---- functions --------------------------------------------------------------------------------------------------


def brightness(pictures: list[Image.Image], prompts: list[str]) -> list[float]:
    pairs = zip(pictures, prompts, strict=True)
    return [float(np.asarray(picture).mean()) / 255 if "dog" in prompt else 0 for picture, prompt in pairs]


HERE = "tests.diffusion.vision.test_judges:"
NO_FUNCTION = 3


@pytest.mark.parametrize("function", [brightness, f"{HERE}brightness"])
def test_callables_see_pictures_and_prompts(function: Any) -> None:
    judge = CallableJudge(function)
    pictures = [*flat(1, (51, 51, 51)), *flat(2, (255, 255, 255))]
    assert judge.target_scores(tuple(pictures), ("a dog", "a dog", "a cat")) == pytest.approx([0.2, 1, 0])
    assert judge.name.endswith("brightness")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ([0.5], r"expected 2 numbers, one per picture, found shape \[1\]"),
        ([[0.5], [0.5]], r"found shape \[2, 1\]"),
        (0.5, r"found shape \[\]"),
        ([0.5, 1.5], "found 1.5"),
        ([-0.1, 1], "found -0.1"),
        ([0.5, float("nan")], "found nan"),
        (["yes", "no"], "found list"),
        (None, "found"),
    ],
)
def test_callables_that_do_not_answer(output: Any, message: str) -> None:
    with pytest.raises(DSASError, match=message):
        CallableJudge(lambda pictures, prompts: output).target_scores(flat(2), ["", ""])


@pytest.mark.parametrize("output", [[True, False], np.array([1, 0], np.int8), torch.tensor([1.0, 0.0]), (1, 0)])
def test_answers_of_callables_that_are_taken(output: Any) -> None:
    assert CallableJudge(lambda pictures, prompts: output).target_scores(flat(2), ["", ""]).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("brightness", "expected 'package.module:function'"),
        (":brightness", "expected 'package.module:function'"),
        ("no_such_module:judge", "No module named 'no_such_module'; is its folder in PYTHONPATH"),
        (f"{HERE}nothing", "tests.diffusion.vision.test_judges has no nothing"),
        (f"{HERE}NO_FUNCTION", "is no function: int"),
    ],
)
def test_functions_that_are_not_there(path: str, message: str) -> None:
    with pytest.raises(DSASError, match=message):
        CallableJudge(path)


# ---- plain data -------------------------------------------------------------------------------------------------


def test_judges_from_yaml(clip_folder: Path, tmp_path: Path) -> None:
    save_classifier(tmp_path, ["cat", "dog"])
    judges: list[PictureJudge] = [
        judge_from(yaml.safe_load(text), device="cpu")
        for text in (
            "builtin: {things: [banana, animal], style: blurred, background: red, gone: [dog]}",
            f"clip: {{model: {clip_folder}, wanted: a dog, other: a cat}}",
            f"classifier: {{model: {tmp_path}, label: dog}}",
            f"classifier: {{model: {tmp_path}, label: 1}}",
        )
    ]
    names = ["builtin", f"clip {clip_folder}", *[f"classifier {tmp_path}"] * 2]
    assert [judge.name for judge in judges] == names
    assert isinstance(judges[0], BuiltinJudge)
    assert judges[0].wanted == ExpectedScene(("banana", "animal"), "blurred", "red", ("dog",))
    pictures, prompts = noise_pictures(3), ["a dog", "a cat", "a hat"]
    shown = [judge.target_scores(pictures, prompts) for judge in judges]
    assert all(scores.shape == (3,) and scores.min() >= 0 and scores.max() <= 1 for scores in shown)
    assert np.array_equal(shown[2], shown[3])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "expected one of builtin, clip, classifier, found nothing"),
        ("builtin", "found 'builtin'"),
        (None, "found None"),
        ({"human": {}}, "found human"),
        ({"builtin": {"things": ["dog"]}, "clip": {}}, "found builtin, clip"),
        ({"callable": "os:getcwd"}, "expected one of builtin, clip, classifier, found callable"),
        ({"builtin": ["dog"]}, r"judge builtin: expected things, style, background, gone, found \['dog'\]"),
        ({"builtin": {"thing": ["dog"]}}, "judge builtin: unknown thing; there is things, style, background, gone"),
        ({"builtin": {"things": "dog"}}, "things: expected a list of names, found 'dog'"),
        ({"builtin": {"things": ["unicorn"]}}, "unknown 'unicorn'"),
        ({"builtin": {"things": [["dog"]]}}, "unknown"),
        ({"builtin": {}}, "needs things"),
        ({"clip": {"model": "a/b", "wanted": "a dog"}}, "judge clip: other missing"),
        ({"clip": {"model": "a/b", "wanted": "a dog", "other": 3}}, "judge clip: other is to be text, found 3"),
        ({"clip": {"model": "./none", "wanted": "a dog", "other": "a cat"}}, "no such folder"),
        ({"classifier": {"model": "a/b", "label": None}}, "label is to be text, found None"),
        ({"classifier": {"model": "./none", "label": "dog"}}, "no such folder"),
        ({"classifier": {"model": "./none", "label": "dog", "device": "cpu"}}, "unknown device"),
    ],
)
def test_data_that_make_no_judge(spec: Any, message: str) -> None:
    with pytest.raises(DSASError, match=message) as caught:
        judge_from(spec)
    assert "\n" not in str(caught.value)


def test_expected_scenes_know_the_names_of_scenes() -> None:
    for name in (*THINGS, *CATEGORIES):
        assert ExpectedScene((name,)).wanted_things == (ExpectedScene(gone=(name,)).gone_things)
    assert all(ExpectedScene(style=style).style == style for style in STYLES)
