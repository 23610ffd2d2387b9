"""`dsas app`: what it serves, how it ends, and what it refuses."""

from __future__ import annotations

import os
import runpy
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from dsas_diffusion import cli, ui
from dsas_diffusion.ui.services.concepts import load_shipped
from tests.fixtures.checks import assert_one_line
from tests.fixtures.models import build_flow_pipe

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a pipeline, for which no concept ships."""
    folder = tmp_path_factory.mktemp("app-model")
    build_flow_pipe(folder / "tokenizer").save_pretrained(folder / "pipeline")
    return str(folder / "pipeline")


@pytest.fixture
def dsas(model: str, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `dsas app` on it: its exit code, and what it put on standard output and standard error."""

    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(["app", "--model", model, "--text-model", "none", "--quiet", *map(str, argv)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_it_serves_until_a_signal(dsas: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[int] = []

    def tell(page: Any, *args: Any, **options: Any) -> Any:
        served = serve(page, *args, **options)

        def visit() -> None:
            answers.append(httpx.get(served[1], timeout=30).status_code)
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Timer(0.5, visit).start()
        return served

    serve = ui.serve
    monkeypatch.setattr(ui, "serve", tell)
    before = signal.getsignal(signal.SIGTERM)
    code, out, _ = dsas()
    assert (code, answers) == (0, [200])
    assert "serving at http://127.0.0.1:" in out
    assert out.splitlines()[-1].startswith("no longer serving")
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(httpx.ConnectError):
        httpx.get(out.split()[2].rstrip(";"), timeout=5)


def test_what_ships_is_there_when_nothing_is_named() -> None:
    drawn = [concept.name for concept in load_shipped("builtin:emoji")]
    assert (drawn[0], len(drawn)) == ("banana-blur", 8)
    assert [concept.name for concept in load_shipped("builtin:chat")] == ["rudeness", "address-to-trade"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--model", "builtin:chat"), "is a language model: the demo draws"),
        (("--text-model", "builtin:emoji"), "builtin:emoji is no language model"),
        (("--text-concepts", "builtin:rudeness"), "--text-concepts needs a --text-model"),
        (("--concepts", "nowhere"), "no concept at nowhere"),
        (("--concepts", "builtin:rudeness"), "'rudeness'"),
        (("--model", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_served(dsas: Run, argv: tuple[str, ...], message: str) -> None:
    code, _, err = dsas(*argv)
    assert code in (1, 2)
    assert_one_line(err, message)


def test_a_port_that_is_taken(dsas: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, err = dsas("--port", taken.getsockname()[1])
    assert code == 1
    assert_one_line(err, "choose another --port")


def test_gradio_is_an_extra(dsas: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("dsas_diffusion.ui")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("dsas_diffusion.ui", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, _, err = dsas()
    assert code == 1
    assert_one_line(err, "pip install 'dsas-diffusion[demo]'")


def test_app_py_is_the_same_command(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr(cli, "main", lambda argv: given.append(argv) or 3)
    monkeypatch.setattr(sys, "argv", ["app.py", "--port", "1"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(Path(__file__).parents[3] / "app.py"), run_name="__main__")
    assert (given, left.value.code) == ([["app", "--port", "1"]], 3)
