"""The one kind of error that is the user's to mend: a line that says what was found, what was expected, the way out."""


class DSASError(ValueError):
    """Bad input. Command lines print the message and exit with 1; nothing half-written is left behind."""
