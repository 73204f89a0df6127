"""Calls of PEFT (0.21) that its documentation doesn't promise."""

import warnings
from typing import Any

import peft.mapping
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTuner
from torch import nn


def register_method(name: str, config: type[PeftConfig], tuner: type[BaseTuner]) -> None:
    """Enter a method into PEFT's tables; entering it again changes nothing.

    `peft.utils.register_peft_method` takes members of PEFT's own enum only, so a tuner outside
    PEFT's tree writes its plain string key into the same tables.
    """
    tables: list[tuple[dict[Any, Any], Any]] = [
        (peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING, config),
        (peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING, tuner),
        (peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING, tuner.prefix),
    ]
    for table, entry in tables:
        table[name] = entry


def is_targeted(config: PeftConfig, module: str) -> bool:
    """Tell whether a configuration targets the module of that name.

    D-LoRA must find all targets before PEFT replaces the first one. PEFT offers its rule for that
    (suffixes, regular expressions, layers to transform) as a private method alone.
    """
    return bool(BaseTuner._check_target_module_exists(config, module))


def wrap_with_adapter(model: nn.Module, config: PeftConfig) -> PeftModel:
    """Wrap a model by `get_peft_model`, without its FutureWarning.

    PEFT asks transformers by a name that transformers 6 will drop.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        wrapped: Any = get_peft_model(model, config)
    assert isinstance(wrapped, PeftModel)
    return wrapped
