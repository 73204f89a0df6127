"""A LLaMA's dimensions, and every parameter of a run by arithmetic from them.

Symbols: D hidden, I intermediate, L context, H horizon, M adapted linears of a block, E experts per
linear, R rank of one expert.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from timellama_dist.config.schema import RunConfig
from timellama_dist.errors import ConfigError

_REQUIRED = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_blocks": "num_hidden_layers",
    "num_heads": "num_attention_heads",
}
_NF4_BLOCK = 64  # elements that share a scale
_SCALES_BLOCK = 256  # scales that share one of their own (double quantisation)


@dataclass(frozen=True, kw_only=True)
class LlamaShape:
    """The dimensions of a LLaMA-architecture model."""

    hidden_size: int
    intermediate_size: int
    num_blocks: int
    """All that the model has; a run uses the first `backbone.num_blocks`."""
    num_heads: int
    num_kv_heads: int
    head_dim: int
    attention_bias: bool = False
    mlp_bias: bool = False

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read the shape from a backbone's config.json.

        Raises:
            ConfigError: unreadable, not of the LLaMA architecture, or a dimension is missing.
        """
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"{path} is not JSON: {error}") from error
        if not isinstance(raw, dict):
            raise ConfigError(f"{path} must hold one JSON object, got a {type(raw).__name__}")
        return cls.from_dict(raw, source=str(path))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], *, source: str) -> Self:
        """Read the shape from the file's content; errors name `source`.

        Raises:
            ConfigError: as `from_file`.
        """
        if raw.get("model_type", "llama") != "llama":
            raise ConfigError(
                f"{source} has the architecture {raw['model_type']!r}; only 'llama' is supported"
            )
        heads = raw.get("num_attention_heads")
        sizes: dict[str, Any] = {name: raw.get(key) for name, key in _REQUIRED.items()}
        sizes["num_kv_heads"] = raw.get("num_key_value_heads") or heads
        for name, size in sizes.items():
            if type(size) is not int or size < 1:
                key = _REQUIRED.get(name, "num_key_value_heads")
                raise ConfigError(f"{source}: {key} must be a whole number above 0, got {size!r}")
        return cls(
            **sizes,
            head_dim=raw.get("head_dim") or sizes["hidden_size"] // sizes["num_heads"],
            attention_bias=bool(raw.get("attention_bias", False)),
            mlp_bias=bool(raw.get("mlp_bias", False)),
        )

    @property
    def query_size(self) -> int:
        """Outputs of all heads together."""
        return self.num_heads * self.head_dim

    @property
    def key_size(self) -> int:
        """Outputs of all key-value heads together."""
        return self.num_kv_heads * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int, bool]]:
        """A block's linear modules: inputs, outputs, and whether there is a bias."""
        hidden, inner, bias = self.hidden_size, self.intermediate_size, self.attention_bias
        return {
            "self_attn.q_proj": (hidden, self.query_size, bias),
            "self_attn.k_proj": (hidden, self.key_size, bias),
            "self_attn.v_proj": (hidden, self.key_size, bias),
            "self_attn.o_proj": (self.query_size, hidden, bias),
            "mlp.gate_proj": (hidden, inner, self.mlp_bias),
            "mlp.up_proj": (hidden, inner, self.mlp_bias),
            "mlp.down_proj": (inner, hidden, self.mlp_bias),
        }


@dataclass(frozen=True, kw_only=True)
class ParameterSize:
    """One parameter, or one for each of `count` blocks."""

    part: Literal["backbone", "adapter", "router", "around"]
    elements: int
    trained: bool
    four_bit: bool = False
    count: int = 1
    unit: Literal["alignment", "mlp"] | None = None
    """What ZeRO-3 gathers at once because it is used at once (`train/worker/engine.py`)."""

    @property
    def held_elements(self) -> int:
        """Elements as the tensor counts them: two 4-bit weights are one byte."""
        return -(-self.elements // 2) if self.four_bit else self.elements

    def itemsize(self, precision_bytes: int) -> int:
        """Return the bytes of a held element."""
        return 1 if self.four_bit else precision_bytes

    @property
    def quantisation_bytes(self) -> int:
        """Bytes of 8-bit scales, their own scales in float32, two code books, the scales' mean."""
        if not self.four_bit:
            return 0
        scales = -(-self.elements // _NF4_BLOCK)
        return scales + 4 * -(-scales // _SCALES_BLOCK) + 4 * 16 + 4 * 256 + 4


def adapted_linears(config: RunConfig, shape: LlamaShape) -> dict[str, tuple[int, int, bool]]:
    """Choose the linears of a block that have a pool of experts.

    Raises:
        ConfigError: a target is none of a block's linears.
    """
    if not config.dlora.enabled:
        return {}
    targets = config.dlora.targets
    matches = {
        name: {target for target in targets if f".{name}".endswith(f".{target}")}
        for name in shape.linears
    }
    if odd := set(targets).difference(*matches.values()):
        raise ConfigError(
            f"dlora.target_modules must name linears of a block "
            f"({', '.join(name.rpartition('.')[2] for name in matches)}), got {sorted(odd)[0]!r}"
        )
    return {name: sizes for name, sizes in shape.linears.items() if matches[name]}


def list_parameters(
    config: RunConfig, shape: LlamaShape, *, num_channels: int
) -> list[ParameterSize]:
    """List every parameter of the model that `build_model` makes.

    Raises:
        ConfigError: the configuration doesn't fit the backbone.
    """
    _check(config, shape)
    return [
        *_backbone(config, shape),
        *_adapter(config, shape),
        *_around(config, shape, num_channels),
    ]


def _check(config: RunConfig, shape: LlamaShape) -> None:
    if config.backbone.kind != "llama" or config.model.prefix:
        raise ConfigError(
            "backbone.kind must be llama and model.prefix false for a plan, got "
            f"{config.backbone.kind!r} and {config.model.prefix}"
        )
    if config.backbone.num_blocks > shape.num_blocks:
        raise ConfigError(
            key="backbone.num_blocks",
            must=f"be between 1 and {shape.num_blocks} (the blocks of the backbone)",
            got=config.backbone.num_blocks,
        )
    if config.model.alignment and shape.hidden_size % config.model.alignment_heads:
        raise ConfigError(
            key="model.alignment_heads",
            must=f"divide the backbone's hidden size {shape.hidden_size}",
            got=config.model.alignment_heads,
        )


def _backbone(config: RunConfig, shape: LlamaShape) -> Iterator[ParameterSize]:
    blocks, four_bit = config.backbone.num_blocks, config.backbone.quantization == "nf4"
    norms = [shape.hidden_size] * 2
    biases = [outputs for _, outputs, bias in shape.linears.values() if bias]
    for name, (inputs, outputs, _) in shape.linears.items():
        yield ParameterSize(
            part="backbone",
            elements=inputs * outputs,
            trained=False,
            four_bit=four_bit,
            count=blocks,
            unit=_unit(name),
        )
    for size in norms + biases:
        yield ParameterSize(part="backbone", elements=size, trained=False, count=blocks)
    yield ParameterSize(part="backbone", elements=shape.hidden_size, trained=False)


def _unit(linear: str) -> Literal["mlp"] | None:
    return "mlp" if linear.startswith("mlp.") else None


def _adapter(config: RunConfig, shape: LlamaShape) -> Iterator[ParameterSize]:
    adapted, blocks = adapted_linears(config, shape), config.backbone.num_blocks
    total_rank = config.dlora.num_experts * config.dlora.rank
    for name, (inputs, outputs, _) in adapted.items():
        for size in (inputs, outputs):
            yield ParameterSize(
                part="adapter",
                elements=size * total_rank,
                trained=True,
                count=blocks,
                unit=_unit(name),
            )
    if adapted:
        scores = shape.hidden_size * len(adapted) * config.dlora.num_experts
        pools = [shape.hidden_size] if config.dlora.pooling == "attention" else []
        for size in [scores, *pools]:
            yield ParameterSize(part="router", elements=size, trained=True, count=blocks)


def _around(config: RunConfig, shape: LlamaShape, num_channels: int) -> Iterator[ParameterSize]:
    hidden, context_len, horizon = shape.hidden_size, config.data.context_len, config.data.horizon
    sizes = [context_len * hidden, hidden, hidden * horizon, horizon]
    if config.model.affine:
        sizes += [num_channels] * 2
    for size in sizes:
        yield ParameterSize(part="around", elements=size, trained=True)
    # Query, value, output projection and the last map have a bias; the key has none.
    alignment = [hidden * hidden] * 5 + [hidden] * 4 if config.model.alignment else []
    for size in alignment:
        yield ParameterSize(part="around", elements=size, trained=True, unit="alignment")


def count_parameters(config: RunConfig, parameters: list[ParameterSize]) -> dict[str, int]:
    """Count trainable, frozen and active parameters, as `metrics.json` has them."""

    def total(*parts: str) -> int:
        return sum(p.elements * p.count for p in parameters if p.part in parts)

    adapter = total("adapter")
    trainable = adapter + total("router", "around")
    num_modules = sum(1 for p in parameters if p.part == "adapter") // 2
    pool = config.dlora.num_experts * (num_modules if config.dlora.scope == "block" else 1)
    acting = round(config.dlora.top_n / pool * adapter) if adapter else 0
    return {
        "trainable": trainable,
        "frozen": total("backbone"),
        "active": trainable - adapter + acting,
    }
