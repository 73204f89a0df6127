"""Estimates what one run needs under one policy, and whether it fits."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from timellama_dist.config.deepspeed import batch_sizes, precision, resolve_deepspeed
from timellama_dist.config.schema import RunConfig
from timellama_dist.planning.activations import count_activations
from timellama_dist.planning.communication import (
    Communication,
    StepTime,
    count_communication,
    estimate_time,
)
from timellama_dist.planning.hardware import Hardware
from timellama_dist.planning.memory import Memory, Sizes, count_memory
from timellama_dist.planning.policy import ZeroPolicy
from timellama_dist.planning.shape import LlamaShape, count_parameters, list_parameters

PROMPT_TOKENS = 128
"""Of one data set's prompt, where nobody counted them."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A run under one DeepSpeed policy on one kind of hardware."""

    parameters: dict[str, int]
    """Trainable, frozen, active: exact."""
    memory: Memory
    """Of one worker."""
    communication: Communication
    time: StepTime
    available_bytes: int
    """Of one worker's device."""

    @property
    def needed_bytes(self) -> int:
        """Bytes of a worker's device, at the busiest moment of a step."""
        return self.memory.total

    @property
    def fits(self) -> bool:
        """Whether a worker's device holds the run."""
        return self.needed_bytes <= self.available_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        memory = self.memory
        return {
            "fits": self.fits,
            "needed_bytes": self.needed_bytes,
            "available_bytes": self.available_bytes,
            "moment": memory.busiest,
            "parts_bytes": asdict(memory.peak) | {"framework": memory.framework},
            "held_bytes": asdict(memory.held),
            "above_held_bytes": {name: parts.total for name, parts in memory.moments.items()},
            "host_bytes": memory.host.total,
            "communication": asdict(self.communication),
            "time": asdict(self.time) | {"total_s": self.time.total_s},
        }


def estimate(
    config: RunConfig,
    shape: LlamaShape,
    *,
    policy: Mapping[str, Any],
    world_size: int,
    hardware: Hardware,
    num_channels: int,
    prompt_tokens: int | None = None,
) -> Estimate:
    """Estimate what a run needs of each of its workers.

    Args:
        config: the run.
        shape: of its backbone.
        policy: what a DeepSpeed file says (`config.deepspeed.load_policy`).
        world_size: number of workers.
        hardware: one worker's device.
        num_channels: C, of the data set with most channels.
        prompt_tokens: of all data sets together; `PROMPT_TOKENS` each if not given.

    Raises:
        ConfigError: the configuration doesn't fit the backbone or the policy.
    """
    resolved = resolve_deepspeed(
        policy,
        config,
        world_size=world_size,
        hidden_size=shape.hidden_size,
        use_gpu=hardware.is_gpu,
    )
    zero, number_format = (
        ZeroPolicy.from_resolved(resolved),
        precision(config, use_gpu=hardware.is_gpu),
    )
    item = 2 if number_format == "bf16" else 4
    turns = batch_sizes(config, world_size)["gradient_accumulation_steps"]
    if prompt_tokens is None:
        prompt_tokens = PROMPT_TOKENS * len(config.data.parts)
    parameters = list_parameters(config, shape, num_channels=num_channels)
    sizes = Sizes(parameters, zero, world_size, item)
    activations = count_activations(
        config,
        shape,
        num_channels=num_channels,
        prompt_tokens=prompt_tokens // len(config.data.parts),
        precision_bytes=item,
        is_gpu=hardware.is_gpu,
    )
    memory = count_memory(
        config,
        shape,
        sizes,
        activations,
        zero,
        turns=turns,
        prompt_tokens=prompt_tokens,
        hardware=hardware,
    )
    communication = count_communication(sizes, zero, turns=turns)
    time = estimate_time(
        config,
        parameters,
        communication,
        hardware,
        world_size=world_size,
        turns=turns,
        tokens=config.train.micro_batch_size * num_channels,
        precision=number_format,
    )
    return Estimate(
        parameters=count_parameters(config, parameters),
        memory=memory,
        communication=communication,
        time=time,
        available_bytes=hardware.memory_bytes,
    )
