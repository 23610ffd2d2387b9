"""Concepts on the Hugging Face Hub, by the mixin that its libraries share.

A concept is frozen and its folder is written whole or not at all, so the mixin is no base class of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from ..errors import UnavailableError
from ..model.loading import is_hub_name


def upload(save: Callable[[Path], object], repository: str, **options: Any) -> str:
    """Upload a folder to a model repository; the address of the commit.

    Args:
        save: writes the folder.
        repository: user/name, or the name alone for the user's own.
        options: of `ModelHubMixin.push_to_hub`.
    """

    class Upload(huggingface_hub.ModelHubMixin, library_name="dsas"):
        def _save_pretrained(self, save_directory: Path) -> None:
            save(save_directory)

    return str(Upload().push_to_hub(repository, **options))


def download(name: str, files: Sequence[str], **options: Any) -> Path:
    """The folder of a concept on the Hub, downloaded where it is not in the cache.

    Args:
        name: user/name.
        files: names of the files that are wanted.
        options: of `huggingface_hub.snapshot_download`.

    Raises:
        UnavailableError: no such name, or the Hub gives nothing.
    """
    if not is_hub_name(name):
        raise UnavailableError(
            f"no concept at {name}: no such folder, and it is no Hub name (user/name) or built in (builtin:NAME)"
        )
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(files), **options))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnavailableError(f"no concept at {name}: no such folder, and the Hub gave none ({reason})") from None
