"""The artifact: what `learn` returns, `steer` takes, and files and the Hub hold.

A concept folder has `config.json` (everything readable), `concept.safetensors` (the tensors) and `README.md` (a card
with the evidence), and with samples perhaps `strip.webp`; see `layout`. Nothing is ever unpickled.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ..errors import ArtifactError, ModelMismatchError
from ..model.fingerprints import difference, fingerprint, other_weights
from ..model.sites import Roots
from .builtin import folder_of
from .data import ConceptData
from .format import CARD, CONFIG, FILES, TENSORS, load_concept, save_concept
from .intervention import Intervention
from .samples import Samples

__all__ = ["CARD", "CONFIG", "FILES", "TENSORS", "Concept", "Intervention", "Samples"]

#: what models are -> their roots
_KINDS = {"a model that draws": {"unet", "transformer"}, "a language model": {"model", "encoder", "decoder"}}


@dataclass(frozen=True, eq=False, repr=False)
class Concept(ConceptData):
    """A learned direction of change and the knowledge of when to apply it; see `ConceptData` for its fields.

    Example:
        >>> concept = Concept.from_pretrained("builtin:banana-blur")
        >>> concept.with_unit(2 * concept.unit).unit / concept.unit
        2.0
    """

    def check(self, roots: Roots, *, force: bool = False) -> None:
        """Refuse a model of another architecture than the concept was learned on; warn of other weights.

        Args:
            roots: the model's root modules by name.
            force: accept another architecture; roots that are missing are refused all the same.

        Raises:
            ModelMismatchError: another kind of model, a root that it lacks, or another architecture.
        """
        missing = [root for root in self.base if root not in roots]
        model = self.provenance.get("model", "another kind of model")
        own, kind = _kind(self.base), _kind(roots)
        if missing and own and kind and own != kind:
            raise ModelMismatchError(
                f"concept {self.name!r} is of {own}, and this is {kind}: use it on such a one as it was learned "
                f"on ({model})"
            )
        if missing:
            there = ", ".join(roots)
            raise ModelMismatchError(
                f"concept {self.name!r} steers {', '.join(missing)}, which this model lacks (it has {there}), and was "
                f"learned on {model}: use it on such a one"
            )
        if force:
            return
        for root, wanted in self.base.items():
            found, known = fingerprint(roots[root]), self.learned_on.get(root, {})
            if found != wanted:
                here = [item for item in self.interventions if item.site.root == root]
                widths = {item.site: item.width for item in here if item.width is not None}
                raise ModelMismatchError(
                    f"concept {self.name!r} was learned on another {root} than this, that of {model} "
                    f"(fingerprint {wanted}, this one is {found}): {difference(root, roots[root], widths, known)}; "
                    "learn it on this model, or pass force=True if you know that the layers agree"
                )
        others = [root for root, known in self.learned_on.items() if other_weights(roots[root], known)]
        if others:
            # raised from this line, whoever asks, so that Python's usual filter lets it pass once
            warnings.warn(
                f"concept {self.name!r} was learned on {model}, and this model has other weights in its "
                f"{', '.join(others)}: look at results before you rely on it, or calibrate it here",
                stacklevel=1,
            )

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the concept folder, whole or not at all.

        Args:
            folder: where; it is made where it is not there.
            overwrite: replace a concept that lies there. What is no concept is never replaced.

        Returns:
            The folder.

        Raises:
            ArtifactError: the folder is there and not empty, and `overwrite` was not given; or it holds no concept.
            DSASError: writing failed.
        """
        return save_concept(self, Path(folder), overwrite=overwrite)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, revision: str | None = None, token: str | None = None, **options: Any
    ) -> Self:
        """Read a concept from a folder, from the Hub by its repository name, or one that comes with the package.

        Args:
            name: a folder, a Hub name (user/name), or "builtin:NAME", see `shipped`.
            revision: branch, tag or commit on the Hub; None for the main branch.
            token: of the Hub; None for the one that is logged in.
            options: further ones of a download, as huggingface_hub knows them: cache_dir, local_files_only, …

        Raises:
            ArtifactError: what is there is damaged; the message names the file.
            UnavailableError: nothing is there.

        Example:
            >>> Concept.from_pretrained("builtin:banana-blur").name
            'banana-blur'
        """
        folder = folder_of(name)
        if folder.is_file():
            raise ArtifactError(f"{folder} is a file, not a concept's folder; a prompt file is to be learned first")
        if not folder.is_dir():
            from .hub import download

            folder = download(str(name), FILES, revision=revision, token=token, **options)
        return load_concept(cls, folder)

    def push_to_hub(self, repository: str, *, private: bool | None = None, **options: Any) -> str:
        """Upload the concept folder, samples and all, to a Hub model repository.

        Args:
            repository: user/name, or the name alone for the user's own.
            private: of a repository that is not there yet; None for what its owner's repositories usually are.
            options: as `huggingface_hub.ModelHubMixin.push_to_hub` knows them: token, commit_message, branch,
                create_pr, …

        Returns:
            The address of the commit.
        """
        from .hub import upload

        return upload(self.save_pretrained, repository, private=private, **options)


def _kind(roots: Iterable[str]) -> str:
    """What a model is, by the names of its roots; "" where they do not tell."""
    return next((kind for kind, known in _KINDS.items() if known & set(roots)), "")
