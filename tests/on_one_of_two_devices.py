"""Trains a tiny Theseus as one of several processes of `torch.distributed.run`: `… FOLDER CLASSIFIER`, see its test."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import yaml

from model_store.builder.operators import theseus
from model_store.builder.plan import make_plan
from model_store.builder.recipe import resolve
from tests.tiny_torch import Recorder


def main(folder: Path, classifier: Path) -> None:
    """Each process writes into folders of its own: `scratch-RANK` and `output-RANK`."""
    rank = os.environ["RANK"]
    scratch, output = folder / f"scratch-{rank}", folder / f"output-{rank}"
    scratch.mkdir()
    output.mkdir()
    plan = make_plan(resolve(yaml.safe_load((folder / "tiny.yaml").read_text(encoding="utf-8")), folder))
    step = next(step for step in plan.recipe.steps if step.operator == "theseus")
    assert isinstance(step, theseus.Parameters)
    theseus.apply(step, classifier, output, plan.context(Recorder(), scratch))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
