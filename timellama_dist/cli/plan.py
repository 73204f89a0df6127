"""`timellama plan`: does a run fit, and what will it cost?

From formulas: no weights, no data, no Ray, no DeepSpeed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from timellama_dist.cli.opening import opening
from timellama_dist.cli.spelling import Spelling
from timellama_dist.config.deepspeed import load_policy
from timellama_dist.config.load import load_settings
from timellama_dist.config.schema import RunConfig
from timellama_dist.console.exit_codes import run_command
from timellama_dist.data.prepared.manifest import MANIFEST_NAME, Manifest
from timellama_dist.errors import ConfigError, require_at_least
from timellama_dist.planning.estimate import PROMPT_TOKENS, Estimate, estimate
from timellama_dist.planning.hardware import GPUS, Hardware, find_hardware
from timellama_dist.planning.policy import POLICIES
from timellama_dist.planning.shape import LlamaShape
from timellama_dist.program import program
from timellama_dist.recipes import with_paths
from timellama_dist.storage import open_place

# Of backbones that this project fetches by name, so that none is fetched for a plan.
NAMED_SHAPES = {
    "smollm2-135m": LlamaShape(
        hidden_size=576,
        intermediate_size=1536,
        num_blocks=30,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
    )
}
ASSUMED_CHANNELS = 6
"""Of the default data set."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run under several policies on the same hardware."""

    config: RunConfig
    shape: LlamaShape
    hardware: Hardware
    world_size: int
    num_channels: int
    estimates: Mapping[str, Estimate]
    """By policy; `chosen` is the run's own."""
    chosen: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "gpu": self.hardware.name,
            "num_gpus": self.world_size,
            "num_channels": self.num_channels,
            "prompt_tokens": PROMPT_TOKENS * len(self.config.data.parts),
            "parameters": self.estimates[self.chosen].parameters,
            "chosen": self.chosen,
            "policies": {name: estimate.to_dict() for name, estimate in self.estimates.items()},
        }


EXAMPLES = (
    "--gpu l4-24g --num_gpus 8 --channels 7",
    "--config etth1 --gpu a100-80g",
    "--config run.yaml --gpu h100-80g --num_gpus 8 --json",
)
MORE = """\
The table shows the run's own DeepSpeed policy beside the packaged ones. No weights, no data and no
GPU are needed. All keys of a run are options too."""
SPELLING = Spelling(
    former={"--num-gpus": "--num_gpus", "--backbone-config": "--backbone_config"},
)


@dataclass(frozen=True, kw_only=True)
class PlanConfig(RunConfig):
    """A run, and the hardware that it is planned for."""

    gpu: str = ""
    """The GPU's name, such as a100-80g, or cpu."""
    num_gpus: int | None = None
    """Workers; scaling.num_workers if not given."""
    channels: int | None = None
    """Of the data; if not given, a prepared data set's own, else 6."""
    backbone_config: str | None = None
    """A LLaMA's config.json, for a backbone that isn't here."""
    json: bool = False
    """Print JSON, for scripts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gpu:
            raise ConfigError(f"--gpu must be given, one of {', '.join([*GPUS, 'cpu'])}")

    @property
    def run_config(self) -> RunConfig:
        """The run alone."""
        return RunConfig(**{key.name: getattr(self, key.name) for key in fields(RunConfig)})


def main(argv: Sequence[str]) -> int:
    """Print a plan; exit code 2 if the run's own policy doesn't fit."""
    return run_command(lambda: _plan(argv))


def _plan(argv: Sequence[str]) -> None:
    sentence = "Estimate memory per GPU, communication and step time of a run, from formulas."
    config = load_settings(
        PlanConfig,
        with_paths(SPELLING.to_keys(argv)),
        prog=program("plan"),
        description=opening(sentence, "plan", EXAMPLES, MORE),
    )
    plan = make_plan(
        config.run_config,
        gpu=config.gpu,
        num_gpus=config.num_gpus,
        num_channels=config.channels,
        backbone_config=config.backbone_config,
    )
    print(json.dumps(plan.to_dict(), indent=2) if config.json else describe(plan))
    refuse_what_cannot_fit(plan)


def make_plan(
    config: RunConfig,
    *,
    gpu: str,
    num_gpus: int | None = None,
    num_channels: int | None = None,
    backbone_config: str | None = None,
) -> Plan:
    """Estimate a run under its own policy and under each of the shipped ones.

    Raises:
        ConfigError: a value out of bounds, or values that don't fit each other.
    """
    require_at_least(1, {"--num_gpus": num_gpus, "--channels": num_channels})
    if num_gpus is not None:
        config = replace(config, scaling=replace(config.scaling, num_workers=num_gpus))
    world_size = config.scaling.most_workers
    hardware = find_hardware(gpu, world_size)
    shape = find_shape(config, backbone_config)
    num_channels = num_channels or _num_channels(config)
    config = replace(config, train=config.train.fitted(num_channels))
    own = load_policy(config.deepspeed)
    policies = dict(POLICIES)
    chosen = next((name for name, policy in policies.items() if policy == own), None)
    if chosen is None:
        chosen = Path(str(config.deepspeed)).name
        policies[chosen] = own
    estimates = {
        name: estimate(
            config,
            shape,
            policy=policy,
            world_size=world_size,
            hardware=hardware,
            num_channels=num_channels,
        )
        for name, policy in policies.items()
    }
    return Plan(
        config=config,
        shape=shape,
        hardware=hardware,
        world_size=world_size,
        num_channels=num_channels,
        estimates=estimates,
        chosen=chosen,
    )


def find_shape(config: RunConfig, backbone_config: str | None = None) -> LlamaShape:
    """The backbone's dimensions: of the file given, by name, in a folder, or from the hub.

    Raises:
        ConfigError: there is none, or it is no LLaMA's.
    """
    name = config.backbone.name
    if backbone_config is not None:
        return LlamaShape.from_file(Path(backbone_config))
    if name in NAMED_SHAPES:
        return NAMED_SHAPES[name]
    folder = Path(name).expanduser()
    if folder.is_dir():
        return LlamaShape.from_file(folder / "config.json")
    return LlamaShape.from_file(_hub_config(name, config.backbone.revision))


def _hub_config(name: str, revision: str | None) -> Path:
    """config.json of a hub name, if it was fetched before: a plan fetches nothing."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        cached = None
    if not isinstance(cached, str):
        raise ConfigError(
            f"backbone.name: the dimensions of {name!r} are not known here: it is no folder, and "
            "the hub's cache has no config.json of it; give that by --backbone_config FILE"
        )
    return Path(cached)


def _num_channels(config: RunConfig) -> int:
    """Of prepared data sets; else a guess, which the plan shows."""
    counts = []
    for part in config.data.parts:
        place = open_place(part.path)
        if (place / MANIFEST_NAME).is_file():
            counts.append(Manifest.load(place).num_channels)
        elif part.columns is not None and part.series != "channels":
            counts.append(len(part.columns))
    return max(counts, default=ASSUMED_CHANNELS)


def refuse_what_cannot_fit(plan: Plan) -> None:
    """Say in one line that the run's own policy needs more than there is, and what would fit.

    Raises:
        ConfigError: it does.
    """
    own = plan.estimates[plan.chosen]
    if own.fits:
        return
    fitting = [name for name, policy in plan.estimates.items() if policy.fits]
    remedy = f"these fit: {', '.join(fitting)}" if fitting else "none of the policies fits"
    part, size = max(own.to_dict()["parts_bytes"].items(), key=lambda item: item[1])
    raise ConfigError(
        f"deepspeed: {plan.chosen} needs {_gib(own.needed_bytes)} GiB on each "
        f"{plan.hardware.name}, which has {_gib(own.available_bytes)} (most of it "
        f"{part.replace('_', ' ')}, {_gib(size)}); {remedy}"
    )


def describe(plan: Plan) -> str:
    """The plan as a table."""
    config, counts = plan.config, plan.estimates[plan.chosen].parameters
    backbone = config.backbone
    heading = (
        f"{backbone.num_blocks} of {plan.shape.num_blocks} blocks of {backbone.name} "
        f"({backbone.quantization}), {plan.world_size} x {plan.hardware.name}, micro-batch "
        f"{config.train.micro_batch_size} of {config.train.batch_size} windows x "
        f"{plan.num_channels} channels"
    )
    numbers = ", ".join(f"{counts[key]:,} {key}" for key in ("frozen", "trainable", "active"))
    columns = {
        f"{name}{'*' if name == plan.chosen else ''}": _column(policy)
        for name, policy in plan.estimates.items()
    }
    width = max(map(len, columns)) + 2
    rows = ["".join([f"{'GiB on each GPU':<24}", *(f"{name:>{width}}" for name in columns)])]
    for row in next(iter(columns.values())):
        cells = "".join(f"{column[row]:>{width}}" for column in columns.values())
        rows.append(f"{row:<24}{cells}")
    return "\n".join([heading, f"parameters: {numbers}", "", *rows, "", "* the run's own policy"])


def _column(policy: Estimate) -> dict[str, str]:
    facts = policy.to_dict()
    parts = {name.replace("_", " "): _gib(size) for name, size in facts["parts_bytes"].items()}
    return parts | {
        "in all": _gib(policy.needed_bytes),
        "there is": _gib(policy.available_bytes),
        "fits": "yes" if policy.fits else "NO",
        "busiest moment": policy.memory.busiest.split()[0],
        "host, each worker": _gib(policy.memory.host.total),
        "a step: gathered": _gib(policy.communication.gathered_bytes),
        "a step: reduced": _gib(policy.communication.reduced_bytes),
        "estimate, s a step": f"{policy.time.total_s:.3g}",
    }


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"
