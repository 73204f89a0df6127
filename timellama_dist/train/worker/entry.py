"""The function that Ray Train runs in every worker, as the driver names it.

A driver and Ray Train's controller import this module, and need neither torch nor DeepSpeed for
that: `worker.rank`, which does the work, is imported by the workers alone.
"""

from typing import Any

from timellama_dist.train.worker.results import Result
from timellama_dist.train.worker.spec import WorkerSpec


def train_worker(spec: dict[str, Any]) -> Result:
    """Train one run; called by Ray Train on every worker with a `WorkerSpec` as a dict."""
    # Not above: it loads torch and DeepSpeed.
    from timellama_dist.train.worker.rank import train_rank

    return train_rank(WorkerSpec(**spec))
