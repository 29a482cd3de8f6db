"""Classifiers and tokenizers in and out of folders as transformers saves them."""

from __future__ import annotations

from pathlib import Path

import transformers
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from model_store.builder.errors import WeightsError
from model_store.builder.step import StepContext


def load_classifier(folder: Path, context: StepContext) -> PreTrainedModel:
    """The classifier in a folder, or an encoder with a new head for the task's labels."""
    labels = context.scores.labels
    problem = {"single_label": "single_label_classification", "multi_label": "multi_label_classification"}
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        folder,
        use_safetensors=True,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        problem_type=problem.get(context.data.problem, "regression"),
    )
    return model


def save_tokenizer(folder: Path, output: Path) -> None:
    """Write the tokenizer of a model as `tokenizer.json` with its settings, converting it where it has no fast form.

    Raises:
        WeightsError: there is no tokenizer, or it can't be converted.
    """
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, use_fast=True)
    except Exception as error:  # a missing file, an unknown class or a failed conversion: many kinds
        raise WeightsError(f"the tokenizer in {folder} can't be read or converted to a fast one: {error}") from error
    if not tokenizer.is_fast:
        raise WeightsError(f"the tokenizer in {folder} has no fast form: the server could not run it")
    tokenizer.save_pretrained(output)


def quiet_libraries() -> None:
    """Leave the terminal to the build's own progress."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
