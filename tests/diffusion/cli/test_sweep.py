"""`dsas sweep`, driven through `main` on a tiny random pipeline in a folder."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tqdm
from PIL import Image

from dsas_core import Concept, Site
from dsas_diffusion import cli
from dsas_diffusion.cli.commands import sweep
from dsas_diffusion.cli.commands.sweep import strengths_between
from dsas_diffusion.generation import strips
from dsas_diffusion.generation.animation import DURATION
from dsas_diffusion.generation.compare import change
from dsas_diffusion.generation.pictures import pictures_of, seeds_for
from dsas_diffusion.generation.settings import Settings
from dsas_diffusion.pipelines.adapter import adapt
from dsas_diffusion.pipelines.load import load_pipeline
from dsas_diffusion.steering.steer import steer
from tests.fixtures.checks import assert_one_line, document_of
from tests.fixtures.concepts import random_concept, unseen
from tests.fixtures.models import TINY, bases, build_flow_pipe

PROMPTS = ("a banana", "a dog on the grass")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a pipeline."""
    folder = tmp_path_factory.mktemp("sweep-model")
    build_flow_pipe(folder / "tokenizer").save_pretrained(folder / "pipeline")
    return str(folder / "pipeline")


@pytest.fixture(scope="module")
def concept(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a concept in the text encoder, and the denoiser watched, as `learn` makes it by default."""
    folder = tmp_path_factory.mktemp("sweep-concepts") / "random"
    pipe = load_pipeline(model)
    made = random_concept(
        {Site(f"text_encoder.encoder.layers.{i}"): TINY.text_width for i in range(2)}, unit=2.0, base=bases(pipe)
    )
    watching = random_concept({Site("unet.mid_block.attentions.0.transformer_blocks.0.attn2"): 32}, weight=0.5)
    parts = (*made.interventions, watching.interventions[0].as_read_only())
    return str(replace(made, interventions=parts).save_pretrained(folder))


@pytest.fixture
def dsas(model: str, concept: str, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `dsas sweep` on them: its exit code, and what it put on standard output and standard error."""

    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        given = ["sweep", "--model", model, "--concept", concept, "--steps", 2, *argv]
        code = cli.main([str(argument) for argument in given])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def prompts(*texts: str) -> list[str]:
    return [part for text in texts for part in ("--prompt", text)]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[Image.Image]]:
    """The rows of pictures that strips were made of."""
    rows: list[list[Image.Image]] = []
    strip = strips.strip

    def record_rows(given: Any, *rest: Any) -> Image.Image:
        rows.extend(given)
        return strip(given, *rest)

    monkeypatch.setattr(strips, "strip", record_rows)
    return rows


# ---- what is drawn --------------------------------------------------------------------------------------------------


def test_pictures_are_those_of_steer_and_strength_0_is_the_unsteered_one(
    dsas: Run, model: str, concept: str, drawn: list[list[Image.Image]], tmp_path: Path
) -> None:
    out = tmp_path / "strip.png"
    given = (*prompts(*PROMPTS), "--from", -1, "--to", 1, "--count", 3, "--seed", 5, "--out", out, "--json")
    document = document_of(dsas(*given))
    assert document["strengths"] == [-1, 0, 1]
    pipe, seeds, settings = load_pipeline(model), seeds_for(PROMPTS, 5), Settings(2, document["guidance"])
    base = pictures_of(adapt(pipe), PROMPTS, seeds, settings)
    for i, strength in enumerate(document["strengths"]):
        with steer(pipe, {Concept.from_pretrained(concept): strength}):
            expected = pictures_of(adapt(pipe), PROMPTS, seeds, settings)
        for row, picture in zip(drawn, expected, strict=True):  # a sweep has a trace, which rounds otherwise
            off = np.abs(np.asarray(row[i], int) - np.asarray(picture, int)).max()
            assert off <= (0 if strength == 0 else 1)
        for j, (row, difference) in enumerate(zip(document["rows"], change(base, expected), strict=True)):
            assert row["change"][i] == pytest.approx(difference, abs=1e-3)
            assert (row["change"][i] == 0) == (strength == 0)
            assert (row["prompt"], row["noise_seed"], row["gate"]) == (PROMPTS[j], seeds[j], "own")
    assert [row[1].tobytes() for row in drawn] == [picture.tobytes() for picture in base]


def test_mean_h_is_that_of_the_sites_that_steer(dsas: Run, model: str, concept: str, tmp_path: Path) -> None:
    given = (*prompts(*PROMPTS, ""), "--count", 2, "--from", 0, "--to", 1, "--out", tmp_path / "a.png", "--json")
    rows = document_of(dsas(*given))["rows"]
    pipe = load_pipeline(model)
    for row in rows:
        with steer(pipe, {Concept.from_pretrained(concept): 1.0}, trace=True) as steering:
            pictures_of(adapt(pipe), [row["prompt"]], [row["noise_seed"]], Settings(2, 3.0))
            assert steering.trace is not None
            alone = steering.trace.mean_h("random", root="text_encoder")
        assert row["mean_h"][1] == pytest.approx(alone, abs=1e-5)
        assert 0 < row["mean_h"][0] < 1  # of an empty prompt, too, which is the negative one as well


def test_compare_adds_the_gate_that_is_always_on_below_each_prompt(
    dsas: Run, drawn: list[list[Image.Image]], tmp_path: Path
) -> None:
    given = (*prompts(*PROMPTS), "--count", 3, "--from", -1, "--to", 1, "--out", tmp_path / "a.png", "--json")
    document = document_of(dsas(*given, "--compare"))
    rows = document["rows"]
    expected = [(PROMPTS[0], "own"), (PROMPTS[0], "on"), (PROMPTS[1], "own"), (PROMPTS[1], "on")]
    assert [(row["prompt"], row["gate"]) for row in rows] == expected
    assert rows[0]["noise_seed"] == rows[1]["noise_seed"] != rows[2]["noise_seed"]
    assert rows[1]["mean_h"] == rows[3]["mean_h"] == pytest.approx([1, 1, 1])
    assert drawn[0][1].tobytes() == drawn[1][1].tobytes()
    assert drawn[0][2].tobytes() != drawn[1][2].tobytes()


def test_the_gate_off_changes_nothing(dsas: Run, tmp_path: Path) -> None:
    given = ("--gate", "off", *prompts("a banana"), "--count", 3, "--out", tmp_path / "a.png", "--json")
    (row,) = document_of(dsas(*given))["rows"]
    assert set(row["change"]) == {0.0} == set(row["mean_h"])


def test_it_attaches_once_for_each_gate(dsas: Run, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gates = []

    def count_steers(*given: Any, **options: Any) -> Any:
        gates.append(options["gate"])
        return steer(*given, **options)

    monkeypatch.setattr(sweep, "steer", count_steers)
    given = (*prompts("a banana"), "--count", 4, "--out", tmp_path / "a.png", "--quiet")
    assert dsas(*given, "--compare")[0] == 0
    assert gates == [None, "on"]


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (-1, 2, 7, [-1, -0.5, 0, 0.5, 1, 1.5, 2]),
        (-0.3, 0.6, 4, [-0.3, 0, 0.3, 0.6]),  # 0 up to rounding
        (-1, 2, 2, [-1, 0, 2]),
        (0.5, 1.5, 3, [0, 0.5, 1, 1.5]),
        (-2, -1, 2, [-2, -1, 0]),
        (0, 1e-6, 2, [0, 1e-6]),
    ],
)
def test_0_is_always_among_the_strengths(low: float, high: float, count: int, expected: list[float]) -> None:
    strengths = strengths_between(low, high, count)
    assert strengths == pytest.approx(expected, abs=1e-12)
    assert strengths.count(0.0) == 1
    assert all(a < b for a, b in itertools.pairwise(strengths))


def test_the_rest_is_preserved_beside_one_unsteered_pass(
    dsas: Run, placed: str, model: str, drawn: list[list[Image.Image]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    generate = sweep.generate_batches
    monkeypatch.setattr(sweep, "generate_batches", lambda *a, **o: (made.append(it) or it for it in generate(*a, **o)))
    kept, given = (
        replace(Concept.from_pretrained(placed), base={}),
        ("--from", -1, "--to", 1, "--count", 3, "--seed", 5),
    )
    folder = kept.save_pretrained(tmp_path / "kept")
    document = document_of(
        dsas(*prompts(*PROMPTS), *given, "--concept", folder, "--preserve", "--out", tmp_path / "a.png", "--json")
    )
    assert document["preserve"] is True
    assert made[0].recorded is made[1].recorded is made[2].recorded
    pipe, seeds, settings = load_pipeline(model), seeds_for(PROMPTS, 5), Settings(2, document["guidance"])
    for i, strength in enumerate((-1.0, 0.0, 1.0)):
        with steer(pipe, {kept: strength}, trace=True) as steering:
            for row, told, prompt, noise in zip(drawn, document["rows"], PROMPTS, seeds, strict=True):
                (expected,) = generate(steering, [prompt], [noise], settings, True)  # alone, as each is drawn
                assert steering.trace is not None
                h = steering.trace.mean_h("banana", sites=kept.steered_sites, prompt=0)
                assert row[i].tobytes() == expected.images[0].tobytes()
                assert told["mean_h"][i] == pytest.approx(h)
    assert [row[1].tobytes() for row in drawn] == [
        p.tobytes() for p in pictures_of(adapt(pipe), PROMPTS, seeds, settings)
    ]


def test_mean_h_where_nothing_is_seen_is_that_of_the_unsteered_pass(dsas: Run, placed: str, tmp_path: Path) -> None:
    folder = replace(unseen(Concept.from_pretrained(placed)), base={}).save_pretrained(tmp_path / "unseen")
    given = (*prompts("a banana"), "--from", 0, "--to", 1, "--count", 2, "--concept", folder, "--preserve")
    (row,) = document_of(dsas(*given, "--out", tmp_path / "a.png", "--json"))["rows"]
    assert row["change"] == [0.0, 0.0]
    assert row["mean_h"][0] == row["mean_h"][1] > 0


def test_tags_hold_other_concepts_in_every_picture(
    dsas: Run, model: str, concept: str, drawn: list[list[Image.Image]], tmp_path: Path
) -> None:
    other = replace(Concept.from_pretrained(concept), name="other")
    folder = other.save_pretrained(tmp_path / "other")
    given = ("--from", 0, "--to", 1, "--count", 2, "--seed", 5, "--out", tmp_path / "a.png", "--json")
    document = document_of(dsas(*prompts(f"a banana <dsas:{folder}:2>", "a dog"), *given))
    assert [(row["prompt"], row["tags"]) for row in document["rows"]] == [("a banana", {"other": 2.0}), ("a dog", {})]
    pipe, settings = load_pipeline(model), Settings(2, document["guidance"])
    for i, (prompt, tags) in enumerate([("a banana", {other: 2.0}), ("a dog", {})]):
        for j, strength in enumerate((0.0, 1.0)):
            with steer(pipe, {Concept.from_pretrained(concept): strength, **tags}):
                (expected,) = pictures_of(adapt(pipe), [prompt], [seeds_for("12", 5)[i]], settings)
            assert drawn[i][j].tobytes() == expected.tobytes()
    code, _, err = dsas(*prompts("a <dsas:random:1> dog"), *given, "--overwrite")
    assert code == 1
    assert_one_line(err, "the prompt has a tag for 'random', whose strength is swept: leave the tag out")


# ---- files ----------------------------------------------------------------------------------------------------------


def test_one_run_writes_a_strip_and_animations(dsas: Run, tmp_path: Path) -> None:
    outs = [tmp_path / "new" / name for name in ("a.png", "a.gif", "b.WEBP")]
    given = (
        *prompts("a banana"),
        "--from",
        -1,
        "--to",
        2,
        "--count",
        4,
        *itertools.chain(*(("--out", o) for o in outs)),
    )
    document = document_of(dsas(*given, "--json"))
    assert document["files"] == [str(out) for out in outs]
    assert sorted(path.name for path in outs[0].parent.iterdir()) == ["a.gif", "a.png", "b.WEBP"]
    with Image.open(outs[0]) as strip:
        assert strip.size == (190 + 4 * 168 + 8, 34 + 168 + 8)
        note = json.loads(strip.info["dsas"])
        assert {**note, "files": document["files"]} == document
    for path in outs[1:]:
        with Image.open(path) as animation:
            assert animation.n_frames == 2 * 4 - 2
            assert animation.info["loop"] == 0
            assert animation.width == 256
            frames = []
            for i in range(animation.n_frames):
                animation.seek(i)
                animation.load()
                frames.append(np.asarray(animation.convert("RGB"), np.float32))
                assert animation.info["duration"] == DURATION
        for one, other in itertools.pairwise(frames):
            assert np.abs(one - other).mean() > 0.1
        for there, back in ((1, 5), (2, 4)):
            assert np.abs(frames[there] - frames[back]).mean() < 2
        assert frames[0][-1].min() > 250, "white below the pictures"


def test_an_animation_of_several_prompts_and_gates_shows_all(dsas: Run, tmp_path: Path) -> None:
    out = tmp_path / "a.gif"
    given = (*prompts(*PROMPTS), "--compare", "--count", 2, "--from", 0, "--to", 1, "--out", out, "--quiet")
    assert dsas(*given)[0] == 0
    with Image.open(out) as animation:
        assert animation.n_frames == 2
        assert animation.width == 190 + 2 * 168 + 8
        assert animation.height > 34 + 2 * 168


def test_files_that_are_there_are_kept_unless_asked(dsas: Run, tmp_path: Path) -> None:
    there, new = tmp_path / "a.gif", tmp_path / "a.png"
    there.write_text("old")
    given = (*prompts("a banana"), "--count", 2, "--out", new, "--out", there, "--quiet")
    code, _, err = dsas(*given)
    assert code == 1
    assert_one_line(err, "a.gif is there: choose another name, or pass --overwrite")
    assert there.read_text() == "old"
    assert not new.exists()
    assert dsas(*given, "--overwrite")[0] == 0
    assert there.read_bytes().startswith(b"GIF89a")
    assert new.exists()


def test_nothing_is_written_when_it_is_interrupted_halfway(
    dsas: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "encode_animation", interrupted)
    given = (*prompts("a banana"), "--count", 2, "--out", tmp_path / "a.png", "--out", tmp_path / "a.gif", "--quiet")
    code, _, err = dsas(*given)
    assert code == 130
    assert_one_line(err, "interrupted; nothing was written")
    assert list(tmp_path.iterdir()) == []


# ---- messages -------------------------------------------------------------------------------------------------------


def test_people_get_a_table_and_a_bar(dsas: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # shown at every step: a bar that is shown ten times a second may never be
    monkeypatch.setattr("tqdm.tqdm", functools.partial(tqdm.tqdm, mininterval=0, miniters=1))
    out = tmp_path / "a.png"
    code, text, progress = dsas(*prompts(*PROMPTS), "--count", 4, "--out", out)
    assert code == 0
    for expected in (f"{PROMPTS[0]}, gate own", f"{PROMPTS[1]}, gate own", "change of 255", "mean h", f"wrote {out}"):
        assert expected in text
    marks = [line.split()[0] for line in text.splitlines() if line[:1] in "+-o" and len(line.split()) == 3]
    assert marks == ["-1", "off", "+1", "+2"] * 2
    assert "pictures:   0%" in progress, "how far it comes before it is wiped depends on the machine"
    assert "<00:00" in progress, "the time that remains"
    assert "denoising" in progress


# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "code", "expected"),
    [
        ("", 2, "--prompt"),
        ("-p x --from 1 --to 1", 2, "--from must be below --to, found --from 1 --to 1"),
        ("-p x --from 2 --to -1", 2, "--from must be below --to, found --from 2 --to -1"),
        ("-p x --from low", 2, "expected a number from -1e+06 to 1e+06, found 'low'"),
        ("-p x --to inf", 2, "expected a number from -1e+06 to 1e+06, found 'inf'"),
        ("-p x --count 1", 2, "expected a whole number from 2 to 1000, found '1'"),
        ("-p x --count 0", 2, "expected a whole number"),
        ("-p x --gate maybe", 2, "--gate"),
        ("-p x --gate on --compare", 2, "leave --gate on out"),
        ("-p x --model builtin:chat --out {new}/a.png", 2, "is a language model, which draws nothing: use `dsas chat`"),
        (
            "-p x --preserve {new}/none.png",
            1,
            "none.png: no such file: expected no value, latents, or",
        ),
        ("-p x --out {new}/a.jpg", 1, "a.jpg: a strip is written as .png, an animation as .gif or .webp"),
        ("-p x --out {new}/a", 1, "a strip is written as .png"),
        ("-p x --out {new}/a.png --out {new}/a.mp4", 1, "a.mp4: a strip is written as .png"),
        ("-p x --out {concept}/config.json/a.png", 1, "is a file"),
        ("-p x --out {new}/a.png --concept {new}/none", 1, "no concept"),
        ("-p x --out {new}/a.png --concept {model}", 1, "no config.json"),
        ("-p x --out {new}/a.png --concept {other}", 1, "was learned on another text_encoder"),
        ("-p x --out {new}/a.png --concept {textual}", 1, "is of a language model, and this is a model that draws"),
        ("-p x --out {new}/a.png --model {new}/none", 1, "no model"),
        ("-p x --out {new}/a.png --device abacus", 1, "device 'abacus'"),
    ],
)
def test_errors_are_one_line(
    dsas: Run,
    model: str,
    concept: str,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    argv: str,
    code: int,
    expected: str,
) -> None:
    elsewhere, learned = tmp_path_factory.mktemp("elsewhere"), Concept.from_pretrained(concept)
    other = replace(learned, base={"text_encoder": "0" * 16}).save_pretrained(elsewhere / "other")
    textual = replace(learned, base={"model": "0" * 16}).save_pretrained(elsewhere / "textual")
    paths = {"model": model, "concept": concept, "other": other, "textual": textual, "new": tmp_path / "new"}
    result = dsas(*(part.format(**paths) for part in argv.split()), *(["--quiet"] if code == 1 else []))
    assert result[0] == code
    assert_one_line(result[2], "dsas", "error: ", expected)
    assert list(tmp_path.iterdir()) == []


def test_errors_come_before_the_model_is_loaded(dsas: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsas_diffusion.cli.arguments.load_pipeline", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "a.png").mkdir()
    for arguments, why in (
        (("--out", tmp_path / "a.png"), "is a folder"),
        (("--out", tmp_path / "b.tiff"), "b.tiff: a strip"),
        (("--out", tmp_path / "b.png", "--concept", "./nowhere"), "nowhere"),
    ):
        code, _, err = dsas(*prompts("x"), *arguments, "--quiet")
        assert code == 1
        assert_one_line(err, why)
