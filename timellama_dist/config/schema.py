"""The one schema of a run: YAML keys, command-line flags and Python fields are the same names.

Each section lives in a module of its own and checks the bounds that it can judge alone; what two
sections must have in common is checked here. Rules that need the data, the backbone or the cluster
are checked by who knows them, on the driver, before a worker starts.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from timellama_dist.config.data import DEFAULT_DATA, DataSection, DataSet, MixturePart
from timellama_dist.config.former import complete
from timellama_dist.config.keys import section_of
from timellama_dist.config.model import BackboneSection, ModelSection
from timellama_dist.config.run import RunSection, ScalingSection, TrackingSection
from timellama_dist.config.train import TrainSection
from timellama_dist.dlora.settings import DLoraSection
from timellama_dist.errors import require

__all__ = [
    "DEFAULT_DATA",
    "BackboneSection",
    "DLoraSection",
    "DataSection",
    "DataSet",
    "MixturePart",
    "ModelSection",
    "RunConfig",
    "RunSection",
    "ScalingSection",
    "TrackingSection",
    "TrainSection",
]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run: what is trained, on what, how and where."""

    data: DataSection = field(default_factory=DataSection)
    backbone: BackboneSection = field(default_factory=BackboneSection)
    dlora: DLoraSection = field(default_factory=DLoraSection)
    model: ModelSection = field(default_factory=ModelSection)
    train: TrainSection = field(default_factory=TrainSection)
    scaling: ScalingSection = field(default_factory=ScalingSection)
    deepspeed: str | None = None
    """A packaged DeepSpeed policy (zero1, zero2, zero3, zero3_offload) or a JSON file; zero3 if not
    given."""
    run: RunSection = field(default_factory=RunSection)
    tracking: TrackingSection = field(default_factory=TrackingSection)

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
        """Rebuild what `to_dict` gave, now or in an older version (see `former`).

        JSON's lists become the schema's tuples.
        """
        sections = complete(values)
        for key in fields(cls):
            section = section_of(key.type)
            if key.name in sections and section is not None:
                sections[key.name] = section(**_of_json(sections[key.name]))
        return cls(**sections)


def _of_json(section: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(section)
    for key in ("split", "num_workers"):
        if isinstance(values.get(key), list):
            values[key] = tuple(values[key])
    if values.get("mixture") is not None:
        values["mixture"] = [MixturePart(**_of_json(part)) for part in values["mixture"]]
    return values
