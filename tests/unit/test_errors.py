"""A user's mistake carries its key, bound and value, and one line is made of them."""

import pickle

import pytest

from timellama_dist.errors import ConfigError, DataError, UserError, require


def test_the_line_names_key_bound_value_and_remedy() -> None:
    error = ConfigError(key="data.horizon", must="be at least 1", got=0, hint="leave it out")
    assert str(error) == "data.horizon must be at least 1, got 0; leave it out"
    assert (error.key, error.must, error.got) == ("data.horizon", "be at least 1", 0)


def test_a_value_of_none_is_shown_and_an_absent_one_is_not() -> None:
    assert str(ConfigError(key="run.dir", must="be given", got=None)).endswith(", got None")
    assert str(ConfigError(key="run.dir", must="be given")) == "run.dir must be given"


def test_a_key_moves_under_the_part_it_belongs_to() -> None:
    moved = ConfigError(key="data.split", must="be positive", got=[0]).under(
        "data", "data.mixture[1]"
    )
    assert str(moved) == "data.mixture[1].split must be positive, got [0]"
    assert moved.key == "data.mixture[1].split"
    other = DataError("/x.csv: no such file").under("data", "data.mixture[1]")
    assert (type(other), str(other)) == (DataError, "data.mixture[1]: /x.csv: no such file")


def test_a_section_is_not_mistaken_for_one_whose_name_begins_alike() -> None:
    moved = ConfigError(key="database.x", must="be y").under("data", "data.mixture[0]")
    assert str(moved) == "data.mixture[0]: database.x must be y"


def test_an_error_crosses_processes_with_its_fields() -> None:
    error = ConfigError(key="train.seed", must="be below 2**63", got=1 << 63)
    copy: UserError = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.key, copy.got) == (
        ConfigError,
        str(error),
        error.key,
        1 << 63,
    )
    assert copy.under("train", "x.train").key == "x.train.seed"


def test_require_raises_only_where_the_condition_fails() -> None:
    require(True, "a.b", "above 0", 1)
    with pytest.raises(ConfigError, match=r"^a\.b must be above 0, got -1$"):
        require(False, "a.b", "above 0", -1)
