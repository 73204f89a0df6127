"""Knows where a run keeps its checkpoints and a copy of what matters: `run.storage_path`."""

import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from timellama_dist.config.schema import DataSection, RunConfig
from timellama_dist.data.opening import data_name
from timellama_dist.errors import ConfigError, DataError
from timellama_dist.program import command_line
from timellama_dist.storage import Place, copy_tree, open_place
from timellama_dist.train.checkpoint.files import newest_valid, refuse_damaged

CHECKPOINTS = "checkpoints"
CONFIG = "config.yaml"
# metrics.json comes last: where it is, the rest is.
_RESULTS = ("model", "report.html", "forecasts.png", "metrics.json")


def choose_run_dir(config: RunConfig, prefix: str = "") -> Path:
    """Return the run directory, not made yet.

    Args:
        config: the run.
        prefix: of the directory's name where the user gave it none.

    Raises:
        ConfigError: it is no local folder, or holds something and isn't resumed.
    """
    if config.run.dir is None:
        # In the user's home: a submitted job's own folder is Ray's to delete.
        stamp = time.strftime("%Y%m%d-%H%M%S")
        return Path.home() / "timellama_runs" / f"{prefix}{run_name(config.data)}-{stamp}"
    if not open_place(config.run.dir).is_local:
        raise ConfigError(
            key="run.dir",
            must="be a local folder",
            got=config.run.dir,
            hint="a URI is for run.storage_path",
        )
    run_dir = Path(config.run.dir).expanduser().resolve()
    if run_dir.exists() and any(run_dir.iterdir()) and not config.run.resume:
        raise ConfigError(
            f"run.dir: {run_dir} is not empty; choose another, or go on with it: --run.resume"
        )
    return run_dir


def run_name(data: DataSection) -> str:
    """Name a run over these data where the user gave it no name."""
    return "mixture" if data.mixture is not None else data_name(data.parts[0].path)


def checkpoints_place(config: RunConfig) -> Place:
    """Return the folder of the run's checkpoints."""
    return run_place(config) / CHECKPOINTS


def run_place(config: RunConfig) -> Place:
    """Return the folder above the checkpoints: the run's own in the storage, or its directory."""
    run_dir = open_place(str(config.run.dir))
    if config.run.storage_path is None:
        return run_dir
    return open_place(config.run.storage_path) / run_dir.name


def check_storage(config: RunConfig) -> None:
    """Write and remove a small file in the run's storage, if it has one, and see what lies there.

    Raises:
        CheckpointError: to be resumed, and there are checkpoints, but none is valid.
        ConfigError: another run of this name has its checkpoints there.
        DataError: it can't be written to.
    """
    if config.run.storage_path is not None:
        _probe(open_place(config.run.storage_path))
    checkpoints = checkpoints_place(config)
    if config.run.resume:
        refuse_damaged(checkpoints)
    elif config.run.storage_path is not None and checkpoints.exists():
        # The workers would go on from them unasked.
        raise ConfigError(
            f"run.storage_path: {run_place(config)} holds the checkpoints of another run; choose "
            "another name of run.dir, or go on with it: --run.resume"
        )


def _probe(storage: Place) -> None:
    probe = storage / f".timellama-{uuid4().hex}"
    try:
        probe.write_text("can this be written?")
        probe.delete()
    except DataError as error:
        cause = str(error).replace(str(probe), str(storage))
        raise DataError(f"run.storage_path: {cause}") from error


def begun_config(config: RunConfig) -> Place:
    """Find the configuration a run was begun with: its storage's, if the run directory is lost.

    Raises:
        ConfigError: neither has one.
        DataError: the storage refuses.
    """
    places = (open_place(str(config.run.dir)), run_place(config))
    for place in places:
        if (place / CONFIG).is_file():
            return place / CONFIG
    looked = " nor ".join(dict.fromkeys(str(place / CONFIG) for place in places))
    raise ConfigError(f"run.resume: {looked} does not exist, so there is no run to resume")


def copy_config(config: RunConfig) -> None:
    """Put the run directory's configuration beside the checkpoints.

    Raises:
        DataError: the storage refuses.
    """
    run_dir, place = open_place(str(config.run.dir)), run_place(config)
    if place != run_dir:
        copy_tree(run_dir / CONFIG, place / CONFIG)


def holds_checkpoint(config: RunConfig) -> bool:
    """Is there a valid checkpoint to go on from? False also where the storage doesn't answer."""
    with suppress(DataError):
        return newest_valid(checkpoints_place(config))[0] is not None
    return False


def resume_command(config: RunConfig) -> str:
    """Say by which command the user goes on with a run that ended early."""
    return f"go on with: {command_line('train', '--run.dir', config.run.dir, '--run.resume')}"


def copy_results(config: RunConfig) -> Place | None:
    """Copy what a finished run left in its directory; the copy's place, None if there is none.

    Raises:
        RuntimeError: the storage refuses; nothing of the run is lost.
    """
    run_dir, place = open_place(str(config.run.dir)), run_place(config)
    if place == run_dir:
        return None
    try:
        for name in _RESULTS:
            copy_tree(run_dir / name, place / name)
    except DataError as error:
        raise RuntimeError(
            f"the run has ended and lies in {run_dir}, but could not be copied: {error}"
        ) from error
    return place
