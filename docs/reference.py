"""Makes the parts of the manual that must not be written by hand, as Markdown.

python docs/reference.py configuration
"""

import ast
import dataclasses
import inspect
import io
import re
import shlex
import sys
import tempfile
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import figures

from benchmarks.result_tables import RESULTS, markdown, read_cells, summary
from timellama_dist.cli.plan import main as plan_main
from timellama_dist.config.load import load_config
from timellama_dist.config.schema import MixturePart, RunConfig
from timellama_dist.evaluation.settings import EvaluateConfig
from timellama_dist.forecast.settings import ForecastConfig
from timellama_dist.serve.settings import ServeConfig
from timellama_dist.tune.settings import SearchConfig

ROOT = Path(__file__).parents[1]


def configuration() -> str:
    """Describe every key of a run, a table a section, with types and defaults."""
    # What a command without arguments runs, wherever that is decided.
    run = load_config([], prog="timellama train", description="")
    parts = ["## Top level", _table(RunConfig, "", sections=False)]
    for name, section in _sections(RunConfig):
        table = _table(section, f"{name}.", values=getattr(run, name))
        parts += [f"## `{name}` {{ #{name} }}", _purpose(section), table]
    parts += [
        "## `data.mixture` { #mixture }",
        "Each part has the keys of `data` above that concern one data set, and these:",
        _table(MixturePart, "data.mixture[].", only=_own_fields(MixturePart)),
    ]
    return "\n\n".join(parts)


def commands() -> str:
    """Describe the keys that `evaluate`, `forecast`, `serve` and search files have of their own."""
    parts = []
    for title, schema in (
        ("timellama evaluate", EvaluateConfig),
        ("timellama forecast", ForecastConfig),
        ("timellama serve", ServeConfig),
        ("A search file", SearchConfig),
    ):
        parts += [f"### {title}", _table(schema, "", sections=False)]
    return "\n\n".join(parts)


def accuracy() -> str:
    """Every table of accuracy, as `python -m benchmarks.tables` prints it, a heading each."""
    text = markdown(read_cells(RESULTS))
    titles = {
        "etth1": "ETTh1",
        "ettm1": "ETTm1",
        "weather": "Weather",
        "illness": "ILI",
        "M4": "M4",
        "cell": "Few-shot and ablations",
    }
    parts = []
    for table in text.split("\n\n"):
        head = re.split(r"[ ,]", table.removeprefix("| "))[0]
        parts += [f"### {titles[head]}", table]
    return "\n\n".join(parts)


def results_summary() -> str:
    """The README's table."""
    return summary(read_cells(RESULTS))


def plan() -> str:
    """What `timellama plan` prints for the example of the page."""
    page = (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")
    shell = page.split("```sh\n")[1].split("```")[0].replace("\\\n", " ")
    echo, command = shell.rsplit("\ntimellama plan ", maxsplit=1)
    with tempfile.TemporaryDirectory() as folder:
        backbone = Path(folder) / "llama3-70b"
        backbone.mkdir()
        shape = echo[echo.index("{") : echo.rindex("}") + 1]
        (backbone / "config.json").write_text(shape, encoding="utf-8")
        words = shlex.split(command.replace(backbone.name, str(backbone)))
        with redirect_stdout(io.StringIO()) as printed:
            if code := plan_main(words):
                raise RuntimeError(f"timellama plan {command}: exit code {code}")
    return f"```text\n{printed.getvalue().replace(f'{folder}/', '').rstrip()}\n```"


def changelog() -> str:
    """CHANGELOG.md without its title, which the page has."""
    return _root_file("CHANGELOG.md")


def contributing() -> str:
    """CONTRIBUTING.md without its title."""
    return _root_file("CONTRIBUTING.md")


PARTS: dict[str, Callable[[], str]] = {
    "configuration": configuration,
    "commands": commands,
    "accuracy": accuracy,
    "results-summary": results_summary,
    "plan": plan,
    "figure-window": figures.window,
    "figure-flow": figures.flow,
    "figure-house": figures.house,
    "changelog": changelog,
    "contributing": contributing,
}


def _root_file(name: str) -> str:
    text = (ROOT / name).read_text(encoding="utf-8")
    # As seen from docs/.
    return text.split("\n", maxsplit=1)[1].replace("](docs/", "](")


def _sections(schema: type) -> Iterator[tuple[str, type]]:
    for name, hint in typing.get_type_hints(schema).items():
        if dataclasses.is_dataclass(hint):
            yield name, typing.cast(type, hint)


def _own_fields(schema: type) -> set[str]:
    return set(schema.__annotations__)


def _table(
    schema: type,
    prefix: str,
    *,
    values: Any = None,
    sections: bool = True,
    only: set[str] | None = None,
) -> str:
    hints = typing.get_type_hints(schema)
    nested = set() if sections else {name for name, _ in _sections(schema)}
    lines = ["| key | values | default | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(schema):
        if field.name in nested or (only is not None and field.name not in only):
            continue
        cells = (
            f"`{prefix}{field.name}`",
            _type(hints[field.name]),
            _default(field) if values is None else _shown(getattr(values, field.name)),
            _docs(schema).get(field.name, ""),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _purpose(schema: type) -> str:
    return textwrap.dedent(schema.__doc__ or "").strip()


@cache
def _docs(schema: type) -> dict[str, str]:
    """Docstrings below a dataclass's fields, inherited ones too."""
    docs: dict[str, str] = {}
    for kind in reversed(schema.__mro__):
        if not dataclasses.is_dataclass(kind):
            continue
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        assert isinstance(node, ast.ClassDef)
        for statement, following in zip(node.body, node.body[1:], strict=False):
            if not isinstance(statement, ast.AnnAssign) or not isinstance(following, ast.Expr):
                continue
            name, text = statement.target, following.value
            if isinstance(name, ast.Name) and isinstance(text, ast.Constant):
                docs[name.id] = _escaped(" ".join(str(text.value).split()))
    return docs


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", "\\*").replace("[", "\\[")


def _type(hint: Any) -> str:
    if hint is type(None):
        return "null"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        # null is the default that it says.
        return " or ".join(_type(part) for part in arguments if part is not type(None))
    if origin in (list, tuple):
        inner = dict.fromkeys(_plural(_type(part)) for part in arguments if part is not ...)
        return f"list of {' or '.join(inner)}"
    if origin is dict:
        return "mapping"
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    return names.get(hint, "section" if dataclasses.is_dataclass(hint) else "anything")


def _plural(kind: str) -> str:
    return f"{kind}s" if kind.split()[-1] in ("number", "section") else kind


def _default(field: dataclasses.Field) -> str:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING or value == "":
        return "required"
    return _shown(value)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        value = list(value)
    return f"`{value}`"


if __name__ == "__main__":
    print(PARTS[sys.argv[1]]())
