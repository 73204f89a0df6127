"""`python -m benchmarks.tables`: its cells can be run, and keep nothing of the machine."""

from pathlib import Path

import pytest

from benchmarks import m4
from benchmarks.tables import (
    ABLATIONS,
    CONFIGS,
    FULL_BATCHES,
    RESULTS,
    ROOT,
    SETTINGS,
    TASKS,
    all_cells,
    keys_of,
    markdown,
    read_cells,
    relative,
)
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
    assert max(i for i, one in enumerate(settings) if one in SETTINGS) < settings.index("random")


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


def test_the_readme_has_the_tables_as_they_are_printed() -> None:
    assert markdown(read_cells(RESULTS)) in (ROOT / "README.md").read_text(encoding="utf-8")
