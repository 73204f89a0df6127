"""`timellama recipes`."""

import pytest

from timellama_dist.cli.recipes import main
from timellama_dist.recipes import POLICIES, RECIPES, SEARCHES


def test_all_that_is_packaged_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    for shelf in (RECIPES, SEARCHES, POLICIES):
        assert [name for name in shelf.files if name not in shown] == []
    assert "\n  etth1       ETTh1 by the published protocol\n" in shown


@pytest.mark.parametrize("name", ["etth1", "pareto", "zero3_offload"])
def test_one_is_printed_as_it_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name]) == 0
    shelf = next(shelf for shelf in (RECIPES, SEARCHES, POLICIES) if name in shelf.files)
    assert capsys.readouterr().out == shelf.files[name].read_text()


def test_a_name_that_is_not_there_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["etth2"]) == 2
    assert "got 'etth2'; did you mean etth1?" in capsys.readouterr().err
    assert main(["etth1", "ettm1"]) == 2
    assert "recipes takes one name, got etth1 ettm1" in capsys.readouterr().err
