"""Bytes that a forward pass keeps for its backward pass, from the model's operations.

Symbols: N tokens of a micro-batch (windows x channels), S samples (what a router decides on),
D hidden, Q query, K key, I intermediate size, p bytes of the run's precision.
"""

from dataclasses import dataclass

from timellama_dist.config.schema import RunConfig
from timellama_dist.planning.shape import LlamaShape, adapted_linears


@dataclass(frozen=True, kw_only=True)
class Activations:
    """What is kept for the backward pass of one micro-batch."""

    around: int
    """Tokenizer, alignment, dropout, final norm, head and the batch itself."""
    block: int
    """One block's, as its backward pass needs them."""
    kept_of_block: int
    """What stays of a block until then: all of it, or its input under gradient checkpointing."""
    scratch: int
    """Largest temporary of a block's backward pass: a matrix unpacked from 4 bits, and gradients of
    activations."""

    def total(self, num_blocks: int) -> int:
        """Sum the bytes at the forward pass's end, with the block that is recomputed, if any."""
        recomputed = self.block if self.kept_of_block < self.block else 0
        return self.around + num_blocks * self.kept_of_block + recomputed


def count_activations(
    config: RunConfig,
    shape: LlamaShape,
    *,
    num_channels: int,
    prompt_tokens: int,
    precision_bytes: int,
    is_gpu: bool,
) -> Activations:
    """Count the activations of one micro-batch on one worker."""
    tokens = config.train.micro_batch_size * num_channels
    alone = config.backbone.attention == "independent"
    samples = tokens if alone else config.train.micro_batch_size
    mask = 1 if is_gpu else precision_bytes  # of dropout, for each element
    hidden = shape.hidden_size
    block = tokens * _block_token(config, shape, precision_bytes, mask)
    router = samples * _router_sample(config, shape, precision_bytes)
    kept = block + router
    if config.train.gradient_checkpointing:
        kept = router + tokens * hidden * precision_bytes
    widest = tokens * shape.intermediate_size * precision_bytes
    unpacked = max(inputs * outputs for inputs, outputs, _ in shape.linears.values())
    if config.backbone.quantization == "none":
        unpacked = 0
    around = tokens * _around_token(config, shape, precision_bytes, mask)
    if config.model.alignment:
        # The normalised prompt, its keys and its values are alike for the whole batch.
        around += 3 * prompt_tokens * hidden * precision_bytes
    return Activations(
        around=around,
        block=block + router,
        kept_of_block=kept,
        scratch=widest + unpacked * precision_bytes,
    )


def _block_token(config: RunConfig, shape: LlamaShape, p: int, mask: int) -> int:
    """Count one token's bytes in one block."""
    adapted = adapted_linears(config, shape)
    inner = shape.intermediate_size
    norms = 2 * (4 * shape.hidden_size + 4)  # their inputs in float32, and a factor each
    attention = p * (2 * shape.query_size + 2 * shape.key_size) + 4 * shape.num_heads
    mlp = 3 * p * inner  # gate before and after its activation, up
    total_rank = config.dlora.num_experts * config.dlora.rank
    pools = 2 * p * total_rank * len(adapted)  # before and after the gates
    if config.dlora.dropout:
        inputs = sum(inputs * (p + mask) for inputs, _, _ in adapted.values())
    else:
        # Linears that read the same tensor share it; attention's output is kept anyway.
        groups = {name: "qkv" if name[-6:-5] in "qkv" else name for name in adapted}
        groups |= dict.fromkeys({"mlp.gate_proj", "mlp.up_proj"} & adapted.keys(), "mlp")
        shared = {groups[name]: sizes[0] for name, sizes in adapted.items()}
        shared.pop("self_attn.o_proj", None)
        inputs = p * sum(shared.values())
    return norms + attention + mlp + pools + inputs


def _router_sample(config: RunConfig, shape: LlamaShape, p: int) -> int:
    """Count the bytes of one sample's routing in one block."""
    num_modules = len(adapted_linears(config, shape))
    if not num_modules:
        return 0
    experts = num_modules * config.dlora.num_experts
    # GELU keeps its input and its output, the others only what they give.
    pooled = (2 if config.dlora.router_activation == "gelu" else 1) * shape.hidden_size * p
    return pooled + 4 * 4 * experts + experts * config.dlora.rank * p


def _around_token(config: RunConfig, shape: LlamaShape, p: int, mask: int) -> int:
    """Count one token's bytes outside of the blocks."""
    hidden, context_len, horizon = shape.hidden_size, config.data.context_len, config.data.horizon
    batch = 4 * (context_len + horizon)
    ends = p * context_len + 9 * horizon  # normalised window; forecast, target and their mask
    alignment = 0
    if config.model.alignment:
        # Token, query, attended, and the sum that goes through the last map.
        alignment = 4 * hidden * p + 4 * config.model.alignment_heads
    dropout = 2 * hidden * mask if config.model.dropout else 0
    return batch + ends + alignment + dropout + (4 * hidden + 4) + hidden * p
