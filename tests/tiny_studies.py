"""A study of two arms over one tiny task, and records as a study leaves them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model_store.builder.metrics import Metric, MetricName
from model_store.builder.records import CellRecord, Decisions, Interval, TaskRecord, Times, TrialRecord
from model_store.builder.results import Results
from model_store.builder.study import STUDIES, Cell, Study, Trial, study_of
from model_store.manifest import Split
from tests.tiny_torch import make_tiny_encoder, write_records


def load_study(reference: str | Path, overrides: Sequence[str] = ()) -> Study:
    """A study by its name or its file's path, as the command reads it."""
    return study_of(STUDIES.read(str(reference), Study.model_fields, overrides))


def study_document(folder: Path) -> dict[str, Any]:
    """The document of a study whose data and weights are written into `folder`, if they aren't there."""
    if not (folder / "encoder").exists():
        make_tiny_encoder(folder / "encoder", spread=0.3)
        write_records(folder / "data" / "words")
    data = {split: f"words/{split}.jsonl" for split in ("train", "dev", "test")}
    training = {"batch_size": 8, "best_on_dev": True}
    return {
        "name": "tiny-study",
        "about": "Two arms.",
        "predecessor": {"path": "encoder", "licence": "CC0-1.0"},
        "predecessor_steps": [{"operator": "fine_tune", "epochs": 5, **training}],
        "epochs": 3,
        "learning_rates": [0.003, 0.01],
        "seeds": [0, 4],
        "data_folder": "data",
        "tasks": {
            "words": {
                "max_length": 24,
                "data": {"source": "files", "licence": "CC0-1.0", "metrics": ["accuracy", "f1"], **data},
            }
        },
        "arms": {
            "control": {
                "steps": [
                    {"operator": "drop_layers", "strategy": "top", "layers": 2},
                    {"operator": "fine_tune", **training},
                ]
            },
            "theseus": {"steps": [{"operator": "theseus", "layers": 2, **training}]},
        },
        "references": ["control"],
    }


def task_record(targets: list[int], *, metrics: tuple[MetricName, ...] = ("accuracy",)) -> TaskRecord:
    """A task's record, as `Bench` writes it."""
    split = Split(rows=len(targets), sha256="0" * 64, dropped_overlap=3)
    return TaskRecord(
        task="words",
        problem="single_label",
        pair=False,
        licence="CC0-1.0",
        labels=("negative", "positive"),
        metrics=tuple(Metric(name) for name in metrics),
        splits={"train": split, "dev": split, "test": split.model_copy(update={"dropped_overlap": 0})},
        tfidf=dict.fromkeys(metrics, 0.5),
        tfidf_predictions=[0] * len(targets),
        targets=targets,
    )


def unit_values(**changes: object) -> dict[str, Any]:
    """What trials and cells have in common."""
    return {
        "unit": "words/theseus/seed0",
        "key": "any",
        "learning_rates": {"predecessor": 0.003, "theseus": 0.01},
        "weights_sha256": "0" * 64,
        "data_sha256": "0" * 64,
        "machine": "a machine",
        "code_version": "1.0.0",
        "packages": {},
        "threads": 1,
        "dev": 0.8,
        "seconds": 60.0,
    } | changes


def trial_record(dev: float, **changes: object) -> TrialRecord:
    """A trial's record with that score."""
    return TrialRecord(dev_history=[dev], **unit_values(dev=dev, **changes))


def cell_record(
    targets: list[int],
    right: float,
    *,
    speedup: float = 2.0,
    seed: int = 0,
    decided: Decisions | None = None,
    **changes: object,
) -> CellRecord:
    """A cell's record whose decisions are right for about that share of the test rows, or those that are given."""
    generator = np.random.default_rng(seed)
    predictions: Decisions = decided or [target if generator.random() < right else 1 - target for target in targets]
    accuracy = float(np.mean([a == b for a, b in zip(predictions, targets, strict=True)]))
    return CellRecord(
        **unit_values(**changes),
        test={"accuracy": accuracy},
        bytes=round(2_000_000 / speedup),
        predecessor_bytes=2_000_000,
        parity=0.0,
        p50_ms=Times(predecessor=4.0, this=4.0 / speedup),
        speedup=Interval(value=speedup, low=speedup - 0.1, high=speedup + 0.1),
        steps=[],
        predictions=predictions,
    )


def keep(results: Results, unit: Cell | Trial, record: CellRecord | TrialRecord) -> None:
    """Write a record as that of a unit."""
    results.write(results.path(unit), record.model_copy(update={"unit": str(unit)}))
