"""The router's mathematics as pure functions of tensors: pooling, choice, gates, balance loss.

Shapes: B batch, T tokens, D hidden, M modules of a block, E experts per module, L blocks,
P pools that are chosen from (1 with scope "block", M with scope "module"), S experts per pool.
P * S = M * E in both scopes, so a (B, P, S) tensor is a (B, M, E) one reshaped.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from timellama_dist.dlora.settings import Gate


def attention_pool(hidden_BTD: Tensor, scores_BT1: Tensor) -> Tensor:
    """Average the tokens by the softmax of their scores, shape (batch, hidden)."""
    weights_BT1 = scores_BT1.float().softmax(dim=1).to(hidden_BTD.dtype)
    return (weights_BT1 * hidden_BTD).sum(dim=1)


def choose_experts(probs_BPS: Tensor, top_n: int) -> Tensor:
    """Mark the `top_n` most probable experts of each pool with 1.0, the others with 0.0.

    Of equally probable experts the first wins: a stable sort, because `torch.topk` leaves the
    order of ties to the device.

    Args:
        probs_BPS: router probabilities, shape (batch, pools, experts of a pool).
        top_n: experts to mark per pool.

    Returns:
        Same shape and dtype, without gradient.
    """
    order_BPS = probs_BPS.detach().sort(dim=-1, descending=True, stable=True).indices
    return torch.zeros_like(probs_BPS).scatter_(-1, order_BPS[..., :top_n], 1.0)


def gate_experts(probs_BPS: Tensor, chosen_BPS: Tensor, gate: Gate) -> Tensor:
    """Weight each expert's output.

    Args:
        probs_BPS: router probabilities, shape (batch, pools, experts of a pool).
        chosen_BPS: 1.0 for the chosen experts, same shape.
        gate: how a choice becomes a weight, see `DLoraConfig.gate`.

    Returns:
        Gates, same shape. Experts that were not chosen have exactly 0, in every mode. A gate of
        "binary" passes no gradient on, nor does one of "probability" where it is the only one.
    """
    if gate == "binary":
        return chosen_BPS
    if gate == "straight_through":
        # The bracket is exactly 0, so the forward value stays exactly 0 or 1.
        return chosen_BPS + (probs_BPS - probs_BPS.detach())
    weights_BPS = probs_BPS * chosen_BPS
    num_chosen = chosen_BPS.sum(dim=-1, keepdim=True)
    return weights_BPS * (num_chosen / weights_BPS.sum(dim=-1, keepdim=True))


def balance_loss(probs_BPS: Tensor) -> Tensor:
    """Switch-style load-balance loss of one block (eq. 6-7), the mean over its pools.

    Per pool it is S * sum_i f_i * p_i, with f the share of samples whose most probable expert is
    i, and p the mean probability of i. The gradient flows through p alone.

    Args:
        probs_BPS: router probabilities, shape (batch, pools, experts of a pool).

    Returns:
        Scalar, 1.0 for a perfectly even router, at most the number of experts in a pool.
    """
    first_BP1 = probs_BPS.detach().argmax(dim=-1, keepdim=True)
    share_PS = torch.zeros_like(probs_BPS).scatter_(-1, first_BP1, 1.0).mean(dim=0)
    per_pool_P = (share_PS * probs_BPS.mean(dim=0)).sum(dim=-1) * probs_BPS.shape[-1]
    return per_pool_P.mean()


def entropy(probs_BPS: Tensor) -> Tensor:
    """Compute the entropy of each sample's choice in nats, averaged over pools, shape (batch,)."""
    return torch.special.entr(probs_BPS).sum(dim=-1).mean(dim=-1)


@dataclass(frozen=True, kw_only=True)
class RouterStatistics:
    """Sums of what the routers did: `+` joins batches, a sum over ranks joins workers."""

    num_samples: Tensor
    """Samples routed, shape ()."""

    chosen: Tensor
    """How often each expert was chosen, shape (blocks, modules, experts), int64."""

    probability_sum: Tensor
    """Sum over samples of each expert's probability, shape (blocks, modules, experts)."""

    entropy_sum: Tensor
    """Sum over samples of the entropy in nats, shape (blocks,)."""

    @property
    def mean_probability(self) -> Tensor:
        """Mean probability of each expert, shape (blocks, modules, experts)."""
        return self.probability_sum / self.num_samples

    @property
    def mean_entropy(self) -> Tensor:
        """Mean entropy of a choice in nats, shape (blocks,)."""
        return self.entropy_sum / self.num_samples

    def __add__(self, other: "RouterStatistics") -> "RouterStatistics":
        return RouterStatistics(
            num_samples=self.num_samples + other.num_samples,
            chosen=self.chosen + other.chosen,
            probability_sum=self.probability_sum + other.probability_sum,
            entropy_sum=self.entropy_sum + other.entropy_sum,
        )
