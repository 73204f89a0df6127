"""A model becomes a DeepSpeed engine; what is said about its memory is measured here."""

import logging
import os
import resource
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


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

    if ds_config.get("zero_optimization", {}).get("stage") == 3:
        _gather_in_units(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    engine, *_ = deepspeed.initialize(model=model, model_parameters=trained, config=dict(ds_config))
    return engine


def _gather_in_units(model: nn.Module) -> None:
    """Let ZeRO-3 gather a group of small modules at once instead of each on its own.

    A pool's three matrices, and the three pools of an MLP, are always used together. A unit must be
    called with positional inputs, or its parameters are released before its backward pass; hence
    not the attention as a whole, which transformers calls by keywords.
    """
    from deepspeed.utils import set_z3_leaf_modules
    from transformers.models.llama.modeling_llama import LlamaMLP

    from timellama_dist.dlora.layer import DLoraLinear
    from timellama_dist.modeling.alignment import PromptAlignment

    units = [LlamaMLP, DLoraLinear, PromptAlignment]
    set_z3_leaf_modules(model, units, raise_if_not_found=False)


def trained_parameters(engine: Any) -> dict[str, nn.Parameter]:
    """The engine's trainable parameters by name, in the model's order."""
    return {n: p for n, p in engine.module.named_parameters() if p.requires_grad}


def peak_rss_bytes() -> int:
    """The largest resident memory this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def gathered(value: Any) -> list[Any]:
    """One value per rank, in the order of ranks; every rank must call."""
    if not torch.distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
