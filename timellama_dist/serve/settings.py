"""The schema of `timellama serve`: which model answers, where, and what it takes on."""

from dataclasses import dataclass

from timellama_dist.errors import ConfigError, require, require_at_least


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """A whole server."""

    model: str = ""
    """An exported model (RUN/model), a path or URI that every node can read."""
    host: str = "127.0.0.1"
    """Address that is listened on; 0.0.0.0 is open to everybody who can reach this machine."""
    port: int = 8000
    """Port that is listened on."""
    replicas: int = 1
    """Copies of the model, each a process."""
    cpus_per_replica: float = 1.0
    """Of Ray's CPUs; a copy computes with one thread for each whole one."""
    use_gpu: bool | None = None
    """A GPU for each copy; if not given: where the cluster has GPUs."""
    max_batch: int = 32
    """Requests that a copy forecasts together: those that came while it forecast the last ones."""
    max_queued: int = 256
    """Requests that may wait; those beyond are told to come again (503, Retry-After)."""
    max_body_bytes: int = 4 * 1024 * 1024
    """Of a request; larger ones are refused unread (413)."""
    max_series: int = 256
    """Series in a request."""
    max_forecasts: int = 2048
    """Forecasts for a request: a series is one, and each of its own past for intervals another."""
    timeout_s: float = 60.0
    """After which a request is given up (504)."""

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("model must be given")
        require(1 <= self.port <= 65535, "port", "between 1 and 65535", self.port)
        for key in ("replicas", "max_batch", "max_body_bytes", "max_series", "max_forecasts"):
            require_at_least(1, {key: getattr(self, key)})
        require_at_least(0, {"max_queued": self.max_queued})
        for key in ("cpus_per_replica", "timeout_s"):
            require(getattr(self, key) > 0, key, "above 0", getattr(self, key))
