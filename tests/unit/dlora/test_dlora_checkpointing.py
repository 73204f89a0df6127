"""Gradient checkpointing changes neither outputs nor gradients, of either loss."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from timellama_dist.dlora.layer import BlockRouter


def gradients(model: nn.Module, *batches: Tensor) -> dict[str, Tensor]:
    """Of one backward pass through the forward passes of all batches, and their balance losses."""
    loss = torch.zeros(())
    for hidden_BTD in batches:
        output = model(inputs_embeds=hidden_BTD, use_cache=False).last_hidden_state
        weights = torch.linspace(-1, 1, output.numel()).view_as(output)
        loss = loss + (output * weights).sum() + 0.5 * model.balance_loss()
    loss.backward()
    actual = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return actual


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("gate", ["probability", "straight_through", "binary"])
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("nf4", [False, True])
def test_checkpointing_gives_the_gradients_of_an_ordinary_pass(
    dlora, hidden_BTD, use_reentrant, gate, nf4
):
    model = dlora(gate=gate, nf4=nf4, dropout=0.0, pooling="attention").train()
    # As behind a trained tokenizer; the reentrant variant wants an input that needs gradients.
    hidden_BTD.requires_grad_()
    expected = gradients(model, hidden_BTD)
    expected_input, hidden_BTD.grad = hidden_BTD.grad, None
    assert sum("router" in name for name in expected) == 4
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert_same(gradients(model, hidden_BTD), expected)
    torch.testing.assert_close(hidden_BTD.grad, expected_input, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_two_forward_passes_before_one_backward_keep_their_own_gates(
    dlora, hidden_BTD, use_reentrant
):
    model = dlora().train()
    batches = (hidden_BTD.requires_grad_(), hidden_BTD.detach().flip(0, 2)[:3].requires_grad_())
    expected = gradients(model, *batches)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert_same(gradients(model, *batches), expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_the_router_runs_once_per_pass_under_checkpointing(dlora, hidden_BTD, use_reentrant):
    model = dlora().train()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    calls = []
    for module in model.modules():
        if isinstance(module, BlockRouter):
            module.register_forward_hook(lambda *args: calls.append(1))
    gradients(model, hidden_BTD)
    assert len(calls) == 2


def test_a_caller_may_checkpoint_whole_blocks_himself(dlora, hidden_BTD):
    model = dlora().train()
    expected = gradients(model, hidden_BTD)
    run_block = nn.Module.__call__

    def checkpointed_call(self, *args, **kwargs):
        return checkpoint(run_block, self, *args, use_reentrant=False, **kwargs)

    layer_type = type(model.base_model.model.layers[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_type, "__call__", checkpointed_call, raising=False)
        assert_same(gradients(model, hidden_BTD), expected)


def test_checkpointing_can_be_switched_off_and_on_again(dlora, hidden_BTD):
    model = dlora().train()
    expected = gradients(model, hidden_BTD)
    for use_reentrant in (True, False):
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        assert_same(gradients(model, hidden_BTD), expected)
        model.gradient_checkpointing_disable()
        assert_same(gradients(model, hidden_BTD), expected)


def test_a_forgotten_graph_leaves_the_decisions_without_their_gradient(dlora, hidden_BTD):
    model = dlora(num_experts=2, rank=2, top_n=3).train()
    output = model(inputs_embeds=hidden_BTD).last_hidden_state
    (output.sum() + model.balance_loss()).backward()
    balance, chosen = model.balance_loss(), model.router_statistics().chosen
    assert balance.requires_grad
    model.forget_graph()
    assert not model.balance_loss().requires_grad
    assert model.balance_loss() == balance
    assert torch.equal(model.router_statistics().chosen, chosen)
