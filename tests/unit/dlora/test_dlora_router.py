"""The router's mathematics against values worked out by hand."""

import math

import pytest
import torch

from timellama_dist.dlora.router import (
    RouterStatistics,
    attention_pool,
    balance_loss,
    choose_experts,
    entropy,
    gate_experts,
)

PROBS_BPS = torch.tensor([[[0.1, 0.4, 0.2, 0.3]], [[0.5, 0.1, 0.1, 0.3]]])


def test_the_most_probable_experts_are_chosen():
    chosen = choose_experts(PROBS_BPS, 2)
    assert chosen.tolist() == [[[0.0, 1.0, 0.0, 1.0]], [[1.0, 0.0, 0.0, 1.0]]]


def test_of_equally_probable_experts_the_first_are_chosen():
    chosen = choose_experts(torch.full((1, 1, 64), 1 / 64), 3)
    assert chosen[0, 0].nonzero().flatten().tolist() == [0, 1, 2]


def test_each_pool_chooses_for_itself():
    probs = torch.tensor([[[0.9, 0.1], [0.2, 0.8]]])
    assert choose_experts(probs, 1).tolist() == [[[1.0, 0.0], [0.0, 1.0]]]


def test_probability_gates_are_the_renormalised_probabilities_of_the_chosen():
    gates = gate_experts(PROBS_BPS, choose_experts(PROBS_BPS, 2), "probability")
    by_hand = [[[0.0, 2 * 4 / 7, 0.0, 2 * 3 / 7]], [[2 * 5 / 8, 0.0, 0.0, 2 * 3 / 8]]]
    torch.testing.assert_close(gates, torch.tensor(by_hand))


@pytest.mark.parametrize("top_n", [1, 3, 8])
def test_probability_gates_of_an_even_router_are_one(top_n):
    probs = torch.full((2, 1, 8), 1 / 8)
    gates = gate_experts(probs, choose_experts(probs, top_n), "probability")
    torch.testing.assert_close(gates[..., :top_n], torch.ones(2, 1, top_n))
    assert not gates[..., top_n:].any()


def test_straight_through_gates_are_binary_forward_and_the_softmax_backward():
    torch.manual_seed(0)
    scores = torch.randn(3, 1, 7, requires_grad=True)
    probs = scores.softmax(-1)
    gates = gate_experts(probs, choose_experts(probs, 2), "straight_through")
    assert set(gates.flatten().tolist()) == {0.0, 1.0}
    upstream = torch.randn(3, 1, 7)
    (gradient,) = torch.autograd.grad(gates, scores, upstream)
    # d softmax: p * (u - sum(u * p)), for the experts not chosen as well.
    p = probs.detach()
    torch.testing.assert_close(gradient, p * (upstream - (upstream * p).sum(-1, keepdim=True)))


def test_binary_gates_carry_no_gradient():
    probs = PROBS_BPS.clone().requires_grad_()
    gates = gate_experts(probs, choose_experts(probs, 2), "binary")
    assert set(gates.flatten().tolist()) == {0.0, 1.0}
    assert not gates.requires_grad


@pytest.mark.parametrize(("top_n", "trains"), [(1, False), (2, True)])
def test_a_single_probability_gate_carries_no_gradient(top_n, trains):
    torch.manual_seed(0)
    scores = torch.randn(3, 2, 7, requires_grad=True)
    probs = scores.softmax(-1)
    gates = gate_experts(probs, choose_experts(probs, top_n), "probability")
    (gradient,) = torch.autograd.grad(gates, scores, torch.randn(3, 2, 7))
    assert bool((gradient.abs() > 1e-5).any()) == trains


def test_balance_loss_is_as_worked_out_by_hand():
    # f = (1/2, 1/2, 0, 0), p = (0.3, 0.25, 0.15, 0.3): 4 * (0.15 + 0.125) = 1.1
    torch.testing.assert_close(balance_loss(PROBS_BPS), torch.tensor(1.1))


def test_balance_loss_of_several_pools_is_their_mean():
    # The second pool sends all to its first expert: f = (1, 0, 0, 0), p = (0.7, 0.1, 0.1, 0.1).
    skewed = torch.tensor([0.7, 0.1, 0.1, 0.1]).expand(2, 1, 4)
    both = torch.cat([PROBS_BPS, skewed], dim=1)
    torch.testing.assert_close(balance_loss(both), torch.tensor((1.1 + 2.8) / 2))


def test_balance_loss_of_an_even_router_is_one():
    torch.testing.assert_close(balance_loss(torch.full((6, 7, 4), 0.25)), torch.tensor(1.0))


def test_balance_loss_of_a_collapsed_router_is_the_number_of_experts():
    probs = torch.zeros(6, 1, 8)
    probs[..., 3] = 1.0
    torch.testing.assert_close(balance_loss(probs), torch.tensor(8.0))


def test_attention_pooling_is_the_softmax_weighted_mean():
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])
    scores = torch.tensor([[[0.0], [math.log(3.0)]]])
    torch.testing.assert_close(attention_pool(hidden, scores), torch.tensor([[2.5, 5.0]]))


def test_entropy_of_an_even_pool_is_the_logarithm_of_its_size():
    certain_and_even = torch.tensor([[[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]]])
    torch.testing.assert_close(entropy(certain_and_even), torch.tensor([math.log(4) / 2]))


def test_statistics_of_batches_add_up():
    def batch(n: int) -> RouterStatistics:
        return RouterStatistics(
            num_samples=torch.tensor(n),
            chosen=torch.full((2, 7, 4), n),
            probability_sum=torch.full((2, 7, 4), 0.5 * n),
            entropy_sum=torch.full((2,), 2.0 * n),
        )

    total = batch(3) + batch(5)
    assert total.num_samples == 8
    assert total.chosen.unique().tolist() == [8]
    assert total.mean_probability.unique().tolist() == [0.5]
    assert total.mean_entropy.tolist() == [2.0, 2.0]
