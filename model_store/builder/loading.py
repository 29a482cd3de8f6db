"""Classifiers and tokenizers in and out of folders as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from model_store.builder.errors import WeightsError
from model_store.builder.step import StepContext
from model_store.builder.weights import is_tuned, read_config
from model_store.errors import one_line

# Of logits: what is read back computes the same in the same order.
_ROUNDING = 1e-4


def load_classifier(folder: Path, context: StepContext) -> PreTrainedModel:
    """The classifier in a folder, or an encoder with a new head for the task's labels.

    Raises:
        WeightsError: they can't be read, or are not all there: transformers would draw the rest at random.
    """
    model, found = _read(folder, context)
    missing = sorted(key for key in found["missing_keys"] if not _may_be_new(key, model, folder))
    if missing:
        raise WeightsError(
            f"the weights in {folder} lack {len(missing)} of {type(model).__name__}'s, {missing[0]} among others: save"
            " them with save_pretrained, under the model's own names"
        )
    return model


def save_classifier(model: PreTrainedModel, output: Path, context: StepContext) -> None:
    """Save a classifier, and see that what the next step will read is the same model.

    Some architectures make a layer by its place: its window of attention, the base of its rotary positions, a norm
    that the first one lacks. A layer that has moved is another one when it is read back.

    Args:
        model: on the CPU.
        output: the step's folder.
        context: the task; a text of as many tokens as it may have is compared.

    Raises:
        WeightsError: it is another one, or can't be read back.
    """
    name, layers = type(model).__name__, model.config.num_hidden_layers
    model.eval().save_pretrained(output)
    try:
        again, found = _read(output, context)
        ids = ordinary_ids(model, context.inputs.max_length)
        wanted, given = (logits_of(one, ids) for one in (model, again.eval()))
    except Exception as error:  # a list in the configuration with an entry for each layer, and what else there may be
        raise WeightsError(
            f"{name} with {layers} layers can't be read back: take another model: {one_line(error)[:500]}"
        ) from error
    difference = float((wanted - given).abs().max())
    strange = [*found["missing_keys"], *found["unexpected_keys"]]
    if strange or not difference <= _ROUNDING * (0.1 + float(wanted.abs().max())):
        raise WeightsError(
            f"{name} with these {layers} layers is another model when it is read back (logits differ by"
            f" {difference:.2g}, tensors without a place or lacking: {len(strange)}): what a layer is depends on its"
            " place, so keep the first ones (strategy: top, initialisation: first), or take another model"
        )


def ordinary_ids(model: PreTrainedModel, tokens: int) -> torch.Tensor:
    """Ids `(1, tokens)` as of a text, without padding and special ones; the same ones every time."""
    config = model.config
    special = {value for key, value in config.to_dict().items() if key.endswith("_token_id")}
    known = torch.tensor([index for index in range(config.vocab_size) if index not in special])
    ids = known[torch.randint(len(known), (1, tokens), generator=torch.Generator().manual_seed(0))]
    if config.is_encoder_decoder and config.eos_token_id is not None:  # they read their answer where a text ends
        ids[:, -1] = config.eos_token_id
    return ids


def logits_of(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Logits `(batch, labels)` of ids `(batch, tokens)` without padding."""
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits


def _read(folder: Path, context: StepContext) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The classifier in a folder, and which of its tensors the folder lacks or has too many."""
    labels = context.scores.labels
    problem = {"single_label": "single_label_classification", "multi_label": "multi_label_classification"}
    try:
        model, found = AutoModelForSequenceClassification.from_pretrained(
            folder,
            use_safetensors=True,
            output_loading_info=True,
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
            problem_type=problem.get(context.data.problem, "regression"),
        )
    except Exception as error:  # a cut file, shapes that do not fit: many kinds
        raise WeightsError(f"the weights in {folder} can't be loaded: {one_line(error)[:500]}") from error
    # A cache of keys is for texts that are written on; a layer in another's place would attend into that one's.
    model.config.use_cache = False
    return model, found


def _may_be_new(key: str, model: PreTrainedModel, folder: Path) -> bool:
    """Whether a tensor may be drawn at random: one of an encoder's head, which it can't have yet."""
    inside = key.startswith(f"{model.base_model_prefix}.")
    return not is_tuned(read_config(folder)) and (not inside or ".pooler." in key)


def save_tokenizer(folder: Path, output: Path) -> None:
    """Write the tokenizer of a model as `tokenizer.json` with its settings, converting it where it has no fast form.

    Raises:
        WeightsError: there is no tokenizer, it can't be converted, or it gives ids that the model does not know.
    """
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, use_fast=True)
    except Exception as error:  # a missing file, an unknown class or a failed conversion: many kinds
        raise WeightsError(f"the tokenizer in {folder} can't be read or converted to a fast one: {error}") from error
    if not tokenizer.is_fast:
        raise WeightsError(f"the tokenizer in {folder} has no fast form: the server could not run it")
    highest, known = max(tokenizer.get_vocab().values()), read_config(folder).get("vocab_size")
    if isinstance(known, int) and highest >= known:
        raise WeightsError(
            f"the tokenizer in {folder} gives ids up to {highest} and the model knows {known}: call"
            " resize_token_embeddings before training it, or take the model's own tokenizer"
        )
    tokenizer.save_pretrained(output)


def quiet_libraries() -> None:
    """Leave the terminal to the build's own progress."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
