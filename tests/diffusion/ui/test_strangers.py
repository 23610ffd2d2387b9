"""The demo's server and callers who mean no good, or know no better."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import gradio as gr
import httpx
import pytest
from PIL import Image

from dsas_diffusion.ui.server import listeners
from dsas_diffusion.ui.server.guard import served_hosts
from dsas_diffusion.ui.server.private_files import COOKIE, PrivateFiles
from tests.fixtures.browser import page_call

API = "/gradio_api/"


class Visitor:
    """A browser's messages, written by hand: a cookie, and a connection on which it listens.

    Args:
        page: the page, at work.
        session: name of the session.
        keeps_cookies: whether the browser does.
    """

    def __init__(self, page: gr.Blocks, session: str, *, keeps_cookies: bool = True) -> None:
        self.client = httpx.Client(base_url=str(page.local_url), timeout=60)
        self.session, self.keeps_cookies = session, keeps_cookies
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self.client)
        self.client.get("/")
        if not self.keeps_cookies:
            self.client.cookies.clear()
        self._stack.enter_context(self.client.stream("GET", f"{API}heartbeat/{self.session}"))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def join(self, name: str, data: list[Any] | None = None) -> httpx.Response:
        """Ask for an event; with what the page's components hold at first, if nothing else is given."""
        return self.client.post(f"{API}queue/join", json=_call(self.client, name, self.session, data))

    def listen(self) -> list[dict[str, Any]]:
        """What the server tells until all that was asked for is done."""
        with self.client.stream("GET", f"{API}queue/data", params={"session_hash": self.session}) as told:
            return [json.loads(line[6:]) for line in told.iter_lines() if line.startswith("data: ")]

    def draw(self) -> list[str]:
        """Draw, and return the paths of the pictures."""
        assert self.join("draw").status_code == 200
        told = [message for message in self.listen() if message["msg"] in ("process_generating", "process_completed")]
        assert told[-1]["success"], told[-1]
        return sorted({path for message in told for path in _paths(message["output"]["data"]) if path})


def _call(client: httpx.Client, name: str, session: str, data: list[Any] | None = None) -> dict[str, Any]:
    """The message of a browser, with a prompt in it."""
    call = page_call(client, name, session, data)
    if data is None and name == "draw":
        call["data"] = ["a banana" if value == "" else value for value in call["data"]]
    return call


def _paths(data: Any) -> Iterator[str]:
    if isinstance(data, dict):
        if isinstance(data.get("path"), str):
            yield data["path"]
        data = list(data.values())
    if isinstance(data, list) and len(data) == 3 and isinstance(data[1], list) and data[1][-1:] == ["path"]:
        yield data[2]  # what has changed since the last message
    for item in data if isinstance(data, list) else ():
        yield from _paths(item)


# ---- hosts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "[::1", "a@b"])
@pytest.mark.parametrize("path", ["/", "/config", f"{API}info", f"{API}heartbeat/x"])
def test_foreign_hosts_are_refused(client: httpx.Client, host: str, path: str) -> None:
    answer = client.get(path, headers={"host": host})
    assert answer.status_code in (400, 421), answer.text[:200]
    assert "DSAS" not in answer.text
    assert answer.status_code == 400 or "--host" in answer.json()["error"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:7860", "[::1]:80"])
def test_own_names_are_served(client: httpx.Client, host: str) -> None:
    assert client.get("/config", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    ("host", "environment", "share", "expected"),
    [
        (None, None, False, {"localhost", "127.0.0.1", "::1"}),
        ("box.local", None, False, {"localhost", "127.0.0.1", "::1", "box.local"}),
        (None, "10.0.0.7", False, {"localhost", "127.0.0.1", "::1", "10.0.0.7"}),
        (None, "0.0.0.0", False, set()),
        ("::", None, False, set()),
        ("[::]", None, False, set()),
        ("0", None, False, set()),
        (None, None, True, set()),
    ],
)
def test_names_follow_from_where_it_is_served(
    monkeypatch: pytest.MonkeyPatch, host: str | None, environment: str | None, share: bool, expected: set[str]
) -> None:
    monkeypatch.delenv("GRADIO_SERVER_NAME", raising=False)
    if environment:
        monkeypatch.setenv("GRADIO_SERVER_NAME", environment)
    assert served_hosts(host, share=share) == expected


# ---- the queue ------------------------------------------------------------------------------------------------------


def test_calls_that_nobody_listens_to_keep_no_visitor_waiting(
    served: gr.Blocks, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "PATIENCE", 0.5)
    with Visitor(served, "honest") as honest:
        honest.draw()
        began = time.monotonic()
        honest.draw()
        alone = time.monotonic() - began
        call = _call(client, "draw", "")
        began = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            calls = [{**call, "session_hash": f"deaf {i}"} for i in range(200)]
            codes = list(pool.map(lambda body: client.post(f"{API}queue/join", json=body).status_code, calls))
        posted = time.monotonic() - began
        assert set(codes) <= {200, 503}
        # a few at a time are waited for, and dropped
        assert codes.count(200) <= listeners.MAX_UNHEARD * (1 + posted / listeners.PATIENCE)
        began = time.monotonic()
        honest.draw()
        assert time.monotonic() - began < alone + 5
    time.sleep(3 * listeners.PATIENCE)
    assert len(served._queue) == 0


def test_one_session_takes_a_few_places_only(served: gr.Blocks, client: httpx.Client) -> None:
    with Visitor(served, "greedy") as greedy, Visitor(served, "honest too") as honest:
        body = _call(client, "draw", "greedy")
        codes = [greedy.client.post(f"{API}queue/join", json=body).status_code for _ in range(40)]
        assert 1 <= codes.count(200) < 40
        assert codes.count(503) > 20
        assert len(honest.draw()) >= 1


@pytest.mark.parametrize("session", ["", None, ["x"], 7])
def test_calls_of_no_session_are_refused(served: gr.Blocks, client: httpx.Client, session: Any) -> None:
    body = {**_call(client, "draw", "x"), "session_hash": session}
    assert {client.post(f"{API}queue/join", json=body).status_code for _ in range(3)} <= {400, 422, 503}
    assert len(served._queue) == 0


def test_large_calls_are_refused(client: httpx.Client) -> None:
    body = {"data": ["x" * listeners.MAX_CALL_BYTES], "fn_index": 0, "session_hash": "large"}
    answer = client.post(f"{API}queue/join", json=body)
    assert answer.status_code == 503
    assert "bytes" in answer.json()["detail"]


# ---- bad calls ------------------------------------------------------------------------------------------------------

_JOIN, _RUN = f"{API}queue/join", f"{API}run/predict"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (_RUN, {"data": [], "fn_index": 9999}),
        (_RUN, {"data": [], "fn_index": -1}),
        (_RUN, {"data": [1, 2], "fn_index": 0, "session_hash": "x"}),
        (f"{API}run/nothing", {"data": []}),
        (f"{API}call/nothing", {"data": []}),
        (f"{API}call/v2/draw", {"data": []}),
        (f"{API}api/draw", {"data": []}),
        (_JOIN, {"data": [], "fn_index": 9999, "session_hash": "x"}),
        (_JOIN, {"data": [], "fn_index": None, "session_hash": "x"}),
        (_JOIN, [1, 2]),
        (_JOIN, {"data": "draw", "session_hash": ["x"], "fn_index": 6}),
        (f"{API}component_server", {"session_hash": "x", "component_id": 3, "fn_name": "x", "data": None}),
        (f"{API}cancel", {"session_hash": "x", "fn_index": 1, "event_id": "y"}),
    ],
)
def test_bad_calls_are_one_line_in_the_log(
    client: httpx.Client, capfd: pytest.CaptureFixture[str], path: str, body: Any
) -> None:
    _check_log_of(capfd, lambda: client.post(path, json=body))


@pytest.mark.parametrize(
    "name",
    ["draw", "draw_live", "show_seen", "publish", "fill", "learn", "add_uploaded", "take", "take_kept", "forget"],
)
@pytest.mark.parametrize("data", [[], ["a"] * 60, [{"path": "/etc/passwd"}], [None] * 60, [float("nan")] * 60])
def test_bad_values_are_one_line_in_the_log(
    served: gr.Blocks, capfd: pytest.CaptureFixture[str], name: str, data: list[Any]
) -> None:
    with Visitor(served, "careless") as visitor:
        body = json.dumps(_call(visitor.client, name, "careless", data))
        headers = {"content-type": "application/json"}
        _check_log_of(capfd, lambda: visitor.client.post(_JOIN, content=body, headers=headers), visitor)


def test_a_session_that_is_none_is_one_line_in_the_log(client: httpx.Client, capfd: pytest.CaptureFixture[str]) -> None:
    def ask() -> httpx.Response:
        with client.stream("GET", f"{API}queue/data", params={"session_hash": "nobody"}) as answer:
            answer.read()
            return answer

    _check_log_of(capfd, ask)


def _check_log_of(capfd: pytest.CaptureFixture[str], ask: Any, visitor: Visitor | None = None) -> None:
    """Make a call, wait for its end, and raise an AssertionError where the server printed more than one line."""
    handler = logging.StreamHandler()  # as the server's process has it; pytest takes the logging module's own
    logging.getLogger("dsas.ui").addHandler(handler)
    try:
        capfd.readouterr()
        answer = ask()
        if visitor is not None and answer.status_code == 200:
            visitor.listen()
    finally:
        logging.getLogger("dsas.ui").removeHandler(handler)
    out, err = capfd.readouterr()
    lines = (out + err).splitlines()
    assert len(lines) <= 1, lines
    assert all(len(line) <= 400 for line in lines)


# ---- files ----------------------------------------------------------------------------------------------------------


def _read(client: httpx.Client, path: str) -> int:
    return client.get(f"{API}file={path}").status_code


def test_pictures_are_their_visitors_own_and_gone_afterwards(served: gr.Blocks) -> None:
    with Visitor(served, "elsewhere") as other:
        with Visitor(served, "painter") as painter:
            cookie = painter.client.cookies[COOKIE]
            paths = painter.draw()
            assert paths
            assert {_read(painter.client, path) for path in paths} == {200}
            assert {_read(other.client, path) for path in paths} == {404}
            assert {httpx.get(f"{served.local_url}gradio_api/file={path}").status_code for path in paths} == {404}
        deadline = time.monotonic() + 10
        while any(Path(path).exists() for path in paths) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(Path(path).exists() for path in paths)
        other.client.cookies.set(COOKIE, cookie)
        assert {_read(other.client, path) for path in paths} == {404}


def test_equal_pictures_are_files_of_their_own_and_stay_for_whoever_is_there(served: gr.Blocks) -> None:
    """One that is written again for somebody else would be cut short for whoever reads it."""
    with Visitor(served, "stays") as stays:
        paths = stays.draw()
        with Visitor(served, "goes") as goes:
            others = goes.draw()
            shown, again = ([Image.open(path).tobytes() for path in found] for found in (paths, others))
            assert sorted(shown) == sorted(again)
            assert not {*paths} & {*others}
        time.sleep(0.5)
        assert {_read(stays.client, path) for path in paths} == {200}


def test_one_file_of_two_visitors_stays_for_the_one_who_is_there(tmp_path: Path) -> None:
    file, files = tmp_path / "a.yaml", PrivateFiles(tmp_path)
    file.touch()
    with files.page_of("stays"):
        with files.page_of("goes"):
            files.give([str(file)], "stays")
            files.give([str(file)], "goes")
        assert files.may_read(str(file), "stays")
        assert file.exists()
    assert not file.exists()


def test_pictures_are_shown_where_no_cookies_are_kept(served: gr.Blocks) -> None:
    with Visitor(served, "framed", keeps_cookies=False) as visitor:
        assert {_read(visitor.client, path) for path in visitor.draw()} == {200}


def test_an_upload_is_its_visitors_own(served: gr.Blocks, client: httpx.Client) -> None:
    with Visitor(served, "uploads") as visitor:
        path = visitor.client.post(f"{API}upload", files={"files": ("a.yaml", b"mine")}).json()[0]
        assert visitor.client.get(f"{API}file={path}").text == "mine"
        assert _read(client, path) == 404


def test_an_upload_without_cookies_stays_for_the_call_that_reads_it(client: httpx.Client) -> None:
    path = httpx.post(f"{client.base_url}gradio_api/upload", files={"files": ("a.yaml", b"mine")}).json()[0]
    assert Path(path).read_bytes() == b"mine"


def test_files_elsewhere_are_neither_given_nor_deleted(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    own, foreign = tmp_path / "cache" / "a.png", tmp_path / "b.png"
    own.touch()
    foreign.touch()
    files = PrivateFiles(tmp_path / "cache")
    with files.page_of("3f"):
        files.give([str(own), str(foreign), str(tmp_path / "cache" / ".." / "b.png")], "3f")
        assert files.may_read(str(own), "3f")
        assert not files.may_read(str(foreign), "3f")
    assert not own.exists()
    assert foreign.exists()
