"""A small D-LoRA adapter for tests whose subject is not the defaults."""

from typing import Any

from timellama_dist.dlora import DLoraConfig


def plain_config(**values: Any) -> DLoraConfig:
    """Few active experts, so that a pool of two linears is enough."""
    plain = {"rank": 8, "alpha": 16.0, "top_n": 4, "pooling": "last"}
    return DLoraConfig(**(plain | values))
