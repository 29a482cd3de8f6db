"""Batches without padding: the same logits from a graph that computes real tokens alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16

from model_store.builder.export import _export
from model_store.builder.per_token import quantize_per_token
from model_store.builder.trimming import trim_last_layer
from model_store.builder.unpadding import is_unpadded, write_unpadded
from tests.test_trimming import lively
from tests.tiny_torch import ARCHITECTURES

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

UNPADDED = [name for name in ARCHITECTURES if "deberta" not in name]
LENGTHS = (3, 12, 7, 5, 20)
Feeds = dict[str, NDArray[np.int64]]


def batch(lengths: tuple[int, ...] = LENGTHS, *, types: bool = False) -> Feeds:
    """Random ids, padded."""
    draw = np.random.default_rng(0)
    ids = np.zeros((len(lengths), max(lengths)), np.int64)
    mask = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = draw.integers(5, 40, length)
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask} | ({"token_type_ids": np.zeros_like(ids)} if types else {})


class File:
    """A model file in a session."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._inputs = [entry.name for entry in self._session.get_inputs()]

    def run(self, feeds: Feeds) -> NDArray[np.float32]:
        (logits,) = self._session.run(["logits"], {name: feeds[name] for name in self._inputs})
        return np.asarray(logits)

    def alone(self, feeds: Feeds) -> NDArray[np.float32]:
        """Each text of a batch by itself."""
        lengths = feeds["attention_mask"].sum(axis=1)
        return np.concatenate(
            [
                self.run({name: values[row : row + 1, :length] for name, values in feeds.items()})
                for row, length in enumerate(lengths)
            ]
        )


def exported(folder: Path, architecture: str, *, opset: int = 18, trim: bool = True) -> Path:
    model = lively(architecture)
    if trim:
        trim_last_layer(model)
    _export(model, folder, opset)
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="module")
def unpadded(padded: Path) -> Path:
    target = padded.with_name("unpadded.onnx")
    assert write_unpadded(padded, target)
    return target


@pytest.mark.parametrize("trim", [True, False])
@pytest.mark.parametrize("architecture", UNPADDED)
def test_logits_are_those_of_the_padded_graph_and_of_each_text_alone(
    tmp_path: Path, architecture: str, trim: bool
) -> None:
    source, target = exported(tmp_path, architecture, trim=trim), tmp_path / "unpadded.onnx"
    assert write_unpadded(source, target)
    feeds = batch(types=True)
    before, after = File(source), File(target)
    wanted = before.run(feeds)
    assert np.abs(wanted[0] - wanted[1]).max() > 0.001
    np.testing.assert_allclose(after.run(feeds), wanted, atol=1e-6)
    np.testing.assert_allclose(after.alone(feeds), wanted, atol=1e-6)


def test_normalisations_that_are_taken_apart_are_of_rows_too(tmp_path: Path) -> None:
    source, target = exported(tmp_path, "bert", opset=14), tmp_path / "unpadded.onnx"
    assert write_unpadded(source, target)
    assert any(node.op_type == "ReduceMean" for node in onnx.load(str(target)).graph.node)
    np.testing.assert_allclose(File(target).run(batch(types=True)), File(source).run(batch(types=True)), atol=1e-6)


def test_every_product_by_a_matrix_gets_as_many_rows_as_there_are_tokens(unpadded: Path) -> None:
    """But those of the last layer's first position and of the head, which have a row for each text."""
    model = onnx.load(str(unpadded))
    matrices = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    products = [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in matrices]
    for node in products:
        model.graph.output.append(helper.make_empty_tensor_value_info(node.input[0]))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rows = [array.size // array.shape[-1] for array in session.run(None, batch(types=True))[1:]]
    assert rows.count(sum(LENGTHS)) == 3 * 6 + 2
    assert set(rows) == {sum(LENGTHS), len(LENGTHS)}


def test_values_that_products_read_are_known_as_rows_by_what_is_made_of_the_file(
    unpadded: Path, tmp_path: Path
) -> None:
    quant_pre_process(str(unpadded), str(tmp_path / "prepared.onnx"), skip_symbolic_shape=True)
    quantize_per_token(tmp_path / "prepared.onnx", tmp_path / "int8.onnx", 64)
    operators = [node.op_type for node in onnx.load(str(tmp_path / "int8.onnx")).graph.node]
    # One of them for all rows, others for what is of each text.
    assert operators.count("ConstantOfShape") < operators.count("QuantizeLinear") / 2


def test_padding_is_put_back_for_attention_alone(unpadded: Path) -> None:
    names = [node.name for node in onnx.load(str(unpadded)).graph.node]
    again = [name for name in names if name.endswith("_padded_rows")]
    assert len(again) <= 2  # the trimmed layer's first position, and what reads the embeddings' shape


def test_what_is_in_padded_places_does_not_matter(padded: Path, unpadded: Path) -> None:
    feeds = batch(types=True)
    other = feeds | {"input_ids": np.where(feeds["attention_mask"] == 1, feeds["input_ids"], 9)}
    assert (File(unpadded).run(feeds) == File(unpadded).run(other)).all()


@pytest.mark.parametrize("lengths", [(1,), (2, 2, 2), (1, 24), (24, 1, 24)])
def test_any_lengths_share_a_batch(padded: Path, unpadded: Path, lengths: tuple[int, ...]) -> None:
    feeds = batch(lengths, types=True)
    np.testing.assert_allclose(File(unpadded).run(feeds), File(padded).run(feeds), atol=1e-6)


def test_the_mark_stays_in_all_that_is_made_of_the_file(padded: Path, unpadded: Path, tmp_path: Path) -> None:
    prepared, per_token, dynamic, half = (
        tmp_path / f"{name}.onnx" for name in ("prepared", "token", "dynamic", "half")
    )
    quant_pre_process(str(unpadded), str(prepared), skip_symbolic_shape=True)
    quantize_per_token(prepared, per_token, 64)
    quantize_dynamic(prepared, dynamic)
    onnx.save(convert_float_to_float16(onnx.load(str(unpadded)), keep_io_types=True), str(half))
    assert not is_unpadded(padded)
    assert all(map(is_unpadded, (unpadded, prepared, per_token, dynamic, half)))


@pytest.mark.parametrize("architecture", ["deberta", "deberta-v2"])
def test_a_graph_that_cannot_be_followed_is_left_as_it_is(tmp_path: Path, architecture: str) -> None:
    target = tmp_path / "unpadded.onnx"
    assert not write_unpadded(exported(tmp_path, architecture), target)
    assert not target.exists()


def test_a_graph_without_products_of_tokens_is_left_as_it_is(tmp_path: Path) -> None:
    shape = ["batch", "tokens"]
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, shape) for n in ("input_ids", "attention_mask")]
    table = numpy_helper.from_array(np.ones((50, 2), np.float32), "table")
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("ReduceMax", ["embedded"], ["logits"], axes=[1], keepdims=0),
    ]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    source, target = tmp_path / "source.onnx", tmp_path / "target.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "tiny", inputs, [output], [table])), str(source))
    assert not write_unpadded(source, target)
    assert not target.exists()


def hand_made(path: Path, nodes: list[onnx.NodeProto], *, extra: tuple[str, ...] = ()) -> Path:
    """A graph of a table, one product by a matrix, which gives `hidden`, and what a test adds to that."""
    draw = np.random.default_rng(0)
    constants: dict[str, NDArray[Any]] = {
        "table": draw.normal(size=(50, 4)).astype(np.float32),
        "matrix": draw.normal(size=(4, 4)).astype(np.float32),
        "axis_1": np.array([1], np.int64),
        "axis_2": np.array([2], np.int64),
        "starts": np.array([-1], np.int64),
        "ends": np.array([-100], np.int64),
        "backwards": np.array([-1], np.int64),
        "first": np.array(0, np.int64),
    }
    first = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("MatMul", ["embedded", "matrix"], ["product"]),
        helper.make_node("Relu", ["product"], ["hidden"]),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])]
    outputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "tokens", 4]) for name in extra]
    graph = helper.make_graph(
        first + nodes, "made", inputs, outputs, [numpy_helper.from_array(v, n) for n, v in constants.items()]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


def test_a_sum_that_is_weighed_by_the_mask_leaves_padding_out(tmp_path: Path) -> None:
    """As a head does that reads the mean of all tokens."""
    summed = [
        helper.make_node("Unsqueeze", ["attention_mask", "axis_2"], ["column"]),
        helper.make_node("Cast", ["column"], ["weights"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["hidden", "weights"], ["weighed"]),
        helper.make_node("ReduceSum", ["weighed", "axis_1"], ["logits"], keepdims=0),
    ]
    source, target = hand_made(tmp_path / "source.onnx", summed), tmp_path / "target.onnx"
    assert write_unpadded(source, target)
    wanted = File(source).run(batch())
    np.testing.assert_allclose(File(target).run(batch()), wanted, atol=1e-5)
    np.testing.assert_allclose(File(target).alone(batch()), wanted, atol=1e-5)


def test_a_graph_that_reads_padded_places_is_left_as_it_is(tmp_path: Path) -> None:
    """It turns each text around, so that padding comes first."""
    turned = [
        helper.make_node("Slice", ["hidden", "starts", "ends", "axis_1", "backwards"], ["turned"]),
        helper.make_node("Gather", ["turned", "first"], ["logits"], axis=1),
    ]
    target = tmp_path / "target.onnx"
    assert not write_unpadded(hand_made(tmp_path / "source.onnx", turned), target)
    assert not target.exists()


def test_a_part_of_a_shape_stays_that_part_and_further_outputs_stay_padded(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["hidden"], ["tokens"], start=1, end=2),
        helper.make_node("Cast", ["tokens"], ["count"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["hidden", "first"], ["head"], axis=1),
        helper.make_node("Mul", ["head", "count"], ["logits"]),
        helper.make_node("Tanh", ["hidden"], ["states"]),
    ]
    source, target = hand_made(tmp_path / "source.onnx", nodes, extra=("states",)), tmp_path / "target.onnx"
    assert write_unpadded(source, target)
    feeds = batch()
    np.testing.assert_allclose(File(target).run(feeds), File(source).run(feeds), atol=1e-5)
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    (states,) = session.run(["states"], feeds)
    assert np.asarray(states).shape == (*feeds["input_ids"].shape, 4)
