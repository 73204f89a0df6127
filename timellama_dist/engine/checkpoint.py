"""Checkpoints of what trains: free of world size and ZeRO stage, safetensors and JSON only.

A checkpoint folder holds `state.json` (the position of the run), `weights.safetensors` (fp32,
by parameter name), `optimizer.safetensors` (Adam's moments as `exp_avg.<name>` and
`exp_avg_sq.<name>`) and `best.safetensors` (the weights of the best validation so far). The frozen
backbone is never saved. The random state needs no saving: it is a function of the position.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from timellama_dist.engine.setup import trained_parameters
from timellama_dist.errors import CheckpointError
from timellama_dist.modeling.tensors import copy_tensors, read_tensors

SCHEMA_VERSION = 1
_MOMENTS = ("exp_avg", "exp_avg_sq")

Weights = dict[str, Tensor]


@dataclass
class Progress:
    """Where a run stands; `step` optimizer steps have been made."""

    step: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    """The best validation so far, "mse" and "mae"; empty before the first."""
    best_step: int = 0
    stale_validations: int = 0
    seconds: float = 0.0
    finished: bool = False


def trained_weights(engine: Any) -> Weights:
    """The whole fp32 trained weights on every rank's host; every rank must call."""
    from deepspeed.utils import safe_get_full_fp32_param

    weights = {}
    for name, parameter in trained_parameters(engine).items():
        # Without ZeRO and mixed precision there is no master copy: the parameter is it.
        full = safe_get_full_fp32_param(parameter)
        weights[name] = (parameter if full is None else full).detach().float().cpu().clone()
    return weights


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


def save_checkpoint(engine: Any, folder: Path, progress: Progress, best: Weights | None) -> None:
    """Write a checkpoint; every rank must call, the first one writes.

    Args:
        engine: the DeepSpeed engine between two steps.
        folder: where to write; made if missing.
        progress: the position that belongs to the weights.
        best: weights of the best validation so far.
    """
    weights = trained_weights(engine)
    moments = _optimizer_state(engine)
    if torch.distributed.get_rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / "weights.safetensors")
        save_file(moments, folder / "optimizer.safetensors")
        if best is not None:
            save_file(best, folder / "best.safetensors")
        state = {"schema_version": SCHEMA_VERSION, "progress": asdict(progress)}
        (folder / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")


def read_progress(folder: Path) -> Progress:
    """The position a checkpoint was written at.

    Raises:
        CheckpointError: no checkpoint there, or one of an unknown schema version.
    """
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{folder} holds no readable checkpoint: {error}") from error
    if state.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(
            f"{folder}/state.json: schema_version must be {SCHEMA_VERSION}, "
            f"got {state.get('schema_version')!r}"
        )
    return Progress(**state["progress"])


def read_best(folder: Path) -> Weights | None:
    """The best weights that a checkpoint holds, if it has seen a validation."""
    path = folder / "best.safetensors"
    return read_tensors(path) if path.exists() else None


def load_weights(model: nn.Module, folder: Path) -> None:
    """Copy a checkpoint's weights into a model **before** DeepSpeed takes it over.

    Setting only the optimizer's masters afterwards would leave one forward pass on stale weights.

    Raises:
        CheckpointError: damaged, or of another model.
    """
    path = folder / "weights.safetensors"
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    copy_tensors(parameters, read_tensors(path), source=path)


def load_optimizer(engine: Any, folder: Path, *, past_shape: tuple[int, int, int]) -> None:
    """Put a checkpoint's Adam moments and step count into a fresh engine; every rank must call.

    ZeRO makes its moments at the first step, so one step with learning rate 0 on zeros comes first.

    Args:
        engine: made from a model that `load_weights` filled.
        folder: the checkpoint.
        past_shape: (B, L, C) of that step's input.

    Raises:
        CheckpointError: damaged, or of another model.
    """
    from deepspeed.utils import safe_set_full_optimizer_state

    moments = read_tensors(folder / "optimizer.safetensors")
    step = read_progress(folder).step
    if step == 0:
        return
    _make_moments(engine, past_shape)
    for name, parameter in trained_parameters(engine).items():
        state = _plain_state(engine, parameter)
        for moment in _MOMENTS:
            try:
                value = moments[f"{moment}.{name}"].to(engine.device)
            except KeyError:
                raise CheckpointError(
                    f"{folder}/optimizer.safetensors lacks {moment}.{name}"
                ) from None
            if state is None:
                safe_set_full_optimizer_state(parameter, value, moment)
            else:
                state[moment].copy_(value)
    for state in _torch_optimizer(engine).state.values():
        if torch.is_tensor(state.get("step")):
            state["step"].fill_(float(step))
        else:
            state["step"] = step


def _make_moments(engine: Any, past_shape: tuple[int, int, int]) -> None:
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
        state = _plain_state(engine, parameter)
        for moment in _MOMENTS:
            if state is not None:
                full = state.get(moment)
            elif _torch_optimizer(engine).state:
                full = safe_get_full_optimizer_state(parameter, moment)
            else:
                full = None
            value = torch.zeros(parameter_shape(parameter)) if full is None else full
            moments[f"{moment}.{name}"] = value.detach().float().cpu().clone()
    return moments


def parameter_shape(parameter: nn.Parameter) -> torch.Size:
    """A parameter's whole shape; ZeRO-3 leaves an empty tensor in its place between steps."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def _torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _plain_state(engine: Any, parameter: nn.Parameter) -> dict[str, Any] | None:
    """The optimizer's own state of a parameter where there is no ZeRO, else None."""
    if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        return None
    return _torch_optimizer(engine).state[parameter]
