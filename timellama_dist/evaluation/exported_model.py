"""Reads the card of an exported model, to evaluate it on its own data or on others."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from timellama_dist.backbone.fingerprint import find_backbone
from timellama_dist.config.schema import DataSection, DataSet, MixturePart, RunConfig
from timellama_dist.data.prepared.manifest import MANIFEST_NAME
from timellama_dist.data.prompts import task_prompt
from timellama_dist.errors import ConfigError
from timellama_dist.evaluation.settings import BASELINES, EvaluateConfig
from timellama_dist.model.card import ModelCard, local_folder, model_fingerprint, read_card
from timellama_dist.storage import open_place

_FAULTS = ("timestamps", "duplicates", "gaps", "missing")
_LENGTHS = ("context_len", "horizon")


@dataclass(frozen=True)
class ExportedModel:
    """An exported model that is there, whole, with its backbone at hand."""

    card: ModelCard
    data: DataSection
    """What it was trained on."""
    per_channel: str | None
    """The key that gave it parameters for each of its channels, if one did."""
    fingerprint: str
    """Tells it from any other model."""

    @classmethod
    def open(cls, location: str) -> Self:
        """Read the card of the model at a path or URI.

        Raises:
            CheckpointError: missing, damaged, of an unknown schema version, or of another backbone.
            ConfigError: neither a model nor a baseline, or the backbone can't be had.
        """
        place = open_place(location)
        # Of a URI, `local_folder` says what is missing.
        if place.is_local and not place.exists():
            raise ConfigError(
                f"model must be the folder of an exported model (RUN/model) or one of "
                f"{', '.join(BASELINES)}; there is no {location!r}"
            )
        with local_folder(location) as folder:
            card, identity = read_card(folder), model_fingerprint(folder)
        config = RunConfig.from_dict(card.config)
        # Before a worker would look for it.
        find_backbone(config, card.backbone, place)
        return cls(card, config.data, config.model.per_channel, identity)

    def data_defaults(self, asked: EvaluateConfig) -> dict[str, Any]:
        """Fill in the section `data`, where the user says no more.

        All of the model's data sets if no data are named; all that is known of one, if the data
        named are it; else the lengths, and how faults of a table are dealt with.
        """
        data = asked.data
        if data.mixture is not None:
            lengths = {key: getattr(self.data, key) for key in _LENGTHS}
            return {"data": lengths | {"fit_context": False}}
        if data.path is None and asked.dataset is None:
            kept = asdict(self.data) | {"prompt": None, "fit_context": False}
            for part in kept["mixture"] or ():
                part["prompt"] = None
            return {"data": kept}
        number = self.number_of(data.parts[0], asked.dataset)
        part, card = self.data.parts[number], self.card.datasets[number]
        defaults: dict[str, Any] = {key: getattr(card, key) for key in _LENGTHS}
        if data.path is None or open_place(data.path).uri == open_place(part.path).uri:
            defaults |= {key.name: getattr(part, key.name) for key in fields(DataSet)}
        elif not (open_place(data.path) / MANIFEST_NAME).is_file():
            defaults |= {key: card.options[key] for key in _FAULTS if key in card.options}
        # The model's own length, whatever would fit these data.
        defaults |= {"short_series": part.short_series, "prompt": None, "fit_context": False}
        return {"data": defaults}

    def number_of(self, part: MixturePart, dataset: str | None) -> int:
        """Number the model's data set that a part is, or is like.

        Raises:
            ConfigError: it isn't clear which.
        """
        names = [card.name for card in self.card.datasets]
        wanted = part.name if dataset is None and part.name in names else dataset
        if wanted is not None:
            if wanted not in names:
                raise ConfigError(f"dataset must be one of {', '.join(names)}, got {wanted!r}")
            return names.index(wanted)
        paths = [open_place(trained.path).uri for trained in self.data.parts]
        if part.path and open_place(part.path).uri in paths:
            return paths.index(open_place(part.path).uri)
        if len(names) > 1:
            raise ConfigError(
                f"dataset must say which of those that the model knows {part.path} is like: "
                f"{', '.join(names)}"
            )
        return 0

    def prompt_of(self, part: MixturePart, data: DataSection, frequency: str) -> str | None:
        """Make the whole prompt for a part that was given one; None for the model's own."""
        if part.prompt is None:
            return None
        context_len, horizon = data.lengths(part)
        return task_prompt(
            part.prompt, context_len=context_len, horizon=horizon, frequency=frequency
        )
