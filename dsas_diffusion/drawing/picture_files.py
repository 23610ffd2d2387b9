"""Files of pictures that say how they were drawn: written with their settings, and these read back."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from PIL import ExifTags, Image, PngImagePlugin

from dsas_core.concept.storage.reading import parse_json
from dsas_core.errors import ArtifactError, quote, shorten
from dsas_core.utils.saving.files import as_json
from dsas_core.utils.saving.signature import PNG_KEYWORD, UNSIGNED, sign

from .picture_settings import PICTURE, PictureSettings, from_document

#: suffix -> format of the pictures that can be written
IMAGE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
#: key of a file's signature in its settings
SIGNATURE = "signature"
#: name of a PNG's text chunk with the settings
KEYWORD = "dsas"
#: characters of settings that Exif data have room for
_LONGEST_DESCRIPTION = 60_000
#: largest file that settings are read from, in bytes, and largest picture, in pixels
MAX_BYTES, MAX_PIXELS = 2**28, 2**27
#: text chunks of other tools -> the tool
_OTHERS = {"parameters": "AUTOMATIC1111 or its like", "workflow": "ComfyUI", "prompt": "ComfyUI", "Dream": "InvokeAI"}
_EXPECTED = "expected a PNG that `dsas generate` wrote, or the settings beside it (.json)"


def encode_picture(picture: Image.Image, settings: Mapping[str, Any], suffix: str = ".png") -> bytes:
    """Encode a picture as the content of a file.

    Args:
        picture: the picture.
        settings: how it was drawn; the file has it: a PNG in its text chunk "dsas", the others in their Exif data.
        suffix: of the file, a key of IMAGE_FORMATS.

    Example:
        >>> from dsas_diffusion.generation.settings import Settings
        >>> made = PictureSettings("builtin:emoji", "a dog", 7, Settings(12, 3.0))
        >>> read_settings(encode_picture(Image.new("RGB", (8, 8)), made.to_dict())) == made
        True
    """
    options: dict[str, Any] = {"quality": 95}
    if suffix == ".png":
        note = PngImagePlugin.PngInfo()
        note.add_text(KEYWORD, as_json(settings))
        note.add_text(PNG_KEYWORD, UNSIGNED)
        options = {"pnginfo": note}
    else:
        options["exif"] = exif_of(settings)
    content = io.BytesIO()
    picture.convert("RGB").save(content, IMAGE_FORMATS[suffix], **options)
    return sign(content.getvalue())


def exif_of(settings: Mapping[str, Any]) -> bytes:
    """Exif data with the settings as a description, as far as they find room, and a place for the signature."""
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = UNSIGNED
    description = json.dumps({key: value for key, value in settings.items() if key != SIGNATURE})
    if len(description) < _LONGEST_DESCRIPTION:
        exif[ExifTags.Base.ImageDescription] = description
    return exif.tobytes()


# ---- read back ------------------------------------------------------------------------------------------------------


def read_settings(source: str | Path | bytes | BinaryIO) -> PictureSettings:
    """How a picture was drawn, by its file; `dsas generate --from` draws it again.

    Args:
        source: path, content or open file of a PNG that `dsas generate` or the demo wrote, or of the JSON beside it.
            It may be from anybody: all of it is checked.

    Raises:
        ArtifactError: no such file; another kind of file, a damaged one, one without settings, one of several pictures.

    Example:
        >>> read_settings(b"GIF89a")
        Traceback (most recent call last):
        dsas_core.errors.ArtifactError: this file is no picture that can be read, or a damaged one: ...
    """
    drawn = read_all_settings(source)
    if len(drawn) > 1:
        raise ArtifactError(
            f"{_name(source)} shows {len(drawn)} pictures: take the file of one of them, or `dsas generate --from`"
        )
    return drawn[0]


def read_all_settings(source: str | Path | bytes | BinaryIO) -> list[PictureSettings]:
    """As `read_settings`, of each of the pictures that a file shows."""
    return settings_in(read_document(source), _name(source))


def settings_in(document: Mapping[str, Any], name: str) -> list[PictureSettings]:
    """The settings in a document that `read_document` has read from a file of that name."""
    if "pictures" not in document:
        raise ArtifactError(f"{name} is a sheet of another command than `dsas generate` or `dsas grid`: {_EXPECTED}")
    kind = document.get("kind", PICTURE)
    if kind != PICTURE:
        raise ArtifactError(
            f"{name} shows {quote(kind)}, which is drawn beside a picture: take the file of the picture"
        )
    try:
        return from_document(document)
    except ArtifactError as error:
        raise ArtifactError(f"{name} has {error}") from None


def read_document(source: str | Path | bytes | BinaryIO) -> dict[str, Any]:
    """The document with the settings in a file; what is in it has not been checked.

    Raises:
        ArtifactError: as for `read_settings`.
    """
    name, content = _name(source), _content(source)
    is_json = content.lstrip()[:1] == b"{"
    text = content if is_json else _text_of(content, name)
    try:
        document = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{name} has damaged settings: {shorten(str(error), 200)}; {_EXPECTED}") from None
    if not isinstance(document, dict):
        raise ArtifactError(f"{name} has settings that are no mapping: {_EXPECTED}")
    return document


def _name(source: object) -> str:
    named = source if isinstance(source, str | Path) else getattr(source, "name", None)
    return quote(str(named), 200) if isinstance(named, str | Path) else "this file"


def _content(source: str | Path | bytes | BinaryIO) -> bytes:
    name = _name(source)
    try:
        if isinstance(source, bytes):
            content = source
        elif isinstance(source, str | Path):
            path = Path(source).expanduser()
            if not path.is_file():
                found = "is a folder" if path.is_dir() else "is not there"
                raise ArtifactError(f"{name} {found}: {_EXPECTED}")
            with path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        else:
            content = source.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{name} cannot be read: {error}") from None
    if len(content) > MAX_BYTES:
        raise ArtifactError(f"{name} is larger than {MAX_BYTES // 2**20} MB, which no picture is: {_EXPECTED}")
    return content


def _text_of(content: bytes, name: str) -> str:
    """The settings in a PNG, which has to be whole."""
    try:
        picture = Image.open(io.BytesIO(content))
    except Exception:  # Pillow raises a dozen kinds here
        raise ArtifactError(f"{name} is no picture that can be read, or a damaged one: {_EXPECTED}") from None
    with picture:
        if not isinstance(picture, PngImagePlugin.PngImageFile):
            raise ArtifactError(
                f"{name} is a {picture.format}, from which no settings are read, as its pixels are not those that were "
                f"drawn: {_EXPECTED}"
            )
        if picture.width * picture.height > MAX_PIXELS:
            raise ArtifactError(f"{name} has {picture.width} × {picture.height} pixels: expected up to {MAX_PIXELS}")
        try:
            texts = dict(picture.text)  # loads the pixels, too, as texts may come behind them
            picture.load()
        except Exception as error:
            raise ArtifactError(f"{name} is damaged or cut short ({shorten(str(error), 100)}): {_EXPECTED}") from None
    if KEYWORD in texts:
        return str(texts[KEYWORD])
    for keyword, tool in _OTHERS.items():
        if keyword in texts:
            raise ArtifactError(f"{name} has settings of {tool} (a text {keyword!r}), not of dsas: {_EXPECTED}")
    raise ArtifactError(f"{name} has no settings of dsas: an editor or website may have removed them; {_EXPECTED}")
