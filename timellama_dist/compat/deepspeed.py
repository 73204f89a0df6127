"""DeepSpeed's private and unstable calls (0.19).

deepspeed is imported inside functions: a process sets DS_ACCELERATOR before its first import.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Shards


def init_process_group() -> None:
    """Let DeepSpeed know the process group before an engine is made.

    `zero.Init` checks the configuration's batch sizes against the world size, which DeepSpeed
    otherwise learns in `initialize`.
    """
    import deepspeed

    deepspeed.init_distributed(deepspeed.get_accelerator().communication_backend_name())


def shard_first(module: nn.Module, ds_config: Mapping[str, Any]) -> nn.Parameter:
    """Shard a loaded module's parameters over the ranks; returns one of them, for `shard_more`.

    `zero.Init(module=...)` is the only call that shards what exists already.
    """
    import deepspeed

    deepspeed.zero.Init(module=module, config_dict_or_path=dict(ds_config))
    return next(module.parameters())


def shard_more(sharded: nn.Parameter, parameters: Iterable[nn.Parameter]) -> None:
    """Shard further parameters with the settings of one that is sharded.

    `convert_to_zero_parameters` hangs on each sharded parameter and isn't documented; another
    `zero.Init` would keep settings, buffers and streams of its own for each module.
    """
    convert: Any = sharded
    convert.convert_to_zero_parameters(list(parameters))


def gather_at_once(model: nn.Module, kinds: list[type[nn.Module]]) -> None:
    """Let ZeRO-3 gather each module of these classes as a whole instead of part by part.

    `set_z3_leaf_modules` raises where the model has none of a class, unless told not to.
    """
    from deepspeed.utils import set_z3_leaf_modules

    set_z3_leaf_modules(model, kinds, raise_if_not_found=False)


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """A parameter's whole shape; ZeRO-3 leaves an empty tensor in its place between steps.

    The shape is kept in `ds_shape`, which no call tells.
    """
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


# Optimizers


def torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The optimizer inside DeepSpeed's, whose state is by what each rank steps on.

    DeepSpeed's wrappers hold it as `optimizer`; without a wrapper the engine's is torch's own.
    """
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def forget_made_step(engine: Any) -> None:
    """Set the count of steps back to 0 in a fresh engine.

    In bf16 without ZeRO, DeepSpeed makes a step to get its moments, and counts it.
    """
    for state in torch_optimizer(engine).state.values():
        state["step"].zero_()


def skips_overflow(engine: Any) -> bool:
    """Whether DeepSpeed itself makes no step where the gradient has no finite norm.

    Its own optimizers do; torch's, which it uses at stage 0 in fp32, step on. No flag says so, but
    DeepSpeed's are no `torch.optim.Optimizer`.
    """
    return not isinstance(engine.optimizer, torch.optim.Optimizer)


def is_sharded(parameter: nn.Parameter) -> bool:
    """Whether ZeRO keeps the parameter's optimizer state in shards.

    Stage 3 marks its parameters by `ds_id`, stages 1 and 2 by `_hp_mapping`.
    """
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def plain_masters(engine: Any) -> dict[nn.Parameter, Tensor]:
    """The fp32 copies of a bf16 model without ZeRO, by parameter; empty for every other engine.

    DeepSpeed's public calls don't know them: they lie in the wrapper's two lists of groups.
    """
    optimizer = engine.optimizer
    groups = (getattr(optimizer, name, ()) for name in ("fp16_groups", "fp32_groups"))
    return {p: m for pair in zip(*groups, strict=False) for p, m in zip(*pair, strict=True)}


def plain_state(engine: Any, parameter: nn.Parameter) -> dict[str, Any] | None:
    """The optimizer's own state of a parameter where there is no ZeRO, else None.

    `safe_get_full_optimizer_state` refuses parameters that ZeRO didn't shard.
    """
    if is_sharded(parameter):
        return None
    return torch_optimizer(engine).state[plain_masters(engine).get(parameter, parameter)]


def set_step_count(engine: Any, updates: int) -> None:
    """Set how many steps the optimizer has counted, for each parameter.

    torch's optimizers count in a tensor, DeepSpeed's fused ones in an integer.
    """
    for state in torch_optimizer(engine).state.values():
        if torch.is_tensor(state.get("step")):
            state["step"].fill_(float(updates))
        else:
            state["step"] = updates
