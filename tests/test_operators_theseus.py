from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, DistilBertConfig, DistilBertModel

from model_store.builder.errors import RecipeError, WeightsError
from model_store.builder.layers import ReplaceableLayers, set_layers, stack_of
from model_store.builder.operators.theseus import Parameters, draw_gates
from model_store.builder.step import Shape


def parameters(**changes: object) -> Parameters:
    return Parameters.model_validate(
        {"operator": "theseus", "layers": 3, "epochs": 1, "learning_rate": 1e-4, "base_rate": 0.3} | changes
    )


def tiny_bert(layers: int = 6) -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=16)
    )


def test_the_rate_grows_by_the_papers_line_and_phase_two_begins_when_it_reaches_one() -> None:
    by_k = parameters(rate_per_step=0.01)
    assert [round(by_k.rate(step, 100), 6) for step in (0, 10, 69, 70, 99)] == [0.3, 0.4, 0.99, 1.0, 1.0]
    by_share = parameters(replacing_share=0.5)
    assert [round(by_share.rate(step, 100), 6) for step in (0, 25, 50, 99)] == [0.3, 0.65, 1.0, 1.0]


def test_the_reversed_rate_falls_and_the_constant_one_stays_until_phase_two() -> None:
    falling = parameters(schedule="reversed", replacing_share=0.5)
    assert [round(falling.rate(step, 100), 6) for step in (0, 25, 49, 50)] == [1.0, 0.65, 0.314, 1.0]
    steady = parameters(schedule="constant", replacing_share=0.5)
    assert {steady.rate(step, 100) for step in range(50)} == {0.3}
    assert steady.rate(50, 100) == 1.0


def test_without_phase_one_the_successor_trains_alone_from_the_first_step() -> None:
    assert parameters(replacing_share=0).rate(0, 100) == 1.0


def test_a_schedule_that_is_longer_than_training_is_refused() -> None:
    parameters(rate_per_step=0.08).check_rows(320)
    with pytest.raises(RecipeError, match=r"^rate_per_step: .* only after 70\.0 of 10 steps, .*: raise it, or use"):
        parameters(rate_per_step=0.01).check_rows(320)
    parameters(replacing_share=0.9).check_rows(320)
    with pytest.raises(RecipeError, match=r"^replacing_share: .* only after 9\.5 of 10 steps, .*: lower it, or train"):
        parameters(replacing_share=0.95).check_rows(320)


def test_gates_are_drawn_for_each_module_alone() -> None:
    drawn = [draw_gates(0.5, 3, 0, step) for step in range(4000)]
    assert {tuple(gates) for gates in drawn} == {
        (a, b, c) for a in (True, False) for b in (True, False) for c in (True, False) if a or b or c
    }
    # Without the draws in which none is open, each is open in 4 of 7.
    for module in range(3):
        assert sum(gates[module] for gates in drawn) / len(drawn) == pytest.approx(4 / 7, abs=0.03)


def test_the_rate_is_an_implicit_warm_up_of_the_learning_rate() -> None:
    """Section 3.4 of the paper: a module trains only where it is used, in a share p of the steps."""
    schedule, modules, seeds = parameters(replacing_share=0.5), 8, 400
    for step in (0, 25, 49):
        used = np.mean([draw_gates(schedule.rate(step, 100), modules, seed, step) for seed in range(seeds)])
        assert used == pytest.approx(schedule.rate(step, 100), abs=0.03)  # none open in 8 of p = 0.3: 6 % drawn again
    model = tiny_bert()
    model.requires_grad_(requires_grad=False)
    routed = ReplaceableLayers(stack_of(model), range(3), (2, 2, 2))
    set_layers(model, routed)
    routed.gates = [False, True, False]
    before = {name: tensor.clone() for name, tensor in routed.successor.state_dict().items()}
    optimiser = torch.optim.AdamW(routed.successor.parameters(), lr=0.1)
    model.train()(torch.tensor([[1, 2, 3]]), labels=torch.tensor([1])).loss.backward()
    optimiser.step()
    changed = {
        name.split(".")[0] for name, tensor in routed.successor.state_dict().items() if not tensor.equal(before[name])
    }
    assert changed == {"1"}
    assert all(parameter.grad is None for parameter in routed.predecessor.parameters())


def test_gates_are_drawn_again_when_none_is_open() -> None:
    assert all(any(draw_gates(0.01, 2, 0, step)) for step in range(200))


def test_gates_are_a_function_of_seed_and_step_alone() -> None:
    first = [draw_gates(0.5, 6, 1, step) for step in range(50)]
    torch.manual_seed(5)
    assert [draw_gates(0.5, 6, 1, step) for step in reversed(range(50))] == first[::-1]
    assert [draw_gates(0.5, 6, 2, step) for step in range(50)] != first


def test_successor_layers_start_from_the_first_n_or_from_the_first_that_each_replaces() -> None:
    assert list(parameters().kept_layers(6)) == [0, 1, 2]
    assert list(parameters(initialisation="spread").kept_layers(6)) == [0, 2, 4]


def test_uneven_modules_are_given_as_what_each_stands_for() -> None:
    uneven = parameters(layers=None, modules=(1, 3, 2))
    assert uneven.spans(6) == (1, 3, 2)
    assert uneven.kept_layers(6) == (0, 1, 2)
    assert parameters(layers=None, modules=(1, 3, 2), initialisation="spread").kept_layers(6) == (0, 1, 4)
    assert uneven.shape_after(Shape("classifier", 6)) == Shape("classifier", 3)


def test_an_open_gate_of_an_uneven_module_replaces_all_that_it_stands_for() -> None:
    layers = nn.ModuleList(nn.Identity() for _ in range(6))
    routed = ReplaceableLayers(layers, range(3), (1, 3, 2))
    routed.gates = [False, True, False]
    assert list(routed) == [layers[0], routed.successor[1], layers[4], layers[5]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": None, "modules": (2, 2)}, "modules: 2, 2 is not the 6 layers it replaces"),
        ({"layers": None, "modules": (1,) * 6}, "in fewer modules: their sum is 6, their number 6"),
        ({"layers": 4}, "4 does not divide the 6 layers"),
    ],
)
def test_modules_that_do_not_make_up_the_predecessor_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parameters(**changes).shape_after(Shape("classifier", 6))


def test_successor_layers_start_as_copies_that_share_nothing_with_the_originals() -> None:
    layers = stack_of(tiny_bert())
    routed = ReplaceableLayers(layers, (0, 2, 4), (2, 2, 2))
    for index, original in enumerate((0, 2, 4)):
        ours, theirs = routed.successor[index].state_dict(), layers[original].state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        pointers = {parameter.data_ptr() for parameter in layers[original].parameters()}
        assert not pointers & {parameter.data_ptr() for parameter in routed.successor[index].parameters()}


def test_an_open_gate_runs_one_successor_layer_in_place_of_its_share_of_the_predecessor() -> None:
    layers = nn.ModuleList(nn.Identity() for _ in range(6))
    routed = ReplaceableLayers(layers, range(3), (2, 2, 2))
    routed.gates = [False, True, False]
    assert list(routed) == [layers[0], layers[1], routed.successor[1], layers[4], layers[5]]
    assert (len(routed), routed[2]) == (5, routed.successor[1])


def test_in_evaluation_the_successor_runs_alone_whatever_the_gates_are() -> None:
    model = tiny_bert()
    routed = ReplaceableLayers(stack_of(model), range(3), (2, 2, 2))
    routed.gates = [False, False, False]
    set_layers(model, routed)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        replaced = model.eval()(ids).logits
        set_layers(model, routed.successor)
        alone = model(ids).logits
    assert model.config.num_hidden_layers == 3
    assert torch.equal(replaced, alone)


def test_with_all_gates_closed_the_whole_is_the_predecessor() -> None:
    model = tiny_bert()
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        before = model.eval()(ids).logits
        routed = ReplaceableLayers(stack_of(model), range(3), (2, 2, 2))
        set_layers(model, routed)
        routed.gates = [False] * 3
        routed.training = True  # dropout stays off: only the route is that of training
        assert torch.equal(model(ids).logits, before)


def test_a_model_of_another_architecture_is_routed_by_its_own_loop() -> None:
    model = DistilBertModel(DistilBertConfig(vocab_size=20, dim=8, n_layers=4, n_heads=2, hidden_dim=16))
    routed = ReplaceableLayers(stack_of(model), range(2), (2, 2))
    set_layers(model, routed)
    assert model.eval()(torch.tensor([[1, 2]])).last_hidden_state.shape == (1, 2, 8)
    set_layers(model, routed.successor)
    assert len(stack_of(model)) == 2


def test_a_model_without_a_list_of_layers_is_refused() -> None:
    model = tiny_bert()
    model.config.num_hidden_layers = 7
    with pytest.raises(WeightsError, match="has 0 lists of 7 layers"):
        stack_of(model)
