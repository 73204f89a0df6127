"""Quantises a matrix, given in pieces, to NF4 with double quantisation.

Why not bitsandbytes' own on the whole matrix: on a CPU it needs about 20 bytes of scratch for each
element, forty times what it makes, which for a large matrix is more than a whole 4-bit model.
"""

from collections.abc import Iterable

import torch
from bitsandbytes.functional import QuantState, quantize_4bit, quantize_blockwise
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import Tensor, nn

_STATISTICS_BLOCK = 256  # elements, as bitsandbytes' own double quantisation has it


def empty_linear4bit(linear: nn.Linear, dtype: torch.dtype) -> Linear4bit:
    """Make a 4-bit module on the meta device in place of `linear`; it computes in `dtype`."""
    quantised = Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=dtype,
        compress_statistics=True,
        quant_type="nf4",
        # DeepSpeed casts floating parameters: packed bytes held as a float dtype become garbage.
        quant_storage=torch.uint8,
        device="meta",
    )
    # On a CPU with AVX512-BF16, bitsandbytes would repack the weight in place at the first forward
    # pass in eval mode, and whoever shards or counts the weight would no longer know its layout.
    quantised.support_avx512bf16_for_cpu = False
    return quantised


def quantise(pieces: Iterable[Tensor], meta: Params4bit) -> Params4bit:
    """Make the 4-bit parameter that bitsandbytes makes of the whole matrix, bit for bit.

    Args:
        pieces: the matrix's rows in order, in the dtype and on the device to quantise in; all but
            the last hold a multiple of 64 elements.
        meta: the parameter it replaces, of an `empty_linear4bit`.
    """
    scales: list[Tensor] = []
    end = 0
    for piece in pieces:
        if not scales:
            packed = torch.empty(
                (meta.shape.numel() + 1) // 2, 1, dtype=torch.uint8, device=piece.device
            )
        part, state = quantize_4bit(piece, blocksize=meta.blocksize, quant_type=meta.quant_type)
        packed[end : end + len(part)] = part
        end += len(part)
        scales.append(state.absmax)
    state.absmax, state.shape = torch.cat(scales), meta.shape
    settings = vars(meta) | {"quant_state": _twice(state), "bnb_quantized": True}
    meta.module.quant_state = settings["quant_state"]
    return Params4bit(packed, **settings)


def _twice(state: QuantState) -> QuantState:
    """Quantise the scales too, around their mean over the whole matrix."""
    offset = state.absmax.mean()
    absmax, nested = quantize_blockwise(state.absmax - offset, blocksize=_STATISTICS_BLOCK)
    return QuantState(
        absmax=absmax,
        shape=state.shape,
        dtype=state.dtype,
        blocksize=state.blocksize,
        code=state.code,
        quant_type=state.quant_type,
        offset=offset,
        state2=nested,
    )
