"""Checkpoints of what trains: free of world size and ZeRO stage, safetensors and JSON only.

A checkpoint folder holds `weights.safetensors` (fp32, by parameter name), `optimizer.safetensors`
(Adam's moments as `exp_avg.<name>` and `exp_avg_sq.<name>`), `best.safetensors` (the weights of the
best validation so far, so that every checkpoint holds the best and none is kept for it), with
`train.average_steps` also `average.safetensors` (the running mean, see `average`), and
`state.json` (the position of the run, and the others' hashes: see `checkpoint_files`). The frozen
backbone is never saved, only its fingerprint. Random state, learning rate and place in the data
need no saving: they are functions of the position.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from timellama_dist.errors import CheckpointError
from timellama_dist.model.tensors import copy_tensors, read_tensors
from timellama_dist.storage import open_place
from timellama_dist.train.checkpoint.files import read_state, seal
from timellama_dist.train.worker.engine import torch_optimizer, trained_parameters

_MOMENTS = ("exp_avg", "exp_avg_sq")

Weights = dict[str, Tensor]


@dataclass
class Progress:
    """Where a run stands; `step` optimizer steps have been made or skipped."""

    step: int = 0
    data: list[str] = field(default_factory=list)
    """Content hash of each data set, by which the step is a place in them."""
    backbone: str | None = None
    """`backbone_fingerprint` of the frozen part; older checkpoints have none."""
    best_metrics: dict[str, Any] = field(default_factory=dict)
    """The best validation so far, as `RunData.evaluate` gives it; empty before the first."""
    best_step: int = 0
    stale_validations: int = 0
    seconds: float = 0.0
    finished: bool = False
    skipped_steps: int = 0
    """Steps without an update, because loss or gradient wasn't finite."""
    skipped_in_row: int = 0
    last_fault: int | None = None
    """Number of the last step that was skipped or made the run go back."""
    rollbacks: int = 0
    undone_steps: int = 0
    """Updates that the rollbacks took back."""
    recent_losses: list[float] = field(default_factory=list)
    """As logged; empty where `train.rollback_on_spike` isn't used."""

    @property
    def updates(self) -> int:
        """How many steps the optimizer has counted."""
        return self.step - self.skipped_steps - self.undone_steps


def trained_weights(engine: Any) -> Weights:
    """The whole fp32 trained weights on every rank's host; every rank must call."""
    from deepspeed.utils import safe_get_full_fp32_param

    weights, masters = {}, _plain_masters(engine)
    for name, parameter in trained_parameters(engine).items():
        full = safe_get_full_fp32_param(parameter)
        # Without ZeRO and mixed precision there is no master copy: the parameter is it.
        whole = masters.get(parameter, parameter) if full is None else full
        weights[name] = whole.detach().float().cpu().clone()
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
        # What each rank steps on is this, or was not touched.
        set_weights(engine, own)


@dataclass(frozen=True, kw_only=True)
class TrainedState:
    """What the optimizer works on, whole, on the host."""

    weights: Weights
    moments: Weights


def trained_state(engine: Any) -> TrainedState:
    """Gather weights and moments between two steps; every rank must call."""
    return TrainedState(weights=trained_weights(engine), moments=_optimizer_state(engine))


def write_checkpoint(
    folder: Path,
    state: TrainedState,
    progress: Progress,
    best: Weights | None,
    complete: Callable[[Path], None] | None = None,
) -> None:
    """Write a checkpoint into a folder of this machine; one rank calls.

    Args:
        folder: where to write; made if missing.
        state: what was gathered.
        progress: the position that belongs to the weights.
        best: weights of the best validation so far.
        complete: writes further files that belong to the checkpoint.

    Raises:
        OSError, SafetensorError: the disk takes no more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state.weights, folder / "weights.safetensors")
    save_file(state.moments, folder / "optimizer.safetensors")
    if best is not None:
        save_file(best, folder / "best.safetensors")
    if complete is not None:
        complete(folder)
    seal(folder, asdict(progress))


def read_progress(folder: Path) -> Progress:
    """The position a checkpoint was written at.

    Raises:
        CheckpointError: no checkpoint there, a damaged one, or one of an unknown schema version.
    """
    try:
        return Progress(**read_state(open_place(folder)).progress)
    except (CheckpointError, TypeError) as error:
        raise CheckpointError(f"{folder} holds no readable checkpoint: {error}") from error


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
    """Put a checkpoint's masters, moments and step count into a fresh engine; every rank must call.

    In bf16 DeepSpeed has made its masters of rounded weights. ZeRO makes its moments at the first
    step, so one step with learning rate 0 on zeros comes first.

    Args:
        engine: made from a model that `load_weights` filled.
        folder: the checkpoint.
        past_shape: (B, L, C) of that step's input.

    Raises:
        CheckpointError: damaged, or of another model.
    """
    path = folder / "optimizer.safetensors"
    moments = read_tensors(path)
    names = [f"{moment}.{name}" for name in trained_parameters(engine) for moment in _MOMENTS]
    if lacking := [name for name in names if name not in moments]:
        raise CheckpointError(f"{path} lacks {lacking[0]}")
    updates = read_progress(folder).updates
    if updates == 0:
        return
    _make_moments(engine, past_shape)
    set_masters(engine, read_tensors(folder / "weights.safetensors"))
    set_optimizer_state(engine, moments, updates)


def set_masters(engine: Any, weights: Weights) -> None:
    """Put weights into the fp32 copies that the optimizer steps on; every rank must call."""
    from deepspeed.utils import safe_set_full_fp32_param

    masters = _plain_masters(engine)
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
        state = _plain_state(engine, parameter)
        for moment in _MOMENTS:
            value = moments[f"{moment}.{name}"].to(engine.device)
            if state is None:
                safe_set_full_optimizer_state(parameter, value, moment)
            else:
                state[moment].copy_(value)
    for state in torch_optimizer(engine).state.values():
        if torch.is_tensor(state.get("step")):
            state["step"].fill_(float(updates))
        else:
            state["step"] = updates


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
            elif torch_optimizer(engine).state:
                full = safe_get_full_optimizer_state(parameter, moment)
            else:
                full = None
            value = torch.zeros(parameter_shape(parameter)) if full is None else full
            moments[f"{moment}.{name}"] = value.detach().float().cpu().clone()
    return moments


def parameter_shape(parameter: nn.Parameter) -> torch.Size:
    """A parameter's whole shape; ZeRO-3 leaves an empty tensor in its place between steps."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def _plain_state(engine: Any, parameter: nn.Parameter) -> dict[str, Any] | None:
    """The optimizer's own state of a parameter where there is no ZeRO, else None."""
    if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        return None
    return torch_optimizer(engine).state[_plain_masters(engine).get(parameter, parameter)]


def _plain_masters(engine: Any) -> dict[nn.Parameter, Tensor]:
    """The fp32 copies of a bf16 model without ZeRO, which DeepSpeed's public calls don't know."""
    optimizer = engine.optimizer
    groups = (getattr(optimizer, name, ()) for name in ("fp16_groups", "fp32_groups"))
    return {p: m for pair in zip(*groups, strict=False) for p, m in zip(*pair, strict=True)}
