"""Batches without padding: everything but attention is computed for real tokens alone.

A batch `(batch, tokens)` is padded to its longest text. Products, normalisations and activations treat each token by
itself, so that they can be given the rows of all real tokens, `(rows, hidden)`, one text after another; only attention
needs the texts apart. Padding then costs next to nothing, and texts of any lengths can share a batch.

Rows go into attention and come out of it together with the transposition between `(tokens, heads)` and
`(heads, tokens)` that is there anyway: one `Gather` of rows of a head's size in place of a copy. So a batch without
padding takes no longer than before. Logits are the same numbers: nothing is added up in another order.

Source: Zhai et al., "ByteTransformer: A High-Performance Transformer Boosted for Variable-Length Inputs" (IPDPS 2023),
section III: zero padding removed everywhere but in attention.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

from model_store.classifier import PROVIDERS, largest_difference, open_session

MARK = "successor.unpadded"
"""The key in a file's metadata that says so."""

_ELEMENTWISE = {"Abs", "Add", "Cast", "Div", "Erf", "Gelu", "Identity", "Mul", "Pow", "Relu", "Sigmoid", "Sqrt", "Sub"}
_ELEMENTWISE |= {"Neg", "Reciprocal", "Tanh"}
_SPLIT_HEADS, _SPLIT_HEADS_AND_TURN, _JOIN_HEADS = [0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]
# How many rows there are: the name of their axis in the values that products read, by which later passes know them.
_ROWS = "unpadded_rows"
_Shape = list[str | int | None]
# What the two files are compared with: texts of so many tokens, of ids that every vocabulary has.
_LENGTHS, _FEW_IDS = (2, 16, 5, 9), 5
_SAME_LOGITS = 1e-4


def write_unpadded(source: Path, target: Path) -> bool:
    """Write the classifier `source` so that it computes no padding; False, and no file, where nothing would be gained.

    Args:
        source: an ONNX file with the inputs `input_ids` and `attention_mask`, `(batch, tokens)`.
        target: where to.
    """
    model = onnx.load(str(source))
    if any(attribute.HasField("g") for node in model.graph.node for attribute in node.attribute):
        return False  # branches read values of the graph around them, as DeBERTa's second version does
    shapes = _inferred(model)
    if not {"input_ids", "attention_mask"} <= shapes.keys():
        return False
    graph = _Unpadded(model.graph, shapes)
    if not graph.products:
        return False
    graph.rewrite()
    model.metadata_props.add(key=MARK, value="1")
    onnx.save(model, str(target))
    if not _agree(source, target):
        target.unlink()
        return False
    return True


def is_unpadded(file: Path) -> bool:
    """Whether a file computes no padding."""
    return any(entry.key == MARK for entry in onnx.load(str(file), load_external_data=False).metadata_props)


def _agree(source: Path, target: Path) -> bool:
    """Whether two files give the same logits for a batch with much padding.

    A head that reads padded places, or a text's tokens in another order, would not notice anything in single texts.
    """
    ids = np.random.default_rng(0).integers(0, _FEW_IDS, (len(_LENGTHS), max(_LENGTHS)))
    mask = (np.arange(max(_LENGTHS)) < np.array(_LENGTHS)[:, np.newaxis]).astype(np.int64)
    feeds = {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}
    logits = []
    for file in (source, target):
        session = open_session(str(file), PROVIDERS["cpu"], 1)
        logits.append(session.run(None, {entry.name: feeds[entry.name] for entry in session.get_inputs()})[0])
    padded, unpadded = logits
    return bool(padded.shape == unpadded.shape) and largest_difference(unpadded, padded) <= _SAME_LOGITS


def _inferred(model: onnx.ModelProto) -> dict[str, _Shape]:
    """The shapes of a model's values as far as they can be told, axes of unknown size by their names."""
    try:
        known = SymbolicShapeInference.infer_shapes(model, auto_merge=True)
    except Exception:  # noqa: BLE001 - it fails in many ways on some architectures, which are then left as they are
        return {}
    entries = [*known.graph.value_info, *known.graph.input, *known.graph.output]
    return {
        entry.name: [axis.dim_param or axis.dim_value or None for axis in entry.type.tensor_type.shape.dim]
        for entry in entries
    }


class _Unpadded:
    """A graph on its way from `(batch, tokens, …)` to rows of real tokens."""

    def __init__(self, graph: onnx.GraphProto, shapes: dict[str, _Shape]) -> None:
        self._graph, self._shapes = graph, shapes
        self._axes = shapes["input_ids"]
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self._producers = {name: node for node in graph.node for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self._constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
            elif node.op_type == "Identity" and node.input[0] in self._constants:
                self._constants[node.output[0]] = self._constants[node.input[0]]
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._masks = self._made_of_the_mask()
        kept = {entry.name for entry in graph.output}
        self._rows = {node.output[0] for node in graph.node if self._is_by_row(node)} - kept
        """Values that become rows."""
        self._split = {
            node.output[0]: node.input[0]
            for node in graph.node
            if node.op_type == "Reshape" and node.input[0] in self._rows and self._splits_heads(node)
        }
        """What attention makes of rows, `(batch, tokens, heads, size)`."""
        for name in kept & self._split.keys():
            del self._split[name]
        self.products = sum(self._producers[name].op_type == "MatMul" for name in self._rows)
        """How many products are of real tokens alone."""
        self._made: set[str] = set()
        self._nodes: list[onnx.NodeProto] = []

    def rewrite(self) -> None:
        """Change the graph."""
        self._index()
        for node in self._graph.node:
            if node.output[0] in self._split:
                continue
            if node.op_type == "Transpose" and node.input[0] in self._split:
                self._scatter_heads(self._split[node.input[0]], node)
                continue
            if node.output[0] in self._rows:
                node.input[:] = [
                    name if name in self._constants or name in self._rows else self._packed(name) for name in node.input
                ]
            elif node.op_type == "Shape" and not node.attribute and node.input[0] in self._rows:
                node = helper.make_node("Identity", [self._padded_shape(self._width(node.input[0]))], node.output)  # noqa: PLW2901 - it takes the node's place
            else:
                node.input[:] = [self._padded(name) if name in self._rows else name for name in node.input]
            self._nodes.append(node)
        self._replace_nodes()

    # What becomes rows

    def _made_of_the_mask(self) -> set[str]:
        """Values that the attention mask alone decides: rows of real tokens would all have the same of them."""
        made = {"attention_mask"}
        for node in self._graph.node:
            values = [name for name in node.input if name not in self._constants]
            if values and made.issuperset(values):
                made.update(node.output)
        return made

    def _is_by_row(self, node: onnx.NodeProto) -> bool:
        """It makes of each token something by itself."""
        if len(node.output) != 1 or not self._is_of_tokens(node.output[0]):
            return False
        values = [name for name in node.input if name not in self._constants]
        if not values or not all(map(self._is_of_tokens, values)) or not self._masks.isdisjoint(values):
            return False
        constants = [self._constants[name] for name in node.input if name in self._constants]
        if node.op_type == "MatMul":
            return node.input[1] in self._constants and constants[0].ndim == 2
        if node.op_type == "LayerNormalization":
            return bool(self._attribute(node, "axis", -1) == -1)
        if node.op_type in {"ReduceMean", "ReduceMax"}:
            axes = self._attribute(node, "axes", constants[0].tolist() if constants else None)
            return bool(axes == [-1] and self._attribute(node, "keepdims", 1))
        return node.op_type in _ELEMENTWISE and all(constant.ndim <= 1 for constant in constants)

    def _is_of_tokens(self, name: str) -> bool:
        """Its shape is `(batch, tokens, n)`."""
        shape = self._shapes.get(name, [])
        return len(shape) == 3 and shape[:2] == self._axes and isinstance(shape[2], int)

    def _splits_heads(self, node: onnx.NodeProto) -> bool:
        """It makes `(batch, tokens, heads, size)`, and only turns of that are used."""
        shape = self._shapes.get(node.output[0], [])
        return (
            len(shape) == 4
            and shape[:2] == self._axes
            and isinstance(shape[2], int)
            and isinstance(shape[3], int)
            and all(
                reader.op_type == "Transpose"
                and self._attribute(reader, "perm", None) in (_SPLIT_HEADS, _SPLIT_HEADS_AND_TURN)
                for reader in self._readers.get(node.output[0], [])
            )
        )

    def _width(self, name: str) -> int:
        width = self._shapes[name][2]
        assert isinstance(width, int)  # noqa: S101 - see `_is_of_tokens`
        return width

    @staticmethod
    def _attribute(node: onnx.NodeProto, name: str, default: object) -> Any:  # noqa: ANN401 - as ONNX has it
        found = next((entry for entry in node.attribute if entry.name == name), None)
        value = default if found is None else helper.get_attribute_value(found)
        return list(value) if hasattr(value, "__iter__") else value

    # To rows and back

    def _index(self) -> None:
        """Where each row is in the padded batch, `(rows,)`, and which row each place has, `(batch · tokens,)`.

        A padded place has the row before it, a number like any other: the attention mask takes it out.
        """
        flat = self._constant("flat", [-1])
        mask = self._add("Reshape", ["attention_mask", flat], "mask")
        real = self._add("Cast", [mask], "real", to=onnx.TensorProto.BOOL)
        self._add("Reshape", [self._add("NonZero", [real], "found"), flat], "places")
        count = self._add("CumSum", [mask, self._constant("axis", 0)], "count")
        row = self._add("Sub", [count, self._constant("one", 1)], "row")
        self._add("Shape", ["input_ids"], "shape")
        self._add("Reshape", [row, "unpadded_shape"], "row_of")

    def _packed(self, name: str) -> str:
        """The rows of a padded value."""
        turned = self._joined_heads(name)
        if turned is not None:
            return self._gather_heads(name, turned)
        width = self._constant(f"width_{self._width(name)}", [-1, self._width(name)])
        flat = self._add("Reshape", [name, width], f"of_{name}_flat")
        return self._add("Gather", [flat, "unpadded_places"], f"of_{name}_rows", axis=0)

    def _padded(self, name: str) -> str:
        """A value of rows as it was."""
        rows = self._add("Gather", [name, "unpadded_row"], f"of_{name}_padded_rows", axis=0)
        return self._add("Reshape", [rows, self._padded_shape(self._width(name))], f"of_{name}_padded")

    def _padded_shape(self, width: int) -> str:
        return self._add(
            "Concat", ["unpadded_shape", self._constant(f"last_{width}", [width])], f"shape_{width}", axis=0
        )

    def _joined_heads(self, name: str) -> str | None:
        """What `name` is made of, `(batch, heads, tokens, size)`, if it is such a value turned and joined."""
        reshape = self._producers.get(name)
        turn = self._producers.get(reshape.input[0]) if reshape is not None and reshape.op_type == "Reshape" else None
        if turn is None or turn.op_type != "Transpose" or self._attribute(turn, "perm", None) != _JOIN_HEADS:
            return None
        batch, heads, tokens, size = self._shapes.get(turn.input[0]) or [None] * 4
        fits = isinstance(heads, int) and isinstance(size, int) and [batch, tokens] == self._axes
        return turn.input[0] if fits else None

    def _gather_heads(self, name: str, turned: str) -> str:
        """Rows `(rows, heads · size)` of `(batch, heads, tokens, size)`.

        Place `p = b·T + t` has its head h in row `b·H·T + h·T + t = p + b·T·(H-1) + h·T`.
        """
        _, heads, _, size = self._shapes[turned]
        tokens = self._add("Gather", ["unpadded_shape", self._constant("second", [1])], "tokens", axis=0)
        text = self._add("Div", ["unpadded_places", tokens], "text")
        start = self._add("Mul", [text, tokens], "text_start")
        more = self._add("Mul", [start, self._constant(f"other_heads_{heads}", int(heads or 1) - 1)], f"more_{heads}")
        first = self._add("Add", ["unpadded_places", more], f"first_{heads}")
        column = self._add("Unsqueeze", [first, self._constant("axis_1", [1])], f"first_column_{heads}")
        steps = self._add("Mul", [self._constant(f"heads_{heads}", range(int(heads or 1))), tokens], f"steps_{heads}")
        index = self._add("Add", [column, steps], f"out_of_{heads}")
        flat = self._add("Reshape", [turned, self._constant(f"size_{size}", [-1, size])], f"of_{turned}_heads")
        found = self._add("Gather", [flat, index], f"of_{name}_head_rows", axis=0)
        width = self._width(name)
        return self._add("Reshape", [found, self._constant(f"width_{width}", [-1, width])], f"of_{name}_rows")

    def _scatter_heads(self, name: str, turn: onnx.NodeProto) -> None:
        """From rows `(rows, heads · size)` what a reshape and `turn` made of them: `(batch, heads, tokens, size)`."""
        _, _, heads, size = self._shapes[turn.input[0]]
        row = self._add("Unsqueeze", ["unpadded_row_of", self._constant("axis_1", [1])], "row_of_text")
        first = self._add("Mul", [row, self._constant(f"head_count_{heads}", heads)], f"row_of_{heads}")
        number = self._constant(f"head_{heads}", np.arange(int(heads or 1)).reshape(1, -1, 1))
        index = self._add("Add", [first, number], f"into_{heads}")
        flat = self._add("Reshape", [name, self._constant(f"size_{size}", [-1, size])], f"of_{name}_by_{size}")
        if self._attribute(turn, "perm", None) == _SPLIT_HEADS:
            self._nodes.append(helper.make_node("Gather", [flat, index], turn.output, name=turn.output[0], axis=0))
            return
        apart = self._add("Gather", [flat, index], f"of_{name}_in_{heads}", axis=0)
        self._nodes.append(helper.make_node("Transpose", [apart], turn.output, name=turn.output[0], perm=[0, 1, 3, 2]))

    # Writing

    def _add(self, operator: str, inputs: list[str], name: str, **attributes: Any) -> str:  # noqa: ANN401 - passed on to ONNX
        """A new node, or the one that was made under this name."""
        name = f"unpadded_{name}"
        if name not in self._made:
            self._made.add(name)
            self._nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def _constant(self, name: str, value: Any) -> str:  # noqa: ANN401 - what numpy takes
        name = f"unpadded_{name}"
        if name not in self._made:
            self._made.add(name)
            array: NDArray[np.int64] = np.array(value, np.int64)
            self._graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def _replace_nodes(self) -> None:
        """Put the new nodes into the graph, without those that nothing needs any more."""
        needed = {entry.name for entry in self._graph.output}
        kept = []
        for node in reversed(self._nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(node.input)
        del self._graph.node[:]
        self._graph.node.extend(reversed(kept))
        del self._graph.value_info[:]
        products = [node for node in kept if node.op_type == "MatMul" and node.output[0] in self._rows]
        factors = {node.input[0]: node.input[1] for node in products}
        for name, weights in factors.items():
            kind = helper.np_dtype_to_tensor_dtype(self._constants[weights].dtype)
            shape = [_ROWS, self._constants[weights].shape[0]]
            self._graph.value_info.append(helper.make_tensor_value_info(name, kind, shape))
