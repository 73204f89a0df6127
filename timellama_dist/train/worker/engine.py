"""A model becomes a DeepSpeed engine; what is said about its memory is measured here."""

import contextlib
import ctypes
import logging
import os
import resource
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

T = TypeVar("T")
RECORDS = "timellama_dist.records"
"""Name of the logger that gets a line of JSON for each logged step and validation."""


def prepare_process(*, use_gpu: bool) -> None:
    """Settle what DeepSpeed reads at import, and quiet what third parties print.

    Must run before the first import of deepspeed in this process.
    """
    if not use_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # torch 2.13 warns at every gloo collective that DeepSpeed makes.
    warnings.filterwarnings("ignore", message=".*torch.distributed.*deprecated.*")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.*")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Alone in its own format, to be parsed: Ray keeps what a worker prints in its logs.
    records = logging.getLogger(RECORDS)
    if not records.handlers:
        records.addHandler(logging.StreamHandler(sys.stdout))
        records.setLevel(logging.INFO)
        records.propagate = False


def initialize_engine(model: nn.Module, ds_config: Mapping[str, Any]) -> Any:
    """Hand a model to DeepSpeed, which shards it as its stage says.

    Every rank of the initialised process group must call this.

    Args:
        model: its parameters that require a gradient are trained, the others stay frozen.
        ds_config: a resolved configuration (`config.deepspeed.resolve_deepspeed`).

    Returns:
        The DeepSpeedEngine.
    """
    import deepspeed

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if _shards_parameters(ds_config):
        _gather_in_units(model)
        if ds_config["bf16"]["enabled"]:
            # DeepSpeed leaves this to whoever sharded any parameter before, as `block_sharder` did.
            for parameter in trained:
                parameter.data = parameter.data.bfloat16()
    engine, *_ = deepspeed.initialize(model=model, model_parameters=trained, config=dict(ds_config))
    for state in torch_optimizer(engine).state.values():
        # In bf16 without ZeRO, DeepSpeed has made a step to get its moments, and counted it.
        state["step"].zero_()
    return engine


def block_sharder(ds_config: Mapping[str, Any]) -> Callable[[int, nn.Module], None] | None:
    """What `load_backbone` calls with each block, so that this rank keeps but its share of it.

    DeepSpeed itself would shard only the whole model, which each rank had to hold before: neither
    it nor transformers shards 4-bit weights as they are loaded.

    Args:
        ds_config: what `initialize_engine` will be given.

    Returns:
        None where the stage shards no parameters. Else every rank of the initialised process group
        must call it, with the same blocks; their parameters must be of the run's precision.
    """
    if not _shards_parameters(ds_config):
        return None
    import deepspeed

    # Before the first reading of the configuration, which is checked against the world size.
    deepspeed.init_distributed(deepspeed.get_accelerator().communication_backend_name())
    sharded: list[Any] = []

    def shard(index: int, block: nn.Module) -> None:
        if sharded:
            # As DeepSpeed goes on from parameters that it has sharded: with the same settings.
            sharded[0].convert_to_zero_parameters(list(block.parameters()))
        else:
            deepspeed.zero.Init(module=block, config_dict_or_path=dict(ds_config))
            sharded.append(next(block.parameters()))
        _give_back_freed_memory()

    return shard


def _give_back_freed_memory() -> None:
    """Let the C library return what lies free between what is kept.

    Without this, each 4-bit block was measured to leave holes of about twice its size behind.
    """
    with contextlib.suppress(AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _shards_parameters(ds_config: Mapping[str, Any]) -> bool:
    return ds_config.get("zero_optimization", {}).get("stage") == 3


def _gather_in_units(model: nn.Module) -> None:
    """Let ZeRO-3 gather a group of small modules at once instead of each on its own.

    A pool's three matrices, and the three pools of an MLP, are always used together. A unit must be
    called with positional inputs, or its parameters are released before its backward pass; hence
    not the attention as a whole, which transformers calls by keywords.
    """
    from deepspeed.utils import set_z3_leaf_modules
    from transformers.models.llama.modeling_llama import LlamaMLP

    from timellama_dist.dlora.layer import DLoraLinear
    from timellama_dist.model.alignment import PromptAlignment

    units = [LlamaMLP, DLoraLinear, PromptAlignment]
    set_z3_leaf_modules(model, units, raise_if_not_found=False)


def torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The optimizer inside DeepSpeed's, whose state is by what each rank steps on."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def trained_parameters(engine: Any) -> dict[str, nn.Parameter]:
    """The engine's trainable parameters by name, in the model's order."""
    return {n: p for n, p in engine.module.named_parameters() if p.requires_grad}


def peak_rss_bytes() -> int:
    """The largest resident memory this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory of its device this process has had: a GPU's tensors, or resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_rss_bytes()


def gathered(value: Any) -> list[Any]:
    """One value per rank, in the order of ranks; every rank must call."""
    if not torch.distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def from_first_rank(value: T, device: torch.device | str) -> T:
    """The first rank's value; every rank must call.

    Args:
        value: what this rank would say; only the first one's counts.
        device: this rank's, on which NCCL sends.
    """
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0, device=torch.device(device))
    return values[0]
