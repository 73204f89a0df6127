"""The settings of DeepSpeed that decide memory and communication; the shipped policies."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from timellama_dist import recipes
from timellama_dist.config.deepspeed import load_policy

POLICIES: Mapping[str, Mapping[str, Any]] = {
    "stage0": {"zero_optimization": {"stage": 0}},
    **{name: load_policy(name) for name in recipes.POLICIES.files},
}


@dataclass(frozen=True, kw_only=True)
class ZeroPolicy:
    """ZeRO's settings with DeepSpeed's defaults filled in; sizes are elements."""

    stage: int
    reduce_bucket: int
    prefetch_bucket: int
    persistence_threshold: int
    reuse_distance: int
    live_limit: int
    num_buckets: int
    """Two where reduction overlaps the backward pass; none if gradients aren't contiguous."""
    offloads_optimizer: bool
    offloads_parameters: bool

    @classmethod
    def from_resolved(cls, resolved: Mapping[str, Any]) -> Self:
        """Read the settings from what `resolve_deepspeed` gives."""
        zero = resolved.get("zero_optimization", {})
        stage = zero.get("stage", 0)
        contiguous, overlaps = zero.get("contiguous_gradients", True), zero.get("overlap_comm")
        twice = stage in (1, 2) and overlaps
        return cls(
            stage=stage,
            reduce_bucket=int(zero.get("reduce_bucket_size", 5e8)),
            prefetch_bucket=int(zero.get("stage3_prefetch_bucket_size", 5e7)),
            persistence_threshold=int(zero.get("stage3_param_persistence_threshold", 1e5)),
            live_limit=int(zero.get("stage3_max_live_parameters", 1e9)),
            reuse_distance=int(zero.get("stage3_max_reuse_distance", 1e9)),
            num_buckets=(2 if twice else 1) if contiguous and stage else 0,
            offloads_optimizer=_offloads(zero, "offload_optimizer"),
            offloads_parameters=stage == 3 and _offloads(zero, "offload_param"),
        )


def _offloads(zero: Mapping[str, Any], key: str) -> bool:
    return (zero.get(key) or {}).get("device", "none") != "none"
