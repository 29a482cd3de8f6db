"""What a call costs, learned from calls."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from service.cost_model import KNOWN_AFTER, LEARN_SHARE, CostModel, CostState

GRID = [(texts, tokens) for texts in (1, 2, 4, 8) for tokens in (8, 16, 32, 64, 128)]


def true_cost(texts: int, tokens: int) -> float:
    units = texts * tokens / 128
    return 0.002 + 0.05 * units + 0.01 * units * tokens / 128


def test_costs_are_learned_from_calls() -> None:
    model = CostModel()
    for _ in range(10):
        for texts, tokens in GRID:
            model.observe(texts, tokens, true_cost(texts, tokens))
    for texts, tokens in GRID:
        assert model.predict(texts, tokens) == pytest.approx(true_cost(texts, tokens), rel=0.05)


def test_the_first_call_scales_what_is_believed() -> None:
    model = CostModel()
    believed = model.predict(4, 32)
    model.observe(1, 16, 10 * model.predict(1, 16))
    assert model.predict(4, 32) == pytest.approx(10 * believed, rel=0.05)


def test_a_change_of_the_machine_is_learned_again() -> None:
    model = CostModel()
    for factor in (1.0, 3.0):
        for _ in range(250):
            for texts, tokens in GRID:
                model.observe(texts, tokens, factor * true_cost(texts, tokens))
    assert model.predict(4, 32) == pytest.approx(3 * true_cost(4, 32), rel=0.1)


def test_of_a_model_that_is_known_only_some_calls_are_learned_from() -> None:
    model = CostModel()
    for _ in range(KNOWN_AFTER):
        model.observe(1, 16, 0.01)
    assert model.calls == KNOWN_AFTER
    for _ in range(1_000):
        model.observe(1, 16, 0.01)
    assert model.calls == pytest.approx(KNOWN_AFTER + 1_000 * LEARN_SHARE, rel=0.1)


def test_no_part_of_a_cost_is_negative() -> None:
    model = CostModel()
    for _ in range(50):
        for texts, tokens in GRID:
            model.observe(texts, tokens, 0.01 / tokens)
    assert min(model.coefficients) >= 0


def test_a_call_that_took_no_time_at_all_is_learned_from() -> None:
    model = CostModel()
    model.observe(1, 16, 0.0)
    assert model.predict(1, 16) >= 0


def test_what_was_learned_survives_in_its_state() -> None:
    model = CostModel()
    for texts, tokens in GRID:
        model.observe(texts, tokens, true_cost(texts, tokens))
    again = CostModel(CostState.model_validate_json(model.state().model_dump_json()))
    assert again.predict(3, 30) == pytest.approx(model.predict(3, 30), rel=1e-6)
    assert again.calls == model.calls


def test_a_state_that_is_not_one_is_refused() -> None:
    with pytest.raises(ValidationError):
        CostState.model_validate_json('{"matrix": [1], "vector": [1, 2, 3, 4], "calls": 1}')


def test_a_call_that_computes_no_padding_costs_its_own_tokens_and_padded_attention() -> None:
    def unpadded_cost(lengths: tuple[int, ...]) -> float:
        return 0.001 + sum(lengths) / 128 * 0.02 + len(lengths) * (max(lengths) / 128) ** 2 * 0.004

    model = CostModel()
    calls = [(8,), (24,), (96,), (8, 64), (24, 20, 50), (12, 12, 12, 12), (5, 100, 30), (16, 8, 40, 40, 12, 9)]
    for _ in range(60):
        for lengths in calls:
            model.observe(len(lengths), max(lengths), unpadded_cost(lengths), sum(lengths))
    for lengths in (*calls, (10, 70), (30, 30, 30)):
        predicted = model.predict(len(lengths), max(lengths), sum(lengths))
        assert predicted == pytest.approx(unpadded_cost(lengths), rel=0.05)
