from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model_store.builder.operators.drop_layers import (
    Parameters,
    Strategy,
    apply,
    kept_by_contribution,
    kept_by_place,
)
from model_store.builder.plan import make_plan
from model_store.builder.recipe import resolve
from model_store.builder.step import StepContext
from tests.tiny_torch import Recorder, make_tiny_encoder, tiny_document


def parameters(strategy: Strategy, layers: int = 2) -> Parameters:
    return Parameters(operator="drop_layers", strategy=strategy, layers=layers)


@pytest.fixture
def context(tmp_path: Path) -> StepContext:
    plan = make_plan(resolve(tiny_document(tmp_path), tmp_path))
    (tmp_path / "output").mkdir()
    return replace(plan.context(Recorder(), tmp_path))


@pytest.mark.parametrize(
    ("strategy", "count", "keep", "kept"),
    [
        ("top", 12, 6, (0, 1, 2, 3, 4, 5)),
        ("bottom", 12, 6, (6, 7, 8, 9, 10, 11)),
        ("alternate", 12, 6, (0, 2, 4, 6, 8, 10)),
        ("alternate", 12, 8, (0, 1, 2, 3, 4, 6, 8, 10)),  # the paper's even-alternate: 6, 8, 10 and 12 go
        ("alternate", 12, 3, (0, 4, 8)),
        ("alternate", 6, 3, (0, 2, 4)),
        ("symmetric", 12, 6, (0, 1, 2, 9, 10, 11)),
        ("symmetric", 6, 3, (0, 1, 5)),
    ],
)
def test_which_layers_stay_by_their_place(strategy: Strategy, count: int, keep: int, kept: tuple[int, ...]) -> None:
    assert kept_by_place(strategy, count, keep) == kept


def test_the_layers_that_change_their_input_least_go() -> None:
    assert kept_by_contribution([0.1, 0.9, 0.2, 0.95, 0.3, 0.8], 3) == (0, 2, 4)


def test_what_stays_is_the_parents_layers_and_head_as_they_were(tmp_path: Path, context: StepContext) -> None:
    parent = make_tiny_encoder(tmp_path / "parent", labels=context.data.labels)
    figures = apply(parameters("bottom"), parent, tmp_path / "output", context)
    before, after = load_file(parent / "model.safetensors"), load_file(tmp_path / "output" / "model.safetensors")
    assert figures == {"kept": [2, 3]}
    for name, tensor in after.items():
        source = name.replace("layer.0.", "layer.2.").replace("layer.1.", "layer.3.")
        assert torch.equal(tensor, before[source])
    assert len(after) < len(before)
    assert (tmp_path / "output" / "tokenizer.json").exists()


def test_a_layer_that_leaves_its_input_alone_contributes_nothing(tmp_path: Path, context: StepContext) -> None:
    parent = make_tiny_encoder(tmp_path / "parent", labels=context.data.labels)
    weights = load_file(parent / "model.safetensors")
    for name, tensor in weights.items():
        if "layer.1.attention.output.dense" in name or "layer.1.output.dense" in name:
            tensor.zero_()
        elif ".dense.weight" in name and "encoder" in name:
            tensor.mul_(20)
    save_file(weights, parent / "model.safetensors", metadata={"format": "pt"})
    figures = apply(parameters("contribution", 3), parent, tmp_path / "output", context)
    assert figures["kept"] == [0, 2, 3]
    assert figures["similarities"][1] == pytest.approx(1, abs=1e-4)
    assert all(value < 0.999 for index, value in enumerate(figures["similarities"]) if index != 1)
