"""Trains one run from the driver: checks it, hands it to the workers, writes what they found.

A mistake is told before Ray and torch are imported, which takes seconds: hence the imports inside.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from timellama_dist.config.schema import RunConfig
from timellama_dist.train.checks import plan_in_directory
from timellama_dist.train.describe import describe

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

    from timellama_dist.model.linear_fit import Float64
    from timellama_dist.train.execution import Outcome


def train(config: RunConfig) -> "Outcome":
    """Run a whole training, from the checks to the run directory.

    Raises:
        ConfigError: the configuration can't be run.
        DataError: the data can't be used.
        InterruptedRunError: the user pressed Ctrl-C; a checkpoint was saved.
        FloatingPointError: loss, gradient or validation were not finite, see `worker.trainer`.
        TrainingFailedError: a worker failed more than `scaling.max_failures` times.
    """
    plan = plan_in_directory(config)
    print(describe(plan), flush=True)
    from timellama_dist.train.execution import execute

    return execute(plan)


def build_trainer(
    config: RunConfig,
    *,
    maps: "Sequence[Float64] | None" = None,
    monitor: str | None = None,
    test: bool = True,
) -> "TorchTrainer":
    """Build Ray Train's trainer of a run, to `fit()` in a Ray program of one's own.

    Ray must be initialised. `config.run.dir` is made, with the prepared data in it. The result's
    `return_value` is one of `train.worker.results`: `Finished`, `Stopped`, `Diverged` or
    `StorageFailed`.

    Args:
        config: the run.
        maps: the linear map of each data set, if `model.shortcut`; fitted here if not given.
        monitor: name of the actor that takes the workers' events, if somebody listens.
        test: score the test part and export the model at the end.

    Raises:
        ConfigError: the configuration can't be run.
        DataError: the data can't be used.
    """
    plan = plan_in_directory(config)
    from timellama_dist.train.execution import make_planned_trainer

    return make_planned_trainer(plan, maps=maps, monitor=monitor, test=test)
