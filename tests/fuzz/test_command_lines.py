"""Campaign: command lines of every command and option, with values that are sensible, at the edge, or hostile."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import event
from hypothesis import strategies as st

from dsas_core import llm
from dsas_diffusion import cli
from dsas_diffusion.cli import arguments
from dsas_diffusion.cli.options import _FILE, COMMANDS
from dsas_diffusion.pipelines.load import load_pipeline
from tests.fixtures.judges import random_banana_with_place
from tests.fuzz.campaign import campaign, check_message, ends_in_time

#: values of options: CONCEPT and MODEL stand for the folders of a concept and of a pipeline, HERE for an empty one
SENSIBLE = [
    "MODEL",
    "CONCEPT",
    "HERE/new",
    "HERE/new.png",
    "banana",
    "a dog",
    "0",
    "1",
    "2",
    "16",
    "32",
    "cpu",
    "own",
    "hash",
]
SENSIBLE += [
    "CONCEPT=0.5",
    "CONCEPT=-1",
    "CONCEPT=auto",
    "x=1",
    "linear:0:1",
    "500",
    "none",
    "builtin:emoji",
    "fp16",
    "caa",
]
EDGE = [
    "",
    " ",
    "-1",
    "0.0",
    "1e6",
    "1000",
    "1000.5",
    "8",
    "9",
    "=",
    ":",
    "=1",
    "x=",
    "auto",
    "all",
    "1,2",
    "[",
    "*",
    ".",
]
EDGE += ["MODEL/model_index.json", "HERE", "HERE/no/such", "nobody/nothing", "x.safetensors"]
EDGE += ["x.ckpt", "x.gguf", "table:0=1", "window:800:200", "CONCEPT=1=2", "~", "a:b", "math:sqrt", "HERE/new.gif"]
HOSTILE = [
    "nan",
    "inf",
    "-inf",
    "1e39",
    "1e308",
    "9" * 400,
    "-" + "9" * 400,
    "2147483647",
    str(2**63),
    "1e-320",
    "0x10",
]
HOSTILE += ["1_0", "٣", "\udce9", "a\udc80b", "\0", "a\nb", "\x1b[31m", "x" * 5000, "--", "-", "../" * 40, "/dev/null"]
HOSTILE += [
    "/dev/zero",
    "/proc/self/mem",
    "CONCEPT=1e39",
    "CONCEPT=nan",
    "x=[[" * 200,
    "x=2024-99-99",
    "x=!!python/name:os",
]
HOSTILE += [
    "table:0=nan",
    "linear:1e39:0",
    "constant:",
    "cuda",
    "cuda:99",
    "meta",
    "cpu:3",
    "float8",
    "os:system",
    "x=" + "9" * 5000,
]
HOSTILE += ["%s", "%(prog)s", "{}", "$HOME", "`id`", "con", "\\", "🍌" * 300, "x={a: 1, a: 2}", "x=&a [*a]"]


def options_of(items: list[Any]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """The flags and settings of all options of a command."""
    for item in items:
        if isinstance(item, str):
            yield from options_of(_FILE["groups"][item])
        else:
            for flags, settings in (item.get("one of") or item).items():
                yield flags.split(), settings


OPTIONS = {command: [*options_of([*items, "output"])] for command, items in COMMANDS.items()}
#: a command line that works, to damage
WORKING = {
    "learn": "--model MODEL --from banana --to pear --out HERE/new --steps 1 --count 8 --no-strip",
    "calibrate": "--model MODEL -c CONCEPT --prompts PROMPTS --out HERE/new --steps 1",
    "generate": "--model MODEL -p banana -c CONCEPT=0.5 --steps 1 --out HERE/new",
    "grid": "--model MODEL -p banana -c CONCEPT --steps 1 --x strength=0,1 --out HERE/new.png",
    "sweep": "--model MODEL -p banana -c CONCEPT --steps 1 --count 2 --out HERE/new.png",
    "chat": "-m hello --tokens 1",
    "show": "CONCEPT",
    "eval": "--model MODEL -c CONCEPT --prompts PROMPTS --out HERE/new --quick --count 2 --seeds 1 --steps 1",
    "doctor": "--model MODEL -c CONCEPT -p banana --steps 1",
    "methods": "",
    "app": "--model MODEL --text-model none",
    "env": "",
}
PROMPTS = Path(__file__).parents[2] / "prompts" / "banana-blur.yaml"


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """The words of a command line: one that works with options put in, taken out, repeated or replaced; or any."""
    command = draw(st.sampled_from(sorted(COMMANDS)))
    words = [command, *(WORKING[command].split() if draw(st.integers(0, 9)) else [])]
    values = st.sampled_from(SENSIBLE) | st.sampled_from(EDGE) | st.sampled_from(HOSTILE)
    for _ in range(draw(st.integers(0, 3))):
        flags, settings = draw(st.sampled_from(OPTIONS[command]))
        flag = draw(st.sampled_from(flags))
        choices = settings.get("choices")
        usual = st.sampled_from(choices) if isinstance(choices, list) and draw(st.booleans()) else values
        how = draw(st.integers(0, 5))
        if settings.get("action") in ("store_true",) and how:
            words += [flag]
        elif how <= 3:
            words += [flag, *(draw(usual) for _ in range(2 if settings.get("nargs") == "+" and how == 1 else 1))]
        else:
            words += [f"{flag}={draw(usual)}" if flag.startswith("--") else f"{flag}{draw(usual)}"]
    damage = draw(st.integers(0, 12))
    if damage == 0:
        words.insert(draw(st.integers(0, len(words))), draw(values))
    elif damage == 1 and len(words) > 1:
        del words[draw(st.integers(1, len(words) - 1))]
    elif damage == 2 and len(words) > 1:
        words[draw(st.integers(1, len(words) - 1))] = draw(values)
    elif damage == 3:
        words += draw(st.permutations(words))[:3]
    return words


class ArgumentsTakenError(Exception):
    """The arguments have been taken, and the long work would begin."""


@pytest.fixture(scope="module")
def tools(tiny_pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The folders that command lines name, and the tiny pipeline in place of any that is loaded."""
    folder = tmp_path_factory.mktemp("lines")
    tiny_pipe.save_pretrained(folder / "model")
    random_banana_with_place(tiny_pipe).save_pretrained(folder / "concept")
    model = str(folder / "model")
    pipe, text = load_pipeline(model, device="cpu"), llm.load("builtin:chat", device="cpu")

    def loads(loaded: Any, own: Any) -> Any:
        def load(name: str, **options: Any) -> Any:
            usual = ({"device": device, "dtype": "auto"} for device in ("auto", "cpu"))
            same = str(name) in (model, "builtin:emoji", "builtin:chat") and options in usual
            return loaded if same else own(name, **options)

        return load

    def done(*_: Any, **__: Any) -> Any:
        raise ArgumentsTakenError

    patches = [
        mock.patch.object(arguments, "load_pipeline", loads(pipe, load_pipeline)),
        mock.patch.object(arguments.llm, "load", loads(text, llm.load)),
        mock.patch("dsas_diffusion.learning.learn.Lesson.learn", done),
        mock.patch("dsas_diffusion.cli.commands.calibrate._calibrate", done),
        mock.patch("dsas_diffusion.cli.commands.eval._measure", done),
        mock.patch("dsas_diffusion.ui.build", done),
        mock.patch("dsas_core.llm.Lesson.learn", done),
        mock.patch("sys.stdin", io.StringIO("")),
        mock.patch.dict(os.environ, {"HF_HUB_OFFLINE": "1", "HOME": str(folder)}),
        mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True),
    ]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield {"MODEL": model, "CONCEPT": str(folder / "concept"), "folder": folder}


def run(words: list[str]) -> tuple[int | None, str]:
    """The exit code and standard error of a command line; no code where the long work would have begun."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), ends_in_time():
        code: int | None = cli.main(words)
    return (None if "ArgumentsTakenError" in err.getvalue() else code), err.getvalue()


@campaign(5500, words=command_lines())
def test_command_lines_work_or_are_refused_in_one_line(tools: dict[str, Any], words: list[str]) -> None:
    here = tools["folder"] / f"{os.getpid()}-{threading.get_ident()}"
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir()
    places = {"HERE": str(here), "PROMPTS": str(PROMPTS), **{name: tools[name] for name in ("MODEL", "CONCEPT")}}
    filled = [re.sub("|".join(places), lambda found: places[found[0]], word) for word in words]
    before, cwd = _content(tools), Path.cwd()
    os.chdir(here)
    try:
        code, err = run(filled)
        left = sorted(str(path.relative_to(here)) for path in here.rglob("*"))
    finally:
        os.chdir(cwd)
    assert code in (None, 0, 1, 2), filled
    assert "Traceback" not in err
    errors = [line for line in err.splitlines() if ": error: " in line]
    event("works" if code in (None, 0) else f"refused with {code}")
    if code in (1, 2):
        assert len(errors) == 1, err
        check_message(errors[0].split(": error: ", 1)[1].removesuffix("\n"))
        assert "DSAS_DEBUG" not in errors[0], f"{filled}: {errors[0]}"
        assert not left, f"{filled}: {left} was left"
    assert _content(tools) == before or "--in-place" in filled or "--overwrite" in filled


def _content(tools: dict[str, Any]) -> list[tuple[str, int]]:
    """The files of the model and of the concept."""
    return [(str(p), p.stat().st_size) for name in ("MODEL", "CONCEPT") for p in sorted(Path(tools[name]).rglob("*"))]
