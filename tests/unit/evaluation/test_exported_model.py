"""What a model's own words decide about an evaluation, and what they leave to the user."""

from pathlib import Path
from typing import Any

import pytest

from timellama_dist.cli.evaluate import main
from timellama_dist.config.load import load_settings
from timellama_dist.config.schema import DataSection, MixturePart
from timellama_dist.errors import ConfigError
from timellama_dist.evaluation.exported_model import ExportedModel
from timellama_dist.evaluation.settings import EvaluateConfig
from timellama_dist.model.card import DatasetCard, ModelCard


def card(name: str, **changes: Any) -> DatasetCard:
    values: dict[str, Any] = {
        "name": name,
        "context_len": 100,
        "horizon": 10,
        "channels": ["a", "b"],
        "frequency": "h",
        "prompt": "the whole prompt",
        "season_len": 24,
        "options": {"timestamps": "ignore", "missing": "mask", "layout": "wide"},
    }
    return DatasetCard(**values | changes)


def exported(data: DataSection, *cards: DatasetCard) -> ExportedModel:
    card = ModelCard(config={}, datasets=list(cards))
    return ExportedModel(card, data, per_channel=None, fingerprint="")


def resolved(known: ExportedModel, *words: str) -> EvaluateConfig:
    """The configuration as the command reads it."""
    argv = ["--model", "RUN/model", *words]
    said = load_settings(EvaluateConfig, argv, prog="", description="")
    defaults = known.data_defaults(said)
    return load_settings(EvaluateConfig, argv, prog="", description="", defaults=defaults)


@pytest.fixture
def alone() -> ExportedModel:
    """A model of one table."""
    data = DataSection(
        path="/tables/one.csv",
        columns=["a", "b"],
        split=(0, 5, 5),
        timestamps="ignore",
        missing="mask",
        short_series="pad",
        prompt="of one",
        context_len=100,
        horizon=10,
    )
    return exported(data, card("one"))


@pytest.fixture
def several() -> ExportedModel:
    parts = [
        MixturePart(path="/tables/one.csv", name="one", prompt="of one"),
        MixturePart(path="/tables/two.csv", name="two", horizon=5, split=(0.5, 0.2, 0.3)),
    ]
    data = DataSection(mixture=parts, context_len=100, horizon=10)
    return exported(data, card("one"), card("two", horizon=5))


@pytest.mark.parametrize("words", [[], ["--data.path", "/tables/one.csv"]])
def test_its_own_data_are_read_as_they_were_in_training(
    alone: ExportedModel, words: list[str]
) -> None:
    data = resolved(alone, *words).data
    assert (data.path, data.columns, data.split) == ("/tables/one.csv", ["a", "b"], (0, 5, 5))
    assert (data.timestamps, data.missing, data.short_series) == ("ignore", "mask", "pad")
    assert (data.context_len, data.horizon) == (100, 10)
    assert alone.prompt_of(data.parts[0], data, "h") is None


def test_other_tables_take_lengths_and_what_is_done_about_faults(alone: ExportedModel) -> None:
    data = resolved(alone, "--data.path", "/tables/other.csv", "--data.horizon", "3").data
    assert (data.columns, data.split) == (None, None)
    assert (data.timestamps, data.missing, data.short_series) == ("ignore", "mask", "pad")
    assert (data.context_len, data.horizon) == (100, 3)
    assert alone.number_of(data.parts[0], None) == 0


def test_a_prepared_data_set_was_read_already(alone: ExportedModel, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    data = resolved(alone, "--data.path", str(tmp_path)).data
    assert (data.timestamps, data.missing) == ("check", "mask")
    assert (data.context_len, data.short_series, data.fit_context) == (100, "pad", False)


def test_a_moved_table_is_named_by_the_data_set_it_is(several: ExportedModel) -> None:
    words = ["--data.path", "/moved/2.csv", "--dataset", "two"]
    config = resolved(several, *words)
    assert (config.data.context_len, config.data.horizon) == (100, 5)
    assert several.number_of(config.data.parts[0], config.dataset) == 1


def test_all_data_sets_of_a_mixture_are_scored_if_none_is_named(several: ExportedModel) -> None:
    data = resolved(several).data
    assert [part.name for part in data.parts] == ["one", "two"]
    assert [data.lengths(part) for part in data.parts] == [(100, 10), (100, 5)]
    assert [several.number_of(part, None) for part in data.parts] == [0, 1]
    assert all(several.prompt_of(part, data, "h") is None for part in data.parts)


def test_one_data_set_of_a_mixture_is_scored_by_its_name(several: ExportedModel) -> None:
    data = resolved(several, "--dataset", "two").data
    assert (data.path, data.split, data.horizon) == ("/tables/two.csv", (0.5, 0.2, 0.3), 5)


def test_a_prompt_that_is_given_replaces_the_models(alone: ExportedModel) -> None:
    data = resolved(alone, "--data.path", "/tables/other.csv", "--data.prompt", "Of another.").data
    assert alone.prompt_of(data.parts[0], data, "15min") == (
        "Of another. Task: forecast the next 10 steps from the previous 100 steps; "
        "one step is 15min."
    )


def test_data_that_may_be_like_several_are_refused(several: ExportedModel) -> None:
    with pytest.raises(ConfigError, match=r"^dataset must say which .*/x\.csv is like: one, two$"):
        resolved(several, "--data.path", "/x.csv")
    with pytest.raises(ConfigError, match=r"^dataset must be one of one, two, got 'three'$"):
        resolved(several, "--dataset", "three")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "model must be given: an exported model (RUN/model) or seasonal_naive, naive2, ridge"),
        (["--model", "nothing"], "model must be the folder of an exported model (RUN/model) or"),
        (["--model", "ridge", "--data.hor", "3"], "unknown key data.hor; did you mean data.hor"),
        (["--model", "ridge", "--batch_size", "0"], "batch_size must be at least 1, got 0"),
        (["--model", "ridge", "--scaling.num_workers", "[1, 2]"], "scaling.num_workers must be a"),
        (["--model", "ridge", "--data.path", "/none.csv"], "/none.csv"),
        (["--model", "ridge", "--output", "/"], "output must be a file, / is a folder"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
