"""What Ray Data has no public call for."""

from ray.data import Dataset


def set_dataset_id(dataset: Dataset, name: str) -> None:
    """Give a data set an id of one's own.

    Ray's services keep metrics by id for as long as they run. A stream makes one data
    set after another, each of which would leave about a MiB behind under an id of its own.
    """
    dataset._set_uuid(name)
