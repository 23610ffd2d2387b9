"""Concepts on the Hugging Face Hub, by the mixin that its libraries share.

A concept is frozen and its folder is written whole or not at all, so the mixin is not a base of it but stands beside.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from .errors import DSASError
from .layout import FILES
from .pretrained import is_hub_name

if TYPE_CHECKING:
    from .concept import Concept


def upload(concept: Concept, repository: str, **options: Any) -> str:
    """The address of the commit that puts a concept's folder into a repository.

    Args:
        options: of `ModelHubMixin.push_to_hub`.
    """

    class Upload(huggingface_hub.ModelHubMixin, library_name="dsas"):
        def _save_pretrained(self, save_directory: Path) -> None:
            concept.save_pretrained(save_directory)

    return str(Upload().push_to_hub(repository, **options))


def download(name: str, **options: Any) -> Path:
    """The folder of a concept on the Hub, downloaded where it is not in the cache.

    Args:
        name: user/name. options: of `huggingface_hub.snapshot_download`.

    Raises:
        DSASError: no such name, or the Hub gives nothing.
    """
    if not is_hub_name(name):
        raise DSASError(
            f"no concept at {name}: no such folder, and it is no Hub name (user/name) or built in (builtin:NAME)"
        )
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(FILES), **options))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DSASError(f"no concept at {name}: no such folder, and the Hub gave none ({reason})") from None
