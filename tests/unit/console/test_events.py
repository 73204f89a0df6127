"""An event's JSON, byte by byte: users script against these lines."""

import json

import pytest

from timellama_dist.console.events import (
    Evaluating,
    Event,
    Phase,
    Saved,
    Started,
    TrainStep,
    Validation,
)


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (Phase(text="loading the backbone"), '{"kind": "phase", "text": "loading the backbone"}'),
        (Started(step=0, total_steps=9), '{"kind": "start", "step": 0, "total_steps": 9}'),
        (
            TrainStep(
                step=5,
                loss=None,
                balance_loss=1.5,
                learning_rate=0.001,
                gradient_norm=0.5,
                skipped_steps=1,
                windows_per_s=80.0,
                seconds=2.0,
            ),
            '{"kind": "train", "step": 5, "loss": null, "balance_loss": 1.5, '
            '"learning_rate": 0.001, "gradient_norm": 0.5, "skipped_steps": 1, '
            '"windows_per_s": 80.0, "seconds": 2.0}',
        ),
        (
            Evaluating(split="test", done=4, total=5),
            '{"kind": "evaluating", "split": "test", "done": 4, "total": 5}',
        ),
        (
            Validation(step=5, metrics={"mse": 0.5, "mae": 0.25, "by_dataset": {"a": {}}}),
            '{"kind": "validation", "step": 5, "mse": 0.5, "mae": 0.25, "by_dataset": {"a": {}}}',
        ),
        (
            Saved(
                step=5,
                checkpoint="checkpoint_1",
                validation={"mse": 0.5},
                best_step=4,
                finished=True,
                seconds=2.0,
                peak_bytes=7,
                parameters={"active": 3},
            ),
            '{"kind": "saved", "step": 5, "checkpoint": "checkpoint_1", '
            '"validation": {"mse": 0.5}, "best_step": 4, "finished": true, "seconds": 2.0, '
            '"peak_bytes": 7, "parameters": {"active": 3}}',
        ),
    ],
)
def test_an_event_is_one_line_of_json(event: Event, line: str) -> None:
    assert json.dumps(event.to_record()) == line
