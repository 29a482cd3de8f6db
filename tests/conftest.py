"""Fixtures that every test may use, and one Hypothesis profile: the same examples each time, without a database."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from model_store.manifest import ModelId
from model_store.store import ModelStore
from tests.tiny import make_tiny_version

# Tests run side by side, and their models are tiny: more threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile(
    "deterministic",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
# Many more, and others each time: `pytest --hypothesis-profile fuzz …`.
settings.register_profile("fuzz", settings.get_profile("deterministic"), derandomize=False, max_examples=3_000)
settings.load_profile("deterministic")


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """An empty store."""
    return ModelStore(tmp_path / "store")


@pytest.fixture
def tiny(store: ModelStore) -> ModelId:
    """`tiny@1` in `store`, which is what its alias `production` points at."""
    return make_tiny_version(store, aliases=("production",))


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    """A store for reading: `tiny@1`, `tiny@2` (`production`), `pairs@1`, `topics@1` (multi-label), `rating@1`."""
    store = ModelStore(tmp_path_factory.mktemp("shared") / "store")
    make_tiny_version(store)
    make_tiny_version(store, seed=1, aliases=("production",))
    make_tiny_version(store, "pairs", pair=True, labels=("contradiction", "neutral", "entailment"))
    make_tiny_version(store, "topics", problem="multi_label", labels=("plot", "acting", "music"))
    make_tiny_version(store, "rating", problem="regression", labels=("rating",))
    return store
