"""Command lines, YAML and Python of README and manual are what the code takes; nothing runs."""

import ast
import inspect
import json
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from tests.support.documents import PAGES, ROOT, Block, blocks, commands, own_command
from timellama_dist import TimeLlamaForecaster
from timellama_dist.config.load import config_from_flat, load_config
from timellama_dist.tune.files import load_search


class Accepted(BaseException):
    """A command has read its words, and would begin."""


def own_commands() -> list[Any]:
    lines = [
        pytest.param(*command, id=f"{block}-{' '.join([command[0], *command[1]])[:60]}")
        for block in blocks("sh")
        for words in commands(block.text)
        if (command := own_command(words))
    ]
    assert lines
    return lines


@pytest.mark.parametrize(("name", "words"), own_commands())
def test_a_command_line_is_one_that_its_command_takes(
    name: str, words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    main = pytest.importorskip("timellama_dist.cli.main", reason="the command comes by a merge")
    assert name in main.COMMANDS
    monkeypatch.chdir(tmp_path)
    # A file of the reader's own, by its name.
    for file in ("run.yaml", "mixture.yaml"):
        Path(file).write_text("train:\n  max_steps: 10\n")
    Path("my_search.yaml").write_text("space:\n  dlora.rank: {choice: [2, 4]}\n")
    command = import_module(f"timellama_dist.cli.{name}")
    # There is no run here to go on with.
    words = [word for word in words if word != "--run.resume"]
    if name in ("train", "tune", "prepare"):
        assert command.read_arguments(words)
    elif name == "recipes":
        assert command.main(words) == 0
    else:
        read = command.load_settings

        def load_settings(*arguments: Any, **keys: Any) -> NoReturn:
            read(*arguments, **keys)
            raise Accepted

        monkeypatch.setattr(command, "load_settings", load_settings)
        with pytest.raises(Accepted):
            command.main(words)


def test_programs_that_measure_are_there() -> None:
    modules = [
        words[2]
        for block in blocks("sh")
        for words in commands(block.text)
        if words[:2] == ["python", "-m"]
    ]
    assert modules
    for module in modules:
        if module.startswith("benchmarks."):
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml_is_a_run_s_or_a_search_s(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "file.yaml"
    file.write_text(block.text)
    values = yaml.safe_load(block.text)
    if "space" in values:
        search = load_search(file)
        last = {key: drawn.values[-1] for key, drawn in search.distributions.items()}
        assert config_from_flat(search.fixed | last)
        return
    config = load_config(["--config", str(file)], prog="train", description="")
    for section, keys in values.items():
        for key in keys:
            assert hasattr(getattr(config, section), key)


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_json_can_be_read(block: Block) -> None:
    assert json.loads(block.text)


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_names_what_is_there(block: Block) -> None:
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("timellama_dist"):
            module = import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"
    for method, call in forecaster_calls(tree):
        parameters = inspect.signature(getattr(TimeLlamaForecaster, method)).parameters
        for keyword in call.keywords:
            if keyword.arg is not None:
                assert keyword.arg in parameters, f"{method} takes no {keyword.arg}"
            else:
                config_from_flat(ast.literal_eval(keyword.value))


def forecaster_calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            if isinstance(owner, ast.Name) and owner.id in ("forecaster", "TimeLlamaForecaster"):
                yield node.func.attr, node


def test_every_block_has_a_language_that_is_checked_or_is_text() -> None:
    for page in PAGES:
        fences = [line for line in page.read_text("utf-8").splitlines() if line.startswith("```")]
        for fence in fences[::2]:
            assert fence[3:] in ("sh", "python", "yaml", "json", "text"), f"{page.name}: {fence}"


def test_links_lead_to_files() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", page.read_text("utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_readme_is_read_in_five_minutes() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 200
    assert len(text.split()) <= 1500
