"""The section `train`: how a run optimises."""

from dataclasses import dataclass, replace
from typing import Literal, Self

from timellama_dist.errors import require, require_at_least

# Windows x channels of `train.fit_channels`: 32 windows of 32 channels, and on a CPU a minute.
_MOST_TAKEN = 1 << 10
_MOST_VALIDATED = 1 << 17


@dataclass(frozen=True, kw_only=True)
class TrainSection:
    """Optimisation."""

    seed: int = 0
    """Seeds the weights, the order of windows and dropout."""
    epochs: int = 10
    """Passes over the training windows, unless max_steps ends the run earlier."""
    max_steps: int | None = 600
    """Optimizer steps at most; null: as many as epochs have."""
    batch_size: int = 32
    """Windows per optimizer step over all workers; independent of their number."""
    micro_batch_size: int = 16
    """Windows per forward pass of one worker; the rest of batch_size is accumulated."""
    fit_channels: bool = True
    """Take fewer windows of many channels: at most 1024 windows x channels a micro-batch, in a step
    as many micro-batches as before, and 131,072 windows x channels a validation."""
    learning_rate: float = 2e-4
    """Peak learning rate of Adam."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: half a cosine to zero at the last step, or constant."""
    warmup_fraction: float = 0.1
    """Share of the steps in which the rate rises linearly."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    loss: Literal["mse", "mae", "huber"] = "mae"
    """On z-scored values."""
    validate_every: int | None = 100
    """Steps between validations; null: an epoch or 250 steps, whichever is less."""
    validate_windows: int | None = None
    """Windows of each data set that a validation takes at most, evenly spread; all if not given."""
    average_steps: int = 100
    """Validate and keep a running mean of the weights, over about so many steps; 0: the weights."""
    patience: int = 4
    """Validations without improvement before the run stops early; 0 never stops early."""
    log_every: int = 10
    """Steps between lines of history.jsonl."""
    save_every: int | None = None
    """Steps between checkpoints besides those at validations."""
    max_skipped_steps: int = 10
    """A run ends after so many steps in a row whose loss or gradient is not finite; each is
    skipped."""
    backoff_steps: int = 100
    """Steps of half the learning rate after a skipped one, and after going back."""
    rollback_on_spike: float | None = None
    """Go back to the last validation's weights when the logged loss exceeds that many times its
    running median."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on GPUs, fp32 on CPUs."""
    gradient_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, about a third more time."""

    def fitted(self, num_channels: int) -> Self:
        """This section as `fit_channels` has it for so many channels."""
        if not self.fit_channels:
            return self
        micro = min(self.micro_batch_size, max(1, _MOST_TAKEN // num_channels))
        most = max(1, _MOST_VALIDATED // num_channels)
        return replace(
            self,
            batch_size=self.batch_size * micro // self.micro_batch_size,
            micro_batch_size=micro,
            validate_windows=min(self.validate_windows or most, most),
        )

    def __post_init__(self) -> None:
        for key in (
            "epochs",
            "batch_size",
            "micro_batch_size",
            "log_every",
            "max_skipped_steps",
            "max_steps",
            "validate_every",
            "validate_windows",
            "save_every",
        ):
            require_at_least(1, {f"train.{key}": getattr(self, key)})
        for key in (
            "weight_decay",
            "clip_norm",
            "average_steps",
            "patience",
            "seed",
            "backoff_steps",
        ):
            require(getattr(self, key) >= 0, f"train.{key}", ">= 0", getattr(self, key))
        spike = self.rollback_on_spike
        require(spike is None or spike > 1, "train.rollback_on_spike", "above 1", spike)
        require(self.seed < 1 << 63, "train.seed", "below 2**63", self.seed)
        require(self.learning_rate > 0, "train.learning_rate", "above 0", self.learning_rate)
        require(
            0 <= self.warmup_fraction < 1,
            "train.warmup_fraction",
            "in [0, 1)",
            self.warmup_fraction,
        )
        require(
            self.batch_size % self.micro_batch_size == 0,
            "train.batch_size",
            f"a multiple of train.micro_batch_size={self.micro_batch_size}",
            self.batch_size,
        )
