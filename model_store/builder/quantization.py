"""int8 candidates of a float32 ONNX file: made, measured as the server runs them, and the best one kept.

Weights are safe on processors without VNNI by construction. There, u8×s8 products are summed in pairs in 16 bits,
saturating: 2·255·127 overflows, 2·255·64 does not. So signed weights have a reduced range, which
`largest_signed_weight` verifies in the file itself; unsigned weights take a kernel that does not saturate. The proof
holds on any processor, whichever kind the build runs on.

Sources: Jacob et al., "Quantization and Training of Neural Networks" (2018); onnxruntime issues 6004 and 14642.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from model_store.builder.artifacts import (
    FP32_FILE,
    INT8_FILE,
    copy_artifacts,
    new_artifact,
    open_candidate,
    read_artifacts,
    write_artifacts,
)
from model_store.builder.data import sample
from model_store.builder.errors import QuantizeError
from model_store.builder.evaluate import latencies_alone, measured, run_classifier, times_under_load
from model_store.builder.operators.quantize import Candidate, Parameters
from model_store.builder.per_token import quantize_per_token
from model_store.builder.step import Figures, StepContext
from model_store.classifier import OnnxClassifier
from model_store.encoding import EncodedText, TextItem
from model_store.manifest import TOKENIZER_FILE, Artifact

LARGEST_SAFE_WEIGHT = 64
_SIGNED_PRODUCTS = {"MatMulInteger", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One candidate's row in the report."""

    method: str
    bytes: int
    dev_metric: float
    agreement: float
    batch_invariant: bool
    p50_ms: float
    """Of a text alone."""
    busy_ms: float
    """Of a text under load, see `times_under_load`."""
    rejected: str


def quantize(parameters: Parameters, parent: Path, output: Path, context: StepContext) -> Figures:
    """Copy the files that are there, write the best candidate as `int8.onnx`, and report on all of them.

    Raises:
        QuantizeError: none is good enough; the message has each one's reason.
    """
    _, *others = copy_artifacts(parent, output, but=INT8_FILE)
    exact = open_candidate(parent, read_artifacts(parent)[0], context)
    with tempfile.TemporaryDirectory(dir=context.scratch) as name:
        aside = Path(name)
        shutil.copyfile(parent / TOKENIZER_FILE, aside / TOKENIZER_FILE)
        workshop = _Workshop(parameters, exact, parent / FP32_FILE, aside, context)
        artifacts = workshop.measure([workshop.make(candidate) for candidate in parameters.candidates])
        verdicts = [_judge(parameters, artifacts[0], artifact, aside) for artifact in artifacts[1:]]
        chosen = choose(verdicts, parameters.near)
        if chosen is None:
            reasons = "; ".join(f"{verdict.method}: {verdict.rejected}" for verdict in verdicts)
            raise QuantizeError(
                f"no int8 candidate is good enough ({reasons}): relax the step's limits or leave it out"
            )
        winner = artifacts[1:][chosen]
        shutil.copyfile(aside / winner.file, output / INT8_FILE)
    write_artifacts(output, [artifacts[0], *others, winner.model_copy(update={"file": INT8_FILE})])
    return {
        "chosen": winner.method,
        "fp32_p50_ms": artifacts[0].latency[0].p50_ms,
        "candidates": [asdict(verdict) for verdict in verdicts],
    }


def choose(verdicts: Sequence[Verdict], near: float) -> int | None:
    """The position of the best candidate: of those that are about as fast as the fastest, the most faithful one."""
    passing = [index for index, verdict in enumerate(verdicts) if not verdict.rejected]
    if not passing:
        return None
    limit = min(verdicts[index].busy_ms for index in passing) * (1 + near)
    fast = [index for index in passing if verdicts[index].busy_ms <= limit]
    return max(fast, key=lambda index: (verdicts[index].agreement, -verdicts[index].busy_ms))


def largest_signed_weight(file: Path) -> int:
    """The largest |weight| in signed 8 bits that a product in the file uses; 0 where there is none."""
    graph = onnx.load(str(file)).graph
    signed = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    produced = {name: node for node in graph.node for name in node.output}
    largest = 0
    for node in graph.node:
        if node.op_type not in _SIGNED_PRODUCTS | {"MatMul", "Gemm"}:
            continue
        for name in node.input:
            source = produced.get(name)
            if (
                source is not None and source.op_type == "DequantizeLinear"
            ):  # QDQ: the runtime fuses it into the product
                name = source.input[0]  # noqa: PLW2901
            if name in signed:
                values: NDArray[Any] = onnx.numpy_helper.to_array(signed[name]).astype(np.int32)
                if values.ndim:  # zero points are scalars or vectors of zeros
                    largest = max(largest, int(np.abs(values).max()))
    return largest


class _Calibration(CalibrationDataReader):  # type: ignore[misc]  # the base class is untyped
    """Feeds texts one by one: alone, none is padded, so that padding does not widen a range."""

    def __init__(self, model: Path, classifier: OnnxClassifier, texts: Sequence[TextItem]) -> None:
        self._inputs = [entry.name for entry in onnx.load(str(model)).graph.input]
        self._encoded: Iterator[EncodedText] = (classifier.encode(text) for text in texts)

    def get_next(self) -> dict[str, NDArray[np.int64]] | None:
        text = next(self._encoded, None)
        if text is None:
            return None
        columns = {
            "input_ids": text.input_ids,
            "attention_mask": [1] * len(text),
            "token_type_ids": text.token_type_ids,
        }
        return {name: np.asarray([columns[name]], dtype=np.int64) for name in self._inputs}


class _Workshop:
    """Makes and measures the candidates of one float32 file in a folder aside."""

    def __init__(
        self, parameters: Parameters, exact: OnnxClassifier, model: Path, aside: Path, context: StepContext
    ) -> None:
        self._parameters, self._exact, self._aside, self._context = parameters, exact, aside, context
        self._prepared = aside / "prepared.onnx"
        # Symbolic shapes fail on exported models of several architectures, and nothing below needs them.
        quant_pre_process(str(model), str(self._prepared), skip_symbolic_shape=True)

    def make(self, candidate: Candidate) -> Artifact:
        """Write one candidate."""
        target = self._aside / f"{candidate}.onnx"
        if candidate.startswith("per-token"):
            source = self._prepared
            if self._parameters.embeddings:
                source = self._aside / "embeddings.onnx"
                quantize_dynamic(self._prepared, source, weight_type=QuantType.QUInt8, op_types_to_quantize=["Gather"])
            largest = LARGEST_SAFE_WEIGHT if self._parameters.target == "x86_64" else 127
            quantize_per_token(source, target, largest)
            return new_artifact(self._aside, target.name, "int8", candidate)
        signed = "u8s8" in candidate
        common: dict[str, Any] = {
            "weight_type": QuantType.QInt8 if signed else QuantType.QUInt8,
            "per_channel": signed,
            "reduce_range": signed and self._parameters.target == "x86_64",
            "op_types_to_quantize": ["MatMul", "Gemm"] + (["Gather"] if self._parameters.embeddings else []),
        }
        if candidate.startswith("dynamic"):
            quantize_dynamic(self._prepared, target, extra_options={"MatMulConstBOnly": True}, **common)
        else:
            texts = [row.item for row in self._context.data.splits["train"]]
            quantize_static(
                self._prepared,
                target,
                _Calibration(self._prepared, self._exact, sample(texts, self._parameters.calibration_rows)),
                quant_format=QuantFormat.QDQ if "qdq" in candidate else QuantFormat.QOperator,
                activation_type=QuantType.QUInt8,
                extra_options={"MatMulConstBOnly": "const" in candidate},
                **common,
            )
        return new_artifact(self._aside, target.name, "int8", candidate)

    def measure(self, made: Sequence[Artifact]) -> list[Artifact]:
        """The float32 file and every candidate with their dev figures and times, taken in turns."""
        dev = [row.item for row in self._context.data.splits["dev"]]
        logits = run_classifier(self._exact, dev)
        candidates = [open_candidate(self._aside, artifact, self._context) for artifact in made]
        figures = [self._exact.artifact]
        with self._context.progress.meter("quantize", len(candidates)) as meter:
            for done, classifier in enumerate(candidates, 1):
                figures.append(measured(classifier, self._context.data, logits))
                meter.advance(done, classifier.artifact.method)
        texts = sample(dev, self._parameters.timing_texts)
        alone = latencies_alone([self._exact, *candidates], texts)
        busy = times_under_load([self._exact, *candidates], texts)
        return [
            artifact.model_copy(update={"latency": (time.model_copy(update={"busy_ms": busy_ms}),)})
            for artifact, time, busy_ms in zip(figures, alone, busy, strict=True)
        ]


def _judge(parameters: Parameters, reference: Artifact, artifact: Artifact, folder: Path) -> Verdict:
    latency = artifact.latency[0]
    drop = reference.dev_metric - artifact.dev_metric
    weight = largest_signed_weight(folder / artifact.file)
    reasons = []
    if parameters.target == "x86_64" and weight > LARGEST_SAFE_WEIGHT:
        reasons.append(f"a signed weight of {weight} saturates on processors without VNNI")
    if artifact.agreement < parameters.min_agreement:
        reasons.append(f"agreement {artifact.agreement:.3f} is below {parameters.min_agreement}")
    if drop > parameters.max_metric_drop:
        reasons.append(f"the dev metric falls by {drop:.3f}, more than {parameters.max_metric_drop}")
    if parameters.max_megabytes is not None and artifact.bytes > parameters.max_megabytes * 1e6:
        reasons.append(f"{artifact.bytes / 1e6:.1f} MB is more than {parameters.max_megabytes}")
    return Verdict(
        method=artifact.method,
        bytes=artifact.bytes,
        dev_metric=artifact.dev_metric,
        agreement=artifact.agreement,
        batch_invariant=artifact.batch_invariant,
        p50_ms=latency.p50_ms,
        busy_ms=latency.p50_ms if latency.busy_ms is None else latency.busy_ms,
        rejected="; ".join(reasons),
    )
