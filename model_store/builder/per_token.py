"""int8 products whose activations get a scale of their own for every token, taken from the token as it comes.

A scale that spans the batch makes a text's answer depend on its batch-mates, and one token with large values makes all
others coarse. With a scale for each row neither happens, and nothing has to be calibrated:
`y_t = s_t · (round(x_t / s_t) Wq) · s_w + b` with `s_t = max|x_t| / 127` for token t and `s_w` for each column of W.
A number that is infinite stays so; one that is none is lost in the rounding.

Source: Yao et al., "ZeroQuant" (NeurIPS 2022), section 4.1: token-wise quantisation of activations.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization.onnx_model import ONNXModel

_ZERO_POINT = 128
_DOMAIN = "com.microsoft"


def quantize_per_token(source: Path, target: Path, largest_weight: int) -> None:
    """Write the float32 model `source` with every product by a constant matrix in int8.

    Args:
        source: an ONNX file.
        target: where to.
        largest_weight: the weights' range, -n to n.
    """
    wrapped = ONNXModel(onnx.load(str(source)))
    wrapped.replace_gemm_with_matmul()
    model = wrapped.model
    version = next(opset.version for opset in model.opset_import if not opset.domain)
    _Surgery(model.graph, version, largest_weight).operate()
    if all(opset.domain != _DOMAIN for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    onnx.save(model, str(target))


class _Surgery:
    """Replaces a graph's products one by one; products of the same activations share these in int8."""

    def __init__(self, graph: onnx.GraphProto, version: int, largest_weight: int) -> None:
        self._graph, self._version = graph, version
        self._largest = largest_weight
        self._matrices = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}
        self._rows = {
            entry.name: entry.type.tensor_type.shape.dim[0].dim_param or entry.name
            for entry in graph.value_info
            if len(entry.type.tensor_type.shape.dim) == 2
        }
        """Values that are matrices, and what their number of rows is called."""
        self._constants: dict[str, onnx.TensorProto] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._quantized: set[str] = set()
        self._zero_points: set[str] = set()
        self._replaced: set[str] = set()

    def operate(self) -> None:
        for node in self._graph.node:
            if node.op_type == "MatMul" and node.input[1] in self._matrices:
                self._replace(node)
            else:
                self._nodes.append(node)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        used = {name for node in self._nodes for name in node.input} | {entry.name for entry in self._graph.output}
        gone = self._replaced - used
        kept = [tensor for tensor in self._graph.initializer if tensor.name not in gone]
        del self._graph.initializer[:]
        self._graph.initializer.extend([*kept, *self._constants.values()])

    def _replace(self, node: onnx.NodeProto) -> None:
        values, weights = node.input
        self._replaced.add(weights)
        matrix = numpy_helper.to_array(self._matrices[weights]).astype(np.float32)
        scales = (np.abs(matrix).max(axis=0).clip(min=1e-9) / self._largest).astype(np.float32)
        if values not in self._quantized:
            self._quantized.add(values)
            self._quantize(values, matrix.shape[0])
        self._add(
            "MatMulIntegerToFloat",
            [
                f"{values}_int8",
                self._constant(f"{weights}_int8", np.rint(matrix / scales).astype(np.int8)),
                self._constant("per_token_one", np.float32(1)),
                self._constant(f"{weights}_scale", scales),
                self._constant("per_token_zero_point", np.uint8(_ZERO_POINT)),
            ],
            f"{node.output[0]}_unscaled",
            domain=_DOMAIN,
        )
        self._add("Mul", [f"{node.output[0]}_unscaled", f"{values}_scale"], node.output[0])

    def _quantize(self, values: str, width: int) -> None:
        """Activations `(…, width)` in int8, and their scales `(…, 1)`.

        A token of zeros gets a scale of 0, and whatever it is rounded to is multiplied by that in the end. The
        operator that rounds takes one scale for each row of a matrix, so that the leading dimensions are folded, where
        there are several. Every operator costs a call some microseconds.
        """
        flat = self._constant("per_token_flat", np.array([-1], np.int64))
        self._add("Abs", [values], f"{values}_abs")
        self._add_maximum(f"{values}_abs", f"{values}_max")
        step = self._constant("per_token_step", np.float32(1 / 127))
        self._add("Mul", [f"{values}_max", step], f"{values}_scale")
        self._add("Reshape", [f"{values}_scale", flat], f"{values}_scales")
        if values in self._rows:
            zero_points = self._zero_points_of(f"{values}_scales", self._rows[values])
            self._add("QuantizeLinear", [values, f"{values}_scales", zero_points], f"{values}_int8", axis=0)
            return
        zero_points = self._zero_points_of(f"{values}_scales", values)
        rows = self._constant(f"per_token_rows_{width}", np.array([-1, width], np.int64))
        self._add("Reshape", [values, rows], f"{values}_rows")
        inputs = [f"{values}_rows", f"{values}_scales", zero_points]
        self._add("QuantizeLinear", inputs, f"{values}_int8_rows", axis=0)
        self._add("Shape", [values], f"{values}_shape")
        self._add("Reshape", [f"{values}_int8_rows", f"{values}_shape"], f"{values}_int8")

    def _zero_points_of(self, scales: str, count: str) -> str:
        """As many zero points as scales: the same for all values whose number of rows has this name."""
        name = f"{count}_zero_points"
        if name not in self._zero_points:
            self._zero_points.add(name)
            self._add("Shape", [scales], f"{count}_count")
            middle = numpy_helper.from_array(np.array([_ZERO_POINT], np.uint8))
            self._add("ConstantOfShape", [f"{count}_count"], name, value=middle)
        return name

    def _add_maximum(self, values: str, output: str) -> None:
        """Over the last axis, which is an input since version 18."""
        if self._version < 18:
            self._add("ReduceMax", [values], output, keepdims=1, axes=[-1])
        else:
            last = self._constant("per_token_last_axis", np.array([-1], np.int64))
            self._add("ReduceMax", [values, last], output, keepdims=1)

    def _add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> None:  # noqa: ANN401 - passed on to ONNX
        self._nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))

    def _constant(self, name: str, value: NDArray[np.generic] | np.generic) -> str:
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name
