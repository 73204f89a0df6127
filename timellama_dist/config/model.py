"""The sections `backbone` and `model`: the frozen LLaMA and what is trained around it."""

from dataclasses import dataclass
from typing import Literal

from timellama_dist.errors import require, require_at_least


@dataclass(frozen=True, kw_only=True)
class BackboneSection:
    """The frozen LLaMA."""

    name: str = "smollm2-135m"
    """smollm2-135m, a folder or .gguf file of a LLaMA-architecture model, or a hub name."""
    revision: str | None = None
    """Branch, tag or commit of a hub name; if not given, its newest commit when the run begins."""
    num_blocks: int = 2
    """How many of its first blocks are used."""
    quantization: Literal["nf4", "none"] = "nf4"
    """nf4: 4 bits with double quantisation; none: the run's precision."""
    attention: Literal["causal", "full", "independent"] = "independent"
    """Which channels see which: earlier ones, all, or each alone."""
    init: Literal["pretrained", "random"] = "pretrained"
    """random: the same blocks with random weights, to measure what pretraining adds."""
    kind: Literal["llama", "attention", "none"] = "llama"
    """To measure what the blocks add: one trained block of attention in their place, or nothing."""

    def __post_init__(self) -> None:
        require_at_least(1, {"backbone.num_blocks": self.num_blocks})


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """The trained parts around the backbone."""

    alignment: bool = True
    """Cross-attention of the series' tokens to the prompt (eq. 3)."""
    alignment_heads: int = 8
    """Heads of that attention (K)."""
    dropout: float = 0.2
    """Dropout on the tokens before the backbone and on its output."""
    prefix: bool = False
    """The prompt's embeddings go through the backbone before the series' tokens."""
    affine: bool = False
    """A learned scale and shift per channel in the instance normalisation."""
    centre: Literal["mean", "last"] = "last"
    """What that subtracts from a window: its mean (the paper), or its last value."""
    clip: float | None = None
    """Values of a window further from the training part's mean than so many of its standard
    deviations are taken as that far; as they are if not given."""
    shortcut: Literal["none", "frozen", "trainable"] = "frozen"
    """A linear map from context to horizon, fitted before training; the rest starts at zero beside
    it."""
    shortcut_per_channel: bool = False
    """A map for each channel, half its own and half that of all channels, instead of the latter."""

    def __post_init__(self) -> None:
        require_at_least(1, {"model.alignment_heads": self.alignment_heads})
        require(0 <= self.dropout < 1, "model.dropout", "in [0, 1)", self.dropout)
        require(self.clip is None or self.clip > 0, "model.clip", "above 0", self.clip)

    @property
    def per_channel(self) -> str | None:
        """The key that gives each channel parameters of its own, if one does."""
        if self.affine:
            return "model.affine"
        own_maps = self.shortcut != "none" and self.shortcut_per_channel
        return "model.shortcut_per_channel" if own_maps else None
