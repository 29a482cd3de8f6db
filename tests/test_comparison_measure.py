from __future__ import annotations

import pytest

from model_store.manifest import Problem
from service.comparison.errors import ComparisonError, LoadError
from service.comparison.load import run
from service.comparison.measure import Plan, Sample, Side, Sides, check_sides, measure, read_answer
from service.comparison.servers import ServedModel, Server
from service.comparison.texts import Example
from tests.stub_server import StubServer, entry, labelled

PLAN = Plan(pairs=5, blocks=4, connections=3, warm_up_seconds=0.02)
TEXTS = [Example(text=f"text {index}") for index in range(10)]


def sides(url: str, **changes: object) -> Sides:
    models = (ServedModel.model_validate(entry("large@1")), ServedModel.model_validate(entry("small@1", **changes)))
    return Sides(*(Side(model.name, model, Server(url)) for model in models))


def take(url: str, texts: list[Example] = TEXTS, plan: Plan = PLAN) -> tuple[list[Sample], list[tuple[str, int, int]]]:
    advances: list[tuple[str, int, int]] = []
    samples = run(measure(sides(url), texts, plan, lambda *advance: advances.append(advance)))
    return samples, advances


def test_at_one_connection_both_models_answer_the_same_text_in_turn_and_neither_always_first() -> None:
    with StubServer() as server:
        samples, _ = take(server.url)
    singles = [sample for sample in samples if sample.connections == 1]
    assert [sample.model for sample in singles] == ["a", "b", "b", "a", "a", "b", "b", "a", "a", "b"]
    assert [sample.text for sample in singles[::2]] == [sample.text for sample in singles[1::2]]
    assert [sample.started for sample in singles] == sorted(sample.started for sample in singles)


def test_blocks_alternate_and_both_blocks_of_a_round_hold_the_same_texts() -> None:
    with StubServer() as server:
        samples, _ = take(server.url)
    many = [sample for sample in samples if sample.connections == 3]
    rounds = [[(s.model, s.text) for s in many if s.block == block] for block in range(4)]
    for number, asked in enumerate(rounds):
        half = len(asked) // 2
        first, second = ("a", "b") if number % 2 == 0 else ("b", "a")
        assert {model for model, _ in asked[:half]} == {first}
        assert {model for model, _ in asked[half:]} == {second}
        assert [text for _, text in asked[:half]] == [text for _, text in asked[half:]]


def test_the_blocks_hold_every_text_equally_often_and_enough_requests_for_their_connections() -> None:
    with StubServer() as server:
        samples, _ = take(server.url)
    texts = [sample.text for sample in samples if sample.connections == 3 and sample.model == "a"]
    assert len(texts) >= PLAN.blocks * PLAN.connections * 6
    assert {texts.count(text) for text in range(10)} == {len(texts) // 10}


def test_more_texts_than_the_blocks_need_are_each_asked_once() -> None:
    texts = [Example(text=f"text {index}") for index in range(100)]
    with StubServer() as server:
        samples, _ = take(server.url, texts)
    asked = [sample.text for sample in samples if sample.connections == 3 and sample.model == "b"]
    assert sorted(asked) == list(range(100))


def test_every_answer_is_kept_with_its_text() -> None:
    with StubServer(classify=lambda body: labelled(f"{body['model']} {body['input']}")) as server:
        samples, _ = take(server.url)
    names = {"a": "large@1", "b": "small@1"}
    assert all(sample.answer == f"{names[sample.model]} text {sample.text}" for sample in samples)


def test_pairs_are_sent_as_pairs() -> None:
    with StubServer() as server:
        take(server.url, [Example(text="left", text_pair="right")])
    assert all(body["input"] == [["left", "right"]] for body in server.asked)


def test_progress_is_told_for_each_phase_up_to_its_end() -> None:
    with StubServer() as server:
        _, advances = take(server.url)
    assert {phase: (done, total) for phase, done, total in advances} == {
        "warm-up": (2, 2),
        "1 connection": (5, 5),
        "3 connections": (8, 8),
    }


def test_no_pair_is_begun_after_its_time_once_there_are_thirty() -> None:
    with StubServer() as server:
        samples, _ = take(
            server.url, plan=Plan(pairs=500, pair_seconds=0, blocks=2, connections=3, warm_up_seconds=0.01)
        )
    assert sum(sample.connections == 1 for sample in samples) == 60


def test_an_answer_without_a_label_ends_the_measurement_during_the_warm_up() -> None:
    with (
        StubServer(classify=lambda _: (200, {"data": [{"index": 0}]})) as server,
        pytest.raises(LoadError, match="a form that is not known"),
    ):
        take(server.url)


@pytest.mark.parametrize(
    ("body", "problem", "answer"),
    [
        (b'{"data":[{"label":"x"}]}', "single_label", "x"),
        (b'{"data":[{"label":null,"labels":["b","a"]}]}', "multi_label", ("a", "b")),
        (b'{"data":[{"label":null,"score":2}]}', "regression", 2.0),
    ],
)
def test_an_answer_is_read_as_its_problem_wants_it(body: bytes, problem: Problem, answer: object) -> None:
    assert read_answer(body, problem) == answer


@pytest.mark.parametrize("body", [b"", b"{}", b'{"data":[]}', b'{"data":[{}]}', b"[1]", b'{"data":[{"score":"x"}]}'])
def test_an_answer_in_another_form_is_an_error(body: bytes) -> None:
    with pytest.raises(LoadError):
        read_answer(body, "regression")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem": "multi_label"}, "large@1 is single_label and small@1 multi_label"),
        ({"pair": True}, "small@1 reads pairs and large@1 single texts"),
        ({"labels": ["no", "yes"]}, "no label in common: large@1 has negative, positive, small@1 has no, yes"),
    ],
)
def test_models_of_which_nothing_could_be_compared_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ComparisonError, match=message):
        check_sides(sides("http://127.0.0.1:1", **changes))


def test_models_with_one_label_in_common_are_accepted() -> None:
    check_sides(sides("http://127.0.0.1:1", labels=["positive", "neutral"]))
