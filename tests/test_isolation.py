"""What becomes of a batch when one of its texts breaks it."""

from __future__ import annotations

import numpy as np
import pytest

from model_store.errors import InferenceError, SuccessorError
from service.batcher import Item
from service.isolation import run_isolated
from service.served_model import ServedModel
from tests.fakes import FakeClassifier, fake_ids, fake_logits
from tests.serving import item, served


def texts(model: ServedModel, *words: str, raw_scores: bool = False) -> list[Item]:
    items = []
    for word in words:
        one = item(model, raw_scores=raw_scores)
        one.encoded = model.classifier.encode(one.text.__class__(word))
        items.append(one)
    return items


def softmax(word: str) -> list[float]:
    logits = fake_logits(fake_ids(word)).astype(float)
    exponentials = np.exp(logits - logits.max())
    return list(exponentials / exponentials.sum())


def test_a_batch_is_one_call_with_one_answer_each_in_order() -> None:
    classifier = FakeClassifier()
    outcomes = run_isolated(classifier, texts(served(classifier), "a", "b", "c"))
    assert len(classifier.batches) == 1
    for outcome, word in zip(outcomes, "abc", strict=True):
        assert outcome == pytest.approx(softmax(word))


def test_a_text_that_breaks_the_engine_fails_alone() -> None:
    classifier = FakeClassifier(errors={"bad": RuntimeError("broken")})
    good, bad, other = run_isolated(classifier, texts(served(classifier), "good", "bad", "other"))
    assert isinstance(bad, InferenceError)
    assert "broken" in str(bad)
    assert good == pytest.approx(softmax("good"))
    assert other == pytest.approx(softmax("other"))


def test_an_expected_error_of_the_engine_keeps_its_class() -> None:
    classifier = FakeClassifier(errors={"bad": InferenceError("as it is")})
    (outcome,) = run_isolated(classifier, texts(served(classifier), "bad"))
    assert isinstance(outcome, SuccessorError)
    assert str(outcome) == "as it is"
    assert len(classifier.batches) == 1


def test_a_text_whose_logits_are_not_finite_fails_alone() -> None:
    classifier = FakeClassifier(nan_for=["bad"])
    good, bad = run_isolated(classifier, texts(served(classifier), "good", "bad"))
    assert good == pytest.approx(softmax("good"))
    assert isinstance(bad, InferenceError)
    assert "not finite" in str(bad)


def test_who_asks_for_raw_scores_gets_logits_and_the_others_do_not() -> None:
    classifier = FakeClassifier()
    model = served(classifier)
    raw, plain = run_isolated(classifier, texts(model, "a", raw_scores=True) + texts(model, "b"))
    assert raw == pytest.approx(fake_logits(fake_ids("a")).tolist())
    assert plain == pytest.approx(softmax("b"))
