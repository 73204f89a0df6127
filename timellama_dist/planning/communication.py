"""Bytes that one worker's collectives carry in an optimizer step, and an estimate of its time.

A ring sends and receives (W - 1) / W of a gathered or scattered buffer, and twice that of an
all-reduced one.

Symbols: T trained elements, W workers, p bytes of the run's precision, N tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from timellama_dist.config.schema import RunConfig
from timellama_dist.planning.hardware import (
    KERNEL_S,
    KERNELS_PER_BLOCK,
    REACHED_BANDWIDTH,
    REACHED_FLOPS,
    Hardware,
)
from timellama_dist.planning.memory import Sizes
from timellama_dist.planning.policy import ZeroPolicy
from timellama_dist.planning.shape import ParameterSize


@dataclass(frozen=True, kw_only=True)
class Communication:
    """Bytes that travel in one optimizer step."""

    gathered_bytes: int
    """Sum of the buffers that all-gathers fill."""
    reduced_bytes: int
    """Sum of the gradients' buffers that are reduced."""
    sent_bytes: int
    """What one worker sends for both, and as much it receives."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Estimate of one optimizer step, in seconds; nothing of it was measured on a GPU."""

    compute_s: float
    """Matrix products, and unpacking of 4-bit matrices; or starting the kernels if that is longer.
    """
    communication_s: float

    @property
    def total_s(self) -> float:
        """Seconds of a step, as if nothing overlapped."""
        return self.compute_s + self.communication_s


def count_communication(sizes: Sizes, zero: ZeroPolicy, *, turns: int) -> Communication:
    """Count the traffic of a step of `turns` micro-batches.

    Without ZeRO, and in stage 1, gradients travel once a step; from stage 2 on with each
    micro-batch. The frozen weights travel in stage 3 alone: forward, and backward again unless they
    were kept.
    """
    world, whole = sizes.world_size, sizes.trained["whole"]
    if zero.stage == 0:
        gathered, reduced, ways = 0, whole, 2
    elif zero.stage < 3:
        gathered, ways = whole, 2
        reduced = whole * (turns if zero.stage == 2 else 1)
    else:
        gathered = turns * (2 * sizes.travelling - sizes.kept) + sizes.lasting["trained"]
        reduced, ways = turns * whole, 1
    share = (world - 1) / world
    sent = int(share * (gathered + ways * reduced))
    return Communication(gathered_bytes=gathered, reduced_bytes=reduced, sent_bytes=sent)


def estimate_time(
    config: RunConfig,
    parameters: Sequence[ParameterSize],
    communication: Communication,
    hardware: Hardware,
    *,
    world_size: int,
    turns: int,
    tokens: int,
    precision: str,
) -> StepTime:
    """Estimate the time of a step of `turns` micro-batches of `tokens` tokens on each worker."""
    frozen = sum(p.elements * p.count for p in parameters if not p.trained)
    trained = sum(p.elements * p.count for p in parameters if p.trained)
    # Forward and the activations' gradients; trained ones also get their own; 2 FLOP an element.
    passes = 3 if config.train.gradient_checkpointing else 2
    flops = 2 * tokens * (passes * frozen + (passes + 1) * trained)
    multiply_s = flops / (REACHED_FLOPS * hardware.flops(precision))
    item = 2 if precision == "bf16" else 4
    # Read half a byte, write the weight and read it again.
    unpacked = sum(p.elements * p.count for p in parameters if p.four_bit)
    memory_s = passes * unpacked * (0.5 + 2 * item)
    memory_s /= REACHED_BANDWIDTH * hardware.memory_bytes_per_s
    kernels = KERNELS_PER_BLOCK * config.backbone.num_blocks * passes / 2
    launch_s = kernels * KERNEL_S if hardware.is_gpu else 0.0
    link = REACHED_BANDWIDTH * hardware.bytes_per_s(world_size)
    return StepTime(
        compute_s=turns * max(launch_s, multiply_s + memory_s),
        communication_s=communication.sent_bytes / link,
    )
