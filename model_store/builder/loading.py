"""Classifiers and tokenizers in and out of folders as transformers saves them."""

from __future__ import annotations

from pathlib import Path

import transformers
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from model_store.builder.errors import WeightsError
from model_store.builder.step import StepContext
from model_store.builder.weights import is_tuned, read_config
from model_store.errors import one_line


def load_classifier(folder: Path, context: StepContext) -> PreTrainedModel:
    """The classifier in a folder, or an encoder with a new head for the task's labels.

    Raises:
        WeightsError: they can't be read, or are not all there: transformers would draw the rest at random.
    """
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
    missing = sorted(key for key in found["missing_keys"] if not _may_be_new(key, model, folder))
    if missing:
        raise WeightsError(
            f"the weights in {folder} lack {len(missing)} of {type(model).__name__}'s, {missing[0]} among others: save"
            " them with save_pretrained, under the model's own names"
        )
    return model  # type: ignore[no-any-return]  # transformers' own type is wider


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
