"""The one schema of a run: YAML keys, command-line flags and Python fields are the same names.

Bounds that one section can judge alone are checked here; rules that need the data, the backbone
or the cluster are checked by who knows them, on the driver, before a worker starts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self

from timellama_dist.dlora.settings import (
    LLAMA_LINEARS,
    Activation,
    Gate,
    Pooling,
    Scope,
    check_pools,
)
from timellama_dist.errors import require, require_at_least

DEFAULT_DATA = "epf"
# Windows x channels of `train.fit_channels`: 32 windows of 32 channels, and on a CPU a minute.
_MOST_TAKEN = 1 << 10
_MOST_VALIDATED = 1 << 17


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """What is said of one data set."""

    path: str | None = None
    """A prepared folder or its URI (s3://...), a CSV or Parquet file, or a public set; epf if none.
    """
    split: tuple[float, float, float] | None = None
    """Train, validation, test: three shares (0.7, 0.1, 0.2 if not given) or three row counts;
    0 rows of train: all but the last."""
    series: Literal["separate", "channels"] | None = None
    """Long tables: is each unique_id a series of its own, or a channel of one series?"""
    columns: list[str] | None = None
    """Value columns to use; all of the table's if not given."""
    layout: Literal["auto", "wide", "long", "rows"] = "auto"
    """Of a table: a column a channel; unique_id, ds and values; or a row a series, without times
    (M4)."""
    timestamps: Literal["check", "ignore"] = "check"
    """check refuses unordered, duplicate or missing time steps; ignore takes rows as they stand."""
    duplicates: Literal["refuse", "first", "last"] = "refuse"
    """Rows of one series with the same time: refuse them, or keep the first or the last."""
    gaps: Literal["refuse", "reindex"] = "refuse"
    """Missing time steps: refuse them, or put in rows without values."""
    time_zone: str | None = None
    """Of local times without an offset, such as Europe/Paris; they become UTC."""
    frequency: str | None = None
    """pandas alias of the step, such as h or 15min; learned from the times if not given."""
    split_by: Literal["time", "series"] = "time"
    """Each series in parts, or each wholly in one part."""
    missing: Literal["refuse", "ffill", "interpolate", "mask"] = "refuse"
    """Empty values: refuse; fill with the last value before; interpolate in time; or leave
    out of loss and metrics."""
    prompt: str | None = None
    """What the data are, in words; the default comes from the manifest."""
    train_fraction: float = 1.0
    """Few-shot: the first share of the training part that is used."""
    short_series: Literal["skip", "pad"] = "skip"
    """Series shorter than a window: skip them, or pad their past on the left and leave it out."""

    def check(self, key: str) -> None:
        """Refuse a value out of its bound; `key` is where this set stands in the configuration.

        Raises:
            ConfigError: named by its key.
        """
        require(
            0 < self.train_fraction <= 1, f"{key}.train_fraction", "in (0, 1]", self.train_fraction
        )
        if self.split is not None:
            train, validation, test = self.split
            last_rows = train == 0 and min(validation, test) >= 1
            require(
                min(self.split) > 0 or last_rows,
                f"{key}.split",
                "three positive numbers, or [0, V, T] rows",
                list(self.split),
            )


@dataclass(frozen=True, kw_only=True)
class MixturePart(DataSet):
    """One of several data sets; the section that holds it checks it, for it knows its place."""

    path: str = ""
    """A prepared folder or its URI (s3://...), a CSV or Parquet file, or a public set: epf."""
    name: str | None = None
    """What metrics and forecasts call it; the data set's own name if not given."""
    weight: float | None = None
    """Share of the steps, relative to the others'; its number of training windows if not given."""
    context_len: int | None = None
    """Its own steps of the past, at most the run's; the rest is left out."""
    horizon: int | None = None
    """Its own steps to forecast, at most the run's."""

    def check(self, key: str) -> None:
        """Refuse a value out of its bound, named by its key."""
        require(bool(self.path), f"{key}.path", "given", self.path)
        super().check(key)
        require(
            self.weight is None or 0 < self.weight < math.inf,
            f"{key}.weight",
            "above 0 and finite",
            self.weight,
        )


@dataclass(frozen=True, kw_only=True)
class DataSection(DataSet):
    """The series to learn from: one data set (epf if no path is given), or a mixture of several."""

    context_len: int = 512
    """Steps of the past that a forecast sees (L)."""
    fit_context: bool = False
    """Shorten context_len to what the length of the series suggests; see data/windows/index.py."""
    horizon: int = 96
    """Steps to forecast (H)."""
    mixture: list[MixturePart] | None = None
    """Several data sets in one run instead of path; batches are of one set at a time."""

    def __post_init__(self) -> None:
        require_at_least(1, {"data.context_len": self.context_len, "data.horizon": self.horizon})
        self.check("data")
        if self.mixture is not None:
            self._check_mixture(self.mixture)

    @property
    def parts(self) -> list[MixturePart]:
        """The run's data sets; a run over one is a mixture of one."""
        if self.mixture is not None:
            return self.mixture
        said = {key.name: getattr(self, key.name) for key in fields(DataSet)}
        return [MixturePart(**said | {"path": DEFAULT_DATA if self.path is None else self.path})]

    def with_parts(self, parts: Sequence[MixturePart]) -> Self:
        """This section with its data sets replaced, as many as there were."""
        if self.mixture is not None:
            return replace(self, mixture=list(parts))
        (part,) = parts
        return replace(self, **{key.name: getattr(part, key.name) for key in fields(DataSet)})

    def lengths(self, part: MixturePart) -> tuple[int, int]:
        """Context and horizon of a part's own windows, at most the run's."""
        return part.context_len or self.context_len, part.horizon or self.horizon

    def part_key(self, number: int) -> str:
        """How the user calls the part of that number: `data` or `data.mixture[1]`."""
        return "data" if self.mixture is None else f"data.mixture[{number}]"

    def _check_mixture(self, mixture: Sequence[MixturePart]) -> None:
        require(len(mixture) >= 1, "data.mixture", "at least one data set", mixture)
        for key in fields(DataSet):
            require(
                getattr(self, key.name) == key.default,
                f"data.{key.name}",
                "left out beside data.mixture, whose parts have their own",
                getattr(self, key.name),
            )
        for number, part in enumerate(mixture):
            part.check(self.part_key(number))
            for name, own, most in (
                ("context_len", part.context_len, self.context_len),
                ("horizon", part.horizon, self.horizon),
            ):
                require(
                    own is None or 1 <= own <= most,
                    f"{self.part_key(number)}.{name}",
                    f"between 1 and data.{name}={most}",
                    own,
                )
            require(
                (part.weight is None) == (mixture[0].weight is None),
                f"{self.part_key(number)}.weight",
                "given for all parts or for none, for weights are relative to each other",
                part.weight,
            )


@dataclass(frozen=True, kw_only=True)
class BackboneSection:
    """The frozen LLaMA."""

    name: str = "smollm2-135m"
    """smollm2-135m, a folder or .gguf file of a LLaMA-architecture model, or a hub name."""
    revision: str | None = None
    """Branch, tag or commit of a hub name; if not given, its newest commit when the run begins."""
    num_blocks: int = 4
    """How many of its first blocks are used."""
    quantization: Literal["nf4", "none"] = "nf4"
    """nf4: 4 bits with double quantisation; none: the run's precision."""
    attention: Literal["causal", "full", "independent"] = "full"
    """Which channels see which: earlier ones, all, or each alone."""
    init: Literal["pretrained", "random"] = "pretrained"
    """random: the same blocks with random weights, to measure what pretraining adds."""
    kind: Literal["llama", "attention", "none"] = "llama"
    """To measure what the blocks add: one trained block of attention in their place, or nothing."""

    def __post_init__(self) -> None:
        require_at_least(1, {"backbone.num_blocks": self.num_blocks})


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
    scope: Scope = "block"
    """Do all experts of a block compete, or those of each module?"""
    gate: Gate = "probability"
    """How a chosen expert is weighted, and so how the task loss reaches the router."""
    pooling: Pooling = "mean"
    """How the router summarises the tokens before its block."""
    router_activation: Activation = "gelu"
    """Activation between the router's pooling and its linear map."""
    target_modules: list[str] | None = None
    """Linear modules that get a pool; all seven of a block if not given."""
    balance_weight: float = 0.01
    """Weight of the load-balance loss (lambda; eq. 6-7)."""

    def __post_init__(self) -> None:
        require(self.balance_weight >= 0, "dlora.balance_weight", ">= 0", self.balance_weight)
        if self.enabled:
            check_pools(self, self.targets)

    @property
    def targets(self) -> list[str]:
        """The linear modules that get a pool."""
        return self.target_modules or list(LLAMA_LINEARS)

    @property
    def linears(self) -> list[str]:
        """Names of a block's linears with a pool, in the order of the routers' modules."""
        named = {one.rpartition(".")[2] for one in self.targets}
        return [name for name in LLAMA_LINEARS if name in named]


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """The trained parts around the backbone."""

    alignment: bool = True
    """Cross-attention of the series' tokens to the prompt (eq. 3)."""
    alignment_heads: int = 8
    """Heads of that attention (K)."""
    dropout: float = 0.1
    """Dropout on the tokens before the backbone and on its output."""
    prefix: bool = False
    """The prompt's embeddings go through the backbone before the series' tokens."""
    affine: bool = False
    """A learned scale and shift per channel in the instance normalisation."""
    centre: Literal["mean", "last"] = "mean"
    """What that subtracts from a window: its mean (the paper), or its last value."""
    clip: float | None = None
    """Values of a window further from the training part's mean than so many of its standard
    deviations are taken as that far; as they are if not given."""
    shortcut: Literal["none", "frozen", "trainable"] = "none"
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
    fit_channels: bool = False
    """Take fewer windows of many channels: at most 1024 windows x channels a micro-batch, in a step
    as many micro-batches as before, and 131,072 windows x channels a validation."""
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
    """Steps between validations; if not given, an epoch or 250 steps, whichever is less."""
    validate_windows: int | None = None
    """Windows of each data set that a validation takes at most, evenly spread; all if not given."""
    average_steps: int = 0
    """Validate and keep a running mean of the weights, over about so many steps; 0: the weights."""
    patience: int = 3
    """Validations without improvement before the run stops early; 0 never stops early."""
    log_every: int = 10
    """Steps between lines of history.jsonl."""
    save_every: int | None = None
    """Steps between checkpoints besides those at validations."""
    max_skipped_steps: int = 10
    """A run ends after so many steps in a row whose loss or gradient is not finite; each is
    skipped."""
    backoff_steps: int = 100
    """Steps of half the learning rate after a skipped one, and after going back."""
    rollback_on_spike: float | None = None
    """Go back to the last validation's weights when the logged loss exceeds that many times its
    running median."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on GPUs, fp32 on CPUs."""
    gradient_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, about a third more time."""

    def fitted(self, num_channels: int) -> Self:
        """This section as `fit_channels` has it for so many channels."""
        if not self.fit_channels:
            return self
        micro = min(self.micro_batch_size, max(1, _MOST_TAKEN // num_channels))
        most = max(1, _MOST_VALIDATED // num_channels)
        return replace(
            self,
            batch_size=self.batch_size * micro // self.micro_batch_size,
            micro_batch_size=micro,
            validate_windows=min(self.validate_windows or most, most),
        )

    def __post_init__(self) -> None:
        for key in (
            "epochs",
            "batch_size",
            "micro_batch_size",
            "log_every",
            "max_skipped_steps",
            "max_steps",
            "validate_every",
            "validate_windows",
            "save_every",
        ):
            require_at_least(1, {f"train.{key}": getattr(self, key)})
        for key in (
            "weight_decay",
            "clip_norm",
            "average_steps",
            "patience",
            "seed",
            "backoff_steps",
        ):
            require(getattr(self, key) >= 0, f"train.{key}", ">= 0", getattr(self, key))
        spike = self.rollback_on_spike
        require(spike is None or spike > 1, "train.rollback_on_spike", "above 1", spike)
        require(self.seed < 1 << 63, "train.seed", "below 2**63", self.seed)
        require(self.learning_rate > 0, "train.learning_rate", "above 0", self.learning_rate)
        require(
            0 <= self.warmup_fraction < 1,
            "train.warmup_fraction",
            "in [0, 1)",
            self.warmup_fraction,
        )
        require(
            self.batch_size % self.micro_batch_size == 0,
            "train.batch_size",
            f"a multiple of train.micro_batch_size={self.micro_batch_size}",
            self.batch_size,
        )


@dataclass(frozen=True, kw_only=True)
class ScalingSection:
    """The workers Ray Train starts."""

    num_workers: int | tuple[int, int] = 2
    """Processes, one GPU each where there are GPUs; [least, most] takes what the cluster has."""
    use_gpu: bool | None = None
    """If not given: true where the cluster has GPUs."""
    cpus_per_worker: float | None = None
    """If not given: 1 beside a GPU; else what leaves one CPU for the data pipeline."""
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """How workers are placed on nodes."""
    network_interface: str | None = None
    """Over which workers on several nodes talk, such as eth0; gloo and NCCL choose if not given."""
    max_failures: int = 1
    """Restarts from the last checkpoint after a worker died."""

    @property
    def elastic(self) -> bool:
        """Workers may come and go."""
        return not isinstance(self.num_workers, int)

    @property
    def least_workers(self) -> int:
        """Below which the run waits."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """Workers where the cluster has room for all."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    def __post_init__(self) -> None:
        require(
            1 <= self.least_workers <= self.most_workers,
            "scaling.num_workers",
            "at least 1, or [least, most]",
            self.num_workers,
        )
        require(
            self.cpus_per_worker is None or self.cpus_per_worker > 0,
            "scaling.cpus_per_worker",
            "above 0",
            self.cpus_per_worker,
        )
        require(self.max_failures >= -1, "scaling.max_failures", ">= -1", self.max_failures)


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """Where a run lives."""

    dir: str | None = None
    """The run directory; ~/timellama_runs/<data>-<time> if not given."""
    storage_path: str | None = None
    """Shared folder or URI (s3://...) for checkpoints and a copy of the results; the run directory
    if not given."""
    resume: bool = False
    """Go on with the run in run.dir from its last checkpoint."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept; each also holds the best weights by validation."""
    max_failed_saves: int = 3
    """Checkpoints in a row that the storage may refuse before the run stops."""

    def __post_init__(self) -> None:
        for key in ("keep_checkpoints", "max_failed_saves"):
            require_at_least(1, {f"run.{key}": getattr(self, key)})
        require(
            not (self.resume and self.dir is None), "run.dir", "given with run.resume", self.dir
        )


@dataclass(frozen=True, kw_only=True)
class TrackingSection:
    """Where a run's numbers go besides history.jsonl and Ray's metrics."""

    tensorboard: bool = True
    """Event files in tensorboard/ of the run directory."""
    mlflow: str | None = None
    """MLflow's tracking URI: http://..., or sqlite:///mlflow.db without a server."""
    wandb: str | None = None
    """Project of Weights & Biases; with WANDB_MODE=offline nothing leaves the machine."""


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
    tracking: TrackingSection = TrackingSection()

    def __post_init__(self) -> None:
        micro_batches = self.train.batch_size // self.train.micro_batch_size
        require(
            self.scaling.elastic or micro_batches % self.scaling.most_workers == 0,
            "scaling.num_workers",
            f"a divisor of the {micro_batches} micro-batches of a step (train.batch_size="
            f"{self.train.batch_size} / train.micro_batch_size={self.train.micro_batch_size})",
            self.scaling.num_workers,
        )
        require(
            self.scaling.most_workers <= micro_batches,
            "scaling.num_workers",
            f"at most {micro_batches} workers, one for each micro-batch of a step",
            self.scaling.num_workers,
        )
        require(
            self.backbone.kind == "llama" or not self.dlora.enabled,
            "dlora.enabled",
            f"false beside backbone.kind={self.backbone.kind}, which has nothing to adapt",
            self.dlora.enabled,
        )

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as they are sent to workers and written to config.yaml."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild what `to_dict` gave; JSON's lists become the schema's tuples."""
        sections: dict[str, Any] = dict(values)
        for key in fields(cls):
            if key.name in sections and isinstance(key.default, _SECTIONS):
                sections[key.name] = type(key.default)(**_of_json(sections[key.name]))
        return cls(**sections)


def _of_json(section: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(section)
    for key in ("split", "num_workers"):
        if isinstance(values.get(key), list):
            values[key] = tuple(values[key])
    if values.get("mixture") is not None:
        values["mixture"] = [MixturePart(**_of_json(part)) for part in values["mixture"]]
    return values


_SECTIONS = (
    DataSection,
    BackboneSection,
    DLoraSection,
    ModelSection,
    TrainSection,
    ScalingSection,
    RunSection,
    TrackingSection,
)
