"""`OnnxClassifier` on a real tiny model against numpy, and everything it refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from model_store.classifier import (
    _IDENTITY,
    PROVIDERS,
    SPIN_US,
    OnnxClassifier,
    check_runtime_installation,
    choose_provider,
    installed_runtimes,
    open_session,
    provider_starts,
    to_scores,
)
from model_store.encoding import EncodedText, TextItem
from model_store.errors import (
    ClassifierError,
    InferenceError,
    InvalidTextError,
    ProviderNotAvailableError,
    RuntimeInstallationError,
)
from model_store.manifest import ModelId, ScoreContract
from model_store.store import ModelStore, StoredVersion
from tests.tiny import LABELS, MODEL_FILE, TinyWeights, make_tiny_version, write_onnx

TEXTS = ["a good film.", "bad", "the story is not dull, it is warm and great and not cold"]
SOFTMAX = ScoreContract(problem="single_label", labels=LABELS, function="softmax")


def opened(store: ModelStore, **kind: object) -> OnnxClassifier:
    return OnnxClassifier(store.open(make_tiny_version(store, **kind)))  # type: ignore[arg-type]


def rewritten(stored: StoredVersion, folder: Path, change: Callable[[onnx.ModelProto], None]) -> StoredVersion:
    """The version with its model file changed, as an opened version would never be."""
    for path in stored.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    model = onnx.load(folder / MODEL_FILE)
    change(model)
    onnx.save(model, folder / MODEL_FILE)
    return dataclasses.replace(stored, folder=folder)


def test_logits_are_those_of_the_weights(store: ModelStore) -> None:
    classifier = opened(store, seed=3)
    weights = TinyWeights.drawn(len(LABELS), seed=3)
    for text in TEXTS:
        item = classifier.encode(TextItem(text))
        (logits,) = classifier.run([item])
        np.testing.assert_allclose(logits, weights.logits(item.input_ids), atol=1e-5)
        assert logits.dtype == np.float32


def test_a_pair_is_told_apart_from_its_reverse(store: ModelStore) -> None:
    classifier = opened(store, pair=True)
    weights = TinyWeights.drawn(len(LABELS), seed=0)
    items = [classifier.encode(TextItem(*pair)) for pair in (("good", "a film"), ("a film", "good"))]
    logits = classifier.run(items)
    for item, row in zip(items, logits, strict=True):
        np.testing.assert_allclose(row, weights.logits(item.input_ids, item.token_type_ids), atol=1e-5)
    assert not np.allclose(*logits)


def test_a_texts_answer_does_not_depend_on_its_batch_mates(store: ModelStore) -> None:
    classifier = opened(store)
    items = [classifier.encode(TextItem(text)) for text in TEXTS]
    together = classifier.run(items)
    alone = np.concatenate([classifier.run([item]) for item in items])
    assert together.shape == (len(TEXTS), len(LABELS))
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_file_that_is_not_batch_invariant_shows_it(store: ModelStore) -> None:
    classifier = opened(store, batch_invariant=False)
    items = [classifier.encode(TextItem(text)) for text in TEXTS]
    assert not classifier.artifact.batch_invariant
    assert np.abs(classifier.run(items)[0] - classifier.run(items[:1])[0]).max() > 1e-3


def test_a_text_that_does_not_fit_is_refused_by_the_classifier_too(store: ModelStore) -> None:
    with pytest.raises(InvalidTextError):
        opened(store).encode(TextItem("a", "b"))


@pytest.mark.parametrize("batch", [[], [EncodedText([10**6], [0])]])
def test_a_batch_that_the_engine_refuses_is_one_inference_error(store: ModelStore, batch: list[EncodedText]) -> None:
    with pytest.raises(InferenceError, match="tiny@1 failed") as caught:
        opened(store).run(batch)
    assert "\n" not in str(caught.value)


def test_an_answer_of_another_shape_than_the_labels_have_is_refused(
    store: ModelStore, tiny: ModelId, tmp_path: Path
) -> None:
    stored = store.open(tiny)
    (tmp_path / "tokenizer.json").write_bytes((stored.folder / "tokenizer.json").read_bytes())
    write_onnx(tmp_path / MODEL_FILE, TinyWeights.drawn(3, seed=0))
    classifier = OnnxClassifier(dataclasses.replace(stored, folder=tmp_path))
    with pytest.raises(InferenceError, match=r"shape \(1, 3\), not \(1, 2\)"):
        classifier.run([classifier.encode(TextItem("a"))])


@pytest.mark.parametrize(("old", "new"), [("attention_mask", "mask_of_mine"), ("logits", "scores")])
def test_a_model_with_other_inputs_or_outputs_is_refused(
    store: ModelStore, tiny: ModelId, tmp_path: Path, old: str, new: str
) -> None:
    def rename(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.input[:] = [new if name == old else name for name in node.input]
            node.output[:] = [new if name == old else name for name in node.output]
        for value in (*model.graph.input, *model.graph.output):
            value.name = new if value.name == old else value.name

    with pytest.raises(ClassifierError, match=new):
        OnnxClassifier(rewritten(store.open(tiny), tmp_path, rename))


def test_a_file_that_is_no_model_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ClassifierError, match="can't load") as caught:
        open_session(str(tmp_path / "model.onnx"), PROVIDERS["cpu"], 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("threads", "spin"), [(1, "0"), (2, "1")])
def test_threads_of_one_call_spin_for_a_while_after_it_and_a_single_one_has_nobody_to_wait_for(
    store: ModelStore, tiny: ModelId, threads: int, spin: str
) -> None:
    session = open_session(str(store.open(tiny).folder / MODEL_FILE), PROVIDERS["cpu"], threads)
    entry = session.get_session_options().get_session_config_entry
    assert (entry("session.intra_op.allow_spinning"), entry("session.intra_op.spin_duration_us")) == (
        spin,
        str(SPIN_US),
    )


def test_a_provider_that_can_not_be_started_is_an_error_and_never_a_quiet_fall_back(
    store: ModelStore, tiny: ModelId
) -> None:
    stored = store.open(tiny)
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"), pytest.raises(ClassifierError, match="CUDA"):
        OnnxClassifier(stored, provider=PROVIDERS["cuda"])


@pytest.mark.parametrize(
    ("wanted", "available", "chosen"),
    [
        ("auto", ["CUDAExecutionProvider", "CPUExecutionProvider"], "CUDAExecutionProvider"),
        ("auto", ["CPUExecutionProvider"], "CPUExecutionProvider"),
        ("cpu", ["CUDAExecutionProvider", "CPUExecutionProvider"], "CPUExecutionProvider"),
        ("cuda", ["CUDAExecutionProvider", "CPUExecutionProvider"], "CUDAExecutionProvider"),
    ],
)
def test_auto_takes_cuda_where_it_is_there(wanted: str, available: list[str], chosen: str) -> None:
    assert choose_provider(wanted, available, lambda _: True) == chosen


def test_where_cuda_is_built_in_and_does_not_start_auto_takes_the_cpu_and_cuda_is_refused() -> None:
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert choose_provider("auto", both, lambda _: False) == PROVIDERS["cpu"]
    assert choose_provider("cpu", both, lambda _: False) == PROVIDERS["cpu"]
    with pytest.raises(ProviderNotAvailableError, match=r"'cuda' does not start: .*; this runtime has cpu, cuda"):
        choose_provider("cuda", both, lambda _: False)


def test_a_provider_is_tried_with_a_model_that_the_runtime_runs() -> None:
    session = onnxruntime.InferenceSession(_IDENTITY, providers=[PROVIDERS["cpu"]])
    (answer,) = session.run(None, {"x": np.array([3.5], np.float32)})
    assert answer == [3.5]
    assert provider_starts(PROVIDERS["cpu"])
    assert not provider_starts("NoSuchProvider")


@pytest.mark.parametrize(
    ("wanted", "available", "told"),
    [("cuda", ["CPUExecutionProvider"], "has cpu"), ("tpu", ["CPUExecutionProvider"], "has cpu"), ("auto", [], "none")],
)
def test_a_provider_that_is_not_there_is_refused_with_those_that_are(
    wanted: str, available: list[str], told: str
) -> None:
    with pytest.raises(ProviderNotAvailableError, match=told):
        choose_provider(wanted, available)


def test_the_installed_runtime_has_a_cpu() -> None:
    assert choose_provider("cpu") == PROVIDERS["cpu"]


def test_exactly_one_runtime_is_installed_here() -> None:
    assert len(installed_runtimes()) == 1
    check_runtime_installation()


@pytest.mark.parametrize(
    ("installed", "remedy"),
    [
        ([], r"pip install '\.\[cpu\]' or '\.\[gpu\]'"),
        (["onnxruntime", "onnxruntime-gpu"], "pip uninstall -y onnxruntime onnx"),
    ],
)
def test_no_runtime_or_two_are_refused_with_the_remedy(installed: list[str], remedy: str) -> None:
    with pytest.raises(RuntimeInstallationError, match=remedy):
        check_runtime_installation(installed)


def test_softmax_scores_are_the_known_values() -> None:
    scores = to_scores(np.array([[0.0, np.log(3.0)], [1000.0, 0.0]], np.float32), SOFTMAX)
    np.testing.assert_allclose(scores, [[0.25, 0.75], [1.0, 0.0]], atol=1e-6)


def test_sigmoid_scores_are_the_known_values() -> None:
    contract = ScoreContract(problem="multi_label", labels=("a", "b", "c"), function="sigmoid")
    scores = to_scores(np.array([[0.0, np.log(3.0), -1000.0]], np.float32), contract)
    np.testing.assert_allclose(scores, [[0.5, 0.75, 0.0]], atol=1e-6)


def test_identity_gives_the_logits() -> None:
    contract = ScoreContract(problem="regression", labels=("rating",), function="identity")
    np.testing.assert_array_equal(to_scores(np.array([[-2.5]], np.float32), contract), [[-2.5]])


@given(arrays(np.float32, (3, 2), elements=st.floats(-(2.0**127), 2.0**127, width=32)))
def test_softmax_of_finite_logits_is_a_distribution(logits: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> None:
    with np.errstate(over="ignore"):
        scores = to_scores(logits, SOFTMAX)
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)
    assert scores.dtype == np.float32


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_is_an_inference_error(bad: float) -> None:
    with pytest.raises(InferenceError, match="not finite"):
        to_scores(np.array([[0.0, bad]], np.float32), SOFTMAX)


def test_io_binding_gives_the_same_logits_and_the_same_errors(store: ModelStore) -> None:
    version = store.open(make_tiny_version(store, seed=2))
    plain, bound = (OnnxClassifier(version, io_binding=binding) for binding in (False, True))
    batch = [plain.encode(TextItem(text)) for text in TEXTS]
    np.testing.assert_array_equal(bound.run(batch), plain.run(batch))
    with pytest.raises(InferenceError, match="failed on a batch of 1"):
        bound.run([EncodedText([10**9], [0])])
