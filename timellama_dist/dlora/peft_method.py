"""Enters D-LoRA into PEFT's tables of methods, at import."""

from typing import Any

import peft.mapping

from timellama_dist.dlora.config import PEFT_TYPE, DLoraConfig
from timellama_dist.dlora.model import DLoraModel
from timellama_dist.dlora.router import RouterStatistics

__all__ = ["DLoraConfig", "DLoraModel", "RouterStatistics", "register_with_peft"]


def register_with_peft() -> None:
    """Enter D-LoRA into PEFT's tables of methods; calling it again changes nothing.

    `peft.utils.register_peft_method` only takes members of PEFT's own enum, so a tuner outside
    PEFT's tree writes its plain string key into the same tables.
    """
    tables: list[tuple[dict[Any, Any], Any]] = [
        (peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING, DLoraConfig),
        (peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING, DLoraModel),
        (peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING, DLoraModel.prefix),
    ]
    for table, entry in tables:
        table[PEFT_TYPE] = entry


register_with_peft()
