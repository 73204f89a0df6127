"""Trains on a frame: writes it as Parquet beside the run directory, where the run reads it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from timellama_dist.data.tables.frames import Frame, to_pandas
from timellama_dist.errors import ConfigError, UserError


def train_on_frame(frame: Frame, run_dir: Path | str, keys: Mapping[str, Any]) -> Path:
    """Train on a frame and return the folder of the exported model.

    Raises:
        ConfigError: the configuration can't be run, or another file is in the frame's place.
        DataError: the frame can't be used.
    """
    # Who only forecasts needs neither the configuration's reader nor the driver.
    from timellama_dist.config.load import config_from_flat
    from timellama_dist.train.driver import train

    path = Path(f"{run_dir}.parquet").absolute()
    config = config_from_flat({"data.path": str(path), "run.dir": str(run_dir), **keys})
    is_new = _write_frame(frame, path, run_dir)
    try:
        return Path(train(config).run_dir) / "model"
    except UserError:
        if is_new and not Path(run_dir).exists():
            path.unlink()
        raise


def _write_frame(frame: Frame, path: Path, run_dir: Path | str) -> bool:
    """Write a frame where nothing else is; tell whether the file is new.

    Raises:
        ConfigError: another file is there.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(to_pandas(frame), preserve_index=False), sink)
    content = sink.getvalue().to_pybytes()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return True
    if not path.is_file() or path.read_bytes() != content:
        raise ConfigError(
            f"run_dir: the frame goes to {path}, which holds something else; choose another "
            f"run_dir, got {str(run_dir)!r}"
        )
    return False
