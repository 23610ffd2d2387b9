"""Concepts on the Hugging Face Hub, by the mixin of huggingface_hub.

The mixin is no base class of `Concept`, which is frozen and writes its folder as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from ..errors import UnavailableError, did_you_mean
from ..model.loading import is_hub_name


def upload(save: Callable[[Path], object], repository: str, **options: Any) -> str:
    """Upload a folder to a model repository.

    Args:
        save: writes the content into a folder.
        repository: user/name, or the name alone for one of the user's own.
        options: of `ModelHubMixin.push_to_hub`.

    Returns:
        The address of the commit.
    """

    class Upload(huggingface_hub.ModelHubMixin, library_name="dsas"):
        def _save_pretrained(self, save_directory: Path) -> None:
            save(save_directory)

    return str(Upload().push_to_hub(repository, **options))


def download(name: str, files: Sequence[str], known: Iterable[str] = (), **options: Any) -> Path:
    """Download a concept from the Hub, unless it is in the cache.

    Args:
        name: user/name.
        files: names of the files to download.
        known: other names, of which a message offers the nearest.
        options: of `huggingface_hub.snapshot_download`.

    Returns:
        The folder with the files.

    Raises:
        UnavailableError: no such repository, or it cannot be downloaded.

    Example:
        >>> download("banana", ["config.json"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        dsas_core.errors.UnavailableError: no concept at banana: no such folder, and it is no Hub name ...
    """
    if not is_hub_name(name):
        raise UnavailableError(
            f"no concept at {name}: no such folder, and it is no Hub name (user/name) or built in (builtin:NAME)"
            f"{did_you_mean(name, known)}"
        )
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(files), **options))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnavailableError(
            f"no concept at {name}: no such folder, and the Hub gave none ({reason}){did_you_mean(name, known)}"
        ) from None
