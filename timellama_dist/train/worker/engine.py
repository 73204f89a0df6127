"""Makes a DeepSpeed engine of a model, and measures a process's memory."""

import contextlib
import ctypes
import logging
import os
import resource
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from timellama_dist.compat import deepspeed as compat
from timellama_dist.train.worker.reporter import RECORDS


def prepare_process(*, use_gpu: bool) -> None:
    """Set what DeepSpeed reads at import, and quiet other packages' warnings.

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
    # Not above: it is imported once the process has set DS_ACCELERATOR.
    import deepspeed

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if _shards_parameters(ds_config):
        _gather_in_units(model)
        if ds_config["bf16"]["enabled"]:
            # DeepSpeed leaves this to whoever sharded any parameter before, as `block_sharder` did.
            for parameter in trained:
                parameter.data = parameter.data.bfloat16()
    engine, *_ = deepspeed.initialize(model=model, model_parameters=trained, config=dict(ds_config))
    compat.forget_made_step(engine)
    return engine


def block_sharder(ds_config: Mapping[str, Any]) -> Callable[[int, nn.Module], None] | None:
    """A function for `load_backbone` that leaves this rank but its share of each block.

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
    # Before the first reading of the configuration, which is checked against the world size.
    compat.init_process_group()
    sharded: list[nn.Parameter] = []

    def shard(index: int, block: nn.Module) -> None:
        if sharded:
            # As DeepSpeed goes on from parameters that it has sharded: with the same settings.
            compat.shard_more(sharded[0], block.parameters())
        else:
            sharded.append(compat.shard_first(block, ds_config))
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
    # Not above: they take seconds, and a stage below 3 needs none of them.
    from transformers.models.llama.modeling_llama import LlamaMLP

    from timellama_dist.dlora.layer import DLoraLinear
    from timellama_dist.model.alignment import PromptAlignment

    compat.gather_at_once(model, [LlamaMLP, DLoraLinear, PromptAlignment])


def peak_rss_bytes() -> int:
    """The largest resident memory this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory of its device this process has had: a GPU's tensors, or resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_rss_bytes()
