"""The one schema of a run: YAML keys, command-line flags and Python fields are the same names.

Bounds that one section can judge alone are checked here; rules that need the data, the backbone
or the cluster are checked by who knows them, on the driver, before a worker starts.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

from timellama_dist.errors import ConfigError


def _require(condition: bool, key: str, bound: str, value: object) -> None:
    if not condition:
        raise ConfigError(f"{key} must be {bound}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """The series to learn from."""

    path: str = "epf"
    """A prepared folder (with manifest.json), a CSV or Parquet file, or a public set: epf."""
    context_len: int = 512
    """Steps of the past that a forecast sees (L)."""
    horizon: int = 96
    """Steps to forecast (H)."""
    split: tuple[float, float, float] | None = None
    """Train, validation, test: three shares (0.7, 0.1, 0.2 if not given) or three row counts."""
    series: Literal["separate", "channels"] | None = None
    """Long tables: is each unique_id a series of its own, or a channel of one series?"""
    columns: list[str] | None = None
    """Value columns to use; all of the table's if not given."""
    timestamps: Literal["check", "ignore"] = "check"
    """check refuses unordered, duplicate or missing time steps; ignore takes rows as they stand."""
    prompt: str | None = None
    """What the data are, in words; the default comes from the manifest."""
    train_fraction: float = 1.0
    """Few-shot: the first share of the training part that is used."""

    def __post_init__(self) -> None:
        _require(self.context_len >= 1, "data.context_len", "at least 1", self.context_len)
        _require(self.horizon >= 1, "data.horizon", "at least 1", self.horizon)
        _require(
            0 < self.train_fraction <= 1, "data.train_fraction", "in (0, 1]", self.train_fraction
        )
        if self.split is not None:
            _require(
                all(part > 0 for part in self.split),
                "data.split",
                "three positive numbers",
                list(self.split),
            )


@dataclass(frozen=True, kw_only=True)
class BackboneSection:
    """The frozen LLaMA."""

    name: str = "smollm2-135m"
    """smollm2-135m, a folder or .gguf file of a LLaMA-architecture model, or a hub name."""
    revision: str | None = None
    """Branch, tag or commit of a hub name."""
    num_blocks: int = 4
    """How many of its first blocks are used."""
    quantization: Literal["nf4", "none"] = "nf4"
    """nf4: 4 bits with double quantisation; none: the run's precision."""
    attention: Literal["causal", "full", "independent"] = "full"
    """Which channels see which: earlier ones, all, or each alone."""
    init: Literal["pretrained", "random"] = "pretrained"
    """random: the same blocks with random weights, to measure what pretraining adds."""

    def __post_init__(self) -> None:
        _require(self.num_blocks >= 1, "backbone.num_blocks", "at least 1", self.num_blocks)


@dataclass(frozen=True, kw_only=True)
class DLoraSection:
    """The trainable expert pools and routers (eq. 9-11)."""

    enabled: bool = True
    """False trains without adapters: the backbone stays as it was pretrained."""
    num_experts: int = 4
    """Experts per linear module (E); 1 is the paper's case."""
    rank: int = 4
    """Rank of one expert (R)."""
    alpha: float = 8.0
    """An expert's output is scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout on the experts' input."""
    top_n: int = 16
    """Experts active for one input: of the block's 7 x num_experts, or of each module's pool."""
    scope: Literal["block", "module"] = "block"
    """Do all experts of a block compete, or those of each module?"""
    gate: Literal["probability", "straight_through", "binary"] = "probability"
    """How a chosen expert is weighted, and so how the task loss reaches the router."""
    pooling: Literal["last", "mean", "attention"] = "mean"
    """How the router summarises the tokens before its block."""
    router_activation: Literal["gelu", "relu", "tanh", "none"] = "gelu"
    """Activation between the router's pooling and its linear map."""
    target_modules: list[str] | None = None
    """Linear modules that get a pool; all seven of a block if not given."""
    balance_weight: float = 0.01
    """Weight of the load-balance loss (lambda; eq. 6-7)."""

    def __post_init__(self) -> None:
        _require(self.balance_weight >= 0, "dlora.balance_weight", ">= 0", self.balance_weight)


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """The trained parts around the backbone."""

    alignment: bool = True
    """Cross-attention of the series' tokens to the prompt (eq. 3)."""
    alignment_heads: int = 8
    """Heads of that attention (K)."""
    dropout: float = 0.1
    """Dropout on the tokens before the backbone and on its output."""
    affine: bool = False
    """A learned scale and shift per channel in the instance normalisation."""

    def __post_init__(self) -> None:
        _require(
            self.alignment_heads >= 1, "model.alignment_heads", "at least 1", self.alignment_heads
        )
        _require(0 <= self.dropout < 1, "model.dropout", "in [0, 1)", self.dropout)


@dataclass(frozen=True, kw_only=True)
class TrainSection:
    """Optimisation."""

    seed: int = 0
    """Seeds the weights, the order of windows and dropout."""
    epochs: int = 2
    """Passes over the training windows, unless max_steps ends the run earlier."""
    max_steps: int | None = None
    """Optimizer steps at most."""
    batch_size: int = 64
    """Windows per optimizer step over all workers; independent of their number."""
    micro_batch_size: int = 32
    """Windows per forward pass of one worker; the rest of batch_size is accumulated."""
    learning_rate: float = 1e-3
    """Peak learning rate of Adam."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: half a cosine to zero at the last step, or constant."""
    warmup_fraction: float = 0.05
    """Share of the steps in which the rate rises linearly."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    loss: Literal["mse", "mae", "huber"] = "mse"
    """On z-scored values."""
    validate_every: int | None = None
    """Steps between validations; an epoch if not given."""
    patience: int = 3
    """Validations without improvement before the run stops early; 0 never stops early."""
    log_every: int = 10
    """Steps between lines of history.jsonl."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on GPUs, fp32 on CPUs."""
    gradient_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, about a third more time."""

    def __post_init__(self) -> None:
        for key in ("epochs", "batch_size", "micro_batch_size", "log_every"):
            _require(getattr(self, key) >= 1, f"train.{key}", "at least 1", getattr(self, key))
        for key in ("max_steps", "validate_every"):
            value = getattr(self, key)
            _require(value is None or value >= 1, f"train.{key}", "at least 1", value)
        for key in ("weight_decay", "clip_norm", "patience", "seed"):
            _require(getattr(self, key) >= 0, f"train.{key}", ">= 0", getattr(self, key))
        _require(self.learning_rate > 0, "train.learning_rate", "above 0", self.learning_rate)
        _require(
            0 <= self.warmup_fraction < 1,
            "train.warmup_fraction",
            "in [0, 1)",
            self.warmup_fraction,
        )
        _require(
            self.batch_size % self.micro_batch_size == 0,
            "train.batch_size",
            f"a multiple of train.micro_batch_size={self.micro_batch_size}",
            self.batch_size,
        )


@dataclass(frozen=True, kw_only=True)
class ScalingSection:
    """The workers Ray Train starts."""

    num_workers: int = 2
    """Processes, one GPU each where there are GPUs."""
    use_gpu: bool | None = None
    """If not given: true where the cluster has GPUs."""
    cpus_per_worker: float | None = None
    """If not given: 1 beside a GPU; else what leaves one CPU for the data pipeline."""
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """How workers are placed on nodes."""
    max_failures: int = 1
    """Restarts from the last checkpoint after a worker died."""

    def __post_init__(self) -> None:
        _require(self.num_workers >= 1, "scaling.num_workers", "at least 1", self.num_workers)
        _require(
            self.cpus_per_worker is None or self.cpus_per_worker > 0,
            "scaling.cpus_per_worker",
            "above 0",
            self.cpus_per_worker,
        )
        _require(self.max_failures >= -1, "scaling.max_failures", ">= -1", self.max_failures)


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """Where a run lives."""

    dir: str | None = None
    """The run directory; ~/timellama_runs/<data>-<time> if not given."""
    resume: bool = False
    """Go on with the run in run.dir from its last checkpoint."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept."""

    def __post_init__(self) -> None:
        _require(self.keep_checkpoints >= 1, "run.keep_checkpoints", ">= 1", self.keep_checkpoints)
        _require(
            not (self.resume and self.dir is None), "run.dir", "given with run.resume", self.dir
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run: what is trained, on what, how and where."""

    data: DataSection = DataSection()
    backbone: BackboneSection = BackboneSection()
    dlora: DLoraSection = DLoraSection()
    model: ModelSection = ModelSection()
    train: TrainSection = TrainSection()
    scaling: ScalingSection = ScalingSection()
    deepspeed: str | None = None
    """A DeepSpeed JSON file (see ds_configs/); ZeRO-3 if not given."""
    run: RunSection = RunSection()

    def __post_init__(self) -> None:
        micro_batches = self.train.batch_size // self.train.micro_batch_size
        _require(
            micro_batches % self.scaling.num_workers == 0,
            "scaling.num_workers",
            f"a divisor of the {micro_batches} micro-batches of a step (train.batch_size="
            f"{self.train.batch_size} / train.micro_batch_size={self.train.micro_batch_size})",
            self.scaling.num_workers,
        )

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as they are sent to workers and written to config.yaml."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild what `to_dict` gave; JSON's lists become the schema's tuples."""
        sections: dict[str, Any] = dict(values)
        for field in fields(cls):
            if field.name in sections and isinstance(field.default, _SECTIONS):
                section = dict(sections[field.name])
                if isinstance(section.get("split"), list):
                    section["split"] = tuple(section["split"])
                sections[field.name] = type(field.default)(**section)
        return cls(**sections)


_SECTIONS = (
    DataSection,
    BackboneSection,
    DLoraSection,
    ModelSection,
    TrainSection,
    ScalingSection,
    RunSection,
)
