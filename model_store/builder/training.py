"""The one trainer: Hugging Face's `Trainer`, with hooks that cover what methods differ in.

A run is a function of its recipe: data order and gates depend on (seed, epoch or step) alone, and the remaining random
state is kept in every checkpoint, so a killed training that is started again ends with the same weights.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.integration_utils import get_available_reporting_integrations

from model_store.builder.batches import Batch, Collator, LengthGroupedOrder, encode_row
from model_store.builder.bfloat16 import mixed_precision
from model_store.builder.errors import BuildExtraError, TrainingError
from model_store.builder.evaluate import predictions_of
from model_store.builder.loading import load_classifier, quiet_libraries, save_classifier, save_tokenizer
from model_store.builder.losses import task_loss
from model_store.builder.progress import Meter
from model_store.builder.step import Figures, StepContext, TrainingParameters
from model_store.encoding import TextEncoder
from model_store.manifest import TOKENIZER_FILE, Problem

if TYPE_CHECKING:
    from transformers.modeling_outputs import SequenceClassifierOutput

_LOG_STEPS = 10
LOGS = "logs"
"""The folder of a step's result in which reporters that write files, like TensorBoard, leave theirs."""


class Method:
    """What one operator changes about training; as it stands, plain fine-tuning of all parameters."""

    def build_student(self, parent: PreTrainedModel) -> PreTrainedModel:
        """The model to train, made of the parent."""
        return parent

    def trainable(self, student: PreTrainedModel) -> list[torch.nn.Parameter]:
        """The parameters that are trained; all others are frozen."""
        return list(student.parameters())

    def before_step(self, step: int, total: int) -> None:
        """Called before optimiser step `step`, 0-based, of `total`."""

    def patient_from(self, total: int) -> float:  # noqa: ARG002
        """The step, of `total`, from which on an epoch that is no better than one before counts against patience."""
        return 0

    def forward(self, student: torch.nn.Module, inputs: Batch) -> SequenceClassifierOutput:
        """The student's outputs for a batch without its labels, while training."""
        outputs: SequenceClassifierOutput = student(**inputs)
        return outputs

    def loss(self, outputs: SequenceClassifierOutput, batch: Batch, problem: Problem) -> torch.Tensor:
        """The loss of one batch to train on, given the student's outputs for it; dev is judged by the task's loss."""
        assert outputs.logits is not None  # noqa: S101  # transformers types it as optional, for models without a head
        return task_loss(problem, outputs.logits, batch["labels"])

    def figures(self) -> dict[str, float]:
        """What to log beside the loss."""
        return {}

    def finish(self, student: PreTrainedModel) -> PreTrainedModel:
        """The model to keep."""
        return student


def train(method: Method, parameters: TrainingParameters, parent: Path, output: Path, context: StepContext) -> Figures:
    """Train what `method` makes of the model in `parent`, and save it with its tokenizer in `output`.

    Raises:
        BuildExtraError: a reporter that the recipe names is not installed.
        TrainingError: the loss is not finite.
        WeightsError: the weights or the tokenizer can't be used, or what was trained is not what is read back.
    """
    quiet_libraries()
    _check_reporters(context.report_to)
    transformers.set_seed(context.seed)
    save_tokenizer(parent, output)
    encoder = TextEncoder(output / TOKENIZER_FILE, context.inputs)
    student = method.build_student(load_classifier(parent, context))
    student.requires_grad_(requires_grad=False)
    for parameter in method.trainable(student):
        parameter.requires_grad = True
    total = parameters.total_steps(len(context.data.splits["train"]))
    with context.progress.meter(parameters.operator, total) as meter:
        trainer = _StepTrainer(method, parameters, student, encoder, context, meter)
        last = last_checkpoint(context.scratch)
        if last is not None:
            context.progress.note(
                f"{parameters.operator}: going on from step {last.name.rpartition('-')[2]} of {total}"
            )
        precise = mixed_precision() if parameters.precision == "bfloat16" else nullcontext()
        with warnings.catch_warnings(), precise:
            # Two checkpoints within a second: the trainer then orders them by their numbers, which is right.
            warnings.filterwarnings("ignore", message="mtime may not be reliable")
            mean_loss = trainer.train(resume_from_checkpoint=None if last is None else str(last)).training_loss
    _check_loss(mean_loss, total)
    if parameters.best_on_dev:
        trainer.load_best()
    # Mixed precision stays in the model's forward pass otherwise, and what is compared would be rounded.
    trainer.accelerator.unwrap_model(student, keep_fp32_wrapper=False)
    save_classifier(method.finish(student).cpu(), output, context)
    if (context.scratch / LOGS).is_dir():
        shutil.copytree(context.scratch / LOGS, output / LOGS)
    return {"history": trainer.state.log_history, "dev": _dev_scores(trainer.state)}


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end: its state file comes last and must parse."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for path in found:
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return path
    return None


def _check_reporters(names: Sequence[str]) -> None:
    available = get_available_reporting_integrations()
    missing = [name for name in names if name not in available]
    if missing:
        raise BuildExtraError(
            f"report_to: {', '.join(missing)} is not installed (of those that transformers knows,"
            f" {', '.join(sorted(available)) or 'none'} is): pip install it, or leave it out"
        )


class _StepTrainer(Trainer):
    """Hugging Face's trainer with a method's hooks; its logs go to the meter, its checkpoints to the scratch folder."""

    def __init__(  # noqa: PLR0913, PLR0917 - made in one place
        self,
        method: Method,
        parameters: TrainingParameters,
        student: PreTrainedModel,
        encoder: TextEncoder,
        context: StepContext,
        meter: Meter,
    ) -> None:
        self._method, self._student = method, student
        self._problem, self._metric = context.data.problem, context.data.metric
        self._best = context.scratch / "best.safetensors"
        encoded = {
            split: [encode_row(encoder, row) for row in context.data.splits[split]] for split in ("train", "dev")
        }
        self._order = LengthGroupedOrder(
            [len(text) for text, _ in encoded["train"]], parameters.batch_size, context.seed
        )
        super().__init__(
            model=student,
            args=_arguments(parameters, context),
            data_collator=Collator(student, context.data.problem),
            train_dataset=encoded["train"],
            eval_dataset=sorted(encoded["dev"], key=lambda example: len(example[0])),
            compute_metrics=self._score,
            callbacks=[_Hooks(method, meter, self._best if parameters.best_on_dev else None, parameters.patience)],
        )
        self.remove_callback(PrinterCallback)  # type: ignore[no-untyped-call]
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch, whatever the model would do

    def _get_train_sampler(self, train_dataset: object = None) -> LengthGroupedOrder:  # noqa: ARG002
        return self._order

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,  # noqa: FBT001, FBT002  # the base class's signature
        num_items_in_batch: torch.Tensor | int | None = None,  # noqa: ARG002
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """While training the method's loss, else the task's, with the outputs where evaluation asks for them."""
        texts = {name: tensor for name, tensor in inputs.items() if name != "labels"}
        if model.training:
            return self._method.loss(self._method.forward(model, texts), inputs, self._problem)
        logits: torch.Tensor = model(**texts).logits
        loss = task_loss(self._problem, logits, inputs["labels"])
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the method's figures to what is logged, and stop where the loss is lost."""
        loss = logs.get("loss")
        if loss is not None:
            _check_loss(loss, self.state.global_step)
            logs |= self._method.figures()
        super().log(logs, start_time)

    def load_best(self) -> None:
        """Put the weights of the best epoch back into the student."""
        from safetensors.torch import load_model

        load_model(self._student, str(self._best))

    def _score(self, prediction: EvalPrediction) -> dict[str, float]:
        predictions = predictions_of(self._problem, np.asarray(prediction.predictions))
        return {"metric": self._metric(predictions, np.asarray(prediction.label_ids))}


class _Hooks(TrainerCallback):
    """Connects the trainer's events to the method and the meter, and keeps the best epoch where that is asked for."""

    def __init__(self, method: Method, meter: Meter, best: Path | None, patience: int | None) -> None:
        self._method, self._meter, self._best, self._patience = method, meter, best, patience

    def on_step_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ANN401, ARG002
    ) -> None:
        self._method.before_step(state.global_step, state.max_steps)

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401, ARG002
    ) -> None:
        if state.global_step % (state.max_steps // state.num_train_epochs) == 0:
            control.should_save = False  # but after the epoch's evaluation: what goes on from here must have it
        scores = _dev_scores(state)
        self._meter.advance(state.global_step, f"dev {scores[-1]:.3f}" if scores else "")

    def on_epoch_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401, ARG002
    ) -> None:
        control.should_save = True

    def on_evaluate(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        if self._best is None:
            return
        scores = _dev_scores(state)
        if scores[-1] > max(scores[:-1], default=-math.inf):
            from safetensors.torch import save_model

            aside = self._best.with_suffix(".partial")
            save_model(kwargs["model"], str(aside))
            aside.replace(self._best)
        start = self._method.patient_from(state.max_steps)
        counted = sum(entry["step"] > start for entry in _evaluations(state))
        if self._patience is not None and min(len(scores) - scores.index(max(scores)) - 1, counted) >= self._patience:
            control.should_training_stop = True
            control.should_save = False  # going on from a checkpoint would be going on


def _evaluations(state: TrainerState) -> list[dict[str, float]]:
    return [entry for entry in state.log_history if "eval_metric" in entry]


def _dev_scores(state: TrainerState) -> list[float]:
    return [entry["eval_metric"] for entry in _evaluations(state)]


def _check_loss(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise TrainingError(f"the loss is {loss} at step {step}: lower the step's learning_rate")


def _arguments(parameters: TrainingParameters, context: StepContext) -> TrainingArguments:
    mixed = parameters.precision == "bfloat16"
    if mixed and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise TrainingError("precision: this GPU does not compute in bfloat16: use float32")
    # The arguments leave their precision there, and the next ones would take it for a wish of the user's.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
    arguments = TrainingArguments(
        output_dir=str(context.scratch),
        bf16=mixed,
        use_cpu=mixed and not torch.cuda.is_available(),
        num_train_epochs=parameters.epochs,
        per_device_train_batch_size=parameters.batch_size,
        per_device_eval_batch_size=64,
        learning_rate=parameters.learning_rate,
        lr_scheduler_type="linear" if parameters.learning_rate_schedule == "linear" else "constant_with_warmup",
        warmup_ratio=parameters.warmup_share,
        weight_decay=parameters.weight_decay,
        max_grad_norm=parameters.max_gradient_norm,
        seed=context.seed,
        eval_strategy="epoch",
        save_strategy="steps",
        save_steps=parameters.checkpoint_steps,
        save_total_limit=2,
        logging_steps=_LOG_STEPS,
        logging_nan_inf_filter=False,
        label_names=["labels"],
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=True,  # Theseus runs only some of the layers at a step
        disable_tqdm=True,
        report_to=list(context.report_to),
        logging_dir=str(context.scratch / LOGS),
    )
    # The step's batch is shared among the devices: steps, order of rows and learning rate mean the same on any number.
    devices = arguments.world_size * max(1, arguments.n_gpu)
    if parameters.batch_size % devices:
        raise TrainingError(
            f"a batch of {parameters.batch_size} can't be shared by {devices} devices: change batch_size to a multiple"
        )
    arguments.per_device_train_batch_size = parameters.batch_size // devices
    return arguments
