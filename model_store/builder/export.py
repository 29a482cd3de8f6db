"""A classifier as float32 ONNX, through optimum, proven equal to torch."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from optimum.exporters.onnx import onnx_export_from_model
from optimum.exporters.tasks import TasksManager
from transformers import PreTrainedModel

from model_store.builder.artifacts import FP32_FILE, new_artifact, open_candidate, write_artifacts
from model_store.builder.data import sample
from model_store.builder.errors import ExportError
from model_store.builder.evaluate import latencies_alone, measured, run_classifier
from model_store.builder.loading import load_classifier, quiet_libraries, save_tokenizer
from model_store.builder.operators.export import Parameters
from model_store.builder.step import Figures, StepContext
from model_store.builder.trimming import trim_last_layer
from model_store.builder.unpadding import write_unpadded
from model_store.classifier import Logits, largest_difference
from model_store.encoding import EncodedText, TextEncoder
from model_store.manifest import TOKENIZER_FILE

PARITY_ROWS = 256
TIMING_TEXTS = 50


def export_onnx(parameters: Parameters, parent: Path, output: Path, context: StepContext) -> Figures:
    """Write `fp32.onnx` and `tokenizer.json`, and what the file is worth on dev.

    Raises:
        ExportError: the export failed, or its file has no output named logits.
    """
    quiet_libraries()
    with tempfile.TemporaryDirectory(dir=context.scratch) as aside:
        model = load_classifier(parent, context).eval()
        trimmed = parameters.trim and trim_last_layer(model)
        _export(model, Path(aside), parameters.opset)
        unpadded = parameters.unpad and write_unpadded(Path(aside) / "model.onnx", output / FP32_FILE)
        if not unpadded:
            shutil.copyfile(Path(aside) / "model.onnx", output / FP32_FILE)
        save_tokenizer(parent, Path(aside))
        shutil.copyfile(Path(aside) / TOKENIZER_FILE, output / TOKENIZER_FILE)
    classifier = open_candidate(output, new_artifact(output, FP32_FILE, "fp32", "export"), context)
    dev = [row.item for row in context.data.splits["dev"]]
    some = sample(dev, PARITY_ROWS)
    encoder = TextEncoder(output / TOKENIZER_FILE, context.inputs)
    by_torch = torch_logits(load_classifier(parent, context), [encoder.encode(item) for item in some])
    parity = largest_difference(run_classifier(classifier, some), by_torch)
    artifact = measured(classifier, context.data)
    (latency,) = latencies_alone([classifier], sample(dev, TIMING_TEXTS))
    write_artifacts(output, [artifact.model_copy(update={"max_logit_difference": parity, "latency": (latency,)})])
    return {"parity": parity, "parity_rows": len(some), "trimmed": trimmed, "unpadded": unpadded}


def torch_logits(model: PreTrainedModel, encoded: Sequence[EncodedText]) -> Logits:
    """Logits `(texts, labels)` by torch, one text at a time: no padding, as exact as it gets."""
    model.eval()
    rows = []
    with torch.no_grad():
        for text in encoded:
            inputs = {"input_ids": torch.tensor([text.input_ids]), "attention_mask": torch.ones(1, len(text)).long()}
            if getattr(model.config, "type_vocab_size", 0) > 1:
                inputs["token_type_ids"] = torch.tensor([text.token_type_ids])
            rows.append(model(**inputs).logits[0].numpy())
    return np.stack(rows).astype(np.float32)


def check_exportable(model: PreTrainedModel) -> None:
    """See that optimum exports the architecture, and that the file will read what a classifier is given.

    Raises:
        ExportError: it doesn't, or reads something else besides.
    """
    architecture = model.config.model_type
    try:
        described = TasksManager.get_exporter_config_constructor(
            "onnx", model_type=architecture, task="text-classification", library_name="transformers"
        )
        inputs = set(described(model.config, task="text-classification").inputs)
    except Exception as error:  # an unknown architecture or task, or a configuration that it has no form for
        raise ExportError(
            f"predecessor: optimum can't export a classifier of the architecture {architecture}: take another model"
        ) from error
    if inputs | {"token_type_ids"} != {"input_ids", "attention_mask", "token_type_ids"}:
        raise ExportError(
            f"predecessor: {architecture} reads {', '.join(sorted(inputs))}: a classifier is given input_ids,"
            " attention_mask and perhaps token_type_ids, so take another model"
        )
    types = getattr(model.config, "type_vocab_size", 2)
    if types < 2 and "token_type_ids" in inputs:
        raise ExportError(
            f"predecessor: {architecture} is exported with token types 0 and 1, and type_vocab_size in its config.json"
            f" is {types}: give its embedding of token types two rows, and set it to 2"
        )


def _export(model: PreTrainedModel, output: Path, opset: int) -> None:
    check_exportable(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer warns about every shape that it takes for a constant
            onnx_export_from_model(
                model,
                output,
                task="text-classification",
                opset=opset,
                do_validation=False,  # the parity check compares more texts, and through the server's own classifier
                no_post_process=False,
            )
    except Exception as error:  # torch, onnx and optimum raise many kinds
        raise ExportError(f"the model can't be exported with opset {opset}: {error}") from error
