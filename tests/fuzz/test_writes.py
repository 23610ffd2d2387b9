"""Writes that are cut off: what is the user's stays bit for bit, and what is ours is the old or the new whole.

In a forked process the n-th step that touches files is cut off: by a kill, by Ctrl-C, or by the system, which refuses
that step or every one from there on. Then everybody's files are looked at, the artifact is used, and written again.
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import event
from hypothesis import strategies as st
from PIL import Image

from dsas_core import Concept, DSASError, Site
from dsas_core.concept.samples import Samples
from dsas_core.evaluation import Cell, RunStore
from dsas_core.evaluation import report as reports
from dsas_core.learning.capture import Capture
from dsas_core.learning.capture_store import CaptureStore
from dsas_core.utils.saving.folders import SAVE, save_folder
from dsas_diffusion.cli import output
from dsas_diffusion.cli.commands.learn import PROMPTS, save_or_evade
from dsas_diffusion.drawing.picture_files import encode_picture
from dsas_diffusion.ui.services import uploads
from tests.fixtures.concepts import random_concept, small_webp
from tests.fuzz.campaign import campaign, check_message

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

#: functions of the system that touch files
STEPS = ("mkdir", "replace", "rename", "link", "unlink", "rmdir", "fsync", "write", "chmod", "scandir", "open")
ERRORS = {"full": errno.ENOSPC, "read-only": errno.EROFS, "forbidden": errno.EACCES, "broken": errno.EIO}
CUTS = ("kill", "kill while writing", "ctrl-c", "ctrl-c as a signal", *ERRORS, *(f"{name} for good" for name in ERRORS))
#: exit codes of the forked process
DONE, REFUSED, INTERRUPTED, KILLED, RAW = 0, 3, 4, 9, 5

#: how it ended -> in words
ENDS = {DONE: "done", REFUSED: "refused", INTERRUPTED: "interrupted", KILLED: "killed"}

NOTES = b"of the user \xff"


@cache
def concept(name: str) -> Concept:
    made = random_concept({Site("unet.mid"): 4}, seed=len(name), name=name)
    return replace(made, samples=Samples(("a", "b"), (0.0, 1.0), strip=small_webp())) if name == "old" else made


# ---- what is written ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A kind of write.

    Args:
        write: writes the version of a name, "old" or "new", into a folder.
        read: the name of the version that is there; None where there is none. Raises a DSASError where it is refused.
        after_old: whether the new version may replace the old one.
    """

    write: Callable[[Path, str], object]
    read: Callable[[Path], str | None]
    after_old: bool = True


def read_concept(folder: Path) -> str | None:
    if not (folder / "config.json").exists() and not (folder / SAVE).exists():
        return None
    found = Concept.from_pretrained(folder)
    assert found == concept(found.name), "files of two saves"
    return found.name


def write_pictures(folder: Path, name: str) -> None:
    document = {"name": name, "pictures": 3 if name == "old" else 2}
    picture = Image.new("RGB", (8, 8), "red" if name == "old" else "blue")
    files = {f"00{i}.png": encode_picture(picture, document) for i in range(document["pictures"])}  # type: ignore[call-overload]
    files["generate.json"] = output.encode_settings(document)
    save_folder(folder, files, output.recognise_pictures, obsolete=lambda name: name.endswith(".png"))


def read_pictures(folder: Path) -> str | None:
    """Every picture has its settings in itself, and all are of one run unless the folder is marked as unfinished."""
    names = set()
    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            names.add(json.loads(picture.info["dsas"])["name"])
    if (folder / "generate.json").is_file() and not (folder / SAVE).exists():
        names.add(json.loads((folder / "generate.json").read_bytes())["name"])
    if (folder / SAVE).exists():
        return "new"
    assert len(names) <= 1, "pictures of two runs"
    return names.pop() if names else None


def write_pair(folder: Path, name: str) -> None:
    picture = Image.new("RGB", (8, 8), "red" if name == "old" else "blue")
    settings = output.encode_settings({"name": name})
    output.write_files({folder / "a.json": settings, folder / "a.jpg": encode_picture(picture, {"name": name}, ".jpg")})


def read_pair(folder: Path) -> str | None:
    """The picture has its settings in itself; beside it are settings."""
    if not (folder / "a.jpg").exists():
        return None
    assert json.loads((folder / "a.json").read_bytes())["name"] in ("old", "new")
    with Image.open(folder / "a.jpg") as picture:
        description: str = picture.getexif()[0x010E]
        picture.load()
    return str(json.loads(description)["name"])


def write_reports(folder: Path, name: str) -> None:
    versions = {"title": name, "concepts": [], "command": "dsas eval", "seconds": 1.0, "machine": "m", "versions": {}}
    reports.write_report(folder, {**versions, "processes": 1, "refused": {}})


def read_reports(folder: Path) -> str | None:
    titles = {}
    for path in folder.glob("report.*"):
        if path.suffix in (".json", ".md", ".html"):
            text = path.read_text()
            assert text.rstrip().endswith(("}", "-->")), "half a report"
            titles[path.name] = "new" if "new" in text else "old"
    return titles.get("report.json")


def cells(name: str) -> list[Cell]:
    def make(folder: Path) -> Mapping[str, Any]:
        (folder / "drawn.png").write_bytes(b"picture")
        return {"drawn": 1}

    return [Cell({"number": i}, make) for i in range(3 if name == "new" else 1)]


def write_run(folder: Path, name: str) -> None:
    RunStore(folder, {"model": "a"}).complete(cells(name))


def read_run(folder: Path) -> str | None:
    if not (folder / "run.json").exists():
        return None
    assert json.loads((folder / "run.json").read_text()) == {"model": "a"}
    for values in folder.glob("cells/[0-9a-f]*/values.json"):
        assert json.loads(values.read_text()) == {"drawn": 1}
        assert (values.parent / "drawn.png").read_bytes() == b"picture"
    return "new" if len([*folder.glob("cells/[0-9a-f]*/values.json")]) == 3 else "old"


def write_rows(folder: Path, name: str) -> None:
    store = CaptureStore(folder, {"model": "a"}, [Site("unet.mid")])
    for offset in range(3 if name == "new" else 1):
        if not store.has("source", offset):
            store.write("source", offset, Capture(), {"x": torch.ones(4)})


def read_rows(folder: Path) -> str | None:
    if not (folder / "about.json").exists():
        return None
    store = CaptureStore(folder, {"model": "a"}, [Site("unet.mid")])
    store.read(["source"])
    count = sum(store.has("source", offset) for offset in range(3))
    assert not count or len(store.read_extra("source", "x")) == 4 * count
    return "new" if count == 3 else "old"


KINDS = {
    "concept": Kind(lambda folder, name: concept(name).save_pretrained(folder, overwrite=True), read_concept),
    "learned": Kind(
        lambda folder, name: save_or_evade(concept(name), folder, True, {PROMPTS: name.encode()}), read_concept
    ),
    "saved in the demo": Kind(
        lambda folder, name: uploads.save_concept(concept(name), folder),
        lambda folder: next(iter(filter(None, (read_concept(folder / name) for name in ("new", "old")))), None),
    ),
    "pictures": Kind(write_pictures, read_pictures),
    "a picture and its settings": Kind(write_pair, read_pair),
    "reports": Kind(write_reports, read_reports),
    "run": Kind(write_run, read_run),
    "captured activations": Kind(write_rows, read_rows),
}


# ---- cutting it off -------------------------------------------------------------------------------------------------


def cut_at(step: int, cut: str, root: Path) -> None:
    """Make the step of this number, of those that touch files below `root`, fail."""
    count = [0]

    def fail(name: str, real: Callable[..., Any], args: tuple[Any, ...]) -> None:
        number = count[0]
        count[0] += 1
        if number < step or (number > step and not cut.endswith("for good")):
            return
        if cut.startswith("kill"):
            if name == "write" and cut == "kill while writing":
                real(args[0], bytes(args[1])[: len(args[1]) // 2])
            os._exit(KILLED)
        if cut == "ctrl-c as a signal":
            os.kill(os.getpid(), signal.SIGINT)
        elif cut == "ctrl-c":
            raise KeyboardInterrupt
        else:
            code = ERRORS[cut.split(" ")[0]]
            if name == "write" and code == errno.ENOSPC:
                real(args[0], bytes(args[1])[: len(args[1]) // 2])
            if not (code == errno.ENOSPC and name in ("unlink", "rmdir", "scandir", "chmod")):  # these need no room
                raise OSError(code, os.strerror(code))

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if not (name == "open" and args and isinstance(args[0], str | Path) and str(root) not in str(args[0])):
                fail(name, real, args)
            return real(*args, **kwargs)

        return wrapped

    class Raw(io.FileIO):
        """Files that Python opens, whose content comes in steps too."""

        def write(self, content: Any) -> int:
            fail("write", lambda _, part: super(Raw, self).write(part), (None, content))
            return super().write(content)

    real_open = builtins.open

    def open_below(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, str | Path) and str(root) in str(file) and mode in ("wb", "w", "xb"):
            fail("open", real_open, (file,))
            buffered = io.BufferedWriter(Raw(file, mode.replace("b", "") + "b"))
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding=kwargs.get("encoding"))
        return real_open(file, mode, *args, **kwargs)

    io.open = open_below  # type: ignore[assignment]
    builtins.open = open_below  # type: ignore[assignment]
    for name in STEPS:
        setattr(os, name, wrap(name, getattr(os, name)))


def write_in_fork(kind: Kind, folder: Path, step: int, cut: str) -> tuple[int, str]:
    """Write the new version in a forked process, and cut it off; how it ended, and with which message."""
    told = Path(tempfile.gettempdir()) / f"{folder.parent.name}.message"
    child = os.fork()
    if not child:
        code = RAW
        try:
            handle = os.open(told, os.O_CREAT | os.O_WRONLY)
            tell = os.write
            warnings.simplefilter("ignore")
            signal.signal(signal.SIGINT, signal.default_int_handler)
            cut_at(step, cut, folder.parent)
            try:
                kind.write(folder, "new")
                code = DONE
            except KeyboardInterrupt:
                code = INTERRUPTED
            except DSASError as error:
                code = REFUSED
                tell(handle, str(error).encode())
            except BaseException as error:
                tell(handle, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    message = told.read_text()
    told.unlink()
    return os.waitstatus_to_exitcode(status), message


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def version_of(kind: Kind, folder: Path) -> str | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind.read(folder) if folder.is_dir() else None


@campaign(
    1000,
    kind=st.sampled_from(list(KINDS)),
    before=st.sampled_from(
        ["nothing", "an empty folder", "old", "old and others", "old and changed", "a linked folder"]
    ),
    cut=st.sampled_from(CUTS),
    step=st.integers(0, 70),
)
def test_writes_that_are_cut_off(kind: str, before: str, cut: str, step: int) -> None:
    chosen, own = KINDS[kind], Path(tempfile.mkdtemp(prefix="dsas-writes-"))
    try:
        check_cut(chosen, own, before, cut, step)
    finally:
        shutil.rmtree(own)


def check_cut(kind: Kind, own: Path, before: str, cut: str, step: int) -> None:
    folder = own / "it"
    (own / "beside.txt").write_bytes(NOTES)
    if before == "a linked folder":
        (own / "real").mkdir()
        folder.symlink_to(own / "real")
    elif before != "nothing":
        folder.mkdir()
    old = before.startswith("old") or before == "a linked folder"
    users = {"beside.txt": NOTES}
    if old:
        kind.write(folder, "old")
    if before == "old and others":
        (folder / "notes.txt").write_bytes(NOTES)
        (folder / "more").mkdir()
        (folder / "more" / "config.json").write_bytes(NOTES)
        users |= {"it/notes.txt": NOTES, "it/more/config.json": NOTES}
    changed = b""
    if before == "old and changed" and (folder / "README.md").is_file():
        changed = b"my own card"
        (folder / "README.md").write_bytes(changed)

    code, message = write_in_fork(kind, folder, step, cut)
    assert code in ENDS, message
    event(f"{cut}: {ENDS[code]}")
    if code == REFUSED:
        check_message(message)
        assert str(own) in message or "saved" in message, message

    there = snapshot(own)
    assert {name: there.get(name) for name in users} == users
    assert not changed or changed in there.values()
    found = version_of(kind, folder)
    assert found in (("old", "new") if old else (None, "old", "new"))
    assert code != DONE or found == "new" or kind is KINDS["saved in the demo"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind is not KINDS["saved in the demo"] or found != "new":  # a name is taken but once
            kind.write(folder, "new")
    assert version_of(kind, folder) == "new"
    there = snapshot(own)
    assert {name: there.get(name) for name in users} == users
    assert not changed or changed in there.values()
    assert kind is KINDS["saved in the demo"] or not [*own.rglob(".dsas-*")], "drafts of the dead"
