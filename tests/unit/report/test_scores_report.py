import json
import math
from pathlib import Path

from timellama_dist.report.scores import scores_table, write_scores

FIGURES = {"mse": 0.25, "mae": 0.5, "smape": 12.34567, "mase": math.nan, "owa": math.nan}
STEPS = {key: [1.0, math.nan] for key in ("mse", "mae", "smape", "mase")}
ONE = {"context_len": 96, "horizon": 2, "windows": 7, "test": FIGURES, "by_step": STEPS}
RESULTS = {"model": "naive2", "test": FIGURES, "by_dataset": {"a": ONE}}


def test_the_table_has_a_line_for_all_where_there_are_several() -> None:
    line = "| a | 96 | 2 | 7 | 0.2500 | 0.5000 | 12.3457 | - | - |"
    assert scores_table(RESULTS, "test").splitlines()[2:] == [line]
    both = RESULTS | {"by_dataset": {"a": ONE, "b": ONE}}
    assert scores_table(both, "test").splitlines()[2:] == [
        line,
        line.replace("| a |", "| b |"),
        "| all |  |  | 14 | 0.2500 | 0.5000 | 12.3457 | - | - |",
    ]


def test_undefined_figures_are_null_in_the_file_and_gaps_in_the_picture(tmp_path: Path) -> None:
    output = tmp_path / "scores.json"
    written = write_scores(RESULTS, "test", output=str(output), plots=str(tmp_path))
    assert written == [output, tmp_path / "scores.md", tmp_path / "a-by-step.png"]
    actual = json.loads(output.read_text())
    assert actual["test"]["mase"] is None
    assert actual["by_dataset"]["a"]["by_step"]["mae"] == [1.0, None]
    assert all(path.stat().st_size for path in written)
