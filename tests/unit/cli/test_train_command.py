"""What `timellama train` ends with: the commands that use the model."""

from pathlib import Path

import pytest

from timellama_dist.cli.train import next_commands
from timellama_dist.config.load import config_from_flat
from timellama_dist.train.execution import Outcome


def test_the_next_commands_name_the_model_and_the_user_s_table(tmp_path: Path) -> None:
    table = tmp_path / "my table.csv"
    table.touch()
    outcome = Outcome(tmp_path / "run", {"by_dataset": {"my table": {}}}, None)
    config = config_from_flat({"data.path": str(table)})
    model = f"--model {tmp_path}/run/model"
    assert next_commands(outcome, config) == [
        f"forecast        timellama forecast {model} --input '{table}' "
        f"--output {tmp_path}/run/forecasts",
        f"evaluate        timellama evaluate {model}",
        f"serve           timellama serve {model}",
    ]


@pytest.mark.parametrize("several", [False, True])
def test_of_a_public_data_set_the_run_s_own_copy_is_forecast(
    tmp_path: Path, several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mixture = {"data.mixture": [{"path": "epf", "name": "a"}, {"path": "epf", "name": "b"}]}
    config = config_from_flat(mixture if several else {})
    made = tmp_path / "run" / "data" / ("a" if several else "")
    made.mkdir(parents=True)
    (made / "manifest.json").touch()
    names = ["a", "b"] if several else ["epf"]
    outcome = Outcome(tmp_path / "run", {"by_dataset": dict.fromkeys(names)}, None)
    forecast = next_commands(outcome, config)[0]
    assert f"--input {made} " in forecast
    assert ("--dataset a" in forecast) == several
