import pytest
import torch
from bitsandbytes.nn import Params4bit
from torch import nn

from timellama_dist.backbone.nf4 import empty_linear4bit, quantise


def quantised(matrix: torch.Tensor, rows: int) -> tuple[nn.Module, Params4bit]:
    with torch.device("meta"):
        linear = nn.Linear(matrix.shape[1], matrix.shape[0])
    module = empty_linear4bit(linear, torch.float32)
    return module, quantise(matrix.split(rows), module.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "rows"),
    [((256, 96), 64), ((256, 96), 192), ((200, 96), 64), ((130, 7), 64), ((64, 64), 64)],
)
def test_a_matrix_in_pieces_gives_what_bitsandbytes_makes_of_the_whole(
    shape: tuple[int, int], rows: int, dtype: torch.dtype
) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = Params4bit(matrix, quant_type="nf4").to("cpu")
    module, actual = quantised(matrix, rows)
    assert torch.equal(actual.data, expected.data)
    assert actual.quant_state == expected.quant_state
    assert actual.quant_state.as_dict(packed=True).keys() == (
        expected.quant_state.as_dict(packed=True).keys()
    )
    assert module.quant_state is actual.quant_state
    assert not actual.requires_grad


def test_moving_a_finished_parameter_does_not_quantise_it_again() -> None:
    _, actual = quantised(torch.randn(64, 64), 64)
    assert torch.equal(actual.to("cpu").data, actual.data)
