"""PatchTST, iTransformer, DLinear and Time-LLM, as a kept library has them, on a run's own windows.

    pip install -e '.[baselines]'
    python -m benchmarks.published --model DLinear --data.path ETTh1.csv \
        --data.split '[8640, 2880, 2880]' --data.context_len 336 --data.horizon 96

The architectures are neuralforecast's; windows, z-scores, order of training, choice by validation
and every figure are this project's, so that the figures stand beside those of `evaluate.py`. The
library's own sampler is not used: it neither scales by the training part nor tests every window.
"""

import io
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from timellama_dist.backbone.folder import resolve_backbone
from timellama_dist.config.load import load_settings
from timellama_dist.config.schema import DataSection
from timellama_dist.console.exit_codes import run_command
from timellama_dist.data.check import check_datasets
from timellama_dist.data.windows.orders import sample_order
from timellama_dist.data.windows.reader import WindowReader
from timellama_dist.data.windows.spans import Batch
from timellama_dist.data.windows.spec import SplitName
from timellama_dist.errors import ConfigError, require_at_least
from timellama_dist.evaluation.job import figures
from timellama_dist.evaluation.metrics import ErrorSums
from timellama_dist.evaluation.scores import Scores
from timellama_dist.evaluation.scoring import Yardstick
from timellama_dist.model.linear_fit import fill_missing
from timellama_dist.report.scores import scores_table, write_scores
from timellama_dist.versions import versions

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": nn.functional.mse_loss,
    "mae": nn.functional.l1_loss,
}


@dataclass(frozen=True, kw_only=True)
class PublishedConfig:
    """A published architecture, trained once for each learning rate and tested once."""

    model: Literal["PatchTST", "iTransformer", "DLinear", "TimeLLM"] = "PatchTST"
    """The library's name of it."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of the library's class, such as {"hidden_size": 16}; its defaults if not given."""
    llm: str | None = None
    """TimeLLM's backbone, as train.py's backbone.name: smollm2-135m, or a folder. The library uses
    all of its blocks."""
    loss: Literal["mse", "mae"] = "mse"
    """On z-scores."""
    learning_rates: list[float] = field(default_factory=lambda: [1e-4, 1e-3])
    """Adam's at the first step; it falls to 0 by half a cosine. Each is tried, and the one with the
    lowest validation MSE is tested."""
    batch_size: int = 32
    """Windows of all channels per step."""
    epochs: int = 10
    """Passes over the training windows, unless max_steps ends a training earlier."""
    max_steps: int | None = None
    """Steps at most."""
    validate_every: int = 200
    """Steps between validations, or an epoch if that is shorter."""
    patience: int = 3
    """Validations without improvement before training stops."""
    seed: int = 0
    """Of weights, order and dropout."""
    output: str | None = None
    """JSON file to write, of evaluate.py's form."""
    data: DataSection = field(default_factory=DataSection)

    def __post_init__(self) -> None:
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise ConfigError(
                f"learning_rates must be at least one rate above 0, got {self.learning_rates}"
            )
        for key in ("batch_size", "epochs", "max_steps", "validate_every", "patience"):
            require_at_least(1, {key: getattr(self, key)})


def main(argv: Sequence[str]) -> int:
    return run_command(lambda: command(argv))


def command(argv: Sequence[str]) -> None:
    description = (__doc__ or "").split("\n", maxsplit=1)[0]
    config = load_settings(PublishedConfig, argv, prog="published", description=description)
    results = measure(config)
    print(scores_table(results, "test"))
    for path in write_scores(results, "test", output=config.output, plots=None):
        print(f"written: {path}")


def measure(config: PublishedConfig) -> dict[str, Any]:
    """Train on the data set's windows, choose rate and weights by validation, test once.

    Raises:
        ConfigError: the library is not installed, or the configuration can't be run.
        DataError: the data can't be used.
    """
    started = time.monotonic()
    if config.data.mixture is not None:
        raise ConfigError("data.path must name one data set, for a model is trained on one")
    models = library()
    (checked,) = check_datasets(config.data)
    # The context may have been fitted to the data.
    data = replace(config.data, context_len=checked.spec.context_len)
    config = replace(config, data=data)
    with tempfile.TemporaryDirectory(prefix="timellama-data-") as scratch:
        dataset = checked.prepare(Path(scratch) / "data")
        readers = {split: WindowReader(dataset.path, dataset.spec.of(split)) for split in SPLITS}
        model = build(models, config, readers["train"].manifest.num_channels)
        training = choose(model, config, readers["train"], readers["validation"])
        in_full = readers["test"].manifest.split[0] == 0
        yardstick = Yardstick(readers["test"], m4=in_full)
        scores = Scores.zeros(config.data.horizon, readers["test"].manifest.num_channels)
        forecaster = forecaster_of(model)
        for one in yardstick.score(forecaster, batches(readers["test"], 4 * config.batch_size)):
            scores += one
    channels = readers["test"].manifest.channels
    facts = {
        "context_len": config.data.context_len,
        "horizon": config.data.horizon,
        "channels": channels,
        "protocol": "m4" if in_full else "windows",
    }
    return {
        "model": config.model,
        "test": scores.summary(),
        "by_dataset": {
            dataset.name: {**facts, **figures("test", scores, channels)},
        },
        "training": training,
        "settings": asdict(config),
        "seconds": time.monotonic() - started,
        "versions": {**versions(), "neuralforecast": version("neuralforecast")},
    }


SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


def library() -> Any:
    """neuralforecast's models.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        from neuralforecast import models
    except ImportError as error:
        raise ConfigError(
            "the published architectures need the library neuralforecast: "
            f"pip install -e '.[baselines]' ({error})"
        ) from error
    return models


def build(models: Any, config: PublishedConfig, num_channels: int) -> nn.Module:
    """The library's module; nothing of its trainer is used.

    Raises:
        ConfigError: it refuses its arguments, or TimeLLM has no backbone.
    """
    kind = getattr(models, config.model)
    arguments = {"h": config.data.horizon, "input_size": config.data.context_len}
    arguments |= {"random_seed": config.seed, **config.arguments}
    if kind.MULTIVARIATE:
        arguments["n_series"] = num_channels
    if config.model == "TimeLLM":
        arguments |= llm_arguments(config.llm)
    random.seed(config.seed)
    torch.manual_seed(config.seed)
    try:
        # It prints what it loads.
        with redirect_stdout(io.StringIO()):
            model: nn.Module = kind(**arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"arguments: {config.model} refuses {arguments}: {error}") from error
    return model


def llm_arguments(llm: str | None) -> dict[str, Any]:
    """Of a backbone on this machine: the library would quietly take another from a hub.

    Raises:
        ConfigError: none is named, or it isn't a folder of a transformers model.
    """
    if llm is None:
        raise ConfigError("llm must be given for TimeLLM: smollm2-135m, or a model's folder")
    folder = resolve_backbone(llm, None)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"llm must be the folder of a transformers model, got {folder}")
    from transformers import AutoConfig

    return {"llm": str(folder), "d_llm": AutoConfig.from_pretrained(folder).hidden_size}


def choose(
    model: nn.Module, config: PublishedConfig, windows: WindowReader, validation: WindowReader
) -> dict[str, Any]:
    """Train at each learning rate; leaves the model with the best weights of all by validation."""
    started, tried = weights_of(model), []
    for rate in config.learning_rates:
        model.load_state_dict(started, strict=False)
        torch.manual_seed(config.seed)
        tried.append((train(model, config, rate, windows, validation), weights_of(model)))
    chosen, kept = min(tried, key=lambda one: one[0]["mse"])
    model.load_state_dict(kept, strict=False)
    return {
        "chosen": chosen,
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "trainings": [found for found, _ in tried],
    }


def train(
    model: nn.Module,
    config: PublishedConfig,
    rate: float,
    windows: WindowReader,
    validation: WindowReader,
) -> dict[str, Any]:
    """Adam on the run's order of windows; leaves the model with its best weights by validation."""
    epoch = -(-len(windows) // config.batch_size)
    total = min(config.epochs * epoch, config.max_steps or sys.maxsize)
    every = min(config.validate_every, epoch, total)
    adam = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, total)
    best = {"mse": np.inf, "mae": np.inf}
    kept, stale, history = weights_of(model), 0, []
    for step in range(1, total + 1):
        model.train()
        positions = np.arange((step - 1) * config.batch_size, step * config.batch_size)
        loss = batch_loss(
            model, windows.read(sample_order(len(windows), config.seed, positions)), config.loss
        )
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
        if step % every and step < total:
            continue
        found = validate(model, validation, 4 * config.batch_size)
        history.append({"step": step, **found})
        print(f"rate {rate}, step {step}/{total}: validation {found['mse']:.4f}", file=sys.stderr)
        if found["mse"] < best["mse"]:
            best, kept, stale = found, weights_of(model), 0
        else:
            stale += 1
        if stale >= config.patience:
            break
    model.load_state_dict(kept, strict=False)
    return {"learning_rate": rate, **best, "steps": step, "validation": history}


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of what training changes: trained parameters, and buffers such as running means."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    return {n: w.detach().clone() for n, w in model.state_dict().items() if n not in frozen}


def batch_loss(model: nn.Module, batch: Batch, loss: str) -> Tensor:
    """Over observed targets."""
    target = torch.as_tensor(batch["future"])
    observed = ~target.isnan()
    return LOSSES[loss](forward(model, batch["past"])[observed], target[observed])


def forward(model: Any, past_BLC: np.ndarray) -> Tensor:
    """Forecasts of windows whose missing values are filled first, shape (B, H, C)."""
    return forecast_filled(
        model, torch.as_tensor(np.ascontiguousarray(fill_missing(past_BLC)), dtype=torch.float32)
    )


def forecast_filled(model: Any, past: Tensor) -> Tensor:
    """The library's models see channels apart, as so many windows, or together; (B, H, C)."""
    if model.MULTIVARIATE:
        together: Tensor = model({"insample_y": past, **NOTHING_ELSE})
        return together
    num, length, num_channels = past.shape
    alone = past.transpose(1, 2).reshape(num * num_channels, length, 1)
    forecast: Tensor = model({"insample_y": alone, **NOTHING_ELSE})
    return forecast.reshape(num, num_channels, -1).transpose(1, 2)


NOTHING_ELSE = dict.fromkeys(("futr_exog", "hist_exog", "stat_exog"))


def forecaster_of(model: nn.Module) -> Callable[[Batch], np.ndarray]:
    def forecast(batch: Batch) -> np.ndarray:
        model.eval()
        with torch.no_grad():
            return forward(model, batch["past"]).numpy()

    return forecast


def validate(model: nn.Module, reader: WindowReader, batch_size: int) -> dict[str, float]:
    """MSE and MAE over every window."""
    sums = ErrorSums.zeros(reader.spec.horizon, reader.manifest.num_channels)
    forecast = forecaster_of(model)
    for batch in batches(reader, batch_size):
        sums.add(forecast(batch), batch["future"], batch["weight"])
    return sums.summary()


def batches(reader: WindowReader, batch_size: int) -> Iterator[Batch]:
    """Every window of a split once."""
    for first in range(0, len(reader), batch_size):
        yield reader.read(np.arange(first, min(first + batch_size, len(reader))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
