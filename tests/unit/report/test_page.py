"""A run's report: whole, self-contained, and not blank in a browser."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from timellama_dist.cli.report import main
from timellama_dist.errors import DataError
from timellama_dist.report.page import RunFiles, ShownSet, write_report

MODULES = ["q_proj", "v_proj"]
HORIZON, CHANNELS = 6, ["a", "<b>"]


def routers(step: int) -> dict[str, Any]:
    chosen = np.array([[[step, 40 - step], [10, 30]], [[5, 35], [20, 20]]])
    return {"samples": 40, "chosen": chosen.tolist(), "entropy": [1.2, 0.9]}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """The files of a finished run, as `train.py` leaves them."""
    folder = tmp_path / "first"
    folder.mkdir()
    errors = {"mse": 0.25, "mae": 0.5}
    detail = {
        "by_step": {kind: np.linspace(0.1, 0.4, HORIZON).tolist() for kind in errors},
        "by_channel": {kind: [0.2, None] for kind in errors},
        "routers": routers(7),
    }
    baselines = {"linear": {"mse": 0.5, "mae": 0.6}, "seasonal_naive": {"mse": 0.75, "mae": 0.7}}
    metrics = {
        "test": errors,
        "validation": errors,
        "baselines": baselines,
        "by_dataset": {"shops": {"test": errors, "detail": detail, "baselines": baselines}},
        "train": {"steps": 30, "seconds": 12.5, "windows_per_s": 100.0},
        "memory": {
            "frozen_bytes_per_rank": [1 << 20] * 2,
            "frozen_bytes_unsharded": 2 << 20,
            "peak_rss_bytes_per_rank": [1 << 30] * 2,
        },
        "checkpoints": {"saved": 3, "bytes": 1000, "seconds": 0.5},
        "parameters": {"trainable": 100, "frozen": 200, "active": 50},
        "world_size": 2,
        "zero_stage": 3,
        "versions": {"torch": "2.13"},
    }
    history = [
        {"kind": "train", "step": n, "loss": 1 / n, "balance_loss": 2.0, "learning_rate": 1e-3}
        for n in (10, 20, 30)
    ] + [
        {"kind": "validation", "step": n, **errors, "detail": {"shops": {"routers": routers(n)}}}
        for n in (10, 20, 30)
    ]
    (folder / "config.yaml").write_text("data:\n  prompt: 'a < b & c'\n")
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "history.jsonl").write_text("".join(json.dumps(record) + "\n" for record in history))
    return folder


def shown() -> ShownSet:
    rng = np.random.default_rng(0)
    future = rng.standard_normal((3, HORIZON, 2))
    return ShownSet(
        name="shops",
        channels=CHANNELS,
        examples={
            "past": rng.standard_normal((3, 12, 2)),
            "future": future,
            "forecast": 0.8 * future,
        },
        radii={80: np.ones((HORIZON, 2)), 95: 2 * np.ones((HORIZON, 2))},
    )


def test_the_report_is_one_file_with_everything_in_it(run_dir: Path) -> None:
    text = write_report(run_dir, [shown()], MODULES).read_text()
    assert text.count("<img ") == text.count("data:image/png;base64,") == 5
    # Nothing is fetched, and nothing of the user's is taken for markup.
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert "a &lt; b &amp; c" in text
    for word in ("0.2500", "seasonal naive", "intervals of 80 % and 95 %", "1024.0 MiB", "2.13"):
        assert word in text


def test_a_run_without_adapters_has_no_router_pictures(run_dir: Path) -> None:
    text = (run_dir / "metrics.json").read_text()
    metrics = json.loads(text)
    metrics["by_dataset"]["shops"]["detail"]["routers"] = None
    (run_dir / "metrics.json").write_text(json.dumps(metrics))
    lines = (run_dir / "history.jsonl").read_text().splitlines()
    (run_dir / "history.jsonl").write_text("\n".join(lines[:3]))
    assert "experts" not in write_report(run_dir, [shown()], MODULES).read_text()


def test_runs_are_compared(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = shutil.copytree(run_dir, run_dir.with_name("second<b>"))
    page = run_dir.with_name("comparison.html")
    assert main([str(run_dir), str(second), "--output", str(page)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:3]] == [
        ["first", "0.2500", "0.5000"],
        ["second<b>", "0.2500", "0.5000"],
    ]
    text = page.read_text()
    assert text.count("<img ") == 4
    assert "<b>" not in text
    for title in ("second&lt;b&gt;", "second&lt;b&gt;, shops: routers over time"):
        assert f"<h2>{title}</h2>" in text
    assert main([str(run_dir.parent)]) == 2
    assert "is not the directory of a finished run" in capsys.readouterr().err
    with pytest.raises(DataError):
        RunFiles.read(run_dir.parent)


def test_of_steps_that_were_made_again_the_last_count(run_dir: Path) -> None:
    path = run_dir / "history.jsonl"
    once = RunFiles.read(run_dir).history
    lines = path.read_text().splitlines()
    # The run went on from step 10 after a worker was lost.
    lost = [line.replace('"loss": 0.05', '"loss": 9.0') for line in lines[1:2]]
    path.write_text("\n".join([lines[0], lines[3], *lost, *lines[1:3], *lines[4:]]) + "\n")
    actual = RunFiles.read(run_dir).history
    for kind in ("train", "validation"):
        mine, expected = (
            [record for record in h if record["kind"] == kind] for h in (actual, once)
        )
        assert mine == expected
        assert [record["step"] for record in mine] == [10, 20, 30]


def test_a_browser_shows_the_report(run_dir: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("needs Debian's chromium")
    report, picture = write_report(run_dir, [shown()], MODULES), tmp_path / "report.png"
    subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            # Else it looks for its maker's hosts.
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            "--disable-dev-shm-usage",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1200,3000",
            f"--screenshot={picture}",
            report.as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    pixels = imread(picture)[..., :3]
    assert pixels.shape == (3000, 1200, 3)
    # Text above, pictures below: no band of a screen's height is blank.
    for top in range(0, 2000, 500):
        assert pixels[top : top + 500].std() > 0.05, top
