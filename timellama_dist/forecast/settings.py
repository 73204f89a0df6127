"""The schema of `timellama forecast`: what is forecast with which model, and where forecasts go."""

from dataclasses import dataclass, field

from timellama_dist.config.schema import ScalingSection
from timellama_dist.errors import ConfigError, require_at_least


@dataclass(frozen=True, kw_only=True)
class ForecastConfig:
    """A whole batch of forecasts."""

    model: str = ""
    """An exported model (RUN/model), a path or URI."""
    input: str = ""
    """A prepared data set, a CSV or Parquet file or a folder of them; a path or URI."""
    output: str = ""
    """Folder of the forecasts, a path or URI: part-00000.parquet and so on. A folder that this same
    command has begun is gone on with."""
    dataset: str | None = None
    """Which of the model's data sets the input is like; needed where it knows several."""
    horizon: int | None = None
    """Steps to forecast, at most those the model was trained for; all if not given."""
    cutoffs: int = 0
    """0 forecasts what comes after the last row of each series; N backtests at N cut-offs, the last
    of them a horizon before the end, with the truth beside."""
    stride: int | None = None
    """Steps between two cut-offs; a horizon if not given."""
    batch_size: int = 64
    """Windows per forward pass."""
    unpack: bool | None = None
    """Keep the model's 4-bit matrices unpacked in memory: eight times as large, and sooner done. If
    not given, on a CPU only."""
    part_windows: int = 1024
    """Forecasts in a file of the output; what is being written when a run is killed is done anew.
    """
    scaling: ScalingSection = field(default_factory=lambda: ScalingSection(num_workers=1))

    def __post_init__(self) -> None:
        for key in ("model", "input", "output"):
            if not getattr(self, key):
                raise ConfigError(f"{key} must be given")
        for key, least in (("batch_size", 1), ("part_windows", 1), ("cutoffs", 0)):
            require_at_least(least, {key: getattr(self, key)})
        if self.stride is not None and (self.stride < 1 or not self.cutoffs):
            raise ConfigError(
                f"stride must be at least 1, and given with cutoffs, got {self.stride}"
            )
        if self.scaling.elastic:
            raise ConfigError(
                f"scaling.num_workers must be a number here, got {list(self.scaling.num_workers)}"  # type: ignore[arg-type]
            )
