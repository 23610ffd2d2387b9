"""What visitors bring and take: prompt files and concepts, checked before they are read; concepts as zip files.

Whatever comes in here was written by somebody else. Only Gradio's own folder of uploads is read, only YAML, JSON and
safetensors, only up to a size; and every refusal is one line that tells no path of the server.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from dsas_core.concept.concept import CONFIG, TENSORS, Concept
from dsas_core.errors import ArtifactError, DSASError, PromptError
from dsas_core.learning.prompts import prompt_set as prompts
from dsas_core.learning.prompts.draft import is_name
from dsas_core.learning.prompts.prompt_set import PromptSet

#: suffix of a prompt file -> what it is
PROMPT_FILES = {".yaml": "YAML", ".yml": "YAML", ".json": "JSON"}
#: bytes of a prompt file, and of each file of a concept
MOST_PROMPTS = 256 * 2**10
MOST_BYTES = {CONFIG: 4 * 2**20, TENSORS: 64 * 2**20}
#: lists and mappings within one another: a prompt file has two
DEEPEST = 24
#: texts, lists and mappings in a prompt file
MOST_NODES = 10_000
#: letters of a name
MOST_NAME = 64
#: letters of a message that quotes what was found
MOST_TOLD = 400


def name_of(text: str) -> str:
    """A name as concepts, files and folders may bear it.

    Raises:
        DSASError: it is empty, too long, or has other characters.
    """
    if not is_name(text) or len(text) > MOST_NAME:
        found = _brief(repr(text), 80)
        raise DSASError(f"name {found}: expected up to {MOST_NAME} letters, digits, '.', '_' and '-'; choose another")
    return text


# ---- prompt files ---------------------------------------------------------------------------------------------------


def prompt_file(path: str | None) -> PromptSet:
    """The prompts in an uploaded file, YAML or JSON.

    Who judges is left out: it may name models, and learning asks no judge.

    Raises:
        PromptError: another kind of file, too large, no prompt file, or one that would expand without end.
    """
    name, content = _uploaded(path, dict.fromkeys(PROMPT_FILES, MOST_PROMPTS), "a prompt file (.yaml, .yml or .json)")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise PromptError(f"{name} is no text: expected a prompt file in UTF-8") from None
    kind = PROMPT_FILES[Path(name).suffix.lower()]
    document = _yaml(text, name) if kind == "YAML" else _json(text, name)
    if isinstance(document, Mapping):
        document = {key: value for key, value in document.items() if key not in ("judge", "masks")}
    try:
        found = prompts.load_prompts(document if isinstance(document, Mapping) else {})
    except DSASError as error:
        raise PromptError(_brief(f"{name}: {error}")) from None
    name_of(found.name)
    return found


class _PlainLoader(yaml.SafeLoader):
    """The safe loader, without what a prompt file does not need and a bomb does: aliases, depth, and no end."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise PromptError("it has aliases (*name), which prompt files do without: write the texts out")
        self._depth += 1
        if self._depth > DEEPEST:
            raise PromptError(f"more than {DEEPEST} lists are within one another: expected a prompt file")
        self._nodes += 1
        if self._nodes > MOST_NODES:
            raise PromptError(f"it has more than {MOST_NODES:,} texts: use placeholders, or leave some out")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _yaml(text: str, name: str) -> Any:
    try:
        loader = _PlainLoader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except DSASError as error:
        raise PromptError(f"{name}: {error}") from None
    except yaml.YAMLError as error:
        reason = _brief(str(error).replace('"<unicode string>", ', ""))
        raise PromptError(f"{name} is not YAML: {reason}; texts with braces or colons belong in quotes") from None
    except (ValueError, RecursionError) as error:  # such as a date that there is not
        raise PromptError(f"{name} is not a prompt file: {_brief(str(error))}") from None


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{name} is not JSON: {_brief(str(error))}") from None


# ---- concepts -------------------------------------------------------------------------------------------------------


def concept_files(paths: Sequence[str] | str | None) -> Concept:
    """The concept in the two files of its folder, `config.json` and `concept.safetensors`.

    Raises:
        ArtifactError: others, too large, damaged, pickled, or of a model that is not told.
        DSASError: a name that no folder may have.
    """
    found = dict(
        _uploaded(path, MOST_BYTES, f"{CONFIG} and {TENSORS}")
        for path in ([paths] if isinstance(paths, str) else paths or ())
    )
    missing = [name for name in (CONFIG, TENSORS) if name not in found]
    if missing:
        have = f"only {', '.join(found)}" if found else "nothing"
        raise ArtifactError(f"{have} came: choose both files of the concept's folder, {CONFIG} and {TENSORS}")
    with tempfile.TemporaryDirectory(prefix="dsas-upload-") as folder:
        for name, content in found.items():
            (Path(folder) / name).write_bytes(content)
        try:
            concept = Concept.from_pretrained(folder)
        except DSASError as error:
            raise ArtifactError(_brief(str(error).replace(f"{folder}{os.sep}", "").replace(folder, "it"))) from None
    name_of(concept.name)
    strangers = {item.site.root for item in concept.interventions} - set(concept.base)
    if strangers:  # which `Concept.check` would let pass
        raise ArtifactError(f"{CONFIG} does not tell on which {min(strangers)} it was learned: learn the concept again")
    return replace(concept, samples=None)  # their picture was not among the files


def zipped(concept: Concept) -> bytes:
    """A concept's folder, card and all, as a zip file."""
    content = io.BytesIO()
    with tempfile.TemporaryDirectory(prefix="dsas-zip-") as draft:
        folder = concept.save_pretrained(Path(draft) / name_of(concept.name))
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as packed:
            for path in sorted(folder.iterdir()):
                packed.write(path, f"{concept.name}/{path.name}")
    return content.getvalue()


def saved(concept: Concept, folder: Path) -> str:
    """Save a concept among others, in a folder of its name that is not there yet; that name.

    Raises:
        DSASError: there is one of this name, or it cannot be written.
    """
    there = folder / name_of(concept.name)
    if folder.exists() and not folder.is_dir():
        raise DSASError(f"{concept.name} cannot be saved: what was to hold it is no folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there.mkdir()  # whoever makes it owns the name: two visitors cannot have it both
    except FileExistsError:
        raise ArtifactError(f"a concept {concept.name!r} is saved already: give yours another name") from None
    except OSError as error:
        raise DSASError(f"{concept.name} cannot be saved: {error.strerror}") from None
    try:
        concept.save_pretrained(there)
    except BaseException as error:
        shutil.rmtree(there, ignore_errors=True)
        if not isinstance(error, DSASError):
            raise
        raise DSASError(f"{concept.name} cannot be saved: {str(error).replace(str(there.absolute()), 'it')}") from None
    return concept.name


# ---- one upload -----------------------------------------------------------------------------------------------------


def _uploaded(path: str | None, most: Mapping[str, int], expected: str) -> tuple[str, bytes]:
    """The name of an uploaded file, and what is in it.

    Args:
        most: name or suffix -> bytes that it may have.
    """
    from gradio.utils import get_upload_folder

    if not path:
        raise DSASError(f"no file came: choose {expected}")
    name = Path(path).name
    limit = most.get(name, most.get(Path(name).suffix.lower()))
    if limit is None:
        raise DSASError(f"{_brief(name, 80)} is not taken: expected {expected}")
    folder = Path(get_upload_folder()).resolve()
    try:
        inside = Path(path).parent.resolve(strict=True).is_relative_to(folder)
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) if inside else -1
    except (OSError, ValueError):
        handle = -1
    if handle < 0:
        raise DSASError(f"{_brief(name, 80)} is not an upload: choose {expected}, by the button")
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise DSASError(f"{_brief(name, 80)} is not a file: choose {expected}")
    with os.fdopen(handle, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise DSASError(f"{_brief(name, 80)} is larger than {_size(limit)}: choose a smaller one")
    return name, content


def _size(count: int) -> str:
    return f"{count // 2**20} MB" if count >= 2**20 else f"{count // 2**10} kB"


def _brief(text: str, most: int = MOST_TOLD) -> str:
    """One line, not too long."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}…"
