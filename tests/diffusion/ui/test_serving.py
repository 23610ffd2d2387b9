"""The page as it is served: what a stranger can get from it, and what not."""

from __future__ import annotations

import json
from pathlib import Path

import gradio as gr
import httpx
import pytest

from dsas_diffusion import ui
from dsas_diffusion.ui.page.theme import STYLE_SHEET
from dsas_diffusion.ui.services import picture_service
from tests.fixtures.browser import page_call


def test_the_page_is_there_and_fetches_nothing_from_elsewhere(client: httpx.Client) -> None:
    text = client.get("/").text
    assert "DSAS: concept sliders" in text
    assert "fonts.googleapis" not in client.get("/theme.css").text


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../../../../etc/passwd",
        "app.py",
        "/proc/self/environ",
        str(Path(picture_service.__file__)),
        "pyproject.toml",
        ".git/config",
    ],
)
def test_no_path_of_the_server_can_be_read(client: httpx.Client, path: str) -> None:
    answer = client.get(f"/gradio_api/file={path}")
    assert answer.status_code in (403, 404), answer.text[:200]
    assert "root:" not in answer.text


def test_uploads_have_a_limit(client: httpx.Client) -> None:
    small, large = (client.post("/gradio_api/upload", files={"files": ("a.yaml", b"x" * size)}) for size in (900, 2000))
    assert small.status_code == 200
    assert large.status_code == 413


def test_names_of_uploads_stay_in_their_folder(client: httpx.Client, tmp_path: Path) -> None:
    answer = client.post("/gradio_api/upload", files={"files": ("../../../escaped.yaml", b"x")})
    assert answer.status_code == 200
    stored = Path(answer.json()[0]).resolve()
    assert stored.name == "escaped.yaml"
    assert "gradio" in str(stored.parent)


@pytest.mark.parametrize("path", ["/etc/passwd", "../../../../etc/passwd", str(STYLE_SHEET)])
def test_an_upload_that_was_none_is_not_read(client: httpx.Client, path: str) -> None:
    """Somebody who writes the browser's messages by hand."""
    given = {"path": path, "orig_name": "a.yaml", "meta": {"_type": "gradio.FileData"}}
    asked = page_call(client, "fill", "stranger", [given])
    assert client.post("/gradio_api/queue/join", json=asked).status_code == 200
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": "stranger"}) as told:
        messages = [json.loads(line[6:]) for line in told.iter_lines() if line.startswith("data: ")]
    last = next(message for message in messages if message["msg"] == "process_completed")
    assert last["success"] is False
    assert "root:" not in json.dumps(messages)
    assert ".told" not in json.dumps(messages)


def test_nothing_is_offered_beside_the_page(client: httpx.Client) -> None:
    told = client.get("/gradio_api/info").json()
    assert told["named_endpoints"] == {}
    config = client.get("/config").json()
    assert all(event["api_visibility"] == "private" for event in config["dependencies"])
    assert str(Path(picture_service.__file__).parents[2]) not in json.dumps(config)


def test_pictures_are_drawn_one_at_a_time_and_waiting_and_memory_have_an_end(served: gr.Blocks) -> None:
    drawing = [event for event in served.fns.values() if event.name in ("draw", "draw_live")]
    assert {(event.concurrency_id, event.concurrency_limit) for event in drawing} == {("pipe", 1)}
    assert len(drawing) == 4
    assert served._queue.max_size == ui.MAX_WAITING
    assert served.state_session_capacity == ui.MAX_SESSIONS
