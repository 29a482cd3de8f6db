"""Every error that a build raises on purpose; their messages say what to do, in one line."""

from model_store.errors import SuccessorError


class BuildError(SuccessorError):
    """A build can't be done, or its result may not be published."""


class RecipeError(BuildError):
    """A recipe is not readable, has a key or value that is not allowed, or can't work."""


class BuildExtraError(BuildError):
    """The packages of the extra `build` are not installed."""


class LaunchError(BuildError):
    """It was started as one of several processes, and builds are one."""


class DataError(BuildError):
    """The data is not there, or not what the recipe says it is."""


class OverlapError(DataError):
    """Texts occur in more than one split, and the recipe refuses that."""


class FetchError(BuildError):
    """A package could not be fetched, or is not what the recipe pins."""


class NotFetchedError(FetchError):
    """A package is not in the cache, and fetching was not allowed."""


class WeightsError(BuildError):
    """Pretrained weights or their tokenizer are not usable for the recipe."""


class TrainingError(BuildError):
    """Training could not go on: the loss is not finite, or a checkpoint does not fit."""


class ExportError(BuildError):
    """A model could not be written as ONNX."""


class QuantizeError(BuildError):
    """No quantised candidate is good enough to be served."""


class WorkFolderError(BuildError):
    """The work folder is in use by another build, or can't be written."""


class GateFailedError(BuildError):
    """A threshold of the gate was not met: nothing was published."""


class StudyError(BuildError):
    """A study's records don't belong to it, or it has no such cell."""


class ComparisonFailedError(BuildError):
    """The demo's comparison of the two published models did not finish."""
