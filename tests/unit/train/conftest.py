"""Checkpoints made by hand."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from timellama_dist.train.checkpoint.files import seal

Make = Callable[[str, int], Path]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of one rank."""
    rendezvous = tmp_path_factory.mktemp("group") / "rendezvous"
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """The folder of a run's checkpoints."""
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a valid checkpoint `checkpoint_<name>` of a step in the folder `checkpoints`."""

    def make(name: str, step: int) -> Path:
        folder = tmp_path / "checkpoints" / f"checkpoint_{name}"
        (folder / "model").mkdir(parents=True)
        (folder / "weights.safetensors").write_bytes(b"weights" * 1000)
        (folder / "model" / "config.json").write_text(name)
        seal(folder, {"step": step})
        return folder

    return make
