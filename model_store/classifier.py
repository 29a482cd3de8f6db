"""The one way to turn texts into scores: the build's gate and the server run the same `OnnxClassifier`."""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from model_store.encoding import EncodedText, TextEncoder, TextItem
from model_store.errors import (
    ClassifierError,
    InferenceError,
    ProviderNotAvailableError,
    RuntimeInstallationError,
    one_line,
)
from model_store.extras import remedy
from model_store.manifest import TOKENIZER_FILE, Artifact, Manifest, ScoreContract, Side
from model_store.seats import Seats
from model_store.store import StoredVersion

if TYPE_CHECKING:
    import onnxruntime

Logits = NDArray[np.float32]
Scores = NDArray[np.float32]

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# How long the threads of a session with several spin after a call, waiting for the next one.
SPIN_US = 5_000
_REQUIRED_INPUTS = {"input_ids", "attention_mask"}
_OPTIONAL_INPUTS = {"token_type_ids"}
# An ONNX model that gives back its input of one number: what a provider is tried with.
_IDENTITY = (
    b'\x08\x08:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)
_RUNTIME_PACKAGES = ("onnxruntime", "onnxruntime-gpu")


class Classifier(Protocol):
    """What the server's batcher and the build's gate need of a model."""

    @property
    def manifest(self) -> Manifest:
        """The version that answers."""
        ...

    @property
    def artifact(self) -> Artifact:
        """The file of the version that answers."""
        ...

    def encode(self, item: TextItem, *, truncate: bool = True, side: Side | None = None) -> EncodedText:
        """Encode one item; see `TextEncoder.encode`."""
        ...

    def run(self, batch: Sequence[EncodedText]) -> Logits:
        """Logits `(batch, labels)` of encoded items, padded to the longest; safe to call from several threads."""
        ...


class OnnxClassifier:
    """One file of a version in an ONNX Runtime session, with its tokenizer.

    Args:
        version: an opened (verified) version.
        provider: an execution provider of ONNX Runtime, as `choose_provider` returns it.
        intra_op_threads: threads inside one call; with 1, `run` computes on the calling thread. More of them spin
            within a call and for `SPIN_US` after it.
        artifact: the file to load; by default the manifest's choice for the provider.
        seats: where the threads of a call are kept, but for the calling one.
        io_binding: hand inputs and outputs to the provider without the runtime's own copies; by default, off the CPU.
    """

    def __init__(  # noqa: PLR0913 - each has a default that is right for most
        self,
        version: StoredVersion,
        *,
        provider: str = PROVIDERS["cpu"],
        intra_op_threads: int = 1,
        artifact: Artifact | None = None,
        seats: Seats | None = None,
        io_binding: bool | None = None,
    ) -> None:
        self.manifest = version.manifest
        self.artifact = artifact or version.manifest.artifact_for(provider)
        self._encoder = TextEncoder(version.folder / TOKENIZER_FILE, version.manifest.inputs)
        self._session = open_session(str(version.folder / self.artifact.file), provider, intra_op_threads, seats)
        self._bound = provider != PROVIDERS["cpu"] if io_binding is None else io_binding
        self._inputs = {entry.name for entry in self._session.get_inputs()}
        outputs = {entry.name for entry in self._session.get_outputs()}
        if self._inputs | _OPTIONAL_INPUTS != _REQUIRED_INPUTS | _OPTIONAL_INPUTS or "logits" not in outputs:
            raise ClassifierError(
                f"{self.artifact.file} reads {_listed(self._inputs)} and gives {_listed(outputs)}: a classifier reads"
                " input_ids, attention_mask and perhaps token_type_ids, and gives logits"
            )

    def encode(self, item: TextItem, *, truncate: bool = True, side: Side | None = None) -> EncodedText:
        """Encode one item; see `TextEncoder.encode`."""
        return self._encoder.encode(item, truncate=truncate, side=side)

    def run(self, batch: Sequence[EncodedText]) -> Logits:
        """Logits `(batch, labels)`, float32, of encoded items padded to the longest.

        Raises:
            InferenceError: the engine failed, or the shape of its answer is not `(batch, labels)`.
        """
        try:
            logits = self._compute(self._feeds(batch))
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise InferenceError(f"{self.manifest.id} failed on a batch of {len(batch)}: {one_line(error)}") from error
        expected = (len(batch), len(self.manifest.scores.labels))
        if logits.shape != expected:
            raise InferenceError(f"{self.manifest.id} answered with shape {logits.shape}, not {expected}")
        return np.asarray(logits, dtype=np.float32)

    def _compute(self, feeds: dict[str, NDArray[np.int64]]) -> Logits:
        if not self._bound:
            (logits,) = self._session.run(["logits"], feeds)
            return np.asarray(logits)
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        binding.bind_output("logits")
        self._session.run_with_iobinding(binding)
        (logits,) = binding.copy_outputs_to_cpu()
        return np.asarray(logits)

    def _feeds(self, batch: Sequence[EncodedText]) -> dict[str, NDArray[np.int64]]:
        lengths = [len(item) for item in batch]
        shape = (len(batch), max(lengths))
        ids, mask, types = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for row, (item, length) in enumerate(zip(batch, lengths, strict=True)):
            ids[row, :length] = item.input_ids
            mask[row, :length] = 1
            if any(item.token_type_ids):
                types[row, :length] = item.token_type_ids
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        return {name: feeds[name] for name in self._inputs}


def open_session(
    model: str, provider: str, intra_op_threads: int, seats: Seats | None = None
) -> onnxruntime.InferenceSession:
    """Open an ONNX file with the options that give right answers on every CPU; the rest as in `OnnxClassifier`.

    Raises:
        ClassifierError: ONNX Runtime can't load the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Without VNNI, u8×s8 products saturate in 16 bits and give wrong answers (onnxruntime issue 6004); this avoids it.
    options.add_session_config_entry("session.x64quantprecision", "1")
    # To wake another thread for every operator, or every call, takes longer than it saves. Without the second entry it
    # would go on spinning for some 40 ms after a call.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if intra_op_threads > 1 else "0")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
    if seats is not None:  # the runtime counts processors from 1
        places = ";".join(str(place + 1) for place in seats.others)
        options.add_session_config_entry("session.intra_op_thread_affinities", places)
    try:
        # On a CPU one kernel for residual, bias and normalisation is slower than three: a tenth of an int8 file's time.
        unwanted = ["SkipLayerNormFusion"] if provider == PROVIDERS["cpu"] else []
        session = onnxruntime.InferenceSession(model, options, providers=[provider], disabled_optimizers=unwanted)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise ClassifierError(f"ONNX Runtime can't load the model file: {one_line(error)}") from error
    if provider not in session.get_providers():  # it falls back to the CPU without an error
        raise ClassifierError(f"{provider} could not be started: check its driver and libraries, or choose another")
    return session


def installed_runtimes() -> list[str]:
    """The packages of ONNX Runtime that are installed."""
    return [package for package in _RUNTIME_PACKAGES if any(importlib.metadata.distributions(name=package))]


def check_runtime_installation(installed: Sequence[str] | None = None) -> None:
    """Refuse to go on unless exactly one package of ONNX Runtime is `installed` (by default, what is here).

    Raises:
        RuntimeInstallationError: none or both are; the message has the remedy.
    """
    installed = installed_runtimes() if installed is None else installed
    if not installed:
        raise RuntimeInstallationError(f"ONNX Runtime is not installed: {remedy('cpu', 'gpu')}")
    if len(installed) > 1:
        raise RuntimeInstallationError(
            f"{' and '.join(installed)} are both installed and overwrite each other:"
            f" pip uninstall -y {' '.join(installed)}, then {remedy('cpu', 'gpu')}"
        )


def installed_providers() -> list[str]:
    """The execution providers that the installed runtime was built with; whether they start is another question."""
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def provider_starts(provider: str) -> bool:
    """Whether an execution provider has what it needs on this machine: a driver, libraries, a device."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is missing is said in our own words
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            session = onnxruntime.InferenceSession(_IDENTITY, options, providers=[provider])
    except Exception:  # noqa: BLE001 - ONNX Runtime's exceptions share no base class
        return False
    return provider in session.get_providers()


def choose_provider(
    wanted: str, available: Sequence[str] | None = None, starts: Callable[[str], bool] = provider_starts
) -> str:
    """The execution provider for the setting `auto` (CUDA where it starts, else CPU), `cpu` or `cuda`.

    Args:
        wanted: the setting.
        available: what there is to choose from; by default, what the installed runtime was built with.
        starts: tells whether one can be used here.

    Raises:
        ProviderNotAvailableError: it isn't in the installed runtime, or does not start; the message lists those that
            are there.
    """
    available = installed_providers() if available is None else available
    known = {name: provider for name, provider in PROVIDERS.items() if provider in available}
    there = ", ".join(known) or "none that is known"
    chosen = wanted
    if wanted == "auto" and known:
        chosen = "cuda" if "cuda" in known and starts(known["cuda"]) else "cpu"
    if chosen not in known:
        raise ProviderNotAvailableError(f"execution provider {wanted!r} is not there: this runtime has {there}")
    if wanted == "cuda" and not starts(known["cuda"]):
        raise ProviderNotAvailableError(
            f"execution provider 'cuda' does not start: check its driver and libraries; this runtime has {there}"
        )
    return known[chosen]


def to_scores(logits: Logits, contract: ScoreContract) -> Scores:
    """Scores `(batch, labels)` from logits of the same shape, by the manifest's function.

    Raises:
        InferenceError: a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise InferenceError("the model answered with a number that is not finite")
    if contract.function == "softmax":
        # The ufuncs themselves: the methods that are named after them are Python around these, and take as long again.
        exponentials = np.exp(logits - np.maximum.reduce(logits, axis=-1, keepdims=True))
        return np.asarray(exponentials / np.add.reduce(exponentials, axis=-1, keepdims=True), dtype=np.float32)
    if contract.function == "sigmoid":
        # tanh does not overflow where exp does
        return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)), dtype=np.float32)
    return logits


def largest_difference(logits: Logits, reference: Logits) -> float:
    """Largest |Δlogit|, ÷ the reference's largest |logit| where that is above 1.

    A regression may answer with tens of thousands, of which float32 has seven digits. Where a logit is not finite, the
    difference is beyond every bound.
    """
    largest = float(np.finfo(np.float32).max)
    difference = float(np.nan_to_num(np.abs(logits - reference), nan=largest, posinf=largest).max())
    return difference / max(1.0, float(np.nan_to_num(np.abs(reference), nan=0.0, posinf=0.0).max()))


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
