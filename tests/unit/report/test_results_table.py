from typing import Any

from timellama_dist.report.table import results_table


def metrics(**by_dataset: float) -> dict[str, Any]:
    baselines = {name: {"mse": 3.0, "mae": 4.0} for name in ("linear", "seasonal_naive")}
    return {
        "test": {"mse": 1.0, "mae": 2.0},
        "baselines": baselines,
        "by_dataset": {
            name: {"test": {"mse": mse, "mae": 0.5}, "baselines": baselines}
            for name, mse in by_dataset.items()
        },
    }


def test_one_data_set_needs_no_line_of_its_own() -> None:
    lines = results_table(metrics(waves=1.0)).splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "test part, z-scored",
        "Time-LlaMA (this run)",
        "linear (ridge)",
        "seasonal naive",
    ]


def test_several_data_sets_have_a_line_each_in_aligned_columns() -> None:
    lines = results_table(metrics(waves=0.5, a_rather_long_name=1.5)).splitlines()
    assert lines[-2].split() == ["this", "run", "on", "waves", "0.5000", "0.5000"]
    assert lines[-1].split() == ["this", "run", "on", "a_rather_long_name", "1.5000", "0.5000"]
    assert len({len(line) for line in lines}) == 1
