"""One worker of a run: build, restore, train, test, export."""

import ray
import ray.train
import torch
from ray.train.torch import get_device

from timellama_dist.config.schema import RunConfig
from timellama_dist.console.events import Phase, Started
from timellama_dist.data.dataset import Dataset
from timellama_dist.storage import open_place
from timellama_dist.train.checkpoint.restoring import find_checkpoint, local_checkpoint
from timellama_dist.train.checkpoint.saving import Saver, SavingFailedError
from timellama_dist.train.worker.average import Average
from timellama_dist.train.worker.build import BuiltModel, build, restore
from timellama_dist.train.worker.data import RunData
from timellama_dist.train.worker.engine import prepare_process
from timellama_dist.train.worker.finish import test_and_export
from timellama_dist.train.worker.reporter import RayReporter
from timellama_dist.train.worker.results import Diverged, Finished, Result, Stopped, StorageFailed
from timellama_dist.train.worker.signals import RaySignals
from timellama_dist.train.worker.spec import WorkerSpec
from timellama_dist.train.worker.trainer import Trainer


def train_rank(spec: WorkerSpec) -> Result:
    """Run one rank: build, restore, train, test, export."""
    prepare_process(use_gpu=spec.use_gpu)
    try:
        return _run(spec)
    # Raised, Ray Train would start workers anew, only to end the same way.
    except FloatingPointError as error:
        return Diverged(problem=str(error))
    except SavingFailedError as error:
        return StorageFailed(problem=str(error))


def _run(spec: WorkerSpec) -> Finished | Stopped:
    config, rank = RunConfig.from_dict(spec.config), ray.train.get_context().get_world_rank()
    device = get_device() if spec.use_gpu else torch.device("cpu")
    monitor = ray.get_actor(spec.monitor) if spec.monitor is not None and rank == 0 else None
    reporter, signals = RayReporter(rank, monitor), RaySignals(monitor)
    data = _open_data(spec, config, reporter)
    checkpoints = open_place(spec.checkpoints)
    start = find_checkpoint(checkpoints, reporter.say, device)
    if config.run.resume and start.name is None:
        reporter.say("no checkpoint was saved before: beginning at step 0")
    saver = Saver(
        checkpoints,
        keep=config.run.keep_checkpoints,
        max_failed=config.run.max_failed_saves,
        say=reporter.say,
        begun_at=start.step,
        damaged=start.damaged,
    )
    with local_checkpoint(checkpoints, start, device) as folder:
        reporter.tell(Phase(text="loading the backbone"))
        model = build(spec, config, data, device, folder)
        position, best = restore(model, config, data, folder)
        average = Average(model.engine, config.train.average_steps, folder)
    trainer = Trainer(
        model.engine,
        config,
        data,
        saver=saver,
        reporter=reporter,
        signals=signals,
        position=position,
        best=best,
        average=average,
        parameters=model.parameters,
    )
    reporter.tell(Started(step=position.step, total_steps=trainer.total_steps))
    if position.finished:
        trainer.measure_frozen()
        trainer.tell_saved(start.name)
    else:
        trainer.train()
    return _finish(spec, trainer, model, data, saver)


def _open_data(spec: WorkerSpec, config: RunConfig, reporter: RayReporter) -> RunData:
    context = ray.train.get_context()
    return RunData(
        [Dataset.from_dict(values) for values in spec.datasets],
        config,
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        tell=reporter.tell,
    )


def _finish(
    spec: WorkerSpec, trainer: Trainer, model: BuiltModel, data: RunData, saver: Saver
) -> Finished | Stopped:
    """Test and export a finished run; see that one that isn't tested ends with a checkpoint."""
    position, best = trainer.position, trainer.best
    if spec.test and position.finished and best is not None:
        return test_and_export(spec, trainer, best, model=model, data=data, saver=saver)
    if saver.failed:
        saver.save_at_last(trainer.engine, position, best, trainer.average.write)
    if position.finished and best is not None:
        return Finished(step=position.step)
    return Stopped(step=position.step)
