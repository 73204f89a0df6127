"""Windows with missing values through the trainer on two ranks, and through the baselines on Ray.

Each is compared with a computation that visits observed values alone.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.torch import load_file
from torch import Tensor

from tests.support.engine_ranks import (
    largest_relative_difference,
    make_engine,
    make_model,
    micro_batches,
    policy,
    run_config,
    run_ranks,
    windows,
    write,
)
from tests.support.runs import plain
from timellama_dist.config.schema import ModelSection, RunConfig
from timellama_dist.data.prepared.write import write_prepared
from timellama_dist.data.tables.series import Series, Table
from timellama_dist.data.windows.reader import WindowReader
from timellama_dist.data.windows.spec import WindowSpec
from timellama_dist.evaluation.windows import evaluate
from timellama_dist.model.linear_fit import WindowSums, fill_missing, fit_each
from timellama_dist.train.checkpoint.state import trained_weights
from timellama_dist.train.worker.steps import StepSums, learning_rate, seed_dropout, train_step

Batch = dict[str, np.ndarray]

STEPS = 6
STAGES = ("zero2", "zero3")


def with_gaps(batch: Batch, number: int) -> Batch:
    """A third of the values missing; one window without past, one micro-batch without targets."""
    rng = np.random.default_rng(number)
    past, future = (
        np.where(rng.random(batch[key].shape) < 0.3, np.nan, batch[key]).astype(np.float32)
        for key in ("past", "future")
    )
    past[0] = np.nan
    if number == 1:  # of the second rank's, where there are two
        future[:] = np.nan
    return {"past": past, "future": future}


def gappy_batches(config: RunConfig, rank: int, world_size: int) -> Iterator[Batch]:
    """One rank's share of the run's micro-batches, each with gaps of its own."""
    for turn, batch in enumerate(micro_batches(config, rank, world_size, 0, STEPS)):
        yield with_gaps(batch, turn * world_size + rank)


def plain_loop(config: RunConfig) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The reference: one process, the loss by indexing the observed targets."""
    model = make_model(config).train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1.0, weight_decay=0.0)
    batches = gappy_batches(config, 0, 1)
    turns = config.train.batch_size // config.train.micro_batch_size
    for step in range(STEPS):
        for turn in range(turns):
            batch = next(batches)
            seed_dropout(config.train.seed, step, turn)
            forecast = model(torch.from_numpy(batch["past"]))
            seen = torch.from_numpy(~np.isnan(batch["future"]))
            errors = (forecast - torch.from_numpy(batch["future"]))[seen]
            loss = config.dlora.balance_weight * model.balance_loss()
            if len(errors):
                loss = loss + errors.square().mean()
            (loss / turns).backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), config.train.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, STEPS, config.train)
        optimizer.step()
        optimizer.zero_grad()
    data = with_gaps(windows(config), 99)
    with torch.no_grad():
        forecast = model.eval()(torch.from_numpy(data["past"])).double().numpy()
    error = forecast - data["future"]
    metrics = {"mse": float(np.nanmean(error**2)), "mae": float(np.nanmean(np.abs(error)))}
    return {name: p.detach().clone() for name, p in trained.items()}, metrics


def train_rank(rank: int, world_size: int, folder: Path, config: RunConfig) -> None:
    for name in STAGES:
        engine = make_engine(config, policy(name), world_size)
        batches, sums = gappy_batches(config, rank, world_size), StepSums()
        for step in range(STEPS):
            for group in engine.optimizer.param_groups:
                group["lr"] = learning_rate(step, STEPS, config.train)
            train_step(engine, batches, config, step=step, sums=sums)
        assert np.isfinite(float(sums.loss))
        weights = trained_weights(engine)
        data = with_gaps(windows(config), 99)
        share = {key: values[rank::world_size] for key, values in data.items()}
        share["weight"] = np.ones(len(share["past"]))
        errors, _ = evaluate(engine, [share], horizon=config.data.horizon, num_channels=3)
        metrics = errors[1.0].summary()
        if rank == 0:
            write(folder, f"{name}.safetensors", weights)
            (folder / f"{name}.json").write_text(json.dumps(metrics))


@pytest.fixture(scope="module")
def config(tiny_llama: Path) -> RunConfig:
    config = run_config(tiny_llama)
    return replace(config, data=replace(config.data, missing="mask"))


@pytest.fixture(scope="module")
def trained(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gaps")
    run_ranks(train_rank, 2, folder, config)
    return folder


@pytest.fixture(scope="module")
def reference(config: RunConfig) -> tuple[dict[str, Tensor], dict[str, float]]:
    return plain_loop(config)


@pytest.mark.parametrize("name", STAGES)
def test_two_ranks_train_on_gaps_as_a_plain_loop_over_observed_targets(
    name: str, trained: Path, reference: tuple[dict[str, Tensor], dict[str, float]]
) -> None:
    weights, metrics = reference
    found = load_file(trained / f"{name}.safetensors")
    assert all(weight.isfinite().all() for weight in found.values())
    # Gradients over few observed targets are small, and Adam divides their rounding by their size.
    assert largest_relative_difference(found, weights) <= 5e-5
    assert json.loads((trained / f"{name}.json").read_text()) == pytest.approx(metrics, rel=1e-4)


CONTEXT, HORIZON, SEASON, ROWS = 36, 6, 24, 500
SPEC = WindowSpec(context_len=CONTEXT, horizon=HORIZON)
TRAIN, TEST = 350, 100


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    """Three daily waves with scattered gaps, and a long one in the second."""
    rng = np.random.default_rng(3)
    hours = np.arange(ROWS)[:, None]
    waves = 10 * np.sin(2 * np.pi * (hours + np.array([0, 3, 6])) / 24) + rng.normal(size=(ROWS, 3))
    waves[rng.random(waves.shape) < 0.05] = np.nan
    waves[200:320, 1] = np.nan
    return waves


def by_pandas(values: np.ndarray, map_LH: np.ndarray) -> dict[str, dict[str, float]]:
    """Both baselines, one window and channel after the other."""
    scaled = (values - np.nanmean(values[:TRAIN], axis=0)) / np.nanstd(values[:TRAIN], axis=0)

    def pairs(begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        cut = sliding_window_view(scaled[begin:end], CONTEXT + HORIZON, axis=0).reshape(
            -1, CONTEXT + HORIZON
        )
        past = pd.DataFrame(cut[:, :CONTEXT]).ffill(axis=1).bfill(axis=1).fillna(0.0)
        return past.to_numpy(), cut[:, CONTEXT:]

    def errors(y: np.ndarray, forecast: np.ndarray) -> dict[str, float]:
        return {
            "mse": float(np.nanmean((forecast - y) ** 2)),
            "mae": float(np.nanmean(np.abs(forecast - y))),
        }

    x, y = pairs(ROWS - TEST - CONTEXT, ROWS)
    naive = x[:, CONTEXT - SEASON : CONTEXT - SEASON + HORIZON]
    return {"seasonal_naive": errors(y, naive), "linear": errors(y, x @ map_LH)}


def prepared(values: np.ndarray, folder: Path) -> Path:
    stamps = np.datetime64("2024-01-01", "us") + np.arange(ROWS) * np.timedelta64(1, "h")
    series = Series("waves", stamps, values)
    write_prepared(Table.of("waves", [series], ("a", "b", "c"), "h"), folder)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_baselines_see_filled_pasts_and_are_scored_on_observed_targets(
    table: np.ndarray, tmp_path: Path
) -> None:
    from timellama_dist.evaluation.baseline_job import fit_shortcut, score_baselines

    data = prepared(table, tmp_path / "data")
    map_LH = fit_shortcut(data, SPEC)
    found = score_baselines(data, SPEC, map_LH)
    for name, expected in by_pandas(table, map_LH).items():
        assert found[name] == pytest.approx(expected, rel=1e-4), name
    table = table.copy()
    table[ROWS - TEST :] = 1e3
    other = prepared(table, tmp_path / "other")
    # What is tested decides nothing.
    np.testing.assert_array_equal(fit_shortcut(other, SPEC), map_LH)


@pytest.mark.usefixtures("cluster")
def test_each_channels_map_is_fitted_to_clipped_windows_of_its_own(
    table: np.ndarray, tmp_path: Path
) -> None:
    from timellama_dist.evaluation.baseline_job import fit_shortcut, score_baselines

    model = plain(ModelSection, clip=1.0, shortcut="frozen", shortcut_per_channel=True)
    data = prepared(table, tmp_path / "data")
    found_CLH = fit_shortcut(data, SPEC, model)
    windows = {}
    for split in ("train", "validation", "test"):
        reader = WindowReader(data, SPEC.of(split))
        windows[split] = reader.read(np.arange(len(reader)))
    sums = [
        [
            WindowSums.of(part["past"][..., [c]].clip(-1, 1), part["future"][..., [c]].clip(-1, 1))
            for c in range(3)
        ]
        for part in (windows["train"], windows["validation"])
    ]
    np.testing.assert_allclose(found_CLH, fit_each(*sums), atol=1e-8)
    past, future = fill_missing(windows["test"]["past"]).clip(-1, 1), windows["test"]["future"]
    errors = np.einsum("blc,clh->bhc", past, found_CLH) - future
    scored = score_baselines(data, SPEC, found_CLH, clip=1.0)["linear"]
    assert scored["mse"] == pytest.approx(np.nanmean(errors**2), rel=1e-5)


@pytest.mark.usefixtures("cluster")
def test_parts_without_any_value_are_refused_before_a_worker_starts(
    table: np.ndarray, tmp_path: Path
) -> None:
    from timellama_dist.errors import DataError
    from timellama_dist.evaluation.baseline_job import fit_shortcut, score_baselines

    table = table.copy()
    table[ROWS - TEST :] = np.nan
    data = prepared(table, tmp_path / "data")
    with pytest.raises(DataError, match=r"^every target of the test part is missing"):
        score_baselines(data, SPEC, np.zeros((CONTEXT, HORIZON)))
    table[TRAIN:] = np.nan
    data = prepared(table, tmp_path / "less")
    with pytest.raises(DataError, match=r"^every target of the validation part is missing"):
        fit_shortcut(data, SPEC)
