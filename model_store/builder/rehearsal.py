"""Before anything is trained, what the steps do to a model's layers is done to one of random numbers.

What an architecture can't do would otherwise be seen after hours of training, or never, where a layer silently becomes
another one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.modeling_utils import no_init_weights

from model_store.builder.batches import Collator
from model_store.builder.errors import WeightsError
from model_store.builder.export import check_exportable
from model_store.builder.layers import ReplaceableLayers, keep_layers, set_layers, stack_of
from model_store.builder.loading import load_classifier, logits_of, ordinary_ids, quiet_libraries, save_classifier
from model_store.encoding import EncodedText
from model_store.errors import one_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from model_store.builder.step import StepContext, StepParameters

_TOKENS = 16


def check_architecture(folder: Path, steps: Sequence[StepParameters], context: StepContext) -> None:
    """See that the weights in a folder are a classifier's or can be given a head, and that the steps can be done to it.

    No weights are read. A model of random ones is run on a padded batch and on a text of as many tokens as it may have;
    where layers are dropped or replaced, it is saved and read back.

    Args:
        folder: as transformers saves it.
        steps: the recipe's.
        context: the task, and a scratch folder for a model.

    Raises:
        ExportError: optimum can't export it.
        WeightsError: transformers has no classifier of this architecture, its layers can't be found, or it can't be
            trained or read back as the steps have it.
    """
    quiet_libraries()
    try:
        config = AutoConfig.from_pretrained(folder, num_labels=len(context.scores.labels))
        with torch.device("meta"):  # no numbers: neither time nor memory
            model = AutoModelForSequenceClassification.from_config(config)
    except Exception as error:  # an unknown or broken configuration: many kinds
        raise WeightsError(
            f"predecessor: transformers can't make a classifier of {folder}: {one_line(error)}"
        ) from error
    changing = _changing(steps, config.num_hidden_layers)
    if changing:
        stack_of(model)
    check_exportable(model)
    model = _random_model(config)
    _try_texts(model, context)
    for index in changing:
        try:
            model = _try_step(model, steps[index], context)
        except WeightsError as error:
            raise WeightsError(f"steps.{index}.{steps[index].operator}: {error}") from error


def _changing(steps: Sequence[StepParameters], layers: int) -> list[int]:
    """Which steps change the layers of a model that has so many."""
    found = []
    for index, step in enumerate(steps):
        left = len(step.kept_layers(layers))
        if left != layers:
            found.append(index)
        layers = left
    return found


def _random_model(config: PretrainedConfig) -> PreTrainedModel:
    """A model whose every layer does something: as they are first drawn, norms do nothing and attention little."""
    with no_init_weights():  # which takes half a minute in some architectures
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    model.config.use_cache = False
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.1
            middle = float(parameter.dim() == 1 and name.endswith("weight"))  # a norm's
            parameter.normal_(middle, scale, generator=generator)
    return model.eval()  # type: ignore[no-any-return]  # transformers' own type is wider


def _try_texts(model: PreTrainedModel, context: StepContext) -> None:
    """Run the model as in training, and on as long a text as it may get."""
    name, tokens = type(model).__name__, context.inputs.max_length
    with _said(f"predecessor: {name} can't be trained on padded texts: take another model"):
        _train_batch(model, context)
    with _said(f"max_length: {name} can't read {tokens} tokens: lower it, or take another model"):
        logits_of(model, ordinary_ids(model, tokens))


def _try_step(model: PreTrainedModel, step: StepParameters, context: StepContext) -> PreTrainedModel:
    """The model after a step."""
    count = len(stack_of(model))
    kept, spans = step.kept_layers(count), step.spans(count)
    if spans:
        with _said(
            f"{type(model).__name__} can't be run with layers in the place of others: use drop_layers or distill"
        ):
            _try_replacing(model, kept, spans, context)
    else:
        keep_layers(model, kept)
    with tempfile.TemporaryDirectory(dir=context.scratch) as folder:
        save_classifier(model, Path(folder), context)
        model = load_classifier(Path(folder), context)
    model.eval()
    return model


def _try_replacing(model: PreTrainedModel, kept: tuple[int, ...], spans: tuple[int, ...], context: StepContext) -> None:
    """Run the model as Theseus does; with none of its layers replaced it must be what it was."""
    ids = ordinary_ids(model, context.inputs.max_length)
    wanted = logits_of(model, ids)
    routed = ReplaceableLayers(stack_of(model), kept, spans)
    set_layers(model, routed)
    routed.gates = [index % 2 == 0 for index in range(len(kept))]
    _train_batch(model, context)
    routed.gates, routed.training = [False] * len(kept), True  # the layers themselves stay without dropout
    given = logits_of(model, ids)
    set_layers(model, routed.successor.eval())
    if not torch.allclose(given, wanted, rtol=1e-4, atol=1e-5):
        raise ValueError("the layers give other logits there")


def _train_batch(model: PreTrainedModel, context: StepContext) -> None:
    """Run the model as in training, on two texts of unlike lengths."""
    most = min(context.inputs.max_length, _TOKENS)
    texts = [EncodedText(ordinary_ids(model, size)[0].tolist(), [0] * size) for size in (most - 1, most)]
    batch = Collator(model, context.data.problem)([(text, 0) for text in texts])
    del batch["labels"]
    model.train()
    with torch.no_grad():
        model(**batch)
    model.eval()


@contextmanager
def _said(what: str) -> Iterator[None]:
    """Say of any error what it means."""
    try:
        yield
    except Exception as error:  # whatever an architecture's own code raises
        raise WeightsError(f"{what}: {one_line(error)[:500]}") from error
