from __future__ import annotations

import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from model_store.builder.batches import Batch, LengthGroupedOrder
from model_store.builder.errors import BuildExtraError, TrainingError, WeightsError
from model_store.builder.layers import ReplaceableLayers
from model_store.builder.loading import load_classifier, save_tokenizer
from model_store.builder.operators import distill, drop_layers, fine_tune, theseus
from model_store.builder.plan import make_plan
from model_store.builder.recipe import resolve
from model_store.builder.step import Figures, StepContext, TrainingParameters, operator_module
from model_store.builder.training import LOGS, Method, _arguments, _StepTrainer, last_checkpoint, train
from model_store.encoding import TextEncoder
from model_store.manifest import TOKENIZER_FILE, Problem
from tests import on_one_of_two_devices
from tests.tiny_torch import Killed, Recorder, make_tiny_encoder, tiny_document

ROOT = Path(__file__).parent.parent
TRAINING = {"epochs": 2, "learning_rate": 1e-3, "batch_size": 8, "checkpoint_steps": 5}
TUNE = fine_tune.Parameters.model_validate({"operator": "fine_tune", **TRAINING})
THESEUS = theseus.Parameters.model_validate({"operator": "theseus", "layers": 2, **TRAINING})
DISTILL = distill.Parameters.model_validate(
    {"operator": "distill", "layers": 2, "alpha": 0.7, "patient_weight": 0.5, **TRAINING}
)
STEPS = 24  # 96 rows in batches of 8, twice


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, StepContext]:
    """A tiny encoder, a tiny classifier of the task's labels, and the context that steps run in."""
    folder = tmp_path_factory.mktemp("training")
    plan = make_plan(resolve(tiny_document(folder), folder))
    classifier = make_tiny_encoder(folder / "classifier", labels=plan.data.labels)
    return folder / "encoder", classifier, plan.context(Recorder(), folder / "unused")


Run = Callable[..., tuple[Path, Figures]]


@pytest.fixture
def run(world: tuple[Path, Path, StepContext], tmp_path: Path) -> Run:
    """Runs a step of the encoder or, for Theseus, of the classifier, in a fresh output with a named scratch."""

    def do(
        parameters: TrainingParameters,
        name: str = "a",
        *,
        kill: tuple[str, int] | None = None,
        seed: int = 0,
        parent: Path | None = None,
        report_to: tuple[str, ...] = (),
    ) -> tuple[Path, Figures]:
        encoder, classifier, context = world
        scratch, output = tmp_path / name / "scratch", tmp_path / name / "output"
        scratch.mkdir(parents=True, exist_ok=True)
        output.mkdir(exist_ok=True)
        context = replace(context, scratch=scratch, progress=Recorder(kill), seed=seed, report_to=report_to)
        parent = parent or (encoder if parameters.operator == "fine_tune" else classifier)
        return output, operator_module(parameters.operator).apply(parameters, parent, output, context)

    return do


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("parameters", [TUNE, THESEUS, DISTILL], ids=["fine_tune", "theseus", "distill"])
@pytest.mark.parametrize("killed_at", [7, 17], ids=["in phase 1, the first epoch", "in phase 2, the second epoch"])
def test_a_killed_training_goes_on_inside_the_step_and_ends_with_the_same_weights(
    run: Run, parameters: TrainingParameters, killed_at: int
) -> None:
    whole, figures = run(parameters, "whole")
    with pytest.raises(Killed):
        run(parameters, "resumed", kill=(parameters.operator, killed_at))
    resumed, again = run(parameters, "resumed")
    assert same(weights(whole), weights(resumed))
    assert figures["dev"] == again["dev"]


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint_steps", [5, 12])
@pytest.mark.parametrize("moment", ["step 12", "step 13", "step 24", "evaluation 1", "evaluation 2"])
def test_a_training_killed_around_the_end_of_an_epoch_loses_no_evaluation_and_keeps_the_same_best_epoch(
    run: Run, monkeypatch: pytest.MonkeyPatch, checkpoint_steps: int, moment: str
) -> None:
    changes = {"best_on_dev": True, "patience": 2, "checkpoint_steps": checkpoint_steps}
    parameters = THESEUS.model_copy(update=changes)
    whole, figures = run(parameters, "whole")
    kind, number = moment.split()
    with monkeypatch.context() as patches:
        if kind == "evaluation":
            patches.setattr(_StepTrainer, "_score", killed_at_call(_StepTrainer._score, int(number)))
        with pytest.raises(Killed):
            run(parameters, "resumed", kill=("theseus", int(number)) if kind == "step" else None)
    resumed, again = run(parameters, "resumed")
    assert same(weights(whole), weights(resumed))
    assert figures["dev"] == again["dev"]
    assert len(again["dev"]) == 2


def killed_at_call(function: Callable[..., object], number: int) -> Callable[..., object]:
    """The function, until its call of this number, counted from 1."""
    calls = itertools.count(1)

    def counted(*arguments: object) -> object:
        if next(calls) == number:
            raise Killed
        return function(*arguments)

    return counted


@pytest.mark.slow
def test_a_training_that_lost_patience_and_was_killed_then_does_not_go_on(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = TUNE.model_copy(update={"best_on_dev": True, "patience": 1, "epochs": 5, "learning_rate": 1e-9})
    whole, figures = run(parameters, "whole")
    assert len(figures["dev"]) == 2
    with monkeypatch.context() as patches:
        patches.setattr(_StepTrainer, "load_best", killed_at_call(_StepTrainer.load_best, 1))
        with pytest.raises(Killed):
            run(parameters, "resumed")
    resumed, again = run(parameters, "resumed")
    assert same(weights(whole), weights(resumed))
    assert figures["dev"] == again["dev"]


@pytest.mark.slow
def test_patience_of_theseus_begins_with_phase_2(run: Run) -> None:
    parameters = THESEUS.model_copy(update={"best_on_dev": True, "patience": 1, "epochs": 10, "learning_rate": 1e-9})
    _, figures = run(parameters)
    # Phase 1 is the first six of the epochs, which are all alike; the first in phase 2 that is no better ends it.
    assert len(figures["dev"]) == 7
    assert [entry["replacing_rate"] for entry in figures["history"] if "replacing_rate" in entry][-1] == 1.0


@pytest.mark.slow
def test_a_resumed_training_does_only_what_is_left(run: Run, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(TUNE, kill=("fine_tune", 12))
    assert last_checkpoint(tmp_path / "a" / "scratch") == tmp_path / "a" / "scratch" / "checkpoint-10"


class Touch:
    """What a pickle may be: unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_that_somebody_changed_can_not_run_code(run: Run, tmp_path: Path, file: str) -> None:
    with pytest.raises(Killed):
        run(TUNE, kill=("fine_tune", 12))
    torch.save(Touch(tmp_path / "executed"), tmp_path / "a" / "scratch" / "checkpoint-10" / file)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        run(TUNE)
    assert not (tmp_path / "executed").exists()


@pytest.mark.slow
def test_another_seed_trains_other_weights(run: Run) -> None:
    first, _ = run(TUNE, "a")
    second, _ = run(TUNE, "b", seed=1)
    assert not same(weights(first), weights(second))


@pytest.mark.slow
def test_theseus_trains_the_successors_layers_and_nothing_else(run: Run, world: tuple[Path, Path, StepContext]) -> None:
    output, figures = run(THESEUS)
    before, after = weights(world[1]), weights(output)
    layers = {name for name in after if ".layer." in name}
    assert {name.split(".layer.")[1][0] for name in layers} == {"0", "1"}
    assert all(torch.equal(before[name], after[name]) for name in after.keys() - layers)
    changed = {name for name in layers if not torch.equal(before[name], after[name])}
    assert changed == layers - {name for name in layers if name.endswith("key.bias")} | changed
    rates = [entry["replacing_rate"] for entry in figures["history"] if "replacing_rate" in entry]
    assert rates == sorted(rates)
    assert rates[-1] == 1.0


@pytest.mark.slow
def test_theseus_trains_through_the_gates_that_seed_and_step_say(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[list[bool]] = []
    modules = ReplaceableLayers.__iter__

    def noted(self: ReplaceableLayers) -> Iterator[nn.Module]:
        if self.training:
            used.append(list(self.gates))
        return modules(self)

    monkeypatch.setattr(ReplaceableLayers, "__iter__", noted)
    drawn: dict[int, list[list[bool]]] = {}
    for seed in (0, 1):
        used.clear()
        _, figures = run(THESEUS, f"seed {seed}", seed=seed)
        drawn[seed] = list(used)
        assert drawn[seed] == [theseus.draw_gates(THESEUS.rate(step, STEPS), 2, seed, step) for step in range(STEPS)]
        logged = [entry for entry in figures["history"] if "replacing_rate" in entry]
        for before, entry in itertools.pairwise([{"step": 0}, *logged]):
            shares = np.mean(used[before["step"] : entry["step"]], axis=0)
            assert [entry["gate_0"], entry["gate_1"]] == pytest.approx(shares.tolist())
    assert drawn[0] != drawn[1]
    assert not all(all(gates) for gates in drawn[0])


@pytest.mark.slow
def test_what_theseus_saves_is_an_ordinary_classifier_with_fewer_layers(
    run: Run, world: tuple[Path, Path, StepContext]
) -> None:
    output, _ = run(THESEUS)
    model = load_classifier(output, world[2])
    assert model.config.num_hidden_layers == 2
    assert model(torch.tensor([[2, 5, 3]])).logits.shape == (1, 2)


def altered(folder: Path, target: Path, tensors: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """A copy of a folder with other tensors."""
    shutil.copytree(folder, target)
    save_file(tensors(load_file(folder / "model.safetensors")), target / "model.safetensors", {"format": "pt"})
    return target


@pytest.mark.parametrize("kind", ["encoder", "classifier"])
def test_weights_under_other_names_are_refused_not_drawn_at_random(
    world: tuple[Path, Path, StepContext], tmp_path: Path, kind: str
) -> None:
    folder = world[0] if kind == "encoder" else world[1]
    wrapped = altered(folder, tmp_path / "w", lambda given: {f"_orig_mod.{name}": one for name, one in given.items()})
    with pytest.raises(WeightsError, match=r"lack [0-9]+ of BertForSequenceClassification's, bert.* among others"):
        load_classifier(wrapped, world[2])


def test_an_encoder_may_lack_a_head_and_a_pooler_and_a_classifier_may_not(
    world: tuple[Path, Path, StepContext], tmp_path: Path
) -> None:
    def headless(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: one for name, one in given.items() if "pooler" not in name and "classifier" not in name}

    load_classifier(altered(world[0], tmp_path / "encoder", headless), world[2])
    with pytest.raises(WeightsError, match="lack 4 of BertForSequenceClassification's"):
        load_classifier(altered(world[1], tmp_path / "classifier", headless), world[2])


def test_a_head_of_other_labels_is_refused_in_one_line(world: tuple[Path, Path, StepContext], tmp_path: Path) -> None:
    def wider(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return given | {"classifier.weight": torch.zeros(3, 16), "classifier.bias": torch.zeros(3)}

    with pytest.raises(WeightsError, match=r"can't be loaded: .*size mismatch") as refusal:
        load_classifier(altered(world[1], tmp_path / "wide", wider), world[2])
    assert "\n" not in str(refusal.value)


def test_a_tokenizer_with_ids_that_the_model_does_not_know_is_refused(
    world: tuple[Path, Path, StepContext], tmp_path: Path
) -> None:
    shutil.copytree(world[0], tmp_path / "more")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "more")
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(tmp_path / "more")
    with pytest.raises(WeightsError, match="gives ids up to 51 and the model knows 51: call resize_token_embeddings"):
        save_tokenizer(tmp_path / "more", tmp_path / "out")


class _HeadOnly(Method):
    """Trains the classification head alone."""

    def trainable(self, student: PreTrainedModel) -> list[torch.nn.Parameter]:
        return [parameter for name, parameter in student.named_parameters() if name.startswith("classifier")]


class Counting(Method):
    """Knows at which step it is."""

    step = 0

    def before_step(self, step: int, total: int) -> None:
        self.step = step


def direct(method: Method, world: tuple[Path, Path, StepContext], folder: Path, **changes: object) -> Figures:
    scratch, output = folder / "scratch", folder / "output"
    scratch.mkdir(parents=True)
    output.mkdir()
    context = replace(world[2], scratch=scratch, progress=Recorder())
    return train(method, TUNE.model_copy(update=changes), world[1], output, context)


@pytest.mark.slow
def test_gradients_are_clipped_over_the_trained_parameters_only(
    world: tuple[Path, Path, StepContext], tmp_path: Path
) -> None:
    def norms(method: Method, name: str) -> list[float]:
        history = direct(method, world, tmp_path / name)["history"]
        return [entry["grad_norm"] for entry in history if "grad_norm" in entry]

    assert all(
        head < everything for head, everything in zip(norms(_HeadOnly(), "a"), norms(Method(), "b"), strict=True)
    )


@pytest.mark.slow
def test_the_best_epoch_on_dev_is_kept_where_the_recipe_says_so(
    world: tuple[Path, Path, StepContext], tmp_path: Path
) -> None:
    class Spoilt(Counting):
        """Unlearns in every step after the first epoch."""

        def loss(self, outputs: SequenceClassifierOutput, batch: Batch, problem: Problem) -> torch.Tensor:
            return super().loss(outputs, batch, problem) * (1 if self.step < STEPS // 2 else -100)

    figures = direct(Spoilt(), world, tmp_path / "best", best_on_dev=True, learning_rate=1e-2)
    assert figures["dev"][0] >= figures["dev"][1]
    best = weights(tmp_path / "best" / "output")
    direct(Spoilt(), world, tmp_path / "last", best_on_dev=False, learning_rate=1e-2)
    assert not same(best, weights(tmp_path / "last" / "output"))
    assert same(best, load_file(tmp_path / "best" / "scratch" / "best.safetensors"))


@pytest.mark.slow
def test_training_stops_when_dev_has_not_improved_for_as_many_epochs_as_the_step_has_patience(
    world: tuple[Path, Path, StepContext], tmp_path: Path
) -> None:
    class Still(Method):
        def loss(self, outputs: SequenceClassifierOutput, batch: Batch, problem: Problem) -> torch.Tensor:
            return super().loss(outputs, batch, problem) * 0

    changes = {"best_on_dev": True, "epochs": 6, "weight_decay": 0.0}
    assert len(direct(Still(), world, tmp_path / "patient", patience=2, **changes)["dev"]) == 3
    assert len(direct(Still(), world, tmp_path / "endless", **changes)["dev"]) == 6


@pytest.mark.slow
def test_distilling_trains_a_truncated_student_towards_its_frozen_teacher(
    run: Run, world: tuple[Path, Path, StepContext]
) -> None:
    teacher = weights(world[1])
    output, figures = run(DISTILL.model_copy(update={"alpha": 1.0, "epochs": 6}))
    assert same(weights(world[1]), teacher)
    assert load_classifier(output, world[2]).config.num_hidden_layers == 2
    parts = [entry for entry in figures["history"] if "loss" in entry]
    assert parts[-1]["patient_loss"] < parts[0]["patient_loss"]
    untaught = run(DISTILL.model_copy(update={"alpha": 0.0, "epochs": 6}), "untaught")[1]["history"]
    last = [entry["distillation_loss"] for entry in untaught if "loss" in entry][-1]
    assert parts[-1]["distillation_loss"] < last / 2
    assert not torch.equal(
        weights(output)["bert.embeddings.word_embeddings.weight"], teacher["bert.embeddings.word_embeddings.weight"]
    )


@pytest.mark.slow
def test_the_parts_of_a_distillations_loss_are_logged_as_means_like_the_loss_that_they_make_up(run: Run) -> None:
    history = run(DISTILL.model_copy(update={"batch_size": 4}))[1]["history"]
    logged = [entry for entry in history if "loss" in entry]
    assert len(logged) > 2
    for entry in logged:
        mixed = 0.3 * entry["task_loss"] + 0.7 * entry["distillation_loss"] + 0.5 * entry["patient_loss"]
        assert entry["loss"] == pytest.approx(mixed, abs=1e-3)


@pytest.mark.slow
def test_the_same_budget_and_order_make_the_arms_comparable_a_distillation_without_teacher_is_fine_tuning(
    run: Run, world: tuple[Path, Path, StepContext], tmp_path: Path
) -> None:
    student = tmp_path / "student"
    student.mkdir()
    drop = drop_layers.Parameters(operator="drop_layers", strategy="top", layers=2)
    drop_layers.apply(drop, world[1], student, world[2])
    tuned, _ = run(TUNE, "tuned", parent=student)
    distilled, _ = run(DISTILL.model_copy(update={"alpha": 0.0, "patient_weight": 0.0}), "distilled")
    ours, theirs = weights(tuned), weights(distilled)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)


@pytest.mark.slow
def test_two_devices_share_each_batch_draw_the_same_gates_and_end_where_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tiny_document(tmp_path)
    document["steps"][1] |= {"max_gradient_norm": 1e9}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    classifier = make_tiny_encoder(tmp_path / "classifier", labels=("negative", "positive"))
    config = json.loads((classifier / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # of which each device has its own
    (classifier / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "tests.on_one_of_two_devices", str(tmp_path), str(classifier)]
    # What `accelerate launch --cpu` sets: without it a machine without a GPU has one device.
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second = (weights(tmp_path / f"output-{rank}") for rank in (0, 1))
    assert same(first, second)
    monkeypatch.setenv("RANK", "alone")
    on_one_of_two_devices.main(tmp_path, classifier)
    alone, before = weights(tmp_path / "output-alone"), weights(classifier)
    assert max(float((alone[name] - before[name]).abs().max()) for name in alone) > 1e-3
    assert all(torch.allclose(alone[name], first[name], atol=1e-5) for name in alone)
    state = json.loads((last_checkpoint(tmp_path / "scratch-0") or tmp_path).joinpath("trainer_state.json").read_text())
    assert state["max_steps"] == STEPS


@pytest.mark.slow
def test_rate_gates_and_losses_are_logged_to_where_the_recipe_says(run: Run, tmp_path: Path) -> None:
    output, figures = run(THESEUS, report_to=("tensorboard",))
    logged = [entry for entry in figures["history"] if "loss" in entry]
    assert all({"replacing_rate", "gate_0", "gate_1", "learning_rate", "grad_norm"} <= entry.keys() for entry in logged)
    assert all(0 <= entry["gate_0"] <= 1 for entry in logged)
    events = EventAccumulator(str(output / LOGS)).Reload()
    rates = [event.value for event in events.Scalars("train/replacing_rate")]
    assert rates == pytest.approx([entry["replacing_rate"] for entry in logged])
    assert {"train/loss", "train/gate_0", "train/gate_1", "eval/metric"} <= set(events.Tags()["scalars"])


def test_a_reporter_that_is_not_installed_is_refused_before_training(run: Run) -> None:
    with pytest.raises(BuildExtraError, match="report_to: comet_ml is not installed"):
        run(TUNE, report_to=("comet_ml",))


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_stops_the_training(world: tuple[Path, Path, StepContext], tmp_path: Path) -> None:
    class Lost(Method):
        def loss(self, outputs: SequenceClassifierOutput, batch: Batch, problem: Problem) -> torch.Tensor:
            return super().loss(outputs, batch, problem) * float("nan")

    with pytest.raises(TrainingError, match="the loss is nan at step 10: lower the step's learning_rate"):
        direct(Lost(), world, tmp_path / "lost")


@pytest.mark.slow
def test_a_loss_that_is_lost_in_the_last_steps_is_noticed(
    world: tuple[Path, Path, StepContext], tmp_path: Path
) -> None:
    class LostAtLast(Counting):
        def loss(self, outputs: SequenceClassifierOutput, batch: Batch, problem: Problem) -> torch.Tensor:
            return super().loss(outputs, batch, problem) * (float("nan") if self.step == STEPS - 1 else 1)

    with pytest.raises(TrainingError, match="the loss is nan at step 24"):
        direct(LostAtLast(), world, tmp_path / "lost")


@pytest.mark.slow
@pytest.mark.parametrize("parameters", [TUNE, THESEUS, DISTILL], ids=["fine_tune", "theseus", "distill"])
def test_mixed_precision_trains_other_weights_a_little_and_keeps_them_in_float32(
    run: Run, parameters: TrainingParameters
) -> None:
    mixed = parameters.model_copy(update={"precision": "bfloat16"})
    exact, rounded = (weights(run(one, name)[0]) for one, name in ((parameters, "exact"), (mixed, "mixed")))
    assert {tensor.dtype for tensor in rounded.values()} == {torch.float32}
    assert not same(exact, rounded)
    assert max(float((exact[name] - rounded[name]).abs().mean()) for name in exact) < 0.02


def test_mixed_precision_is_refused_where_the_gpu_does_not_compute_in_it(
    world: tuple[Path, Path, StepContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *, including_emulation: including_emulation)
    with pytest.raises(TrainingError, match="precision: this GPU does not compute in bfloat16: use float32"):
        _arguments(TUNE.model_copy(update={"precision": "bfloat16"}), world[2])


def test_the_last_checkpoint_is_the_newest_that_was_written_to_its_end(tmp_path: Path) -> None:
    for step, state in ((5, "{}"), (10, "{}"), (15, '{"half'), (20, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state, encoding="utf-8")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert last_checkpoint(tmp_path / "nothing") is None


def test_the_order_is_every_row_once_and_a_function_of_seed_and_epoch() -> None:
    lengths = [index * 7 % 50 for index in range(101)]
    order = LengthGroupedOrder(lengths, 4, seed=3)
    first = list(order)
    assert sorted(first) == list(range(101))
    assert len(order) == 101
    order.set_epoch(1)
    second = list(order)
    order.set_epoch(0)
    assert list(order) == first != second
    assert list(LengthGroupedOrder(lengths, 4, seed=4)) != first


def test_batches_hold_texts_of_like_lengths() -> None:
    lengths = [index * 7 % 50 for index in range(400)]
    order = list(LengthGroupedOrder(lengths, 4, seed=0))
    spreads = [
        max(lengths[row] for row in order[start : start + 4]) - min(lengths[row] for row in order[start : start + 4])
        for start in range(0, 400, 4)
    ]
    assert sum(spreads) / len(spreads) < 5


def test_the_saved_tokenizer_gives_the_ids_of_transformers(
    world: tuple[Path, Path, StepContext], tmp_path: Path
) -> None:
    encoder, _, context = world
    save_tokenizer(encoder, tmp_path)
    ours = TextEncoder(tmp_path / TOKENIZER_FILE, context.inputs)
    theirs = AutoTokenizer.from_pretrained(encoder)
    for row in context.data.splits["dev"]:
        assert ours.encode(row.item).input_ids == theirs(row.item.text)["input_ids"]


def test_weights_without_a_tokenizer_are_refused(world: tuple[Path, Path, StepContext], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((world[0] / "config.json").read_bytes())
    with pytest.raises(WeightsError, match="the tokenizer in"):
        save_tokenizer(tmp_path, tmp_path / "out")
