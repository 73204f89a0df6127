"""Refuses changes that a resumed run may not make to what it was begun with."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from timellama_dist.backbone.folder import resolve_backbone
from timellama_dist.config.schema import RunConfig
from timellama_dist.errors import ConfigError
from timellama_dist.train.checkpoint.files import newest_state
from timellama_dist.train.run_directory import checkpoints_place

if TYPE_CHECKING:
    from timellama_dist.data.dataset import Dataset

_FIXED = ("data", "backbone", "dlora", "model", "train.seed", "train.batch_size")


def check_resumed(begun: RunConfig, now: RunConfig) -> None:
    """Refuse another model, other data or another order of windows than the checkpoint's.

    Workers, steps, rates and the DeepSpeed policy may change.

    Args:
        begun: what the run was begun with, its paths absolute.
        now: what it shall go on with, likewise.

    Raises:
        ConfigError: named by its key.
    """
    before, after = (dict(_flat(config.to_dict())) for config in (begun, now))
    for key, value in after.items():
        fixed = any(key == name or key.startswith(f"{name}.") for name in _FIXED)
        # Fitted anew, to the same data.
        fixed &= not (key == "data.context_len" and now.data.fit_context)
        if fixed and before.get(key) != value:
            raise ConfigError(
                f"{key} cannot be changed in a resumed run: it was begun with {before.get(key)!r}, "
                f"got {value!r}; begin another run"
            )


def check_content(config: RunConfig, sets: Sequence["Dataset"]) -> None:
    """Refuse data and backbone that are not those that the checkpoints were trained on and with.

    A table may have got new rows since, which would cut it into other windows.

    Raises:
        CheckpointError: named by the backbone.
        ConfigError: named by the place of the data; or the backbone can't be had.
        DataError: the run's storage doesn't answer.
    """
    state = newest_state(checkpoints_place(config))
    if state is None:
        return
    hashes = state.position.get("data", ())
    for number, (dataset, begun) in enumerate(zip(sets, hashes, strict=False)):
        if dataset.content_hash != begun:
            raise ConfigError(
                f"{config.data.part_key(number)}.path: {dataset.path} cannot be changed in a "
                "resumed run: its content is not what the run was begun with; put it back, or "
                "begin another run"
            )
    # With it comes torch.
    from timellama_dist.backbone.fingerprint import check_backbone

    folder = resolve_backbone(config.backbone.name, config.backbone.revision)
    check_backbone(config, folder, state.position.get("backbone"), owner="this run")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
