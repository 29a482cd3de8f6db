"""Every error of the comparison."""

from model_store.errors import SuccessorError


class ComparisonError(SuccessorError):
    """The comparison could not be made."""


class TextsError(ComparisonError):
    """The texts can't be read, or don't fit the models."""


class LoadError(ComparisonError):
    """A server could not be reached, or answered with something other than what was asked for."""


class ServerStartError(ComparisonError):
    """A server that the comparison needs did not become ready."""


class MissingExtraError(ComparisonError):
    """The packages of the extra `compare` are not installed."""
