"""Checks that every node of a cluster has what a run needs, before a worker starts.

Nodes that an autoscaler adds later are not there to be looked at.
"""

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from timellama_dist.data.prepared.manifest import MANIFEST_NAME
from timellama_dist.errors import ConfigError, DataError, UserError
from timellama_dist.program import program
from timellama_dist.storage import open_place
from timellama_dist.train.run_directory import run_place
from timellama_dist.versions import installed_versions

if TYPE_CHECKING:
    from timellama_dist.train.plan import RunPlan

# A node may have to unpack the job's working directory first.
_LONGEST_WAIT_S = 120.0


@dataclass(frozen=True)
class Needed:
    """A file that every node must see."""

    what: str
    """As the user calls it, with its value."""
    file: str
    """Path or URI."""
    remedy: str
    written: bool = False
    """Nodes must be able to write beside it too."""


@dataclass(frozen=True)
class Seen:
    """What one node has, as it reports itself."""

    missing: tuple[Needed, ...]
    refused: tuple[tuple[Needed, str], ...]
    """What it may not write to, and why."""
    versions: Mapping[str, str]
    interfaces: tuple[str, ...]


def check_nodes(plan: "RunPlan") -> None:
    """Look from each node at the run's storage, data and backbone, and at its packages' versions.

    A line is printed for each node whose versions differ. On a single node there is nothing to see.

    Raises:
        ConfigError: a node lacks what it must share; or it cannot run the job.
        DataError: a node may not write to the run's storage.
    """
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1:
        return
    with _needed(plan) as needed:
        for address, seen in _ask(nodes, needed):
            _judge(address, seen, plan.config.scaling.network_interface)
            if differences := different_versions(seen.versions, installed_versions()):
                print(f"note: node {address} has {', '.join(differences)}", flush=True)


def look_around(needed: Sequence[Needed]) -> Seen:
    """Report what this node sees of what it should; runs on the node."""
    missing, refused = [], []
    for need in needed:
        place = open_place(need.file)
        if not place.exists():
            missing.append(need)
        elif need.written:
            own = open_place(f"{need.file}-{uuid4().hex}")
            try:
                own.write_text("may a node write here?")
                own.delete()
            except DataError as error:
                refused.append((need, str(error)))
    interfaces = tuple(name for _, name in socket.if_nameindex())
    return Seen(tuple(missing), tuple(refused), installed_versions(), interfaces)


def different_versions(there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """Name the packages whose version isn't the driver's, a phrase for each."""
    return [
        f"{name} {there.get(name, '(missing)')} (the driver {here.get(name, 'none')})"
        for name in sorted(here.keys() | there.keys())
        if there.get(name) != here.get(name)
    ]


@contextmanager
def _needed(plan: "RunPlan") -> Iterator[list[Needed]]:
    """List what the nodes must see; files to look for are there while this lasts."""
    config = plan.config
    run_dir, storage = open_place(str(config.run.dir)), run_place(config)
    needs = []
    for number, dataset in enumerate(plan.sets):
        if dataset.preparation is None:
            place, key = open_place(dataset.path), config.data.part_key(number)
            remedy = "put the prepared data on storage that all nodes share"
            needs.append(Needed(f"{key}.path={place}", (place / MANIFEST_NAME).uri, remedy))
    if (backbone := Path(config.backbone.name).expanduser()).exists():
        remedy = "put the backbone there too, or on storage that all nodes share"
        needs.append(Needed(f"backbone.name={backbone}", str(backbone), remedy))
    shared = {storage: _storage_need(config.run.storage_path is None, storage)}
    if any(dataset.preparation is not None for dataset in plan.sets) and run_dir != storage:
        remedy = (
            "it would hold the prepared table: choose a shared one, or prepare the table before, "
            f"to shared storage, with {program('prepare')}"
        )
        shared[run_dir] = (f"run.dir={run_dir}", remedy)
    made = [place for place in shared if not place.exists()]
    probes = {place: place / f".timellama-{uuid4().hex}" for place in shared}
    try:
        for place, (what, remedy) in shared.items():
            place.make_dirs()
            probes[place].write_text("does every node see this?")
            needs.append(Needed(what, probes[place].uri, remedy, written=True))
        yield needs
    except UserError:
        for place in made:
            place.delete()
        raise
    finally:
        for probe in probes.values():
            probe.delete()


def _storage_need(in_run_dir: bool, storage: Any) -> tuple[str, str]:
    if in_run_dir:
        return f"run.dir={storage}", (
            "choose a folder that all nodes share, or give run.storage_path one or a URI (s3://...)"
        )
    return (
        f"run.storage_path={storage}",
        "choose a folder that all nodes share, or a URI (s3://...)",
    )


def _ask(
    nodes: Sequence[Mapping[str, Any]], needed: Sequence[Needed]
) -> Iterator[tuple[str, Seen]]:
    """Ask each node what it sees; yields its address with the answer."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(look_around)
    strategies = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    asked = [look.options(scheduling_strategy=strategy).remote(needed) for strategy in strategies]
    for node, answer in zip(nodes, asked, strict=True):
        address = node["NodeManagerAddress"]
        try:
            yield address, ray.get(answer, timeout=_LONGEST_WAIT_S)
        except ray.exceptions.RayError as error:
            cause = str(error).strip().splitlines()[-1]
            raise ConfigError(f"node {address} cannot run this job: {cause}") from error


def _judge(address: str, seen: Seen, interface: str | None) -> None:
    for need in seen.missing:
        raise ConfigError(f"{need.what}: node {address} does not see it; {need.remedy}")
    for need, cause in seen.refused:
        raise DataError(f"{need.what}: node {address} cannot write there: {cause}")
    if interface is not None and interface not in seen.interfaces:
        raise ConfigError(
            f"scaling.network_interface must be one of each node's; node {address} has "
            f"{', '.join(seen.interfaces)}, got {interface!r}"
        )
