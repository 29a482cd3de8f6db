from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from model_store.builder.per_token import quantize_per_token

WIDTH, COLUMNS = 16, 3


@pytest.fixture
def weights() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(WIDTH, COLUMNS)).astype(np.float32)


def products(path: Path, weights: NDArray[np.float32], count: int = 1, version: int = 18) -> Path:
    """A graph that multiplies `x` by `count` matrices, the first of them `weights`."""
    names = [f"w{index}" for index in range(count)]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", name], [f"y{name[1:]}"]) for name in names],
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "tokens", WIDTH])],
        [helper.make_tensor_value_info(f"y{name[1:]}", TensorProto.FLOAT, None) for name in names],
        [numpy_helper.from_array(weights * (index + 1), name) for index, name in enumerate(names)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=10), str(path))
    return path


def run(path: Path, values: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [np.asarray(output) for output in session.run(None, {"x": values})]


@pytest.mark.parametrize("version", [17, 18])
def test_a_product_is_that_of_rounded_tokens_and_rounded_columns(
    tmp_path: Path, weights: NDArray[np.float32], version: int
) -> None:
    quantize_per_token(products(tmp_path / "in.onnx", weights, version=version), tmp_path / "out.onnx", 64)
    x = (np.random.default_rng(1).normal(size=(2, 5, WIDTH)) * np.logspace(-3, 3, 5)[:, None]).astype(np.float32)
    token = np.abs(x).max(axis=-1, keepdims=True) / 127
    column = np.abs(weights).max(axis=0) / 64
    exact = np.rint(x / token) @ np.rint(weights / column) * token * column
    (found,) = run(tmp_path / "out.onnx", x)
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-6)
    # Small tokens are as precise as large ones.
    error = np.abs(found - x @ weights).max(axis=-1) / np.abs(x).max(axis=-1)
    assert error.max() < 0.05


def test_a_tokens_product_does_not_depend_on_the_tokens_beside_it(tmp_path: Path, weights: NDArray[np.float32]) -> None:
    quantize_per_token(products(tmp_path / "in.onnx", weights), tmp_path / "out.onnx", 64)
    x = np.random.default_rng(2).normal(size=(1, 1, WIDTH)).astype(np.float32)
    crowd = np.concatenate([x, 1e4 * x, np.zeros_like(x)]).astype(np.float32)
    (alone,), (beside,) = (run(tmp_path / "out.onnx", values) for values in (x, crowd))
    assert np.array_equal(alone[0], beside[0])
    assert np.array_equal(beside[2], np.zeros((1, COLUMNS)))


def test_products_of_the_same_tokens_share_these_and_nothing_of_the_float_matrices_is_left(
    tmp_path: Path, weights: NDArray[np.float32]
) -> None:
    source = products(tmp_path / "in.onnx", weights, count=3)
    quantize_per_token(source, tmp_path / "out.onnx", 64)
    graph = onnx.load(str(tmp_path / "out.onnx")).graph
    operators = [node.op_type for node in graph.node]
    assert (operators.count("QuantizeLinear"), operators.count("MatMulIntegerToFloat")) == (1, 3)
    assert "MatMul" not in operators
    assert not any(tensor.name in {"w0", "w1", "w2"} for tensor in graph.initializer)
    matrices = [numpy_helper.to_array(one) for one in graph.initializer if one.data_type == TensorProto.INT8]
    assert [int(np.abs(matrix.astype(np.int32)).max()) for matrix in matrices] == [64, 64, 64]
    first, _, third = run(tmp_path / "out.onnx", np.ones((1, 2, WIDTH), np.float32))
    np.testing.assert_allclose(third, 3 * first, rtol=1e-5)


def test_products_of_two_computed_values_stay_as_they_are(tmp_path: Path, weights: NDArray[np.float32]) -> None:
    source = products(tmp_path / "in.onnx", weights)
    model = onnx.load(str(source))
    model.graph.node.append(helper.make_node("Transpose", ["x"], ["xt"], perm=[0, 2, 1]))
    model.graph.node.append(helper.make_node("MatMul", ["x", "xt"], ["scores"]))
    model.graph.output.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, None))
    onnx.save(model, str(source))
    quantize_per_token(source, tmp_path / "out.onnx", 64)
    x = np.random.default_rng(3).normal(size=(1, 4, WIDTH)).astype(np.float32)
    np.testing.assert_allclose(run(tmp_path / "out.onnx", x)[1], x @ x.transpose(0, 2, 1), rtol=1e-5)


def test_matrices_are_not_folded_and_share_their_zero_points(tmp_path: Path, weights: NDArray[np.float32]) -> None:
    """What is known to be a matrix needs six operators fewer for each value than what may have more axes."""
    model = onnx.load(str(products(tmp_path / "in.onnx", weights, count=2)))
    values = ("x", "negated", "other")
    model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["others", WIDTH]))
    del model.graph.input[0].type.tensor_type.shape.dim[0]  # of `x`
    model.graph.node.insert(0, helper.make_node("Neg", ["x"], ["negated"]))
    model.graph.node[2].input[0] = "negated"
    model.graph.node.append(helper.make_node("MatMul", ["other", "w0"], ["y2"]))
    model.graph.output.append(helper.make_tensor_value_info("y2", TensorProto.FLOAT, None))
    for name, rows in zip(values, ("tokens", "tokens", "others"), strict=True):
        model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, WIDTH]))
    onnx.save(model, str(tmp_path / "in.onnx"))
    quantize_per_token(tmp_path / "in.onnx", tmp_path / "out.onnx", 64)
    operators = [node.op_type for node in onnx.load(str(tmp_path / "out.onnx")).graph.node]
    assert [operators.count(name) for name in ("QuantizeLinear", "ConstantOfShape", "Reshape")] == [3, 2, 3]
    session = onnxruntime.InferenceSession(str(tmp_path / "out.onnx"), providers=["CPUExecutionProvider"])
    draw = np.random.default_rng(4)
    x, other = (draw.normal(size=(count, WIDTH)).astype(np.float32) for count in (5, 3))
    first, second, third = session.run(["y0", "y1", "y2"], {"x": x, "other": other})
    for found, exact in ((first, x @ weights), (second, -2 * x @ weights), (third, other @ weights)):
        assert np.abs(found - exact).max() < 0.15
