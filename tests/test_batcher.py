"""The queue and how a batch is formed."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batcher import Item, Waiting, form_batch
from service.served_model import ServedModel
from tests.serving import item, served

PATIENCE_S = 1.0


@pytest.fixture
def model() -> ServedModel:
    return served()


def queue(*items: Item) -> Waiting:
    waiting = Waiting(PATIENCE_S)
    for one in items:
        waiting.add(one)
    return waiting


def formed(waiting: Waiting, *, now: float = 0.0, places: int = 8) -> list[Item]:
    return form_batch(waiting, now, places).batch


def test_a_cancelled_caller_does_not_disturb_its_neighbours(model: ServedModel) -> None:
    first, gone, last = (item(model, arrived=moment) for moment in (0.0, 0.1, 0.2))
    gone.job.departed = True
    result = form_batch(queue(first, gone, last), 0.3, 8)
    assert result.batch == [first, last]
    assert result.dropped == {gone}


def test_a_departed_leader_is_dropped_and_the_next_one_leads(model: ServedModel) -> None:
    gone, stays = item(model, arrived=0.0), item(model, arrived=0.1)
    gone.job.departed = True
    result = form_batch(queue(gone, stays), 0.2, 8)
    assert (result.batch, result.dropped) == ([stays], {gone})


def test_a_text_whose_deadline_has_passed_is_never_computed(model: ServedModel) -> None:
    late = item(model, deadline=5.0)
    result = form_batch(queue(late), 5.0, 8)
    assert (result.batch, result.dropped) == ([], {late})


def test_an_empty_queue_forms_an_empty_batch() -> None:
    assert form_batch(Waiting(PATIENCE_S), 0.0, 8).batch == []


def test_the_oldest_leads_where_no_deadline_is_near(model: ServedModel) -> None:
    younger, older = item(model, arrived=0.5), item(model, arrived=0.1)
    assert formed(queue(younger, older), places=1) == [older]


def test_the_earliest_deadline_leads_among_those_that_can_wait(model: ServedModel) -> None:
    relaxed, urgent = item(model, arrived=0.0), item(model, arrived=0.1, deadline=0.6)
    assert formed(queue(relaxed, urgent), now=0.2, places=1) == [urgent]


def test_a_deadline_does_not_pass_a_text_that_ran_out_of_patience(model: ServedModel) -> None:
    patient = item(model, arrived=0.0)
    urgent = item(model, arrived=2 * PATIENCE_S, deadline=2 * PATIENCE_S + 0.1)
    assert formed(queue(urgent, patient), now=2 * PATIENCE_S, places=1) == [patient]


def test_texts_of_like_length_join_before_others() -> None:
    model = served(coefficients=(0.050, 0.128, 0.0, 0.0))
    leader = item(model, 20, arrived=0.0)
    others = [item(model, tokens, arrived=0.1) for tokens in (40, 22, 5, 19)]
    assert formed(queue(leader, *others), places=3) == [leader, others[3], others[1]]


def test_a_text_that_would_cost_more_padding_than_it_saves_stays_out(model: ServedModel) -> None:
    short, long = item(model, 5, arrived=0.0), item(model, 60, arrived=0.1)
    assert formed(queue(short, long)) == [short]


def test_texts_of_any_lengths_share_a_batch_where_no_padding_is_computed() -> None:
    model = served(unpadded=True)
    short, long = item(model, 5, arrived=0.0), item(model, 60, arrived=0.1)
    assert formed(queue(short, long)) == [short, long]


def test_where_no_padding_is_computed_the_most_urgent_of_about_the_same_length_join() -> None:
    model = served(unpadded=True)
    leader, much_longer, rare, equal = (
        item(model, tokens, arrived=moment) for tokens, moment in ((20, 0.0), (60, 0.1), (30, 0.2), (20, 0.3))
    )
    assert formed(queue(leader, equal, much_longer, rare), places=2) == [leader, rare]
    assert formed(queue(leader, equal, much_longer, rare), places=3) == [leader, rare, equal]


def test_attention_is_padded_all_the_same() -> None:
    model = served(unpadded=True, coefficients=(0.001, 0.128, 10.0, 0.0))
    short, long = item(model, 5, arrived=0.0), item(model, 60, arrived=0.1)
    assert formed(queue(short, long)) == [short]


def test_a_batch_ends_where_the_next_text_makes_it_hardly_cheaper() -> None:
    model = served(coefficients=(0.0001, 0.128, 0.0, 0.0))
    assert len(formed(queue(*(item(model) for _ in range(8))))) == 1
    model = served(coefficients=(0.010, 0.128, 0.0, 0.0))
    assert 2 <= len(formed(queue(*(item(model) for _ in range(64))), places=64)) < 16


def test_a_batch_takes_no_more_than_its_places(model: ServedModel) -> None:
    assert len(formed(queue(*(item(model) for _ in range(8))), places=2)) == 2


def test_a_file_whose_answers_depend_on_the_batch_runs_one_text_at_a_time() -> None:
    model = served(max_batch_texts=1)
    assert len(formed(queue(item(model), item(model)))) == 1


def test_a_text_that_killed_a_worker_runs_alone(model: ServedModel) -> None:
    killer, other, third = (item(model, arrived=moment) for moment in (0.0, 0.1, 0.2))
    killer.alone = True
    assert formed(queue(killer, other, third)) == [killer]
    assert formed(queue(other, third, killer), places=3)[:1] == [killer]
    other.alone = True
    waiting = queue(other, third)
    waiting.remove([other])
    assert formed(waiting) == [third]


def test_a_text_that_must_run_alone_joins_nobody(model: ServedModel) -> None:
    leader, loner, other = (item(model, arrived=moment) for moment in (0.0, 0.1, 0.2))
    loner.alone = True
    assert formed(queue(leader, loner, other)) == [leader, other]


def test_nobody_joins_if_that_makes_the_leader_miss_its_deadline(model: ServedModel) -> None:
    leader, other = item(model, deadline=0.025), item(model, arrived=0.1)
    assert formed(queue(leader, other)) == [leader]


def test_nobody_joins_who_would_miss_a_deadline_of_its_own_by_it(model: ServedModel) -> None:
    together = model.cost.predict(2, 20)
    for left, joined in ((0.9 * together, 1), (1.1 * together, 2)):
        # Out of patience, and so the leader, though its deadline is later.
        leader = item(model, 20, arrived=-2 * PATIENCE_S, deadline=100.0)
        other = item(model, 20, arrived=0.0, deadline=left)
        assert len(formed(queue(leader, other))) == joined


def test_models_are_never_mixed(model: ServedModel) -> None:
    another = served()
    mine, theirs = item(model, arrived=0.0), item(another, arrived=0.1)
    waiting = queue(mine, theirs)
    assert formed(waiting) == [mine]
    waiting.remove([mine])
    assert formed(waiting) == [theirs]


def test_forming_a_batch_changes_nothing(model: ServedModel) -> None:
    waiting = queue(*(item(model, tokens) for tokens in (5, 9, 10, 40, 41)))
    assert formed(waiting) == formed(waiting)
    assert len(waiting) == 5


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(0, 5), st.booleans()), max_size=40), st.integers(1, 9))
def test_every_text_is_run_exactly_once_or_dropped(arrivals: list[tuple[int, float, bool]], places: int) -> None:
    model = served()
    items = [item(model, tokens, arrived=moment) for tokens, moment, _ in arrivals]
    waiting = queue(*items)
    for one, (_, _, departed) in zip(items, arrivals, strict=True):
        one.job.departed = departed
    run: list[Item] = []
    dropped: list[Item] = []
    while len(waiting):
        result = form_batch(waiting, 10.0, places)
        assert len(result.batch) <= places
        waiting.remove([*result.batch, *result.dropped])
        run += result.batch
        dropped += [*result.dropped]
    assert {id(one) for one in run} == {id(one) for one in items if not one.job.departed}
    assert {id(one) for one in dropped} == {id(one) for one in items if one.job.departed}
    assert len(run) + len(dropped) == len(items)


def test_the_cost_of_a_text_hardly_depends_on_the_depth_of_the_queue(model: ServedModel) -> None:
    def cost(depth: int) -> float:
        waiting = queue(*(item(model, 5 + number % 40, arrived=float(number)) for number in range(depth)))
        fresh = [item(model, 5 + number % 40, arrived=float(depth + number)) for number in range(400)]
        best = float("inf")
        for start in range(0, 400, 100):
            began = time.thread_time()
            for one in fresh[start : start + 100]:
                waiting.add(one)
                waiting.remove(form_batch(waiting, 0.0, 1).batch)
            best = min(best, time.thread_time() - began)
        return best

    assert cost(10_000) <= 4 * cost(10)
