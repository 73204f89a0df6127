"""What is made for the manual: every key with its meaning, and marks that something is made for."""

import importlib.util
import re
import sys
from types import ModuleType

import pytest

from tests.support.documents import ROOT


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """docs/reference.py, which belongs to no package."""
    folder = ROOT / "docs"
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location("reference", folder / "reference.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module


def rows(table: str) -> dict[str, list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("| `")]
    cells = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in lines]
    return {cell[0].strip("`"): cell[1:] for cell in cells}


def test_every_key_has_values_and_a_meaning(reference: ModuleType) -> None:
    table = rows(reference.configuration())
    assert {"data.path", "dlora.top_n", "train.seed", "deepspeed", "data.mixture[].weight"} < set(
        table
    )
    without = [key for key, cells in table.items() if not cells[0] or not cells[-1]]
    assert not without


def test_types_and_defaults_are_the_schema_s(reference: ModuleType) -> None:
    table = rows(reference.configuration())
    assert table["dlora.gate"][0] == "`probability`, `straight_through`, `binary`"
    assert table["scaling.num_workers"][:2] == ["whole number or list of whole numbers", "`2`"]
    assert table["run.resume"][:2] == ["true or false", "`false`"]


def test_keys_of_commands_are_described(reference: ModuleType) -> None:
    text = reference.commands()
    assert "### timellama serve" in text
    assert rows(text)["part_windows"][1] == "`1024`"


def test_the_plan_of_the_page_is_made_by_the_command(reference: ModuleType) -> None:
    assert "estimate, s a step" in reference.plan()


def test_figures_are_drawn_inside_of_their_frame(reference: ModuleType) -> None:
    for name in ("figure-window", "figure-flow", "figure-house"):
        svg = reference.PARTS[name]()
        width, height = map(float, re.search(r'viewBox="0 0 (\d+) (\d+)"', svg).groups())
        boxes = re.findall(
            r'<rect[^>]* x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', svg
        )
        assert boxes
        for x, y, w, h in (map(float, box) for box in boxes):
            assert x + w <= width
            assert y + h <= height


def test_something_is_made_for_every_mark(reference: ModuleType) -> None:
    marks = [
        mark
        for page in (ROOT / "docs").glob("*.md")
        for mark in re.findall(r"^\*Filled in when .*: ([\w-]+)\.\*$", page.read_text(), re.M)
    ]
    assert sorted(marks) == sorted(reference.PARTS)
