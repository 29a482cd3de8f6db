"""Whether a build of some weights can end well: seen on a model without numbers, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import torch
from optimum.exporters.onnx import model_configs  # noqa: F401  # what it can export is known once this is imported
from optimum.exporters.tasks import TasksManager
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig

from model_store.builder.errors import WeightsError
from model_store.builder.layers import stack_of
from model_store.errors import one_line


def check_architecture(folder: Path, *, replaced: bool) -> None:
    """See that the weights in a folder are a classifier's or can be given a head, and can be exported.

    Args:
        folder: as transformers saves it.
        replaced: whether layers will be put in the place of others.

    Raises:
        WeightsError: transformers has no classifier of this architecture, `stack_of` finds no layers in it, or its
            export would fail.
    """
    try:
        with torch.device("meta"):  # no numbers: neither time nor memory
            model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder))
    except Exception as error:  # an unknown or broken configuration: many kinds
        raise WeightsError(
            f"predecessor: transformers can't make a classifier of {folder}: {one_line(error)}"
        ) from error
    if replaced:
        stack_of(model)
    _check_export(folder, model.config)


def _check_export(folder: Path, config: PretrainedConfig) -> None:
    task, kind = "text-classification", config.model_type
    try:
        export = TasksManager.get_exporter_config_constructor(
            "onnx", model_type=kind, task=task, library_name="transformers"
        )
    except (KeyError, ValueError) as error:
        raise WeightsError(
            f"predecessor: optimum can't export a classifier of type {kind!r}: choose weights of another architecture"
        ) from error
    types = getattr(config, "type_vocab_size", 2)
    if types < 2 and "token_type_ids" in export(config, task=task).inputs:
        raise WeightsError(
            f"predecessor: {folder}/config.json has type_vocab_size {types}, and {kind} is exported with token types 0"
            " and 1: give its embedding of token types two rows, and set type_vocab_size to 2"
        )
