"""`timellama serve`: answers forecast requests over HTTP."""

from collections.abc import Sequence

from timellama_dist.cli.opening import opening
from timellama_dist.config.load import load_settings
from timellama_dist.console.exit_codes import run_command
from timellama_dist.program import program
from timellama_dist.serve.app import serve_model
from timellama_dist.serve.settings import ServeConfig

EXAMPLES = (
    "--model RUN/model",
    "--model RUN/model --host 0.0.0.0 --port 9000",
    "--model s3://lake/runs/first/model --replicas 4",
)
MORE = """\
POST /forecast, GET /health, GET /ready; /docs and /openapi.json describe them. Ctrl-C ends it.
Ray Serve's own command runs it too: serve run timellama_dist.serve.app:app model=RUN/model"""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    return run_command(lambda: _serve(argv))


def _serve(argv: Sequence[str]) -> None:
    sentence = "Serve an exported model over HTTP with Ray Serve."
    description = opening(sentence, "serve", EXAMPLES, MORE)
    serve_model(load_settings(ServeConfig, argv, prog=program("serve"), description=description))
