from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from model_store.builder.artifacts import open_candidate, read_artifacts
from model_store.builder.evaluate import run_classifier
from model_store.builder.layers import stack_of
from model_store.builder.operators import export
from model_store.builder.plan import make_plan
from model_store.builder.recipe import resolve
from model_store.builder.trimming import FirstPositionLayer, trim_last_layer
from tests.tiny_torch import ARCHITECTURES, Recorder, make_tiny_encoder, tiny_config, tiny_document

TRIMMED = [name for name in ARCHITECTURES if "deberta" not in name]
IDS = torch.tensor([[2, 5, 6, 7, 3, 0, 0], [2, 8, 9, 10, 11, 12, 3]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1] * 7])


def lively(architecture: str, **changes: object) -> PreTrainedModel:
    """A random classifier whose attention is far from even, so that a wrong mask or bias shows."""
    torch.manual_seed(0)
    config = tiny_config(architecture)
    config.update(changes)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(12)
    return model


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        padded: torch.Tensor = model(input_ids=IDS, attention_mask=MASK).logits
        whole: torch.Tensor = model(input_ids=IDS[1:], attention_mask=MASK[1:]).logits
    return torch.cat([padded, whole])


@pytest.mark.parametrize("architecture", TRIMMED)
def test_the_logits_stay_the_same_with_and_without_padding(architecture: str) -> None:
    model = lively(architecture)
    before = logits(model)
    assert (before[0] - before[1]).abs().max() > 0.01
    assert trim_last_layer(model)
    assert torch.allclose(logits(model), before, atol=1e-5)


@pytest.mark.parametrize("architecture", TRIMMED)
def test_the_last_layer_computes_position_0_alone_and_the_others_stay(architecture: str) -> None:
    model = lively(architecture)
    names = {name for name, _ in model.named_parameters()}
    trim_last_layer(model)
    shapes: list[torch.Size] = []
    *others, last = stack_of(model)
    assert isinstance(last, FirstPositionLayer)
    assert not any(isinstance(layer, FirstPositionLayer) for layer in others)
    last.register_forward_hook(lambda _module, _inputs, output: shapes.append(output[0].shape))
    logits(model)
    assert shapes == [torch.Size([2, 1, 16]), torch.Size([1, 1, 16])]
    assert len({name for name, _ in model.named_parameters()}) == len(names)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize(
    ("architecture", "changes"),
    [("deberta", {}), ("deberta-v2", {}), ("bert", {"position_embedding_type": "relative_key"})],
)
def test_an_attention_of_another_kind_is_left_as_it_is(architecture: str, changes: dict[str, object]) -> None:
    model = lively(architecture, **changes)
    before = list(stack_of(model))
    assert not trim_last_layer(model)
    assert list(stack_of(model)) == before


@pytest.mark.slow
def test_an_export_is_trimmed_unless_it_is_told_not_to_and_gives_the_same_logits(tmp_path: Path) -> None:
    plan = make_plan(resolve(tiny_document(tmp_path), tmp_path))
    parent = make_tiny_encoder(tmp_path / "classifier", labels=plan.data.labels)
    answers, figures = [], []
    for trim in (True, False):
        output, scratch = tmp_path / f"out-{trim}", tmp_path / f"scratch-{trim}"
        output.mkdir()
        scratch.mkdir()
        context = plan.context(Recorder(), scratch)
        parameters = export.Parameters.model_validate({"operator": "export"} | ({} if trim else {"trim": False}))
        figures.append(export.apply(parameters, parent, output, context))
        (artifact,) = read_artifacts(output)
        items = [row.item for row in plan.data.splits["dev"]]
        answers.append(run_classifier(open_candidate(output, artifact, context), items))
    assert [entry["trimmed"] for entry in figures] == [True, False]
    assert np.abs(answers[0] - answers[1]).max() <= 1e-5
    assert max(entry["parity"] for entry in figures) <= 1e-5


def test_an_architecture_without_a_list_of_layers_is_left_whole() -> None:
    config = AutoConfig.for_model(
        "albert",
        hidden_size=16,
        embedding_size=8,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=40,
    )
    assert not trim_last_layer(AutoModelForSequenceClassification.from_config(config))
