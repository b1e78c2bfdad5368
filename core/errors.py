"""Errors that are shown to the user as one sentence and, where there is one, a hint.

Everything a user can get wrong (a file, an argument, a model) raises a subclass of
`TTTUNetError`. The faces print `str(error)`; a traceback means a defect of ours.
"""


class TTTUNetError(Exception):
    """Something the user can mend.

    Args:
        message: one sentence that says what is wrong and where.
        hint: what to do about it, as one sentence.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class ImageError(TTTUNetError):
    """An image or label file cannot be read, or its axes make no sense."""


class ModelError(TTTUNetError):
    """A model is missing, damaged or does not fit the request."""


class DatasetError(TTTUNetError):
    """A training or evaluation data set is incomplete or inconsistent."""


class OutputError(TTTUNetError):
    """A result cannot be written: it exists already, no permission, no space."""


class Cancelled(TTTUNetError):
    """The user stopped the work; nothing was written."""
