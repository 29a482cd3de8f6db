"""The one look at the test split, and the figures that gate, report and manifest are made of."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from model_store.builder.artifacts import open_candidate, read_artifacts
from model_store.builder.data import sample
from model_store.builder.evaluate import predictions_of, run_classifier, tfidf_predictions, times_alone
from model_store.builder.plan import Chain, Plan
from model_store.builder.report import quality_figures
from model_store.builder.runner import Result, Runner, key_of
from model_store.builder.step import Figures
from model_store.classifier import PROVIDERS
from model_store.machine import processor
from model_store.manifest import best_artifact
from model_store.statistics import ratio_of_medians

_TIMED_TEXTS, _TIMED_ROUNDS = 100, 3


def evaluate_on_test(plan: Plan, runner: Runner, predecessor: Chain, successor: Chain) -> Result:
    """What both served files are worth, made once and kept with intervals.

    Their decisions and those of tf-idf on test, and how long they take for dev texts alone, in turns.
    """

    def work(output: Path, scratch: Path) -> Figures:
        context = plan.context(runner.progress, scratch)
        classifiers = {
            name: open_candidate(chain.folder, best_artifact(read_artifacts(chain.folder), PROVIDERS["cpu"]), context)
            for name, chain in (("predecessor", predecessor), ("successor", successor))
        }
        items = [row.item for row in plan.data.splits["test"]]
        predictions = {"tfidf": tfidf_predictions(plan.data, "test")}
        for name, classifier in classifiers.items():
            predictions[name] = predictions_of(plan.data.problem, run_classifier(classifier, items))
        np.savez_compressed(output / "predictions.npz", **predictions)  # type: ignore[arg-type]  # numpy's stub
        texts = sample([row.item for row in plan.data.splits["dev"]], _TIMED_TEXTS)
        old, new = times_alone([*classifiers.values()], texts, _TIMED_ROUNDS)
        figures = quality_figures(plan.data, predictions)
        return figures | {"speedup_alone": asdict(ratio_of_medians(old, new)), "machine": processor()[0]}

    metrics = [(metric.name, metric.positive) for metric in plan.data.metrics]
    return runner.run("evaluate", key_of("evaluate", predecessor.key, successor.key, metrics), work)


def measurements_of(plan: Plan, predecessor: Chain, successor: Chain, tested: Result) -> dict[str, float]:
    """Every named figure, on test unless it says otherwise; the gate's checks take their values from here."""
    old, new = read_artifacts(predecessor.folder)[0], read_artifacts(successor.folder)
    chosen = best_artifact(new, PROVIDERS["cpu"])
    figures = {name: float(entry["value"]) for name, entry in tested.figures["estimates"].items()}
    for name, values in tested.figures["further"].items():
        figures |= {f"{model}_{name}": float(value) for model, value in values.items()}
    return figures | {
        "agreement": float(tested.figures["agreement"]),
        "file_agreement": chosen.agreement,
        "predecessor_bytes": float(old.bytes),
        "successor_bytes": float(chosen.bytes),
        "size_ratio": old.bytes / chosen.bytes,
        "speedup_alone": float(tested.figures["speedup_alone"]["value"]),
        "predecessor_parity": old.max_logit_difference,
        "successor_parity": new[0].max_logit_difference,
        "test_rows": float(len(plan.data.splits["test"])),
    }


def report_of(plan: Plan, predecessor: Chain, successor: Chain, tested: Result) -> dict[str, Any]:
    """The report's content, all of it JSON."""
    artifacts = [
        (model, artifact)
        for model, chain in (("predecessor", predecessor), ("successor", successor))
        for artifact in read_artifacts(chain.folder)
    ]
    # Files for other providers are not timed on the CPU.
    files = [
        artifact.model_dump(mode="json")
        | {"model": model, "p50_ms": artifact.latency[0].p50_ms if artifact.latency else None}
        for model, artifact in artifacts
    ]
    # Steps that were kept may have been measured elsewhere.
    machines = dict.fromkeys(
        [*(time.machine for _, one in artifacts for time in one.latency), tested.figures["machine"]]
    )
    own = {result.key for result in predecessor.results}
    steps: list[dict[str, Any]] = [
        {"model": model, "operator": result.operator, "seconds": result.seconds, "figures": result.figures}
        for model, results in (
            ("predecessor", predecessor.results),
            ("successor", [result for result in successor.results if result.key not in own]),
        )
        for result in results
    ]
    candidates: list[Any] = next((s["figures"]["candidates"] for s in steps if "candidates" in s["figures"]), [])
    return {
        "name": plan.recipe.name,
        "predecessor_name": plan.recipe.predecessor_name,
        "data": plan.data.lineage.model_dump(mode="json"),
        "quality": tested.figures,
        "files": files,
        "candidates": candidates,
        "steps": steps,
        "provider": PROVIDERS["cpu"],
        "machine": ", ".join(machines),
        "recipe": plan.lineage.recipe,
    }
