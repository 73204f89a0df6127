"""What the routers chose over the windows of a split, exactly, whatever the number of ranks.

Shapes: B windows, L blocks, M modules, E experts.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from timellama_dist.dlora.model import DLoraModel


class RoutingSums:
    """Counts of each block's experts over the windows of this rank, to be added over ranks.

    Args:
        module: a DeepSpeed engine or a plain model.
    """

    def __init__(self, module: nn.Module) -> None:
        dlora: Any = getattr(getattr(module, "module", module), "dlora", None)
        self._dlora: DLoraModel | None = dlora
        self._samples = 0.0
        self._chosen_LME: np.ndarray = np.zeros(0)
        self._entropy_L: np.ndarray = np.zeros(0)

    def add(self, weight_B: np.ndarray) -> None:
        """Add the last forward pass; windows of weight 0 count nothing."""
        if self._dlora is None:
            return
        statistics = self._dlora.router_statistics(counted=torch.from_numpy(weight_B > 0))
        chosen_LME, entropy_L = (
            part.double().cpu().numpy() for part in (statistics.chosen, statistics.entropy_sum)
        )
        if not self._chosen_LME.size:
            self._chosen_LME, self._entropy_L = np.zeros_like(chosen_LME), np.zeros_like(entropy_L)
        self._samples += float(statistics.num_samples)
        self._chosen_LME += chosen_LME
        self._entropy_L += entropy_L

    def to_vector(self) -> np.ndarray:
        """All sums in one vector."""
        return np.concatenate([[self._samples], self._entropy_L, self._chosen_LME.ravel()])

    def summary(self, vector: np.ndarray) -> dict[str, Any] | None:
        """What is logged of the sums over all ranks; None without D-LoRA.

        Returns:
            "samples" routed, "chosen" how often each expert was, [block][module][expert], and
            "entropy", the mean by block in nats.
        """
        if self._dlora is None:
            return None
        num_blocks = len(self._entropy_L)
        chosen_LME = vector[1 + num_blocks :].reshape(self._chosen_LME.shape)
        return {
            "samples": int(vector[0]),
            "chosen": chosen_LME.astype(int).tolist(),
            "entropy": (vector[1 : 1 + num_blocks] / vector[0]).tolist(),
        }
