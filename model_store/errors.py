"""Every error that the store and the classifier raise; their messages say what to do, in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class SuccessorError(Exception):
    """Base of all expected errors: the command line prints it as one line and exits with 1."""

    param: str | None = None
    """The field of a request that is wrong, where that is known."""


class StoreError(SuccessorError):
    """Something about the model store, or a version in it, is not as asked for."""


class InvalidReferenceError(StoreError):
    """A model reference, name or alias is not well formed."""


class ModelNotFoundError(StoreError):
    """No model, version or alias of that name is in the store."""


class IntegrityError(StoreError):
    """A version's files are not what its manifest says: missing, changed, truncated or unreadable."""


class StoreWriteError(StoreError):
    """The store could not be written: read-only, full, or not permitted."""


class VersionInUseError(StoreError):
    """A version that an alias points at was asked to be removed."""


class ClassifierError(SuccessorError):
    """A classifier could not be made, or could not answer."""


class ProviderNotAvailableError(ClassifierError):
    """The asked-for execution provider is not in the installed ONNX Runtime."""


class RuntimeInstallationError(ClassifierError):
    """ONNX Runtime is not installed, or both its CPU and GPU packages are."""


class InvalidTextError(ClassifierError):
    """A text, or a pair of texts, that this model does not accept."""


class TextTooLongError(InvalidTextError):
    """A text has more tokens than the model reads, and truncation was refused."""


class InferenceError(ClassifierError):
    """ONNX Runtime failed on a batch, or returned logits that are not finite."""


def first_problem(error: ValidationError) -> tuple[str, str]:
    """Where the first thing is that is wrong, a dotted path or nothing, and what it is; no value is quoted."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")


def one_line(error: BaseException) -> str:
    """What an error says, in one line; its kind, where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
