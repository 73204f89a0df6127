"""The sections `scaling`, `run` and `tracking`: where a run computes, lives and reports."""

from dataclasses import dataclass
from typing import Literal

from timellama_dist.errors import require, require_at_least


@dataclass(frozen=True, kw_only=True)
class ScalingSection:
    """The workers Ray Train starts."""

    num_workers: int | tuple[int, int] = 2
    """Processes, one GPU each where there are GPUs; [least, most] takes what the cluster has."""
    use_gpu: bool | None = None
    """If not given: true where the cluster has GPUs."""
    cpus_per_worker: float | None = None
    """If not given: 1 beside a GPU; else what leaves one CPU for the data pipeline."""
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """How workers are placed on nodes."""
    network_interface: str | None = None
    """Over which workers on several nodes talk, such as eth0; gloo and NCCL choose if not given."""
    max_failures: int = 1
    """Restarts from the last checkpoint after a worker died."""

    @property
    def elastic(self) -> bool:
        """Workers may come and go."""
        return not isinstance(self.num_workers, int)

    @property
    def least_workers(self) -> int:
        """Below which the run waits."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """Workers where the cluster has room for all."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    def __post_init__(self) -> None:
        require(
            1 <= self.least_workers <= self.most_workers,
            "scaling.num_workers",
            "at least 1, or [least, most]",
            self.num_workers,
        )
        require(
            self.cpus_per_worker is None or self.cpus_per_worker > 0,
            "scaling.cpus_per_worker",
            "above 0",
            self.cpus_per_worker,
        )
        require(self.max_failures >= -1, "scaling.max_failures", ">= -1", self.max_failures)


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """Where a run lives."""

    dir: str | None = None
    """The run directory; ~/timellama_runs/<data>-<time> if not given."""
    storage_path: str | None = None
    """Shared folder or URI (s3://...) for checkpoints and a copy of the results; the run directory
    if not given."""
    resume: bool = False
    """Go on with the run in run.dir from its last checkpoint."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept; each also holds the best weights by validation."""
    max_failed_saves: int = 3
    """Checkpoints in a row that the storage may refuse before the run stops."""

    def __post_init__(self) -> None:
        for key in ("keep_checkpoints", "max_failed_saves"):
            require_at_least(1, {f"run.{key}": getattr(self, key)})
        require(
            not (self.resume and self.dir is None), "run.dir", "given with run.resume", self.dir
        )


@dataclass(frozen=True, kw_only=True)
class TrackingSection:
    """Where a run's numbers go besides history.jsonl and Ray's metrics."""

    tensorboard: bool = True
    """Event files in tensorboard/ of the run directory."""
    mlflow: str | None = None
    """MLflow's tracking URI: http://..., or sqlite:///mlflow.db without a server."""
    wandb: str | None = None
    """Project of Weights & Biases; with WANDB_MODE=offline nothing leaves the machine."""
