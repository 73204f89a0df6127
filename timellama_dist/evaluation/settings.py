"""The schema of `timellama evaluate`: what is scored, on what, and where the figures go."""

from dataclasses import dataclass, field
from typing import Literal

from timellama_dist.config.schema import DataSection, ScalingSection
from timellama_dist.errors import ConfigError, require_at_least

BASELINES = ("seasonal_naive", "naive2", "ridge")
"""What `model` may name instead of an exported model."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """A whole evaluation."""

    model: str = ""
    """An exported model (RUN/model, a path or URI), or a baseline: seasonal_naive, naive2, ridge.
    """
    dataset: str | None = None
    """Which of the model's data sets the data are, or are like; needed where it knows several."""
    split: Literal["test", "validation"] = "test"
    """The part whose windows are forecast; data.split says how long it is."""
    protocol: Literal["auto", "windows", "m4"] = "auto"
    """How MASE and Naive2 look back. windows: MASE is scaled by the training part, Naive2 sees the
    window's context. m4: both see the series' whole past, and seasons are the M4 competition's.
    auto: m4 where data.split is [0, V, T]."""
    output: str | None = None
    """JSON file to write; the figures are printed anyway."""
    plots: str | None = None
    """Folder for pictures of the errors by step of the horizon."""
    batch_size: int = 64
    """Windows per forward pass."""
    data: DataSection = field(default_factory=DataSection)
    scaling: ScalingSection = field(default_factory=lambda: ScalingSection(num_workers=1))

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError(
                f"model must be given: an exported model (RUN/model) or {', '.join(BASELINES)}"
            )
        require_at_least(1, {"batch_size": self.batch_size})
        if self.scaling.elastic:
            raise ConfigError(
                f"scaling.num_workers must be a number here, got {list(self.scaling.num_workers)}"  # type: ignore[arg-type]
            )

    @property
    def is_baseline(self) -> bool:
        """Nothing is loaded."""
        return self.model in BASELINES
