"""The function that Ray Train runs in every worker: build, restore, train, test, export."""

import math
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from timellama_dist.config.deepspeed import precision
from timellama_dist.config.schema import RunConfig
from timellama_dist.data.manifest import Manifest
from timellama_dist.data.reader import WindowReader
from timellama_dist.data.stream import stream_batches
from timellama_dist.data.windows import EvaluationOrder, TrainOrder
from timellama_dist.engine.checkpoint import (
    Progress,
    Weights,
    load_optimizer,
    load_weights,
    read_best,
    read_progress,
    save_checkpoint,
    set_weights,
)
from timellama_dist.engine.evaluate import Batch, evaluate, forecast_windows
from timellama_dist.engine.loop import TrainLoop
from timellama_dist.engine.setup import (
    gathered,
    initialize_engine,
    peak_rss_bytes,
    prepare_process,
)
from timellama_dist.modeling.backbone import frozen_bytes, resolve_backbone
from timellama_dist.modeling.exported import ModelCard, save_model
from timellama_dist.modeling.timellama import TimeLlama, build_model, parameter_counts

EXPORTED = "model"
"""Folder of the exported model inside the last checkpoint."""
EXAMPLES = "examples.safetensors"
"""A few test windows with their forecasts, inside the last checkpoint."""
NUM_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """What the driver tells every worker; plain values only."""

    config: dict[str, Any]
    """`RunConfig.to_dict()`."""
    deepspeed: dict[str, Any]
    """The resolved DeepSpeed configuration."""
    data: str
    """The prepared data, readable from every worker."""
    prompt: str
    """The whole prompt."""
    use_gpu: bool
    monitor: str | None = None
    """Name of the driver's monitor actor, if the driver shows progress."""


def num_steps(config: RunConfig, num_windows: int) -> tuple[int, int]:
    """Optimizer steps of the whole run, and between two validations.

    The last batch of the run is filled up from the next epoch's order.
    """
    train = config.train
    total = math.ceil(train.epochs * num_windows / train.batch_size)
    if train.max_steps is not None:
        total = min(total, train.max_steps)
    every = train.validate_every or math.ceil(num_windows / train.batch_size)
    return total, min(every, total)


def train_worker(spec: dict[str, Any]) -> None:
    """Train one run; called by Ray Train on every worker with a `WorkerSpec` as a dict.

    The last report's metrics hold what `metrics.json` says of this run, and its checkpoint holds
    the exported model.
    """
    told = WorkerSpec(**spec)
    prepare_process(use_gpu=told.use_gpu)
    _Worker(told).run()


class _Worker:
    """One rank of one run."""

    def __init__(self, told: WorkerSpec) -> None:
        import ray.train

        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.told = told
        self.config = RunConfig.from_dict(told.config)
        self.manifest = Manifest.load(told.data)
        self.device = _device(told.use_gpu)
        self.tell, self.asked_to_stop = _mailbox(told.monitor, self.rank)
        self.readers = {name: self._reader(name) for name in ("train", "validation", "test")}

    def run(self) -> None:
        with _restored() as folder:
            self.tell({"kind": "phase", "text": "loading the backbone"})
            model = self._build(folder)
            counts = parameter_counts(model)
            alone = frozen_bytes(model)
            engine = initialize_engine(model, self.told.deepspeed)
            progress, best = self._restore(engine, folder)
        held: list[int] = []
        total_steps, validate_every = num_steps(self.config, len(self.readers["train"]))
        self.tell({"kind": "start", "step": progress.step, "total_steps": total_steps})
        if not progress.finished:
            batches = self._train_batches(progress.step, total_steps)

            def measure() -> None:
                # Not after a forward without backward: ZeRO-3 would still hold what it gathered.
                held.extend(gathered(frozen_bytes(engine.module)))

            loop = TrainLoop(
                engine,
                self.config,
                batches,
                total_steps=total_steps,
                validate_every=validate_every,
                validate=lambda: self._evaluate(engine, "validation"),
                log=self.tell,
                save=lambda *position: self._report(engine, *position),
                asked_to_stop=self.asked_to_stop,
                after_first_step=measure,
            )
            best = loop.run(progress, best)
            batches.close()
        if progress.finished and best is not None:
            self._finish(engine, progress, best, counts, {"alone": alone, "held": held})

    def _reader(self, split: str) -> WindowReader:
        data = self.config.data
        return WindowReader(
            self.told.data,
            context_len=data.context_len,
            horizon=data.horizon,
            split=split,
            train_fraction=data.train_fraction,
        )

    def _build(self, folder: Path | None) -> TimeLlama:
        backbone = resolve_backbone(self.config.backbone.name, self.config.backbone.revision)
        in_bf16 = precision(self.config, use_gpu=self.told.use_gpu) == "bf16"
        model = build_model(
            self.config,
            backbone,
            num_channels=len(self.manifest.channels),
            prompt=self.told.prompt,
            dtype=torch.bfloat16 if in_bf16 else torch.float32,
            device=self.device,
        )
        if folder is not None:
            load_weights(model, folder)
        return model

    def _restore(self, engine: Any, folder: Path | None) -> tuple[Progress, Weights | None]:
        if folder is None:
            return Progress(), None
        data, micro = self.config.data, self.config.train.micro_batch_size
        shape = (micro, data.context_len, len(self.manifest.channels))
        load_optimizer(engine, folder, past_shape=shape)
        return read_progress(folder), read_best(folder)

    def _train_batches(self, first_step: int, last_step: int) -> Generator[Batch, None, None]:
        train = self.config.train
        order = TrainOrder(
            num_windows=len(self.readers["train"]),
            seed=train.seed,
            batch_size=train.batch_size,
            micro_batch_size=train.micro_batch_size,
            world_rank=self.rank,
            world_size=self.world_size,
            first_step=first_step,
            last_step=last_step,
        )
        return stream_batches(self.readers["train"], order, batch_size=train.micro_batch_size)

    def _evaluate(self, engine: Any, split: str) -> dict[str, float]:
        # No gradients are kept, so more windows fit.
        batch_size = 4 * self.config.train.micro_batch_size
        order = EvaluationOrder(
            num_windows=len(self.readers[split]),
            batch_size=batch_size,
            world_rank=self.rank,
            world_size=self.world_size,
        )
        sums = evaluate(
            engine,
            stream_batches(self.readers[split], order, batch_size=batch_size),
            horizon=self.config.data.horizon,
            num_channels=len(self.manifest.channels),
        )
        return sums.summary()

    def _report(
        self,
        engine: Any,
        progress: Progress,
        best: Weights | None,
        metrics: Mapping[str, Any],
        complete: Callable[[Path], None] | None = None,
    ) -> None:
        import ray.train

        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            save_checkpoint(engine, folder, progress, best)
            if complete is not None and self.rank == 0:
                complete(folder)
            first = self.rank == 0
            checkpoint = ray.train.Checkpoint.from_directory(folder) if first else None
            ray.train.report({"step": progress.step, **metrics}, checkpoint=checkpoint)

    def _finish(
        self,
        engine: Any,
        progress: Progress,
        best: Weights,
        counts: dict[str, int],
        frozen: dict[str, Any],
    ) -> None:
        """Test the best weights, and report them with the exported model."""
        self.tell({"kind": "phase", "text": f"testing the weights of step {progress.best_step}"})
        set_weights(engine, best)
        test = self._evaluate(engine, "test")
        examples = forecast_windows(engine, [self.readers["test"].read(self._example_ids())])
        windows = progress.step * self.config.train.batch_size
        metrics = {
            "test": test,
            "validation": progress.best_metrics,
            "train": {
                "steps": progress.step,
                "epochs": windows / len(self.readers["train"]),
                "windows": windows,
                "windows_per_s": windows / progress.seconds if progress.seconds else None,
                "seconds": progress.seconds,
                "best_step": progress.best_step,
            },
            "memory": {
                "frozen_bytes_per_rank": frozen["held"],
                "frozen_bytes_unsharded": frozen["alone"],
                "peak_rss_bytes_per_rank": gathered(peak_rss_bytes()),
            },
            "parameters": counts,
        }
        card = ModelCard(
            config=self.told.config,
            channels=list(self.manifest.channels),
            frequency=self.manifest.frequency,
            prompt=self.told.prompt,
            season_len=self.manifest.season_len,
        )
        scalers = Path(self.told.data) / self.manifest.series_file.path

        def complete(folder: Path) -> None:
            save_model(engine.module, best, folder / EXPORTED, card, scalers)
            save_file(examples, folder / EXAMPLES)

        self._report(engine, progress, best, metrics, complete)

    def _example_ids(self) -> np.ndarray:
        last = len(self.readers["test"]) - 1
        return np.unique(np.linspace(0, last, NUM_EXAMPLES).astype(np.int64))


def _device(use_gpu: bool) -> torch.device:
    if not use_gpu:
        return torch.device("cpu")
    from ray.train.torch import get_device

    return get_device()


@contextmanager
def _restored() -> Iterator[Path | None]:
    """The checkpoint that Ray Train wants this attempt to start from, as a local folder."""
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        yield None
        return
    with checkpoint.as_directory() as folder:
        yield Path(folder)


def _mailbox(
    name: str | None, rank: int
) -> tuple[Callable[[dict[str, Any]], None], Callable[[], bool]]:
    """How this rank tells the driver something, and asks it whether to stop."""
    if name is None or rank != 0:
        return _tell_nobody, _never
    import ray

    monitor: Any = ray.get_actor(name)

    def tell(record: dict[str, Any]) -> None:
        monitor.append.remote(record)

    return tell, lambda: bool(ray.get(monitor.stop_requested.remote()))


def _tell_nobody(record: dict[str, Any]) -> None:
    """Where no driver listens."""


def _never() -> bool:
    return False
