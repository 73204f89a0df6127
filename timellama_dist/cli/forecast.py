"""`timellama forecast`: forecasts every series of a table with an exported model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from timellama_dist.cli.opening import opening
from timellama_dist.config.load import load_settings
from timellama_dist.console.exit_codes import run_command
from timellama_dist.forecast.settings import ForecastConfig
from timellama_dist.program import program

if TYPE_CHECKING:
    from timellama_dist.forecast.job import Summary

EXAMPLES = (
    "--model RUN/model --input table.csv --output forecasts",
    "--model RUN/model --input s3://lake/table --output s3://lake/forecasts",
    "--model RUN/model --input prepared/table --output backtest --cutoffs 30 --stride 24",
)
MORE = """\
The output is Parquet in long form: unique_id, ds, cutoff (the last time that was seen), channel,
yhat, model (its fingerprint), and in backtests y (the truth). A command that was killed goes on
where it was when it is given again."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    return run_command(lambda: _forecast(argv))


def _forecast(argv: Sequence[str]) -> None:
    sentence = "Forecast every series of a table with an exported model."
    config = load_settings(
        ForecastConfig,
        argv,
        prog=program("forecast"),
        description=opening(sentence, "forecast", EXAMPLES, MORE),
    )
    # Not at the top: `--help` and a mistake in a key shall not wait for torch.
    from timellama_dist.forecast.job import forecast

    print(describe(forecast(config), config.output))


def describe(summary: "Summary", output: str) -> str:
    """A finished job in one line."""
    rate = summary.made / summary.seconds
    return (
        f"{summary.made} of {summary.forecasts} forecasts made now, in {summary.seconds:.1f} s "
        f"({rate:.0f} forecasts/s, {rate * summary.steps * summary.channels:.0f} values/s); "
        f"steps x channels: {summary.steps} x {summary.channels}, parts: {summary.parts}, "
        f"in {output}"
    )
