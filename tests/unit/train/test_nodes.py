"""What one node finds of what a run needs; whole clusters are in integration/test_two_nodes.py."""

import subprocess
from pathlib import Path

from timellama_dist.train.nodes import (
    Needed,
    different_versions,
    installed_versions,
    look_around,
)


def test_what_is_missing_and_what_cannot_be_written_is_found(tmp_path: Path) -> None:
    for name in ("here", "written"):
        (tmp_path / name).write_text("")
    here, gone, written = (
        Needed(name, str(tmp_path / name), "", written=name == "written")
        for name in ("here", "gone", "written")
    )
    # A folder cannot be made where a file is.
    below = Needed("below", str(tmp_path / "here" / "x"), "", written=True)
    seen = look_around([here, gone, written, below])
    assert seen.missing == (gone, below)
    assert seen.refused == ()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "written"]
    assert "lo" in seen.interfaces
    assert seen.versions == installed_versions()


def test_a_disk_that_takes_nothing_refuses(small_disk: Path) -> None:
    probe = small_disk / "probe"
    probe.write_text("")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    ((_, cause),) = look_around([Needed("run.dir", str(probe), "", written=True)]).refused
    assert "Read-only file system" in cause


def test_only_versions_that_differ_are_named() -> None:
    here = {"python": "3.11.7", "torch": "2.13.0", "peft": "0.21.2"}
    there = {"python": "3.11.7", "torch": "2.12.0", "bitsandbytes": "0.50.2"}
    assert different_versions(here, here) == []
    assert different_versions(there, here) == [
        "bitsandbytes 0.50.2 (the driver none)",
        "peft (missing) (the driver 0.21.2)",
        "torch 2.12.0 (the driver 2.13.0)",
    ]
