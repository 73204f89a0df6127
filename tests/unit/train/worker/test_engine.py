import pytest

from timellama_dist.train.worker.engine import block_sharder


@pytest.mark.parametrize("zero", [{}, {"stage": 0}, {"stage": 2}])
def test_blocks_stay_whole_where_zero_does_not_shard_parameters(zero: dict[str, int]) -> None:
    assert block_sharder({"zero_optimization": zero}) is None
