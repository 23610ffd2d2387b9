"""Errors that the user can mend: each is one line that says what was found, what was expected, and the way out."""


class DSASError(ValueError):
    """Bad input of any kind; the base of all errors that this project raises on purpose.

    Command lines print the message and exit with 1; nothing half-written is left behind.

    Example:
        >>> issubclass(PromptError, DSASError)
        True
    """


class PromptError(DSASError):
    """A prompt, prompt file or labelled data set that cannot be used as it is."""


class ArtifactError(DSASError):
    """A concept folder or another file of ours that is missing, damaged, or of a format that is not known."""


class ModelMismatchError(DSASError):
    """A concept or setting that belongs to another model than the one it was given to."""


class UnsupportedError(DSASError):
    """Something that this project cannot do, or not in this combination; the message names what can be done."""


class UnavailableError(DSASError):
    """Something that is needed but not there: a package, a download, a part of a pipeline, a device."""
