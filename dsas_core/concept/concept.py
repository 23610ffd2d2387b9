"""The concept: what `learn` returns, `steer` takes, and files and the Hub hold.

A concept's folder has `config.json` (everything readable), `concept.safetensors` (the tensors), `README.md` (a card
with the evidence), and `strip.webp` if there are sample images; see `format`. Nothing is ever unpickled.
"""

from __future__ import annotations

import stat
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ..errors import ArtifactError, ModelMismatchError, UnavailableError, quote
from ..model.fingerprints import explain_difference, fingerprint, has_other_weights
from ..model.sites import Roots
from .builtin import folder_of, names_near
from .data import ConceptData
from .format import CARD, CONFIG, FILES, TENSORS, load_concept, save_concept
from .intervention import Intervention
from .samples import Samples

__all__ = ["CARD", "CONFIG", "FILES", "TENSORS", "Concept", "Intervention", "Samples"]

#: kind of model, for messages -> names of its roots
_KINDS = {"a model that draws": {"unet", "transformer"}, "a language model": {"model", "encoder", "decoder"}}


@dataclass(frozen=True, eq=False, repr=False)
class Concept(ConceptData):
    """A learned change of a model's behaviour and the knowledge of when to apply it.

    Its fields are those of `ConceptData`, which describes them.

    Example:
        >>> concept = Concept.from_pretrained("builtin:banana-blur")
        >>> concept.with_unit(2 * concept.unit).unit / concept.unit
        2.0
    """

    def check(self, roots: Roots, *, force: bool = False) -> None:
        """Refuse a model of another architecture than the concept was learned on; warn if it has other weights.

        Args:
            roots: the model's root modules by name.
            force: accept another architecture; missing roots are refused all the same.

        Raises:
            ModelMismatchError: another kind of model, a root that it lacks, or another architecture.

        Example:
            >>> Concept.from_pretrained("builtin:banana-blur").check({})  # doctest: +ELLIPSIS
            Traceback (most recent call last):
            dsas_core.errors.ModelMismatchError: concept 'banana-blur' steers ...
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
            raise ModelMismatchError(
                f"concept {self.name!r} steers {', '.join(missing)}, which this model lacks (it has "
                f"{', '.join(roots)}), and was learned on {model}: use it on such a one"
            )
        if force:
            return
        for root, wanted in self.base.items():
            actual, known = fingerprint(roots[root]), self.learned_on.get(root, {})
            if actual != wanted:
                here = [item for item in self.interventions if item.site.root == root]
                widths = {item.site: item.width for item in here if item.width is not None}
                raise ModelMismatchError(
                    f"concept {self.name!r} was learned on another {root} than this, that of {model} (fingerprint "
                    f"{wanted}, this one is {actual}): {explain_difference(root, roots[root], widths, known)}; "
                    "learn it on this model, or pass force=True if you know that the layers agree"
                )
        others = [root for root, known in self.learned_on.items() if has_other_weights(roots[root], known)]
        if others:
            # with the stack level of this line, whoever calls, so that Python's default filter shows it once
            warnings.warn(
                f"concept {self.name!r} was learned on {model}, and this model has other weights in its "
                f"{', '.join(others)}: look at results before you rely on it, or calibrate it here",
                stacklevel=1,
            )

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the concept's files into a folder, all or none of them.

        Whoever reads the folder finds the concept that was there or this one, also when the process is killed. Files
        that no save wrote stay; those that were changed since are kept as `NAME.old`, with a warning.

        Args:
            folder: the folder; it is created if it does not exist, and a link to one is followed.
            overwrite: replace a concept in this folder. Anything else is never replaced.

        Returns:
            The folder.

        Raises:
            ArtifactError: the folder is not empty, and `overwrite` was not given or it contains no concept; or the
                concept is one that could not be read again.
            DSASError: writing failed.

        Example:
            >>> import tempfile
            >>> concept = Concept.from_pretrained("builtin:banana-blur")
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     Concept.from_pretrained(concept.save_pretrained(f"{folder}/mine")) == concept
            True
        """
        return save_concept(self, Path(folder), overwrite=overwrite)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, revision: str | None = None, token: str | None = None, **options: Any
    ) -> Self:
        """Read a concept from a folder, from the Hub, or from those that come with the package.

        Args:
            name: a folder, a Hub name (user/name), or "builtin:NAME", see `dsas_core.shipped`.
            revision: branch, tag or commit on the Hub; None for the main branch.
            token: access token of the Hub; None for that of the logged-in user.
            options: further options of `huggingface_hub.snapshot_download`: cache_dir, local_files_only, …

        Returns:
            The concept, all of it checked.

        Raises:
            ArtifactError: a damaged file, or one of an unknown format; the message names it.
            UnavailableError: no such folder, built-in concept or repository.

        Example:
            >>> Concept.from_pretrained("builtin:banana-blur").name
            'banana-blur'
        """
        if not isinstance(name, str | Path):
            raise UnavailableError(f"no concept at {quote(name)}: expected a folder, a Hub name, or builtin:NAME")
        folder = folder_of(name)
        try:
            found = stat.S_IFMT(folder.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            found = 0
        except (OSError, ValueError) as error:  # no permission, or a name that no file can have
            raise UnavailableError(f"no concept at {quote(str(name))}: {error.args[-1]}") from None
        if found and not stat.S_ISDIR(found):
            raise ArtifactError(f"{folder} is a file, not a concept's folder; a prompt file is to be learned first")
        if not found:
            from .hub import download

            folder = download(str(name), FILES, names_near(folder), revision=revision, token=token, **options)
        return load_concept(cls, folder)

    def push_to_hub(self, repository: str, *, private: bool | None = None, **options: Any) -> str:
        """Upload the concept folder, samples and all, to a Hub model repository.

        Args:
            repository: user/name, or the name alone for the user's own.
            private: whether a new repository is private; None for its owner's default.
            options: further options of `huggingface_hub.ModelHubMixin.push_to_hub`: token, commit_message, branch,
                create_pr, …

        Returns:
            The address of the commit.
        """
        from .hub import upload

        return upload(self.save_pretrained, repository, private=private, **options)


def _kind(roots: Iterable[str]) -> str:
    """The kind of a model, by the names of its roots; "" where it is unknown."""
    return next((kind for kind, known in _KINDS.items() if known & set(roots)), "")
