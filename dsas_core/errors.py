"""Errors that the user can fix: each is one line that says what was found, what was expected, and the way out."""


class DSASError(ValueError):
    """Bad input of any kind; the base of all errors that this project raises on purpose.

    Commands print the message and exit with 1; no half-written file is left behind.

    Example:
        >>> from dsas_core import Concept
        >>> try:
        ...     Concept.from_pretrained("builtin:none")
        ... except DSASError as error:
        ...     type(error).__name__
        'UnavailableError'
    """


class PromptError(DSASError):
    """A prompt, prompt file or labelled data set that cannot be used."""


class ArtifactError(DSASError):
    """A concept's folder, or another file of this project, that is missing, damaged, or of an unknown format."""


class ModelMismatchError(DSASError):
    """A concept or setting that belongs to another model than the given one."""


class UnsupportedError(DSASError):
    """Something that is not supported, or not in this combination; the message names an alternative."""


class UnavailableError(DSASError):
    """Something that is missing: a package, a download, a part of a pipeline, a device."""
