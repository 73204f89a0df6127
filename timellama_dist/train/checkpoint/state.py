"""Reads and sets what trains in a DeepSpeed engine, whole, at any world size and ZeRO stage."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from timellama_dist.compat import deepspeed as compat

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's, by DeepSpeed's and torch's names."""

Weights = dict[str, Tensor]
"""fp32, by parameter name."""


@dataclass(frozen=True, kw_only=True)
class TrainedState:
    """Weights and moments that the optimizer works on, whole, on the host."""

    weights: Weights
    moments: Weights


def trained_parameters(engine: Any) -> dict[str, nn.Parameter]:
    """The engine's trainable parameters by name, in the model's order."""
    return {n: p for n, p in engine.module.named_parameters() if p.requires_grad}


def trained_weights(engine: Any) -> Weights:
    """The whole fp32 trained weights on every rank's host; every rank must call."""
    # Not above: it is imported once the process has set DS_ACCELERATOR.
    from deepspeed.utils import safe_get_full_fp32_param

    weights, masters = {}, compat.plain_masters(engine)
    for name, parameter in trained_parameters(engine).items():
        full = safe_get_full_fp32_param(parameter)
        # Without ZeRO and mixed precision there is no master copy: the parameter is it.
        whole = masters.get(parameter, parameter) if full is None else full
        weights[name] = whole.detach().float().cpu().clone()
    return weights


def trained_state(engine: Any) -> TrainedState:
    """Gather weights and moments between two steps; every rank must call."""
    return TrainedState(weights=trained_weights(engine), moments=_optimizer_state(engine))


def set_weights(engine: Any, weights: Weights) -> None:
    """Put weights into the engine's module for evaluation; every rank must call.

    The optimizer's masters are left as they are: no training step may follow.
    """
    import deepspeed

    parameters = trained_parameters(engine)
    with (
        torch.no_grad(),
        deepspeed.zero.GatheredParameters(list(parameters.values()), modifier_rank=0),
    ):
        for name, parameter in parameters.items():
            # Outside stage 3 every rank holds, and sets, its own copy.
            if parameter.numel() == weights[name].numel():
                parameter.copy_(weights[name])


@contextmanager
def in_engine(engine: Any, weights: Weights) -> Iterator[None]:
    """Let an engine forecast with these weights for as long as the block lasts; no step in it.

    Every rank must call.
    """
    own = trained_weights(engine)
    set_weights(engine, weights)
    try:
        yield
    finally:
        # The weights that each rank steps on are these, or were not touched.
        set_weights(engine, own)


def set_trained_state(engine: Any, state: TrainedState, updates: int) -> None:
    """Put a state into an engine that has made steps already; every rank must call.

    Args:
        engine: between two steps.
        state: of the same model.
        updates: how many steps the optimizer had counted by then.
    """
    set_weights(engine, state.weights)
    set_masters(engine, state.weights)
    set_optimizer_state(engine, state.moments, updates)


def set_masters(engine: Any, weights: Weights) -> None:
    """Put weights into the fp32 copies that the optimizer steps on; every rank must call."""
    from deepspeed.utils import safe_set_full_fp32_param

    masters = compat.plain_masters(engine)
    for name, parameter in trained_parameters(engine).items():
        value = weights[name].to(engine.device)
        if parameter in masters:
            masters[parameter].data.copy_(value)
        else:
            # Does nothing where there is no such copy.
            safe_set_full_fp32_param(parameter, value)


def set_optimizer_state(engine: Any, moments: Weights, updates: int) -> None:
    """Put Adam's moments and step count into an engine that has made a step; every rank calls."""
    from deepspeed.utils import safe_set_full_optimizer_state

    for name, parameter in trained_parameters(engine).items():
        state = compat.plain_state(engine, parameter)
        for moment in MOMENTS:
            value = moments[f"{moment}.{name}"].to(engine.device)
            if state is None:
                safe_set_full_optimizer_state(parameter, value, moment)
            else:
                state[moment].copy_(value)
    compat.set_step_count(engine, updates)


def make_moments(engine: Any, past_shape: tuple[int, int, int]) -> None:
    """Let a fresh engine make its moments, by a step on zeros with learning rate 0."""
    rates = [group["lr"] for group in engine.optimizer.param_groups]
    for group in engine.optimizer.param_groups:
        group["lr"] = 0.0
    zeros = torch.zeros(past_shape, device=engine.device)
    for _ in range(engine.gradient_accumulation_steps()):
        engine.backward(engine(zeros).square().mean() + engine.module.balance_loss())
        engine.step()
    for group, rate in zip(engine.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _optimizer_state(engine: Any) -> Weights:
    from deepspeed.utils import safe_get_full_optimizer_state

    moments = {}
    for name, parameter in trained_parameters(engine).items():
        state = compat.plain_state(engine, parameter)
        for moment in MOMENTS:
            if state is not None:
                full = state.get(moment)
            elif compat.torch_optimizer(engine).state:
                full = safe_get_full_optimizer_state(parameter, moment)
            else:
                full = None
            value = torch.zeros(compat.whole_shape(parameter)) if full is None else full
            moments[f"{moment}.{name}"] = value.detach().float().cpu().clone()
    return moments
