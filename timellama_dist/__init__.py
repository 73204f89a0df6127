"""Trains Time-LlaMA (arXiv 2502.13725) on Ray and DeepSpeed.

Importing this package starts nothing and imports neither ray nor deepspeed.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from timellama_dist.dlora import DLoraConfig
    from timellama_dist.forecast.forecaster import TimeLlamaForecaster
    from timellama_dist.model.timellama import TimeLlama

__version__ = "0.2.0"
__all__ = ["DLoraConfig", "TimeLlama", "TimeLlamaForecaster"]

# On a CPU with AVX512-BF16 its import warns of a kernel for a layout that is never used here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_HOMES = {
    "DLoraConfig": "timellama_dist.dlora",
    "TimeLlama": "timellama_dist.model.timellama",
    "TimeLlamaForecaster": "timellama_dist.forecast.forecaster",
}


def __getattr__(name: str) -> Any:
    # torch and transformers take seconds to import: only who asks for a class waits for them.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
