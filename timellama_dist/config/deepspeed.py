"""Resolves a DeepSpeed policy file for one run.

The JSON is policy (stage, buckets, offload); batch size, accumulation, clipping, precision and the
optimizer come from the run. `"auto"` is resolved here: DeepSpeed itself drops it silently and takes
its own default.
"""

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, Literal

from timellama_dist.config.schema import RunConfig
from timellama_dist.errors import ConfigError
from timellama_dist.recipes import POLICIES

DEFAULT_POLICY = "zero3"
"""Name of the packaged policy that a run without `deepspeed` takes."""

_RUN_KEYS = {
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.batch_size, train.micro_batch_size, scaling.num_workers",
    "gradient_clipping": "train.clip_norm",
    "optimizer.type": "the run (AdamW)",
    "optimizer.params.lr": "train.learning_rate",
    "optimizer.params.weight_decay": "train.weight_decay",
    "optimizer.params.torch_adam": "the run (torch's AdamW)",
    "zero_force_ds_cpu_optimizer": "the run (torch's AdamW)",
    "bf16.enabled": "train.precision",
}
_SECTIONS = ("zero_optimization", "optimizer", "optimizer.params", "bf16")
# By these DeepSpeed skips a step whose gradient isn't finite; they are true by default.
_CHECKS = (("bf16", "check_grad_overflow"), ("zero_optimization", "compute_grad_norm"))
# torch's own, for an "auto".
_ADAM_DEFAULTS = {"betas": [0.9, 0.999], "eps": 1e-8}
_SMALLEST_BUCKET = 1 << 22  # elements
_UNSUPPORTED = {
    "scheduler": "the schedule is train.schedule",
    "fp16": "4-bit backbones train in fp32 or bf16 here: see train.precision",
    "bfloat16": "the key is bf16",
    "amp": "see train.precision",
    "data_types": "see train.precision",
    "train_batch": "the key is train_batch_size",
}


def load_policy(word: str | None) -> dict[str, Any]:
    """Read a DeepSpeed policy.

    Args:
        word: a JSON file or the name of a packaged policy; `DEFAULT_POLICY` if not given.

    Raises:
        ConfigError: nothing packaged has that name; the file is missing, or isn't a JSON object.
    """
    path = POLICIES.find(word or DEFAULT_POLICY, "deepspeed")
    try:
        policy = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"deepspeed: cannot read {path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"deepspeed: {path} is not JSON: {error.msg} in line {error.lineno}"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"deepspeed: {path} is not JSON: {error}") from error
    if not isinstance(policy, dict):
        raise ConfigError(
            f"deepspeed: {path} must hold one JSON object, got a {type(policy).__name__}"
        )
    return policy


def precision(config: RunConfig, *, use_gpu: bool) -> Literal["fp32", "bf16"]:
    """Decide the run's precision where it is `auto`."""
    if config.train.precision == "auto":
        return "bf16" if use_gpu else "fp32"
    return config.train.precision


def resolve_deepspeed(
    policy: Mapping[str, Any],
    config: RunConfig,
    *,
    world_size: int,
    hidden_size: int,
    use_gpu: bool,
) -> dict[str, Any]:
    """Make the complete DeepSpeed configuration of a run.

    Args:
        policy: what a DeepSpeed file says; keys that a run decides may be absent or "auto".
        config: the run.
        world_size: number of workers.
        hidden_size: D of the backbone; sets the "auto" bucket sizes.
        use_gpu: decides precision and optimizer kernel.

    Raises:
        ConfigError: the policy contradicts the run, asks for what is not supported, or leaves an
            "auto" that nothing here decides.
    """
    resolved = deepcopy(dict(policy))
    if isinstance(resolved.get("fp16"), dict) and resolved["fp16"].get("enabled") == "auto":
        resolved["fp16"]["enabled"] = False
    for key, remedy in _UNSUPPORTED.items():
        value = resolved.get(key)
        if value and not (isinstance(value, dict) and value.get("enabled") is False):
            raise ConfigError(f"deepspeed: {key} cannot be set in the DeepSpeed file; {remedy}")
    _check_sections(resolved)
    stage = resolved.get("zero_optimization", {}).get("stage", 0)
    if type(stage) is not int or stage not in (0, 1, 2, 3):
        raise ConfigError(
            key="deepspeed: zero_optimization.stage", must="be 0, 1, 2 or 3", got=stage
        )
    for key, value in _run_values(config, use_gpu).items():
        _set(resolved, key, value)
    for key, value in batch_sizes(config, world_size).items():
        _set(resolved, key, value)
    adam = resolved["optimizer"]["params"]
    adam |= {key: value for key, value in _ADAM_DEFAULTS.items() if adam.get(key) == "auto"}
    _set_auto_sizes(resolved, hidden_size)
    for path in _remaining_auto(resolved):
        raise ConfigError(f'deepspeed: {path} is "auto", which only the run\'s own keys may be')
    return resolved


def _check_sections(policy: Mapping[str, Any]) -> None:
    for dotted in _SECTIONS:
        value: Any = policy
        for key in dotted.split("."):
            value = value.get(key, {})
        if not isinstance(value, dict):
            raise ConfigError(key=f"deepspeed: {dotted}", must="be a JSON object", got=value)
    for section, key in _CHECKS:
        value = policy.get(section, {}).get(key, True)
        if value is not True:
            raise ConfigError(
                key=f"deepspeed: {section}.{key}",
                must="be true",
                got=value,
                hint="a step whose gradient is not finite is skipped",
            )


def batch_sizes(config: RunConfig, world_size: int) -> dict[str, int]:
    """Split the global batch as DeepSpeed wants it, over so many workers.

    Where workers don't divide the micro-batches, the last turn has empty places, which DeepSpeed
    counts and the loop gives no weight (`train_step`).
    """
    train = config.train
    turns = -(-train.batch_size // (train.micro_batch_size * world_size))
    return {
        "train_batch_size": turns * train.micro_batch_size * world_size,
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": turns,
    }


def _run_values(config: RunConfig, use_gpu: bool) -> dict[str, Any]:
    train = config.train
    values: dict[str, Any] = {
        "gradient_clipping": train.clip_norm,
        "optimizer.type": "AdamW",
        "optimizer.params.lr": train.learning_rate,
        "optimizer.params.weight_decay": train.weight_decay,
        "bf16.enabled": precision(config, use_gpu=use_gpu) == "bf16",
    }
    return values | {
        # DeepSpeed's own Adam kernels are compiled at first use and differ from torch's in the
        # last bits; the trained state is small, so nothing would be gained by them.
        "optimizer.params.torch_adam": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def _set(resolved: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    section = resolved
    for parent in parents:
        section = section.setdefault(parent, {})
    given = section.get(leaf, "auto")
    if dotted in _RUN_KEYS and given != "auto" and given != value:
        raise ConfigError(
            f"deepspeed: {dotted}={given!r} in the DeepSpeed file contradicts {value!r} from "
            f'{_RUN_KEYS[dotted]}; leave it out or say "auto"'
        )
    section[leaf] = value


def _set_auto_sizes(resolved: dict[str, Any], hidden_size: int) -> None:
    """Bucket sizes by hidden size, as transformers resolves "auto", with a floor.

    Without the floor a small model's gradients would travel in many tiny messages.
    """
    zero = resolved.setdefault("zero_optimization", {"stage": 0})
    sizes = {
        "reduce_bucket_size": max(_SMALLEST_BUCKET, hidden_size * hidden_size),
        "stage3_prefetch_bucket_size": max(_SMALLEST_BUCKET, int(0.9 * hidden_size * hidden_size)),
        # Above the norms and below every 4-bit matrix, so that all of those are sharded.
        "stage3_param_persistence_threshold": 10 * hidden_size,
    }
    for key, size in sizes.items():
        if zero.get(key) == "auto":
            zero[key] = size


def _remaining_auto(value: Any, path: str = "") -> Iterator[str]:
    if value == "auto":
        yield path
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _remaining_auto(item, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _remaining_auto(item, f"{path}[{index}]")
