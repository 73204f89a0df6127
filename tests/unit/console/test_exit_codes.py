"""What a command says of an error that Ray raised deep inside."""

import pytest
from ray.exceptions import ObjectStoreFullError

from timellama_dist.console.exit_codes import run_command


def test_a_full_object_store_is_told_after_the_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def command() -> None:
        try:
            raise ObjectStoreFullError("Failed to put object")
        except ObjectStoreFullError as error:
            raise RuntimeError("a worker failed") from error

    assert run_command(command) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.strip().splitlines()[-1].startswith("a node's object store is full")


def test_another_error_is_told_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise RuntimeError("a worker failed")

    assert run_command(command) == 1
    assert capsys.readouterr().err.strip().splitlines()[-1] == "RuntimeError: a worker failed"
