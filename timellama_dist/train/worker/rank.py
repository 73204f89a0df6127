"""One worker of a run: build, restore, train, test, export."""

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import save_file
from safetensors.torch import load
from torch import Tensor

from timellama_dist.backbone.fingerprint import check_backbone
from timellama_dist.backbone.folder import resolve_backbone
from timellama_dist.backbone.load import frozen_bytes
from timellama_dist.config.deepspeed import batch_sizes, precision
from timellama_dist.config.schema import RunConfig
from timellama_dist.data.dataset import Dataset
from timellama_dist.model.card import ModelCard
from timellama_dist.model.exported import save_model
from timellama_dist.model.timellama import (
    TimeLlama,
    build_model,
    parameter_counts,
    path_shares,
)
from timellama_dist.storage import open_place
from timellama_dist.train.checkpoint.restoring import find_checkpoint, local_checkpoint
from timellama_dist.train.checkpoint.saving import Saver, SavingFailedError
from timellama_dist.train.checkpoint.state import (
    Progress,
    Weights,
    in_engine,
    load_optimizer,
    load_weights,
    read_best,
    read_progress,
)
from timellama_dist.train.worker.average import Average
from timellama_dist.train.worker.data import RunData
from timellama_dist.train.worker.engine import (
    RECORDS,
    block_sharder,
    gathered,
    initialize_engine,
    peak_memory_bytes,
    peak_rss_bytes,
    prepare_process,
)
from timellama_dist.train.worker.entry import EXPORTED, WorkerSpec, examples_file
from timellama_dist.train.worker.loop import TrainLoop

_logger = logging.getLogger(__name__)

_MOST_BETWEEN_VALIDATIONS = 250
_MOST_WAITED_S = 10.0


def num_steps(config: RunConfig, num_windows: int) -> tuple[int, int]:
    """Optimizer steps of the whole run, and between two validations.

    The last batch of the run is filled up from the next epoch's order.
    """
    train = config.train
    total = math.ceil(train.epochs * num_windows / train.batch_size)
    if train.max_steps is not None:
        total = min(total, train.max_steps)
    every = train.validate_every or min(
        math.ceil(num_windows / train.batch_size), _MOST_BETWEEN_VALIDATIONS
    )
    return total, min(every, total)


def train_rank(told: WorkerSpec) -> dict[str, Any]:
    """What `train_worker` does, and returns."""
    prepare_process(use_gpu=told.use_gpu)
    try:
        return _Rank(told).run()
    # Raised, Ray Train would start workers anew, only to end the same way.
    except FloatingPointError as error:
        return {"diverged": str(error)}
    except SavingFailedError as error:
        return {"failed": str(error)}


class _Rank:
    """One rank of one run."""

    def __init__(self, told: WorkerSpec) -> None:
        import ray.train

        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.told = told
        self.config = RunConfig.from_dict(told.config)
        # An elastic run learns only now how many workers it has.
        self.deepspeed = told.deepspeed | batch_sizes(self.config, self.world_size)
        self.device = _device(told.use_gpu)
        self.tell, self.asked_to_stop = _mailbox(told.monitor, self.rank)
        sets = [Dataset.from_dict(values) for values in told.datasets]
        self.data = RunData(
            sets, self.config, rank=self.rank, world_size=self.world_size, tell=self.tell
        )

    def run(self) -> dict[str, Any]:
        checkpoints = open_place(self.told.checkpoints)
        found = find_checkpoint(checkpoints, self._say, self.device)
        if self.config.run.resume and found.name is None:
            self._say("no checkpoint was saved before: beginning at step 0")
        saver = Saver(
            checkpoints,
            keep=self.config.run.keep_checkpoints,
            max_failed=self.config.run.max_failed_saves,
            say=self._say,
            begun_at=found.step,
            damaged=found.damaged,
        )
        with local_checkpoint(checkpoints, found, self.device) as folder:
            self.tell({"kind": "phase", "text": "loading the backbone"})
            model = self._build(folder)
            self.counts = parameter_counts(model)
            alone = frozen_bytes(model, unsharded=True)
            engine = initialize_engine(model, self.deepspeed)
            progress, best = self._restore(engine, folder)
            average = Average(engine, self.config.train.average_steps, folder)
        held: list[int] = []
        total_steps, validate_every = num_steps(self.config, self.data.num_windows)
        self.tell({"kind": "start", "step": progress.step, "total_steps": total_steps})

        def measure() -> None:
            # Not after a forward without backward: ZeRO-3 would still hold what it gathered.
            held.extend(gathered(frozen_bytes(engine.module)))

        # A finished run goes on if it is given more steps, unless it had stopped improving.
        patience = self.config.train.patience
        spent = 0 < patience <= progress.stale_validations
        progress.finished &= progress.step >= total_steps or spent
        if progress.finished:
            measure()
            self._tell_saved(found.name, progress)
        else:
            batches = self.data.train_batches(progress.step, total_steps)
            loop = TrainLoop(
                engine,
                self.config,
                batches,
                total_steps=total_steps,
                validate_every=validate_every,
                validate=lambda: self.data.evaluate(engine, "validation", path_shares(self.config)),
                log=self.tell,
                save=lambda *position: self._save(saver, engine, average, *position),
                asked_to_stop=self.asked_to_stop,
                node_leaves=_node_leaves,
                dataset_of=self.data.dataset_of,
                after_first_step=measure,
                beside_map=self.config.model.shortcut != "none",
                average=average,
            )
            best = loop.run(progress, best)
            batches.close()
        if progress.finished and best is not None and self.told.test:
            return self._finish(saver, engine, average, progress, best, (alone, held))
        if saver.failed:
            saver.save_at_last(engine, progress, best, average.write)
        return {"step": progress.step}

    def _build(self, folder: Path | None) -> TimeLlama:
        backbone = resolve_backbone(self.config.backbone.name, self.config.backbone.revision)
        expected = None if folder is None else read_progress(folder).backbone
        self.backbone = check_backbone(self.config, backbone, expected, owner="this run")
        in_bf16 = precision(self.config, use_gpu=self.told.use_gpu) == "bf16"
        model = build_model(
            self.config,
            backbone,
            num_channels=self.data.manifests[0].num_channels,
            prompts=[one.prompt for one in self.data.sets],
            shortcuts=_read_shortcuts(self.told.shortcuts),
            dtype=torch.bfloat16 if in_bf16 else torch.float32,
            device=self.device,
            on_block=block_sharder(self.deepspeed),
        )
        if folder is not None:
            load_weights(model, folder)
        return model

    def _restore(self, engine: Any, folder: Path | None) -> tuple[Progress, Weights | None]:
        if folder is None:
            hashes = [one.content_hash for one in self.data.manifests]
            return Progress(data=hashes, backbone=self.backbone), None
        data, micro = self.config.data, self.config.train.micro_batch_size
        shape = (micro, data.context_len, self.data.manifests[0].num_channels)
        load_optimizer(engine, folder, past_shape=shape)
        # A checkpoint from before it was kept has none.
        return replace(read_progress(folder), backbone=self.backbone), read_best(folder)

    def _save(
        self,
        saver: Saver,
        engine: Any,
        average: Average,
        progress: Progress,
        best: Weights | None,
        metrics: Mapping[str, Any],
    ) -> None:
        import ray.train

        saver.save(engine, progress, best, average.write)
        self._tell_saved(saver.name, progress)
        told = {key: value for key, value in metrics.items() if key != "detail"}
        ray.train.report({"step": progress.step, **told})

    def _tell_saved(self, checkpoint: str | None, progress: Progress) -> None:
        """Say how the run stands and what it costs; every rank must call."""
        peak = max(gathered(peak_memory_bytes(self.device)))
        self.tell(
            {
                "kind": "saved",
                "step": progress.step,
                "checkpoint": checkpoint,
                "validation": _overall(progress.best_metrics),
                "best_step": progress.best_step,
                "finished": progress.finished,
                "seconds": progress.seconds,
                "peak_bytes": peak,
                "parameters": self.counts,
            }
        )

    def _say(self, text: str) -> None:
        if self.rank == 0:
            _logger.warning(text)
            self.tell({"kind": "phase", "text": text})

    def _finish(
        self,
        saver: Saver,
        engine: Any,
        average: Average,
        progress: Progress,
        best: Weights,
        frozen: tuple[int, list[int]],
    ) -> dict[str, Any]:
        """Test the best weights, and save them with the exported model."""
        import ray.train

        share = progress.best_metrics.get("path_share", 1.0)
        text = f"testing the weights of step {progress.best_step}"
        if progress.best_step == 0:
            text = "testing the linear map alone, on which no step improved"
        elif share != 1:
            text += f", with {share:g} of what they add to the linear map"
        self.tell({"kind": "phase", "text": text})
        with in_engine(engine, best):
            test = self.data.evaluate(engine, "test")[1.0]
            examples = self.data.examples(engine)
            quantiles = self.data.error_quantiles(engine)
        windows = progress.step * self.config.train.batch_size
        alone, held = frozen
        metrics = {
            "step": progress.step,
            "test": _overall(test),
            "validation": _overall(progress.best_metrics),
            "by_dataset": {
                name: {
                    "validation": progress.best_metrics["by_dataset"][name],
                    "test": test["by_dataset"][name],
                    "windows": trained,
                    "detail": test["detail"][name],
                }
                for name, trained in self.data.windows_before(progress.step).items()
            },
            "train": {
                "steps": progress.step,
                "epochs": windows / self.data.num_windows,
                "windows": windows,
                "windows_per_s": windows / progress.seconds if progress.seconds else None,
                "seconds": progress.seconds,
                "best_step": progress.best_step,
                "path_share": share,
                "skipped_steps": progress.skipped_steps,
                "rollbacks": progress.rollbacks,
            },
            "memory": {
                "frozen_bytes_per_rank": held,
                "frozen_bytes_unsharded": alone,
                "peak_rss_bytes_per_rank": gathered(peak_rss_bytes()),
            },
            "checkpoints": saver.costs,
            "parameters": self.counts,
            "world_size": self.world_size,
        }
        card = ModelCard(config=self.told.config, datasets=self.data.cards, backbone=self.backbone)

        def complete(folder: Path) -> None:
            # The run goes on from here if it is given more steps.
            average.write(folder)
            scalers = self.data.scaler_files
            save_model(engine.module, best, folder / EXPORTED, card, scalers, quantiles)
            for number, example in enumerate(examples):
                save_file(example, folder / examples_file(number))

        saver.save_at_last(engine, progress, best, complete)
        ray.train.report(metrics)
        return metrics | {"checkpoint": saver.name}


def _read_shortcuts(file: str | None) -> list[Tensor] | None:
    """The maps of the data sets in their order, if there is a file of them."""
    if file is None:
        return None
    maps = load(open_place(file).read_bytes())
    return [maps[str(number)] for number in range(len(maps))]


def _overall(metrics: Mapping[str, Any]) -> dict[str, float]:
    # None of them before the first validation.
    return {key: metrics[key] for key in ("mse", "mae") if key in metrics}


def _device(use_gpu: bool) -> torch.device:
    if not use_gpu:
        return torch.device("cpu")
    from ray.train.torch import get_device

    return get_device()


def _mailbox(
    name: str | None, rank: int
) -> tuple[Callable[[dict[str, Any]], None], Callable[[], bool]]:
    """How this rank tells the driver something, and asks it whether to stop."""
    if name is None or rank != 0:
        return _tell_nobody, _never
    import ray

    monitor: Any = ray.get_actor(name)

    records = logging.getLogger(RECORDS)

    sent: list[Any] = []

    def tell(record: dict[str, Any]) -> None:
        records.info(json.dumps(record))
        # An async actor takes calls in any order: the record before has long arrived, mostly.
        ray.wait(sent, timeout=_MOST_WAITED_S)
        sent[:] = [monitor.append.remote(record)]
        if record["kind"] == "saved":
            # What the driver must have before this worker ends, with all that came before it.
            ray.wait(sent, timeout=_MOST_WAITED_S)

    request = monitor.stop_requested.remote()

    def asked_to_stop() -> bool:
        ready, _ = ray.wait([request], timeout=0)
        return bool(ready)

    return tell, asked_to_stop


def _node_leaves() -> bool:
    """Has Ray been told that a node of this run will be taken away (`ray drain-node`)?

    What is saved from then on is what Ray Train starts from elsewhere, once the node is gone.
    """
    import ray.train

    return ray.train.get_preemption_info() is not None


def _tell_nobody(record: dict[str, Any]) -> None:
    """Where no driver listens."""


def _never() -> bool:
    return False
