"""Shows a search on the driver and writes it down while Ray Tune runs it."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from timellama_dist.compat.ray import trial_error
from timellama_dist.report.search import best_trial

RESULTS = "search.json"
PRUNED = "pruned.jsonl"

_MEASURED = (
    "step",
    "best_step",
    "mse",
    "mae",
    "validation",
    "active_parameters",
    "trainable_parameters",
    "step_s",
    "peak_bytes",
)


class Watcher(Callback):
    """Ray Tune's callback: a line for each trial that ended, and `search.json` after each.

    Args:
        folder: the search's run directory.
        most_trials: how many there are if all drawn ones can be run.
        facts: the rest of `search.json` beside the trials: the search, its keys, objectives,
            metric and base configuration.
    """

    def __init__(self, folder: Path, most_trials: int, facts: Mapping[str, Any]) -> None:
        self._folder, self._most_trials, self._facts = folder, most_trials, dict(facts)
        self._numbers: dict[str, int] = {}

    # Ray Tune passes more than these by keyword.
    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Say how it ended."""
        self._show(self.write(trials, ended=trial), trial)

    def on_trial_recover(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Say that a trial that failed is tried again."""
        self._count(trials)
        _say(f"trial {self._numbers[trial.trial_id]} failed and is tried again: {_cause(trial)}")

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Say that it failed."""
        self._show(self.write(trials), trial)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Write how all of them stand."""
        self.write(trials)

    def write(self, trials: Sequence[Trial], ended: Trial | None = None) -> list[dict[str, Any]]:
        """Write `search.json`; returns its records of the trials."""
        self._count(trials)
        records = [self._record(trial, ended=trial is ended) for trial in trials]
        records.sort(key=lambda record: record["number"])
        pruned = self._folder / PRUNED
        lines = pruned.read_text(encoding="utf-8").splitlines() if pruned.exists() else []
        content = self._facts | {"trials": records, "pruned": [json.loads(line) for line in lines]}
        draft = self._folder / f".{RESULTS}.new"
        draft.write_text(json.dumps(content, indent=2, default=str), encoding="utf-8")
        draft.replace(self._folder / RESULTS)
        return records

    def _count(self, trials: Sequence[Trial]) -> None:
        """Number trials in the order in which they first appear."""
        written = self._folder / RESULTS
        if not self._numbers and written.exists():
            # Of a resumed search: Ray Tune puts what had ended in another order.
            before = json.loads(written.read_text(encoding="utf-8"))["trials"]
            self._numbers = {record["id"]: record["number"] for record in before}
        for trial in trials:
            self._numbers.setdefault(trial.trial_id, len(self._numbers) + 1)

    def _record(self, trial: Trial, *, ended: bool) -> dict[str, Any]:
        last = trial.last_result or {}
        status = _status(trial, last, ended=ended)
        measured = {key: _finite(last.get(key)) for key in _MEASURED}
        problem = last.get("problem") or (_cause(trial) if status == "failed" else None)
        base = self._facts["base"]
        return {
            "number": self._numbers[trial.trial_id],
            "id": trial.trial_id,
            "is_base": all(base[key] == value for key, value in trial.config.items()),
            "status": status,
            "problem": problem,
            "keys": dict(trial.config),
            **measured,
            "seconds": last.get("time_total_s"),
        }

    def _show(self, records: Sequence[Mapping[str, Any]], trial: Trial) -> None:
        (record,) = [record for record in records if record["id"] == trial.trial_id]
        metric, best = self._facts["metric"], best_trial(records)
        line = f"trial {record['number']} of {self._most_trials} {record['status']}"
        if record["problem"]:
            line += f": {record['problem']}"
        elif record["validation"] is not None:
            line += f" at step {record['step']}: validation {metric} {record['validation']:.4f}"
        if best is not None:
            line += f"; best {best['validation']:.4f} (trial {best['number']})"
        _say(line)


def _status(trial: Trial, last: Mapping[str, Any], *, ended: bool) -> str:
    if trial.status == Trial.ERROR:
        return "failed"
    if not ended and trial.status != Trial.TERMINATED:
        return "unfinished"
    if "problem" in last:
        return "diverged"
    return "finished" if last.get("finished") else "stopped"


def _cause(trial: Trial) -> str:
    """The last line of a failed trial's error."""
    lines = trial_error(trial).strip().splitlines()
    return lines[-1].strip() if lines else "unknown"


def _finite(value: Any) -> Any:
    """The value, or None for what JSON doesn't have: infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
