"""Data sets from the configuration to plain values, and errors that name the part's own keys."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from timellama_dist.config.schema import DataSection, MixturePart
from timellama_dist.data.check import check_datasets
from timellama_dist.data.dataset import Dataset
from timellama_dist.data.prepared.manifest import Manifest
from timellama_dist.errors import ConfigError, DataError, UserError

LENGTHS = {"context_len": 12, "horizon": 4, "fit_context": False}
STRICT = {"duplicates": "refuse", "gaps": "refuse", "missing": "refuse", "short_series": "skip"}


def frame(rows: int = 200) -> pd.DataFrame:
    hours = np.arange(rows)
    dates = pd.date_range("2024-01-01", periods=rows, freq="h")
    return pd.DataFrame({"date": dates, "a": np.sin(hours / 4), "b": np.cos(hours / 5)})


def write(folder: Path, rows: pd.DataFrame, name: str = "table") -> str:
    rows.to_csv(folder / f"{name}.csv", index=False)
    return str(folder / f"{name}.csv")


def section(path: str, **keys: Any) -> DataSection:
    return DataSection(path=path, **(LENGTHS | STRICT | keys))


def mixture(*parts: dict[str, Any], **keys: Any) -> DataSection:
    strict = [MixturePart(**(STRICT | part)) for part in parts]
    return DataSection(mixture=strict, **(LENGTHS | keys))


def test_a_table_becomes_prepared_data_and_plain_values(tmp_path: Path) -> None:
    table = write(tmp_path, frame())
    (checked,) = check_datasets(section(table, train_fraction=0.5, columns=["b"], prompt="Waves."))
    dataset = checked.prepare(tmp_path / "out")

    manifest = Manifest.load(tmp_path / "out")
    assert (dataset.name, dataset.path) == ("table", str(tmp_path / "out"))
    assert (dataset.channels, dataset.frequency, dataset.season_len) == (("b",), "h", 24)
    assert dataset.content_hash == checked.content_hash == manifest.content_hash
    assert dataset.prompt == (
        "Waves. Task: forecast the next 4 steps from the previous 12 steps; one step is h."
    )
    # What was decided when it was prepared isn't asked for again.
    assert (dataset.part.columns, dataset.part.train_fraction) == (None, 0.5)
    plain = json.loads(json.dumps(dataset.to_dict()))
    assert Dataset.from_dict(plain) == dataset
    few = DataSection(path=dataset.path, train_fraction=0.5, short_series="skip", **LENGTHS)
    (again,) = check_datasets(few)
    assert again.num_windows == dataset.num_windows == {"train": 61, "validation": 17, "test": 37}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        # A part of 20 rows: no context helps, for its targets don't fit.
        (
            {"horizon": 30},
            r"the longest has 200 rows in all; data\.split=\[0, 30, 30\] would take the last 30 "
            r"rows for the test part and 30 before them for validation, or a horizon of at most 20 "
            r"rows would fit$",
        ),
        (
            {"context_len": 190},
            r"the longest has 200 rows in all; data\.fit_context=true would shorten the context to "
            r"48 rows$",
        ),
        (
            {"context_len": 138},
            r"data\.fit_context=true would shorten the context to 48 rows, or a horizon of at most "
            r"2 rows would fit$",
        ),
        ({"context_len": 300, "horizon": 300}, r"the longest has 200 rows in all$"),
    ],
)
def test_a_split_without_a_window_says_what_would_give_it_some(
    keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    table = write(tmp_path, frame())
    with pytest.raises(ConfigError, match=message):
        check_datasets(section(table, **keys))


def test_what_the_error_proposes_gives_each_split_windows(tmp_path: Path) -> None:
    table = write(tmp_path, frame())
    for keys in (
        {"horizon": 30, "split": (0.0, 30.0, 30.0)},
        {"horizon": 20},
        {"context_len": 190, "fit_context": True},
        {"context_len": 138, "horizon": 2},
    ):
        (dataset,) = check_datasets(section(table, **keys))
        assert min(dataset.num_windows.values()) > 0


@pytest.mark.parametrize(
    ("part", "rows", "kind", "message"),
    [
        (
            {},
            frame().drop(index=9),
            DataError,
            r"irregular step.*\(data\.mixture\[1\]\.gaps=reindex with "
            r"data\.mixture\[1\]\.missing=mask\), "
            r"or keep the rows as they stand "
            r"with data\.mixture\[1\]\.timestamps=ignore$",
        ),
        (
            {"frequency": "often"},
            frame(),
            ConfigError,
            r"^data\.mixture\[1\]\.frequency must be a pandas alias such as h, 15min or MS, got",
        ),
        (
            {"context_len": 10, "horizon": 3, "split": (190, 8, 2)},
            frame(),
            ConfigError,
            r"^data\.mixture\[1\]\.context_len=10 \+ data\.mixture\[1\]\.horizon=3 is longer than "
            r"the test part \(data\.mixture\[1\]\.split=\[190, 8, 2\]\)",
        ),
        (
            {"split": (0, 199, 20), "context_len": 1, "horizon": 1},
            frame(),
            ConfigError,
            r"^data\.mixture\[1\]\.context_len=1 \+ data\.mixture\[1\]\.horizon=1 is longer than "
            r"the train part",
        ),
        (
            {"split_by": "series", "split": (50, 20, 20)},
            frame(),
            ConfigError,
            r"^data\.mixture\[1\]\.split must be three fractions of the number of series",
        ),
    ],
)
def test_a_part_s_error_names_the_part_s_keys(
    part: dict[str, Any], rows: pd.DataFrame, kind: type[UserError], message: str, tmp_path: Path
) -> None:
    first, second = write(tmp_path, frame()), write(tmp_path, rows, "other")
    with pytest.raises(kind, match=message) as caught:
        check_datasets(mixture({"path": first}, {"path": second} | part))
    without_place = str(caught.value).replace("data.mixture[1]", "")
    assert " data." not in without_place


def test_series_that_no_split_trains_on_are_named_by_the_part(tmp_path: Path) -> None:
    ids = pd.concat([frame(30).assign(unique_id=f"s{n}") for n in range(2)])
    long = write(tmp_path, ids.rename(columns={"date": "ds"}), "long")
    part = {"path": long, "split": (0, 20, 10), "short_series": "pad", "horizon": 2}
    with pytest.raises(ConfigError) as caught:
        check_datasets(mixture({"path": write(tmp_path, frame())}, part), ("validation",))
    assert str(caught.value) == (
        "data.mixture[1]: nothing is left to train on: 2 series dropped that data.mixture[1].split "
        "[0, 20, 10] leaves no training row, so that they cannot be scaled; the first is 's0' of "
        "30 rows"
    )
