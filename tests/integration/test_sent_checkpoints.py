"""Ranks on several machines start from one checkpoint: real gloo ranks, a folder that one sees."""

import json
from pathlib import Path

from tests.support.engine_ranks import run_ranks
from timellama_dist.storage import open_place
from timellama_dist.train.checkpoint.files import seal
from timellama_dist.train.checkpoint.restoring import find_checkpoint, local_checkpoint


def restore_rank(rank: int, world_size: int, folder: Path, checkpoints: Path) -> None:
    # The second rank's machine has no such folder.
    place = open_place(checkpoints if rank == 0 else folder / "nowhere")
    said: list[str] = []
    found = find_checkpoint(place, said.append)
    with local_checkpoint(place, found) as here:
        assert here is not None
        files = {
            str(path.relative_to(here)): path.read_text()
            for path in here.rglob("*")
            if path.is_file()
        }
    content = {"found": found.name, "step": found.step, "said": said, "files": files}
    (folder / f"rank-{rank}.json").write_text(json.dumps(content))


def test_a_rank_that_does_not_see_the_folder_is_sent_the_files(tmp_path: Path) -> None:
    for step in (20, 40):
        folder = tmp_path / "checkpoints" / f"checkpoint_{step}"
        (folder / "model").mkdir(parents=True)
        (folder / "weights").write_text(f"weights of {step}")
        (folder / "model" / "config.json").write_text("{}")
        seal(folder, {"step": step})
    (folder / "weights").write_text("else")
    run_ranks(restore_rank, 2, tmp_path / "ranks", tmp_path / "checkpoints")
    first, second = (json.loads((tmp_path / f"ranks/rank-{n}.json").read_text()) for n in (0, 1))
    assert first["found"] == second["found"] == "checkpoint_20"
    assert first["files"] == second["files"]
    assert set(first["files"]) == {"state.json", "weights", "model/config.json"}
    assert first["files"]["weights"] == "weights of 20"
    assert len(first["said"]) == 1
    assert second["said"] == []
    assert not (tmp_path / "ranks" / "nowhere").exists()
