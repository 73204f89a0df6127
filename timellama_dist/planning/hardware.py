"""Devices to plan for: public data-sheet figures, and the shares of them assumed here.

Nothing of this was measured on a GPU. Data sheets give memory in 10**9 bytes, FLOP/s without
sparsity; links are per direction.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from timellama_dist.errors import ConfigError

REACHED_FLOPS = 0.5
"""Share of the data sheet's FLOP/s that a matrix product is assumed to reach."""
REACHED_BANDWIDTH = 0.7
"""The same for memory and links."""
KERNEL_S = 6e-6
"""To start one GPU kernel from Python."""
KERNELS_PER_BLOCK = 300
"""Forward and backward of an adapted 4-bit block; counted from its operations, not measured."""
GPUS_PER_NODE = 8
NETWORK_BYTES_PER_S = 25e9
"""Between nodes, per GPU: 200 Gbit/s. A ring is as slow as its slowest link."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One worker's device."""

    name: str
    memory_bytes: int
    fp32_flops: float
    """Plain float32, as PyTorch multiplies matrices unless told otherwise; FLOP/s."""
    bf16_flops: float
    memory_bytes_per_s: float
    link_bytes_per_s: float
    """Between GPUs of a node, one direction."""
    framework_bytes: int = 2 << 30
    """CUDA context, kernels, NCCL's and cuBLAS's workspaces, what the allocator rounds up: assumed.
    """

    @property
    def is_gpu(self) -> bool:
        """Whether this is a GPU; else the workers share this machine's memory."""
        return self.name != "cpu"

    def flops(self, precision: str) -> float:
        """Return the data sheet's FLOP/s in the run's precision."""
        return self.bf16_flops if precision == "bf16" else self.fp32_flops

    def bytes_per_s(self, world_size: int) -> float:
        """Return the bandwidth of the slowest link between the workers."""
        crosses = self.is_gpu and world_size > GPUS_PER_NODE
        return min(self.link_bytes_per_s, NETWORK_BYTES_PER_S) if crosses else self.link_bytes_per_s


def _gpu(
    name: str, gigabytes: int, fp32: float, bf16: float, memory: float, link: float
) -> Hardware:
    return Hardware(
        name=name,
        memory_bytes=gigabytes * 10**9,
        fp32_flops=fp32 * 1e12,
        bf16_flops=bf16 * 1e12,
        memory_bytes_per_s=memory * 1e9,
        link_bytes_per_s=link * 1e9,
    )


_PCIE4 = 32  # GB/s, 16 lanes, one direction

GPUS: Mapping[str, Hardware] = {
    gpu.name: gpu
    for gpu in (
        # name, GB, TFLOP/s in fp32 and bf16, GB/s of memory and link
        _gpu("a100-40g", 40, 19.5, 312, 1555, 300),
        _gpu("a100-80g", 80, 19.5, 312, 2039, 300),
        _gpu("h100-80g", 80, 67, 989, 3350, 450),
        _gpu("h200-141g", 141, 67, 989, 4800, 450),
        _gpu("l4-24g", 24, 30.3, 121, 300, _PCIE4),
        _gpu("l40s-48g", 48, 91.6, 362, 864, _PCIE4),
        _gpu("a10-24g", 24, 31.2, 125, 600, _PCIE4),
        _gpu("a6000-48g", 48, 38.7, 155, 768, _PCIE4),
        _gpu("rtx3090-24g", 24, 35.6, 71, 936, _PCIE4),
        _gpu("rtx4090-24g", 24, 82.6, 165, 1008, _PCIE4),
    )
}


def find_hardware(name: str, world_size: int) -> Hardware:
    """Find a GPU of the table, or `cpu`: a core each and an equal share of this machine's memory.

    Raises:
        ConfigError: unknown.
    """
    if name == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Hardware(
            name="cpu",
            memory_bytes=memory // world_size,
            # Of one core with AVX2, and of gloo on loopback: orders of magnitude, no more.
            fp32_flops=60e9,
            bf16_flops=6e9,
            memory_bytes_per_s=10e9,
            link_bytes_per_s=1e9,
            framework_bytes=800 << 20,
        )
    if name not in GPUS:
        raise ConfigError(key="--gpu", must=f"be one of {', '.join([*GPUS, 'cpu'])}", got=name)
    return GPUS[name]
