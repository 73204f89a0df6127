"""Loads the first blocks of a LLaMA-architecture checkpoint, one block at a time.

Why not transformers' own loader: it reads all blocks, the embedding table and the head, of which
this method needs none, and does not shard quantised weights under ZeRO-3. Here no more than a piece
of one matrix exists unquantised, and each finished block can be sharded before the next is read.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from bitsandbytes.nn import Params4bit
from torch import Tensor, nn
from transformers import AutoTokenizer, LlamaConfig, LlamaModel, PreTrainedTokenizerBase
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from timellama_dist.backbone.folder import read_config, resolve_backbone
from timellama_dist.backbone.nf4 import empty_linear4bit, quantise
from timellama_dist.backbone.weights import PretrainedWeights, RandomWeights, WeightSource
from timellama_dist.compat.transformers import use_sdpa
from timellama_dist.errors import CheckpointError

__all__ = [
    "embedding_rows",
    "frozen_bytes",
    "load_backbone",
    "load_block",
    "load_tokenizer",
    "num_elements",
    "resolve_backbone",
]

Quantization = Literal["nf4", "none"]
Init = Literal["pretrained", "random"]


def load_backbone(
    folder: str | Path,
    *,
    num_blocks: int,
    quantization: Quantization,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    init: Init = "pretrained",
    seed: int = 0,
    on_block: Callable[[int, LlamaDecoderLayer], None] | None = None,
) -> LlamaModel:
    """Load the first blocks and the final norm, frozen, without embedding table and head.

    The model takes `inputs_embeds` of shape (batch, tokens, D) only. For full instead of causal
    attention pass `is_causal=False`, for any other pattern a boolean `attention_mask` of shape
    (batch or 1, 1, tokens, tokens) that is True where a query (third axis) may look at a key.

    Args:
        folder: what `resolve_backbone` gave.
        num_blocks: how many blocks to keep.
        quantization: `nf4` (4 bits, double quantisation) or `none`, for the linear modules.
        dtype: of the norms, and of the linear modules' computation; 4-bit ones hold the same
            whatever it is.
        device: where each block goes as soon as it is made.
        init: `random` draws the weights as the configuration's own initialiser would, instead of
            reading them.
        seed: for `random`.
        on_block: called with each finished block's index and module, before the next is read.

    Raises:
        ConfigError: the configuration cannot be used, see `read_config`.
        CheckpointError: a tensor is missing, of another shape, or unreadable.
    """
    config = read_config(folder, num_blocks)
    config.use_cache = False
    use_sdpa(config)
    config.dtype = dtype
    with torch.device("meta"):
        model = LlamaModel(config)
    model.set_input_embeddings(NoEmbedding())
    # Non-persistent buffers: no checkpoint holds them, so they are computed off the meta device.
    model.rotary_emb = _Rotary(config=config).to(device)
    source: WeightSource = (
        PretrainedWeights(folder) if init == "pretrained" else RandomWeights(seed, config)
    )
    for index in range(num_blocks):
        block = load_block(source, config, index, quantization, dtype, device)
        model.layers[index] = block
        if on_block is not None:
            on_block(index, block)
    _fill(model.norm, source, "norm.", quantization, dtype, device)
    return model.requires_grad_(False).eval()


def load_block(
    source: WeightSource,
    config: LlamaConfig,
    index: int,
    quantization: Quantization,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
) -> LlamaDecoderLayer:
    """Make one block: read, move, cast and quantise its tensors, a piece at a time.

    Raises:
        CheckpointError: a tensor is missing, of another shape, or unreadable.
    """
    with torch.device("meta"):
        block = LlamaDecoderLayer(config, index)
    _fill(block, source, f"layers.{index}.", quantization, dtype, device)
    return block.requires_grad_(False).eval()


def _fill(
    module: nn.Module,
    source: WeightSource,
    prefix: str,
    quantization: Quantization,
    dtype: torch.dtype,
    device: str | torch.device,
) -> None:
    """Replace every meta parameter of `module`, its linear modules by 4-bit ones if asked."""
    if quantization == "nf4":
        linears = [item for item in module.named_modules() if isinstance(item[1], nn.Linear)]
        for name, linear in linears:
            module.set_submodule(name, empty_linear4bit(linear, dtype))
    for name, meta in list(module.named_parameters()):
        owner = module.get_submodule(name.rpartition(".")[0])
        pieces = source.pieces(prefix + name, meta.shape)
        parameter: nn.Parameter
        if isinstance(meta, Params4bit):
            # Whatever the rest computes in: trained in one dtype, a model is loaded in another.
            parameter = quantise((p.to(device, torch.float32) for p in pieces), meta)
            parameter.quant_state.dtype = dtype
        else:
            parameter = nn.Parameter(_whole(pieces, meta.shape, dtype, device), requires_grad=False)
        setattr(owner, name.rpartition(".")[2], parameter)


def _whole(
    pieces: Iterable[Tensor], shape: torch.Size, dtype: torch.dtype, device: str | torch.device
) -> Tensor:
    whole, row = torch.empty(shape, dtype=dtype, device=device), 0
    for piece in pieces:
        whole[row : row + len(piece)] = piece
        row += len(piece)
    return whole


class NoEmbedding(nn.Module):
    """Stands where the embedding table was, and has no parameter that ZeRO could stumble over."""

    def forward(self, input_ids: Tensor) -> Tensor:
        raise RuntimeError("this backbone has no embedding table: pass inputs_embeds")


class _Rotary(LlamaRotaryEmbedding):
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_Rotary":
        # Frequencies stay float32 when DeepSpeed casts the whole module: bfloat16 ones are off by
        # a good part of a turn after some hundred tokens.
        super()._apply(lambda buffer: buffer.to(fn(buffer).device), recurse)
        return self


def embedding_rows(folder: str | Path, token_ids: Iterable[int]) -> Tensor:
    """Read the embeddings of a prompt's tokens, and no other row of the table.

    Args:
        folder: what `resolve_backbone` gave.
        token_ids: P token ids, repeats allowed.

    Returns:
        Shape (P, D), float32.

    Raises:
        CheckpointError: the table is missing, or an id is outside it, or there is none.
    """
    return PretrainedWeights(folder).rows("embed_tokens.weight", token_ids)


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Load the backbone's tokenizer.

    Raises:
        CheckpointError: the folder holds none that transformers can read.
    """
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (ValueError, OSError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"no readable tokenizer in {folder}: {reason[0]}") from error


def frozen_bytes(model: nn.Module, *, unsharded: bool = False) -> int:
    """Count the bytes that this process now holds for what is not trained.

    Counted: each frozen parameter as it is (packed, when 4-bit), its local shard under ZeRO-3 and
    its gathered copy while there is one, the quantisation state of 4-bit parameters (which ZeRO
    does not shard), and buffers. A tensor shared by several is counted once.

    Args:
        model: before or after DeepSpeed has sharded any of it.
        unsharded: count what a process without sharding would hold.
    """
    held: list[Tensor] = list(model.buffers())
    total = 0
    for parameter in model.parameters():
        if parameter.requires_grad:
            continue
        held += _state_tensors(getattr(parameter, "quant_state", None))
        shard = getattr(parameter, "ds_tensor", None)
        if shard is None:
            held.append(parameter.data)
        elif unsharded:
            total += num_elements(parameter) * parameter.element_size()
        else:
            held += [parameter.data, shard]
    sizes = {(t.device, t.data_ptr(), t.numel()): t.numel() * t.element_size() for t in held}
    return total + sum(sizes.values())


def num_elements(parameter: nn.Parameter) -> int:
    """Count the whole parameter's elements as held (packed, when 4-bit), sharded or not."""
    # ZeRO-3 leaves an empty tensor in the place of what it shards.
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _state_tensors(state: Any) -> list[Tensor]:
    """List the tensors of a bitsandbytes quantisation state and of the state nested in it."""
    if state is None:
        return []
    own = [item for item in (state.absmax, state.code, state.offset) if isinstance(item, Tensor)]
    return own + _state_tensors(state.state2)
