"""What passed the gate, into the store: the predecessor's float32 file, then the successor with all of its files."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from model_store.builder.artifacts import read_artifacts
from model_store.builder.plan import Plan
from model_store.errors import IntegrityError
from model_store.manifest import TOKENIZER_FILE, Check, Lineage, Manifest, ModelId
from model_store.store import Draft, ModelStore, digest_file

_OF_THE_PREDECESSOR = {
    "predecessor",
    "tfidf",
    "predecessor_margin",
    "predecessor_parity",
    "predecessor_bytes",
    "test_rows",
}


@dataclass(frozen=True, slots=True)
class Publication:
    """What both versions share."""

    plan: Plan
    store: ModelStore
    measurements: dict[str, float]
    checks: tuple[Check, ...]
    report: dict[str, Path]

    def predecessor(self, folder: Path) -> ModelId:
        """Publish the predecessor, unless its newest version is the very same: building again adds no copy.

        Raises:
            StoreError: the store could not be written.
        """
        recipe = self.plan.recipe
        newest = self._newest(recipe.predecessor_name)
        if newest is not None and self._answers_alike(newest, folder):
            self.store.promote(newest.id, recipe.alias)
            return newest.id
        measurements = {
            name: value
            for name, value in self.measurements.items()
            if name in _OF_THE_PREDECESSOR or name.startswith(("predecessor_", "tfidf_"))
        }
        checks = tuple(check for check in self.checks if check.name in _OF_THE_PREDECESSOR)
        return self._publish(recipe.predecessor_name, folder, self.plan.lineage, measurements, checks)

    def _newest(self, name: str) -> Manifest | None:
        versions = self.store.versions(name)
        with contextlib.suppress(IntegrityError):  # one that was damaged is not the same any more
            return self.store.open(ModelId(name=name, version=versions[-1])).manifest if versions else None
        return None

    def _answers_alike(self, published: Manifest, folder: Path) -> bool:
        """Whether a published model is the one of a folder, reads texts as it does and was judged on the same."""
        plan = self.plan
        tokenizer, _ = digest_file(folder / TOKENIZER_FILE)
        return (
            published.artifacts[0].sha256 == read_artifacts(folder)[0].sha256
            and (published.scores, published.inputs) == (plan.scores, plan.inputs)
            and published.lineage.data.splits == plan.data.lineage.splits
            and any(entry.file == TOKENIZER_FILE and entry.sha256 == tokenizer for entry in published.files)
        )

    def successor(self, folder: Path, predecessor: ModelId) -> ModelId:
        """Publish the successor, with the predecessor in its lineage, unless its newest version says the very same.

        Raises:
            StoreError: the store could not be written.
        """
        digest = self.store.manifest(predecessor).artifacts[0].sha256
        origin = {"predecessor": str(predecessor), "predecessor_sha256": digest}
        lineage, recipe = self.plan.lineage.model_copy(update=origin), self.plan.recipe
        newest = self._newest(recipe.name)
        if newest is not None and self._answers_alike(newest, folder):
            said = (newest.artifacts, newest.lineage, newest.measurements, newest.gate)
            if said == (read_artifacts(folder), lineage, self.measurements, self.checks):
                self.store.promote(newest.id, recipe.alias)
                return newest.id
        return self._publish(recipe.name, folder, lineage, self.measurements, self.checks)

    def _publish(
        self, name: str, folder: Path, lineage: Lineage, measurements: dict[str, float], checks: tuple[Check, ...]
    ) -> ModelId:
        artifacts = read_artifacts(folder)
        draft = Draft(
            name=name,
            scores=self.plan.scores,
            inputs=self.plan.inputs,
            artifacts=artifacts,
            lineage=lineage,
            measurements=measurements,
            gate=checks,
        )
        files = {file: folder / file for file in (TOKENIZER_FILE, *(artifact.file for artifact in artifacts))}
        return self.store.publish(draft, files | self.report, (self.plan.recipe.alias,))
