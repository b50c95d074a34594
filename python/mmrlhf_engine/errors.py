"""Every error a user can meet, as one small tree; what the Rust core raises is part of it.

An error is written for the one who must act: what was found and where, what was expected, and a
``hint`` where there is a next step. ``cli`` prints it without a traceback. ``InternalError``, and
anything outside this tree, is a defect and keeps its traceback.
"""

__all__ = [
    "ConfigError",
    "ConflictError",
    "CorruptDataError",
    "FileDeniedError",
    "FileError",
    "FileMissingError",
    "InputError",
    "InternalError",
    "MissingExtraError",
    "MmrlhfError",
    "StageError",
    "describe_error",
]


class MmrlhfError(Exception):
    """Root of all errors of the package; ``hint`` is printed on a line of its own."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}\n\nhint: {self.hint}" if self.hint else message


class ConfigError(MmrlhfError):
    """A setting is unknown, has the wrong type or does not fit another one."""


class InputError(MmrlhfError):
    """An argument, a file or a table is absent, empty or not of the promised form."""


class CorruptDataError(MmrlhfError):
    """A file is damaged: a checksum, a length, a footer or a reference in it is wrong."""


class ConflictError(MmrlhfError):
    """Another process is writing, or has written what this one wanted to write."""


class FileError(MmrlhfError, OSError):
    """The operating system refused an operation on a file; ``errno`` is set where it gave one."""


class FileMissingError(FileError, FileNotFoundError):
    """A file or folder is not there."""


class FileDeniedError(FileError, PermissionError):
    """The permissions of a file or folder do not allow what was tried."""


class InternalError(MmrlhfError):
    """The code is wrong, whatever the input was; the message asks for a report."""


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
    if isinstance(error, MmrlhfError | OSError) and not isinstance(error, InternalError):
        return str(error)
    return None
