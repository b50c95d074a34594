"""Every error a user can meet, as one small tree.

An error is written for the one who must act: what was found and where, what was expected, and a
``hint`` where there is a next step. ``cli`` prints it without a traceback; anything outside this
tree is a defect and keeps its traceback.
"""

from mmrlhf_engine._core import CoreError
from mmrlhf_engine._core import InputError as CoreInputError

__all__ = [
    "ConfigError",
    "CoreError",
    "CoreInputError",
    "InputError",
    "MissingExtraError",
    "MmrlhfError",
    "StageError",
    "describe_error",
]


class MmrlhfError(Exception):
    """Root of the errors raised in Python; ``hint`` is printed on a line of its own."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}\n\nhint: {self.hint}" if self.hint else message


class ConfigError(MmrlhfError):
    """A setting is unknown, has the wrong type or does not fit another one."""


class InputError(MmrlhfError):
    """A file or table that a stage needs is absent, empty or not of the promised form."""


class MissingExtraError(MmrlhfError):
    """A stage needs packages that the base install leaves out."""

    def __init__(self, package: str, *, extra: str, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs the package {package}, which is not installed",
            hint=f"pip install 'mmrlhf-engine[{extra}]'",
        )


class StageError(MmrlhfError):
    """A stage broke one of its own promises; its output is not to be trusted."""


def describe_error(error: BaseException) -> str | None:
    """The text to print for an error a user can act on, or None for a defect."""
    if isinstance(error, MmrlhfError | CoreInputError | OSError):
        return str(error)
    return None
