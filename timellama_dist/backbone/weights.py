"""Sources of a backbone's weights: a folder of safetensors, or a seeded draw.

Both give a tensor in pieces, each made when it is asked for, so that no tensor needs to be whole
before it is cast, quantised or moved.
"""

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import LlamaConfig

from timellama_dist.errors import CheckpointError

PIECE = 1 << 20
"""Elements of a piece, about: large enough that opening the file for it costs little."""
_SAMPLED = 4  # rows of a matrix
_ROWS = 64  # Quantisation blocks hold 64 elements, so that many rows are always whole blocks.


class WeightSource(Protocol):
    """A source of a block's tensors."""

    def pieces(self, name: str, shape: torch.Size) -> Iterator[Tensor]:
        """Yield the tensor of a name (`layers.0.mlp.up_proj.weight`) in `row_ranges`, on the CPU.

        Use or copy a piece before the next is asked for.
        """


def row_ranges(shape: torch.Size) -> Iterator[tuple[int, int]]:
    """Yield first row and end of each piece of a tensor of this shape, vectors by element."""
    step = max(1, PIECE // (_ROWS * shape[1:].numel())) * _ROWS
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


class PretrainedWeights:
    """The tensors of a folder of safetensors, one file or several with an index."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @cached_property
    def files(self) -> dict[str, Path]:
        """File of each tensor; names without the `model.` that a model with a head puts first.

        Raises:
            CheckpointError: the folder holds no readable safetensors.
        """
        index = self.folder / "model.safetensors.index.json"
        single = self.folder / "model.safetensors"
        names: Iterable[tuple[str, str]]
        if index.is_file():
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()
        elif single.is_file():
            with _opened(single) as file:
                names = [(name, single.name) for name in file.keys()]  # noqa: SIM118
        else:
            raise CheckpointError(
                f"{self.folder} holds neither {single.name} nor {index.name}; other formats are "
                "not read"
            )
        self.prefix = "model." if any(name.startswith("model.") for name, _ in names) else ""
        return {name.removeprefix(self.prefix): self.folder / file for name, file in names}

    def pieces(self, name: str, shape: torch.Size) -> Iterator[Tensor]:
        """Yield the tensor of that name; only the piece at hand is read.

        Raises:
            CheckpointError: missing, of another shape, or unreadable.
        """
        file, name = self._file(name), self.prefix + name
        with _opened(file) as opened:
            stored_shape = opened.get_slice(name).get_shape()
        if stored_shape != list(shape):
            raise CheckpointError(
                f"{file}: tensor {name} has the shape {tuple(stored_shape)}, "
                f"the configuration says {tuple(shape)}"
            )
        for start, end in row_ranges(shape):
            # Opened anew: of a mapped file, all that was read stays resident until it is closed.
            with _opened(file) as opened:
                yield opened.get_slice(name)[start:end]

    def rows(self, name: str, indices: Iterable[int]) -> Tensor:
        """Read some rows of a matrix, and no other, in the given order."""
        file = self._file(name)
        with _opened(file) as opened:
            table = opened.get_slice(self.prefix + name)
            num_rows = table.get_shape()[0]
            wanted = list(indices)
            if not wanted or not 0 <= min(wanted) <= max(wanted) < num_rows:
                raise CheckpointError(
                    f"{file}: {self.prefix + name} has the rows 0 to {num_rows - 1}, asked for "
                    f"{wanted}"
                )
            return torch.cat([table[row : row + 1].float() for row in wanted])

    def sampled_sha256(self, names: Iterable[str]) -> str:
        """Hash some tensors, alike in whatever files and floating dtype their numbers are.

        Of a matrix a few rows in the middle count, since training changes every row, and to read
        all of 70B parameters would take minutes before a run even starts; a vector counts whole.

        Raises:
            CheckpointError: a tensor is missing or unreadable.
        """
        digest = hashlib.sha256()
        for name in sorted(names):
            with _opened(self._file(name)) as file:
                tensor = file.get_slice(self.prefix + name)
                shape = tensor.get_shape()
                digest.update(f"{name} {shape}".encode())
                middle = shape[0] // 2
                piece = tensor[middle : middle + _SAMPLED] if len(shape) > 1 else tensor[:]
                digest.update(piece.float().numpy().tobytes())
        return digest.hexdigest()

    def _file(self, name: str) -> Path:
        if name not in self.files:
            where = sorted({file.name for file in self.files.values()})
            raise CheckpointError(
                f"tensor {self.prefix + name} is missing from {self.folder} ({', '.join(where)})"
            )
        return self.files[name]


class RandomWeights:
    """Weights as LLaMA's initialiser draws them: normal matrices, zero biases, norms of one."""

    def __init__(self, seed: int, config: LlamaConfig) -> None:
        self.seed = seed
        self.std = config.initializer_range

    def pieces(self, name: str, shape: torch.Size) -> Iterator[Tensor]:
        """Draw the tensor of that name, in pieces."""
        # Seeded by the name, so that block 3 is the same whether 4 or 8 blocks are made.
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{name}".encode()))
        for start, end in row_ranges(shape):
            piece = torch.empty(end - start, *shape[1:])
            if name.endswith(".bias"):
                yield piece.zero_()
            elif len(shape) == 1:
                yield piece.fill_(1.0)
            else:
                yield piece.normal_(0.0, self.std, generator=generator)


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
