from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from timellama_dist.backbone import weights
from timellama_dist.backbone.weights import PretrainedWeights, RandomWeights, row_ranges

MATRIX, VECTOR = "layers.0.mlp.up_proj.weight", "norm.weight"


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "PIECE", 6000)


@pytest.mark.parametrize("shape", [(1,), (64,), (5000,), (200, 48), (64, 4096), (1000, 7)])
def test_ranges_cover_every_row_once_and_all_but_the_last_hold_whole_quantisation_blocks(
    shape: tuple[int, ...], small_pieces: None
) -> None:
    ranges = list(row_ranges(torch.Size(shape)))
    assert [row for start, end in ranges for row in range(start, end)] == list(range(shape[0]))
    columns = torch.Size(shape)[1:].numel()
    sizes = [(end - start) * columns for start, end in ranges]
    assert all(size % 64 == 0 for size in sizes[:-1])
    assert max(sizes) <= max(6000, 64 * columns)


def test_pieces_of_a_checkpoint_are_the_tensor(tmp_path: Path, small_pieces: None) -> None:
    matrix, vector = torch.randn(300, 48), torch.randn(7000)
    tensors = {f"model.{MATRIX}": matrix, f"model.{VECTOR}": vector}
    save_file(tensors, tmp_path / "model.safetensors")
    source = PretrainedWeights(tmp_path)
    pieces = [piece.clone() for piece in source.pieces(MATRIX, matrix.shape)]
    assert len(pieces) > 2
    assert torch.equal(torch.cat(pieces), matrix)
    assert torch.equal(torch.cat(list(source.pieces(VECTOR, vector.shape))), vector)


def test_a_random_tensor_does_not_depend_on_the_size_of_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, shape = RandomWeights(3, LlamaConfig(initializer_range=0.1)), torch.Size((300, 48))
    whole = torch.cat(list(source.pieces(MATRIX, shape)))
    monkeypatch.setattr(weights, "PIECE", 6000)
    pieces = list(source.pieces(MATRIX, shape))
    assert len(pieces) > 2
    assert torch.equal(torch.cat(pieces), whole)
    assert whole.std().item() == pytest.approx(0.1, rel=0.05)


def test_what_was_read_of_a_file_does_not_stay_resident(tmp_path: Path) -> None:
    shape = torch.Size((8 * 1024, 4 * 1024))
    save_file({MATRIX: torch.zeros(shape)}, tmp_path / "model.safetensors")
    process = psutil.Process()
    before, most = process.memory_info().rss, 0
    for piece in PretrainedWeights(tmp_path).pieces(MATRIX, shape):
        assert piece.sum() == 0
        most = max(most, process.memory_info().rss - before)
    # Two pieces of 4 MiB; the kernel may map some pages around them.
    assert most < 32 << 20 < shape.numel() * 4
