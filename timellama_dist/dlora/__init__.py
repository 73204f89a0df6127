"""D-LoRA as a PEFT tuner: pools of LoRA experts, chosen per sample and per block by a router.

Taking `DLoraConfig` or `DLoraModel` from this package makes `peft.get_peft_model` and
`peft.PeftModel.from_pretrained` know the method.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from timellama_dist.dlora.config import DLoraConfig
    from timellama_dist.dlora.model import DLoraModel, register_with_peft
    from timellama_dist.dlora.router import RouterStatistics

__all__ = ["DLoraConfig", "DLoraModel", "RouterStatistics", "register_with_peft"]


def __getattr__(name: str) -> Any:
    # `settings` is read on the command line: who only checks a value must not wait for torch.
    if name in __all__:
        return getattr(import_module("timellama_dist.dlora.model"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
