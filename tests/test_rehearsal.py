from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from model_store.builder.errors import BuildError, ExportError, WeightsError
from model_store.builder.layers import ReplaceableLayers, keep_layers, set_layers, stack_of
from model_store.builder.loading import load_classifier, logits_of, ordinary_ids, save_classifier
from model_store.builder.operators import distill, drop_layers, theseus
from model_store.builder.plan import make_plan
from model_store.builder.recipe import resolve
from model_store.builder.rehearsal import check_architecture
from model_store.builder.step import StepContext, StepParameters
from model_store.builder.weights import OFFSET_POSITIONS, inspect_weights
from tests.tiny_torch import ARCHITECTURES, Recorder, tiny_config, tiny_document

if TYPE_CHECKING:
    from transformers import PretrainedConfig

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}


def config_of(family: str, **changes: Any) -> PretrainedConfig:  # noqa: ANN401 - whatever a family is told
    """A tiny model of 6 layers of a family that the other tests don't train."""
    own: dict[str, dict[str, Any]] = {
        "modernbert": {"local_attention": 4},
        "longformer": {"attention_window": 4},
        "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
        "opt": {"ffn_dim": 32},
        "mistral": {"num_key_value_heads": 2},
    }
    shape: dict[str, Any] = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2}
    size = {"intermediate_size": 32, "max_position_embeddings": 40}
    return AutoConfig.for_model(family, **(shape | size | SPECIAL | own.get(family, {}) | changes))


def dropping(strategy: drop_layers.Strategy) -> drop_layers.Parameters:
    return drop_layers.Parameters(operator="drop_layers", layers=2, strategy=strategy)


def replacing(initialisation: str) -> theseus.Parameters:
    training = {"epochs": 1, "learning_rate": 1e-3, "initialisation": initialisation}
    return theseus.Parameters.model_validate({"operator": "theseus", "layers": 2, **training})


@pytest.fixture
def context(tmp_path: Path) -> StepContext:
    return make_plan(resolve(tiny_document(tmp_path), tmp_path)).context(Recorder(), tmp_path)


def rehearse(config: PretrainedConfig, context: StepContext, *steps: StepParameters) -> None:
    folder = context.scratch / "weights"
    config.save_pretrained(folder)
    check_architecture(folder, steps, context)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_architectures_that_are_built_pass_whatever_their_layers_go_through(
    context: StepContext, architecture: str
) -> None:
    config = tiny_config(architecture, 8)
    again = distill.Parameters(operator="distill", layers=1, epochs=1, learning_rate=1e-3)
    rehearse(config, context, replacing("spread"), again)
    rehearse(config, context, dropping("bottom"))


def test_nothing_of_a_rehearsal_is_left(context: StepContext) -> None:
    before = {path.name for path in context.scratch.iterdir()}
    rehearse(tiny_config(), context, dropping("top"))
    assert {path.name for path in context.scratch.iterdir()} == before | {"weights"}


@pytest.mark.parametrize("step", [dropping("bottom"), replacing("spread")], ids=["drop_layers", "theseus"])
def test_a_layer_that_its_place_makes_another_one_is_refused_with_what_would_do(
    context: StepContext, step: StepParameters
) -> None:
    with pytest.raises(WeightsError, match=rf"^steps\.0\.{step.operator}: .* is another model when it is read back"):
        rehearse(config_of("modernbert", global_attn_every_n_layers=3), context, step)


@pytest.mark.parametrize("step", [dropping("top"), replacing("first")], ids=["drop_layers", "theseus"])
def test_its_first_layers_may_be_kept(context: StepContext, step: StepParameters) -> None:
    rehearse(config_of("modernbert", global_attn_every_n_layers=3), context, step)


def test_which_layers_contribute_is_not_known_before_so_that_a_choice_with_gaps_must_do(context: StepContext) -> None:
    assert dropping("contribution").kept_layers(6) == (0, 2)
    with pytest.raises(WeightsError, match=r"keep the first ones \(strategy: top"):
        rehearse(config_of("modernbert", global_attn_every_n_layers=2), context, dropping("contribution"))


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("longformer", {}, "longformer reads attention_mask, global_attention_mask, input_ids"),
        ("fnet", {}, "optimum can't export a classifier of the architecture fnet"),
        ("qwen3", {"num_key_value_heads": 2}, "can't be read back: take another model"),
        ("llama", {"pad_token_id": None}, "can't be trained on padded texts: take another model: Cannot handle batch"),
    ],
)
def test_what_can_not_be_trained_exported_or_read_back_is_refused_in_one_line(
    context: StepContext, family: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BuildError) as refusal:
        rehearse(config_of(family, **changes), context, replacing("first"))
    assert isinstance(refusal.value, (WeightsError, ExportError))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("family", sorted(OFFSET_POSITIONS))
def test_positions_that_are_counted_after_paddings_id_are_as_many_as_the_model_has(tmp_path: Path, family: str) -> None:
    config = config_of(family, pad_token_id=1, bos_token_id=0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert inspect_weights(tmp_path).max_positions == 38
    model = AutoModelForSequenceClassification.from_config(config).eval()
    logits_of(model, ordinary_ids(model, 38))
    with pytest.raises(IndexError):
        logits_of(model, ordinary_ids(model, 39))


def test_a_text_that_is_longer_than_the_positions_is_tried(context: StepContext) -> None:
    longest = replace(context, inputs=context.inputs.model_copy(update={"max_length": 40}))
    rehearse(config_of("bert"), longest)
    with pytest.raises(WeightsError, match=r"^max_length: Data2VecText\w+ can't read 40 tokens: lower it, or"):
        rehearse(config_of("data2vec-text"), longest)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_neox", "opt"])
def test_a_layer_in_the_place_of_others_attends_to_its_own_keys_in_a_model_that_could_cache_them(
    context: StepContext, family: str
) -> None:
    folder = context.scratch / "weights"
    AutoModelForSequenceClassification.from_config(config_of(family, num_labels=2)).save_pretrained(folder)
    model = load_classifier(folder, context).eval()
    routed = ReplaceableLayers(stack_of(model), (0, 1, 2), (2, 2, 2))
    set_layers(model, routed)
    routed.training = True
    ids = torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    for gates in ([True, False, True], [False, True, False]):
        routed.gates = gates
        with torch.no_grad():
            assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids, use_cache=False).logits)
    rehearse(config_of(family), context, replacing("first"))


def test_what_was_trained_is_compared_with_what_is_read_back(context: StepContext, tmp_path: Path) -> None:
    folder, output = tmp_path / "parent", tmp_path / "output"
    config = config_of("modernbert", num_labels=2, global_attn_every_n_layers=3, initializer_range=0.3)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    for kept in ((0, 1), (0, 4)):  # of both, the second has a window
        model = load_classifier(folder, context)
        keep_layers(model, kept)
        save_classifier(model, output, context)
    model = load_classifier(folder, context)
    keep_layers(model, (0, 3))
    with pytest.raises(WeightsError, match="ModernBertForSequenceClassification with these 2 layers is another model"):
        save_classifier(model, output, context)
