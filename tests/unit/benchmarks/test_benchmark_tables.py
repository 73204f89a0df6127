"""`python -m benchmarks.tables`: its cells can be run, and keep nothing of the machine."""

from pathlib import Path

import pytest

from benchmarks import m4
from benchmarks.cells import ABLATIONS, FULL_BATCHES, SETTINGS, TASKS, all_cells, keys_of
from benchmarks.measuring import append_line
from benchmarks.result_tables import (
    RESULTS,
    keep,
    long_term,
    markdown,
    mean_of,
    measured_rows,
    read_cells,
    summary,
)
from benchmarks.tables import CONFIGS, ROOT, relative
from timellama_dist.config.load import load_config
from timellama_dist.model.build import dlora_config


@pytest.mark.parametrize("setting", [*SETTINGS, *ABLATIONS])
def test_every_setting_changes_a_recipe_by_configuration_alone(setting: str) -> None:
    file = ["--config", str(CONFIGS / f"{TASKS[0].name}.yaml")]
    keys = (SETTINGS | ABLATIONS)[setting]
    words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
    plain, changed = (
        load_config([*file, *more], prog="train.py", description="") for more in ([], words)
    )
    assert (changed != plain) == (setting not in {"full", "shortcut"})  # ETTh1's recipe has one.
    dlora_config(changed.dlora)


def test_cells_have_names_of_their_own_and_recipes_come_before_ablations() -> None:
    names = [cell.name for cell in all_cells(2)]
    assert len(set(names)) == len(names)
    settings = [cell.setting for cell in all_cells(1)]
    assert max(i for i, name in enumerate(settings) if name in SETTINGS) < settings.index("random")


def test_full_batches_leave_out_less_than_a_batch_of_the_last_windows() -> None:
    cells = [cell for cell in all_cells(1) if cell.setting == FULL_BATCHES]
    assert [cell.horizon for cell in cells] == [24, 36, 48, 60]
    for cell in cells:
        train, validation, test = keys_of(cell)["data.split"]
        # The published borders of 966 rows.
        assert (train, validation) == (int(0.7 * 966), 966 - int(0.7 * 966) - int(0.2 * 966))
        assert (test - cell.horizon + 1) % 16 == 0
        assert 0 <= int(0.2 * 966) - test < 16


def test_a_kept_configuration_names_no_folder_of_its_machine(tmp_path: Path) -> None:
    run_dir, data = tmp_path / "scratch" / "cell", tmp_path / "data"
    text = f"path: {data}/t.csv\ndir: {run_dir}\ndeepspeed: {ROOT}/ds_configs/zero1.json\n"
    kept = relative(text, run_dir.parent, data)
    assert kept == "path: t.csv\ndir: cell\ndeepspeed: ds_configs/zero1.json\n"


def test_the_m4_table_has_a_row_a_forecaster_and_means_over_seeds() -> None:
    def scores(owa: float) -> m4.Scores:
        return {"smape": 10.0, "mase": 2.0, "owa": owa}

    hourly = [{"ours": scores(0.5)}, {"ours": scores(0.7)}, {"theirs": scores(0.9)}]
    table = m4.table({"hourly": hourly, "weekly": [{"ours": scores(0.8)}]})
    assert table.splitlines()[2:] == [
        "| ours, here | 10.000 / 2.000 / 0.600 | 10.000 / 2.000 / 0.800 |",
        "| theirs, here | 10.000 / 2.000 / 0.900 |  |",
    ]


def test_a_kept_cell_is_read_back_as_it_was(tmp_path: Path) -> None:
    cells = list(all_cells(1))[:2]
    facts = {"seconds": 1.5, "metrics": {"test": {"mse": 0.1 + 0.2, "mae": 1e-17}}, "config": "ä"}
    for cell in cells:
        keep(tmp_path, cell, facts)
    kept = read_cells(tmp_path)
    assert list(kept) == sorted(cell.name for cell in cells)
    for cell in kept.values():
        assert {key: cell[key] for key in facts} == facts
        assert {"machine", "versions"} < cell.keys()


def test_results_lie_a_line_a_cell_in_the_file_of_their_data_set() -> None:
    for file in RESULTS.iterdir():
        assert file.suffix == ".jsonl"
    for name, cell in read_cells(RESULTS).items():
        assert cell["cell"] == name
        assert f'"cell": "{name}"' in (RESULTS / f"{name.split('-')[0]}.jsonl").read_text("utf-8")


def test_a_mean_over_horizons_needs_all_of_them() -> None:
    assert mean_of([[1.0, 3.0], [4.0]]) == "3.0000"
    assert mean_of([[1.0], []]) == ""
    assert mean_of([]) == ""


def test_the_tables_hold_each_seed_s_mean_and_the_figures_as_printed_by_others(
    tmp_path: Path,
) -> None:
    task = TASKS[0]
    for cell in all_cells(2):
        if cell.task == task and cell.setting == "full":
            mse = 0.5 + cell.seed + cell.horizon / 1000
            metrics = {"test": {"mse": mse, "mae": mse / 2}}
            metrics["validation"] = metrics["test"]
            metrics["baselines"] = {"linear": {"mse": 7.0}, "seasonal_naive": {"mse": 8.0}}
            append_line(
                tmp_path / f"{task.name}.jsonl", "t", {"cell": cell.name, "metrics": metrics}
            )
    cells = read_cells(tmp_path)
    assert measured_rows(task, cells)["Time-LlaMA, here"][0] == pytest.approx([0.596, 1.596])
    table = long_term(task, cells).splitlines()
    assert table[2].startswith("| Time-LlaMA, here | 1.0960 ± 0.7071 (2) |")
    assert table[4] == "| linear, here |" + " 7.0000 |" * 5
    assert "| Time-LLM | 0.362 | 0.398 | 0.430 | 0.442 | 0.408 |" in table
    assert summary(cells).splitlines()[2] == "| ETTh1, MSE | 1.3360 | 7.0000 | 8.0000 |  | 0.413 |"
    assert "| etth1-96, full | 1.0960" in markdown(cells)


def test_the_readme_s_results_are_the_kept_ones() -> None:
    assert summary(read_cells(RESULTS)) in (ROOT / "README.md").read_text(encoding="utf-8")
