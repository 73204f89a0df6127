"""Without a process group a rank is alone; several ranks are in tests/integration."""

import numpy as np
import torch

from timellama_dist.ranks import gathered, summed_over_ranks


def test_a_process_without_a_group_hears_itself_alone() -> None:
    assert not torch.distributed.is_initialized()
    assert gathered({"rank": 0}) == [{"rank": 0}]
    np.testing.assert_array_equal(summed_over_ranks(np.array([1.0, 2.0])), [1.0, 2.0])
