"""The Pareto front, the table and the picture of a search."""

from pathlib import Path
from typing import Any

from timellama_dist.report.search import best_trial, pareto_front, plot_search, summary

OBJECTIVES = ["validation", "active_parameters"]


def trial(number: int, validation: float | None, active: int, **changes: Any) -> dict[str, Any]:
    return {
        "number": number,
        "id": f"id{number}",
        "is_base": number == 1,
        "status": "finished",
        "problem": None,
        "keys": {"dlora.rank": number % 2 + 1, "train.learning_rate": 0.001234567},
        "step": 30,
        "validation": validation,
        "active_parameters": active,
        "trainable_parameters": 2 * active,
        "step_s": 0.1,
        "peak_bytes": 2**30,
    } | changes


TRIALS = [
    trial(1, 0.30, 1000),
    trial(2, 0.20, 3000),
    trial(3, 0.25, 1000),
    trial(4, 0.20, 4000),
    trial(5, 0.10, 500, status="stopped", step=10),
    trial(6, None, 0, status="failed", problem="out of | luck", step=None, peak_bytes=None),
]
FOUND = {
    "trials": TRIALS,
    "objectives": OBJECTIVES,
    "metric": "mse",
    "keys": ["dlora.rank", "train.learning_rate"],
    "base": {"dlora.num_experts": 4, "dlora.rank": 4},
    "pruned": [{"keys": {"dlora.rank": 64}, "problem": "needs 9 GiB"}],
}


def test_the_front_holds_what_no_other_trial_beats_in_everything() -> None:
    assert [trial["number"] for trial in pareto_front(TRIALS, OBJECTIVES)] == [2, 3]
    # A trial that was stopped early isn't what a whole run of it would be.
    assert best_trial(TRIALS) is TRIALS[1]
    assert best_trial(TRIALS[4:]) is TRIALS[4]
    assert best_trial(TRIALS[5:]) is None


def test_the_summary_says_how_all_trials_ended() -> None:
    text = summary(FOUND)
    assert "6 trials: 4 finished, 1 stopped, 1 failed, 1 not begun for want of memory" in text
    assert "best: trial 2, validation mse 0.2000 (finished, 30 steps; dlora.rank=1," in text
    assert "it began from: trial 1, validation mse 0.3000" in text
    row = "| 2 | finished | 30 | 0.2000 | 1 | 0.00123 | 3,000 | 6,000 | 0.100 | 1.00 |"
    assert text.count(row) == 2
    assert "| 6 | failed: out of / luck |  |  | 1 |" in text
    assert "- dlora.rank=64: needs 9 GiB" in text


def test_the_picture_is_drawn_of_whatever_there_is(tmp_path: Path) -> None:
    plot_search(FOUND, tmp_path / "all.png")
    plot_search(FOUND | {"trials": TRIALS[:1]}, tmp_path / "one.png")
    for name in ("all.png", "one.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
