"""Uploads and downloads: prompt files and concepts, checked before they are read; concepts as zip files.

Uploads were written by somebody else. Only Gradio's own folder of uploads is read, only YAML, JSON, safetensors and the
zip files of concepts, and only up to a size; and every error is one line that names no path of the server.
"""

from __future__ import annotations

import io
import json
import os
import stat
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsas_core.concept.concept import CONFIG, TENSORS, Concept
from dsas_core.concept.samples import STRIP
from dsas_core.concept.storage.reading import CARD
from dsas_core.errors import ArtifactError, DSASError, PromptError
from dsas_core.learning.prompts.draft import is_name
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_core.learning.prompts.prompt_set import PromptSet
from dsas_core.utils.reading.plain_yaml import parse_yaml
from dsas_core.utils.reading.text_files import decode
from dsas_core.utils.saving.folders import names_in

#: suffix of a prompt file -> what it is
PROMPT_FILES = {".yaml": "YAML", ".yml": "YAML", ".json": "JSON"}
#: bytes of a prompt file, and of each file of a concept
MAX_PROMPT_BYTES = 256 * 2**10
MAX_CONCEPT_BYTES = {CONFIG: 4 * 2**20, TENSORS: 64 * 2**20, CARD: 2**20, STRIP: 4 * 2**20}
#: bytes of a concept's zip file, and files in it
MAX_ZIP_BYTES, MAX_ZIP_FILES = 64 * 2**20, 16
#: bytes of a picture that is brought for its settings
MAX_PICTURE_BYTES = 32 * 2**20
#: texts, lists and mappings in a prompt file
MAX_NODES = 10_000
#: letters of a name
MAX_NAME = 64
#: letters of an error that quotes an upload
MAX_MESSAGE = 400


def check_name(text: str) -> str:
    """The text, as a name that concepts, files and folders may have.

    Raises:
        DSASError: it is empty, too long, or has other characters.
    """
    if not is_name(text) or len(text) > MAX_NAME:
        name = _shorten(repr(text), 80)
        raise DSASError(f"name {name}: expected up to {MAX_NAME} letters, digits, '.', '_' and '-'; choose another")
    return text


# ---- prompt files ---------------------------------------------------------------------------------------------------


def read_prompts(path: str | None) -> PromptSet:
    """The prompts in an uploaded file, YAML or JSON, without its judge and masks: they may name models.

    Raises:
        PromptError: another kind of file, too large, no prompt file, one that expands to too many prompts, or a
            private one.
    """
    limits = dict.fromkeys(PROMPT_FILES, MAX_PROMPT_BYTES)
    name, content = _read_upload(path, limits, "a prompt file (.yaml, .yml or .json)")
    document = _parse(content, name)
    fields = document.items() if isinstance(document, Mapping) else ()
    try:
        prompts = load_prompts({key: value for key, value in fields if key not in ("judge", "masks")})
    except DSASError as error:
        raise PromptError(_shorten(f"{name}: {error}")) from None
    check_name(prompts.name)
    if prompts.private:
        raise PromptError(f"{name} is private, and the demo shows what it learns from: use `dsas learn --prompts`")
    return prompts


def _parse(content: bytes, name: str) -> Any:
    """What an uploaded prompt file holds."""
    text = decode(content, name)
    if PROMPT_FILES[Path(name).suffix.lower()] == "YAML":
        return parse_yaml(text, name, MAX_NODES)
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{name} is not JSON: {_shorten(str(error))}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs; an error where a key stands twice, of which the last would win."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object: rename one")
    return found


def read_picture(path: str | None) -> bytes:
    """The content of an uploaded PNG, whatever is in it."""
    return _read_upload(path, {".png": MAX_PICTURE_BYTES}, "a PNG that was downloaded here")[1]


# ---- concepts -------------------------------------------------------------------------------------------------------


def read_concept(paths: Sequence[str] | str | None) -> Concept:
    """The concept in the zip file that the page offers, or in `config.json` and `concept.safetensors` of its folder.

    Raises:
        ArtifactError: a file is missing, damaged or pickled, the zip file is none of ours, or the model that it was
            learned on is not named.
        DSASError: another file, one that is too large, or a name that no folder may have.
    """
    paths = [paths] if isinstance(paths, str) else paths or ()
    expected = f"the concept's zip file, or {CONFIG} and {TENSORS}"
    contents = dict(_read_upload(path, {**MAX_CONCEPT_BYTES, ".zip": MAX_ZIP_BYTES}, expected) for path in paths)
    zips = [name for name in contents if name.lower().endswith(".zip")]
    if zips:
        if len(contents) > 1:
            raise ArtifactError(f"{len(contents)} files came with {_shorten(zips[0], 80)}: choose the zip file alone")
        return unzip_concept(contents[zips[0]], _shorten(zips[0], 80))
    if not {CONFIG, TENSORS} <= set(contents):
        have = f"only {', '.join(contents)}" if contents else "nothing"
        raise ArtifactError(f"{have} came: choose {expected}, both at once")
    return _concept_of(contents)


def unzip_concept(content: bytes, name: str) -> Concept:
    """The concept in a zip file as `zip_concept` makes it; nothing else is unpacked.

    Args:
        content: of the file.
        name: of the file, for errors.

    Raises:
        ArtifactError: it is damaged, encrypted, or of something else than one concept.
    """
    found: dict[str, bytes] = {}
    # each entry of the directory begins so: those of millions are not read into memory
    if content.count(b"PK\x01\x02") > MAX_ZIP_FILES:
        raise ArtifactError(f"{name} holds more than {MAX_ZIP_FILES} files: expected the zip of one concept")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            entries = [entry for entry in packed.infolist() if not entry.is_dir()]
            folders = {entry.filename.rpartition("/")[0] for entry in entries}
            for entry in entries:
                file, odd = entry.filename.rpartition("/")[2], _shorten(repr(entry.filename), 80)
                if file not in MAX_CONCEPT_BYTES or file in found or len(folders) > 1 or not _is_folder(*folders):
                    raise ArtifactError(f"{name} holds {odd}: expected the folder of one concept, as downloaded here")
                with packed.open(entry) as opened:
                    found[file] = opened.read(MAX_CONCEPT_BYTES[file] + 1)
                if len(found[file]) > MAX_CONCEPT_BYTES[file]:
                    limit = _size(MAX_CONCEPT_BYTES[file])
                    raise ArtifactError(f"{odd} in {name} is larger than {limit}: expected a concept")
    except DSASError:
        raise
    except Exception as error:  # zipfile and zlib raise many kinds
        reason = _shorten(str(error) or type(error).__name__, 120)
        raise ArtifactError(f"{name} is damaged, encrypted or no zip file ({reason}): download it again") from None
    if missing := [file for file in (CONFIG, TENSORS) if file not in found]:
        raise ArtifactError(f"{name} has no {missing[0]}: expected the zip of a concept, as downloaded here")
    return _concept_of(found)


def _is_folder(name: str) -> bool:
    """Whether an entry's folder is one of a concept: of a plain name, or none."""
    return not name or is_name(name)


def _concept_of(contents: Mapping[str, bytes]) -> Concept:
    """The concept in these files, by name."""
    with tempfile.TemporaryDirectory(prefix="dsas-upload-") as folder:
        for name, content in contents.items():
            (Path(folder) / name).write_bytes(content)
        try:
            concept = Concept.from_pretrained(folder)
        except DSASError as error:
            raise ArtifactError(_shorten(str(error).replace(f"{folder}{os.sep}", "").replace(folder, "it"))) from None
    check_name(concept.name)
    unknown = {item.site.root for item in concept.interventions} - set(concept.base)
    if unknown:  # `Concept.check` lets them pass
        raise ArtifactError(f"{CONFIG} does not tell on which {min(unknown)} it was learned: learn the concept again")
    return concept if STRIP in contents else replace(concept, samples=None)


def zip_concept(concept: Concept) -> bytes:
    """A concept's folder, with its card, as a zip file."""
    content = io.BytesIO()
    with tempfile.TemporaryDirectory(prefix="dsas-zip-") as draft:
        folder = concept.save_pretrained(Path(draft) / check_name(concept.name))
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as packed:
            for path in sorted(folder.iterdir()):
                packed.write(path, f"{concept.name}/{path.name}")
    return content.getvalue()


def save_concept(concept: Concept, folder: Path) -> str:
    """Save a concept in a new folder of its name within another; returns the name.

    Raises:
        DSASError: there is one of this name, or it cannot be written.
    """
    target = folder / check_name(concept.name)
    if folder.exists() and not folder.is_dir():
        raise DSASError(f"{concept.name} cannot be saved: what was to hold it is no folder")
    try:
        if target.is_symlink() or names_in(target) or target.is_file():
            raise ArtifactError(f"a concept {concept.name!r} is saved already: give yours another name")
        concept.save_pretrained(target)
    except OSError as error:
        raise DSASError(f"{concept.name} cannot be saved: {error.strerror}") from None
    except DSASError as error:
        if str(error).startswith("a concept"):
            raise
        if names_in(target):  # another visitor was faster
            raise ArtifactError(f"a concept {concept.name!r} is saved already: give yours another name") from None
        raise DSASError(f"{concept.name} cannot be saved: {str(error).replace(str(target.absolute()), 'it')}") from None
    return concept.name


# ---- one upload -----------------------------------------------------------------------------------------------------


def _read_upload(path: str | None, limits: Mapping[str, int], expected: str) -> tuple[str, bytes]:
    """The name of an uploaded file, and what is in it.

    Args:
        path: where Gradio says that it is; it may be made up.
        limits: name or suffix -> bytes that it may have.
        expected: the files that are taken, for errors.
    """
    from gradio.utils import get_upload_folder

    if not path:
        raise DSASError(f"no file came: choose {expected}")
    name = Path(path).name
    limit = limits.get(name, limits.get(Path(name).suffix.lower()))
    if limit is None:
        raise DSASError(f"{_shorten(name, 80)} is not taken: expected {expected}")
    folder = Path(get_upload_folder()).resolve()
    try:
        inside = Path(path).parent.resolve(strict=True).is_relative_to(folder)
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) if inside else -1
    except (OSError, ValueError):
        handle = -1
    if handle < 0:
        raise DSASError(f"{_shorten(name, 80)} is not an upload: choose {expected}, by the button")
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise DSASError(f"{_shorten(name, 80)} is not a file: choose {expected}")
    with os.fdopen(handle, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise DSASError(f"{_shorten(name, 80)} is larger than {_size(limit)}: choose a smaller one")
    return name, content


def _size(count: int) -> str:
    return f"{count // 2**20} MB" if count >= 2**20 else f"{count // 2**10} kB"


def _shorten(text: str, limit: int = MAX_MESSAGE) -> str:
    """The text on one line, cut off after so many letters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[:limit]}…"
