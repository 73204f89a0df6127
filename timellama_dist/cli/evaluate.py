"""`timellama evaluate`: scores an exported model or a baseline on a data set."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timellama_dist.cli.opening import opening
from timellama_dist.config.load import load_settings
from timellama_dist.console.exit_codes import run_command
from timellama_dist.errors import ConfigError
from timellama_dist.evaluation.settings import EvaluateConfig
from timellama_dist.program import program

if TYPE_CHECKING:
    from timellama_dist.evaluation.exported_model import ExportedModel

SENTENCE = "Score an exported model, or a baseline, over every window of a data set."
EXAMPLES = (
    "--model RUN/model                               the data it was trained on",
    "--model RUN/model --data.path other.csv         others, unseen (zero-shot)",
    "--model ridge --data.path t.csv --data.context_len 336 --data.horizon 96",
)
MORE = """\
Windows have stride 1 and none is left out; z-scores are by the training part of the data that are
scored, whatever data the model was trained on. MSE and MAE are of z-scores; sMAPE, MASE and OWA
(against Naive2) of the data's own units.

Context, horizon and prompt are the exported model's, and so is how faults of a table are dealt
with; of the data it was trained on, columns and split too. A key given here wins."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    return run_command(lambda: _evaluate(argv))


def _evaluate(argv: Sequence[str]) -> None:
    config, exported = read_arguments(argv)
    _make_folders(config)
    # Not at the top: `--help` and a mistake in a key shall not wait for pandas and matplotlib.
    from timellama_dist.evaluation.job import evaluate
    from timellama_dist.report.scores import scores_table, write_scores

    results = evaluate(config, exported)
    print(scores_table(results, config.split))
    for path in write_scores(results, config.split, output=config.output, plots=config.plots):
        print(f"written: {path}")


def read_arguments(argv: Sequence[str]) -> tuple[EvaluateConfig, "ExportedModel | None"]:
    """What to evaluate, and the exported model's own words, None for a baseline.

    Raises:
        CheckpointError: no exported model is there.
        ConfigError: see `load_settings`, `ExportedModel`.
    """
    names: dict[str, Any] = {
        "prog": program("evaluate"),
        "description": opening(SENTENCE, "evaluate", EXAMPLES, MORE),
    }
    config = load_settings(EvaluateConfig, argv, **names)
    if config.is_baseline:
        return config, None
    from timellama_dist.evaluation.exported_model import ExportedModel

    exported = ExportedModel.open(config.model)
    defaults = exported.data_defaults(config)
    return load_settings(EvaluateConfig, argv, **names, defaults=defaults), exported


def _make_folders(config: EvaluateConfig) -> None:
    """Make the folders of what will be written, before anything is computed.

    Raises:
        ConfigError: one can't be made, or the output is a folder.
    """
    for key, path in (("output", config.output), ("plots", config.plots)):
        if path is None:
            continue
        folder = Path(path) if key == "plots" else Path(path).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{key}: {folder} cannot be made: {error.strerror}") from error
    if config.output is not None and Path(config.output).is_dir():
        raise ConfigError(f"output must be a file, {config.output} is a folder")
