"""Makes a Ray Tune run of a search: what the cluster holds, scheduler, trials, Ctrl-C."""

import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import BasicVariantGenerator, SearchAlgorithm, Searcher

from timellama_dist.cluster import plan_resources
from timellama_dist.compat.ray import quieten_tune, stop_search, this_node
from timellama_dist.config.load import config_from_flat
from timellama_dist.config.schema import RunSection
from timellama_dist.console.exit_codes import on_interrupt
from timellama_dist.errors import ConfigError
from timellama_dist.report.search import AXES, HEAT
from timellama_dist.train.execution import fit_linear_maps
from timellama_dist.train.plan import RunPlan
from timellama_dist.tune.proposals import Proposals
from timellama_dist.tune.settings import SearchConfig
from timellama_dist.tune.space import Keys, Space, find_memory
from timellama_dist.tune.trial import TrialSpec, make_trainable
from timellama_dist.tune.watcher import PRUNED, Watcher

TUNE, TRIALS = "tune", "trials"


def fit_cluster(space: Space) -> tuple[Space, int]:
    """Find the memory of a worker, and how many trials the cluster holds at once.

    Returns:
        The space with that memory, and the number of trials.

    Raises:
        ConfigError: it can't hold one, or fewer than asked for; or no trial fits the memory.
    """
    total, fitting, use_gpu = ray.cluster_resources(), [], False
    runs = [space.base] + [
        config_from_flat({key: value}, space.base)
        for key, distribution in space.search.distributions.items()
        if key.startswith("scaling.")
        for value in distribution.extremes
    ]
    for config in runs:
        if config.scaling.elastic:
            raise ConfigError(
                "scaling.num_workers must be a number in a search, got "
                f"{config.scaling.num_workers!r}"
            )
        resources, workers = plan_resources(config.scaling), config.scaling.most_workers
        gpus, cpus = total.get("GPU", 0.0), total.get("CPU", 0.0)
        use_gpu = resources.use_gpu
        if use_gpu and gpus < workers:
            raise ConfigError(
                f"scaling.num_workers={workers} needs {workers} GPUs; the cluster has {gpus:g}"
            )
        # A CPU for the windows; where there are GPUs, they decide.
        by_cpu = (cpus - 1 + 1e-6) / (workers * resources.cpus_per_worker)
        fitting.append(max(1, int(min(by_cpu, gpus / workers) if use_gpu else by_cpu)))
    asked, concurrent = space.search.max_concurrent, min(fitting)
    if asked is not None and asked > concurrent:
        raise ConfigError(
            f"max_concurrent must be at most {concurrent}, what the cluster's {cpus:g} CPUs and "
            f"{gpus:g} GPUs hold, got {asked}"
        )
    concurrent = asked or concurrent
    workers = concurrent * space.base.scaling.most_workers
    num_nodes = sum(node["Alive"] for node in ray.nodes())
    memory = find_memory(space.search, use_gpu=use_gpu, workers_per_node=-(-workers // num_nodes))
    if memory is None:
        print("note: give gpu or memory_gib to prune trials that don't fit the GPU", flush=True)
    space = replace(space, hardware=memory)
    space.check_memory()
    return space, concurrent


def make_tuner(space: Space, plan: RunPlan, run_dir: Path, concurrent: int) -> tune.Tuner:
    """Make Ray Tune's tuner, over data that all trials share; a resumed search's goes on.

    Args:
        space: keys and values to search.
        plan: of the base configuration.
        run_dir: the search's directory, which is there.
        concurrent: trials at the same time.
    """
    _quieten()
    spec = _trial_spec(space, plan, run_dir)
    # A trial itself only waits. It takes a share of what its node has once: so no more run at the
    # same time, paused ones not counted, and all of them here, where the run directory is.
    share = int(10_000 / concurrent) / 10_000
    trainable = tune.with_resources(make_trainable(spec), {this_node(): share})
    if plan.config.run.resume and tune.Tuner.can_restore(str(run_dir / TUNE)):
        return tune.Tuner.restore(str(run_dir / TUNE), trainable, resume_errored=True)
    search, values = space.search, space.base.to_dict()
    proposals, domains = _proposals(space, run_dir / PRUNED)
    heat = {f"{section}.{key}": values[section][key] for section, key in HEAT}
    facts = {
        "search": asdict(search),
        "keys": list(search.distributions),
        "objectives": search.objectives if len(search.objectives) > 1 else list(AXES),
        "metric": search.metric,
        "base": heat | space.base_keys(),
    }
    return tune.Tuner(
        trainable,
        param_space=domains,
        tune_config=tune.TuneConfig(
            num_samples=search.most_trials,
            search_alg=proposals,
            scheduler=_scheduler(space),
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=TUNE,
            storage_path=str(run_dir),
            failure_config=tune.FailureConfig(max_failures=search.max_failures),
            callbacks=[Watcher(run_dir, search.most_trials, facts)],
            verbose=0,
        ),
    )


def run_tuner(tuner: tune.Tuner) -> bool:
    """Run it to its end; True if Ctrl-C or SIGTERM ended it before."""
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        print("stopping: saving the search (Ctrl-C again leaves at once)", flush=True)
        # Ray Tune's own handler of Ctrl-C is switched off.
        stop_search()

    with on_interrupt(stop):
        tuner.fit()
    return stopped


def _quieten() -> None:
    """Leave it to the watcher to say how the search goes on."""
    quieten_tune()
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _trial_spec(space: Space, plan: RunPlan, run_dir: Path) -> TrialSpec:
    """Prepare what all trials share: the data, and its linear maps if all have the same."""
    sets = plan.prepared_data(run_dir)
    (run_dir / TRIALS).mkdir(exist_ok=True)
    run = plan.config.run
    storage = None if run.storage_path is None else f"{run.storage_path.rstrip('/')}/{run_dir.name}"
    data = replace(plan.over_prepared(sets), context_len=space.base.data.context_len)
    base = replace(
        space.base,
        data=data,
        run=RunSection(
            storage_path=storage,
            # One is read while the next is saved.
            keep_checkpoints=max(2, run.keep_checkpoints),
            max_failed_saves=run.max_failed_saves,
        ),
    )
    maps = None
    decides = ("data.context_len", "model.clip", "model.shortcut")
    searched = any(key.startswith(decides) for key in space.search.distributions)
    if base.model.shortcut != "none" and not searched:
        maps = fit_linear_maps(plan, sets)
    return TrialSpec(
        base=base.to_dict(),
        folder=str(run_dir / TRIALS),
        metric=space.search.metric,
        objectives=space.search.objectives,
        hands_over=space.search.scheduler in ("pbt", "pb2"),
        maps=maps,
    )


def _proposals(space: Space, pruned: Path) -> tuple[Searcher | SearchAlgorithm, Keys | None]:
    """The proposer of trials, and the domains that Ray Tune itself must know for it."""
    proposals = Proposals(space, pruned)
    if space.search.scheduler not in ("pbt", "pb2"):
        return proposals, None
    # Beside these, Ray Tune takes nothing that learns from trials: all are drawn before.
    drawn = proposals.draw_all(space.search.most_trials)
    return BasicVariantGenerator(points_to_evaluate=drawn), space.domains()


def _scheduler(space: Space) -> TrialScheduler:
    search = space.search
    judged: dict[str, Any] = {"metric": "validation", "mode": "min", "time_attr": "step"}
    if search.scheduler == "none":
        return FIFOScheduler()
    if search.scheduler == "asha":
        return ASHAScheduler(
            **judged,
            # The run itself knows its last step.
            max_t=1 << 40,
            grace_period=search.grace_steps,
            reduction_factor=search.reduction,
        )
    judged |= {
        "perturbation_interval": search.perturb_steps,
        "custom_explore_fn": _clamp_to_bounds(space),
        # Its files would lie beside the trials' checkpoints; search.json says the same.
        "log_config": False,
    }
    if search.scheduler == "pbt":
        domains = space.domains()
        return PopulationBasedTraining(
            **judged,
            hyperparam_mutations={
                key: list(drawn.values) if drawn.kind == "choice" else domains[key]
                for key, drawn in search.mutated.items()
            },
        )
    return _pb2(search, judged)


def _pb2(search: SearchConfig, judged: dict[str, Any]) -> TrialScheduler:
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise ConfigError("scheduler: pb2 needs scikit-learn: pip install scikit-learn") from None
    from ray.tune.schedulers.pb2 import PB2

    return PB2(
        **judged,
        hyperparam_bounds={key: list(drawn.values) for key, drawn in search.mutated.items()},
    )


def _clamp_to_bounds(space: Space) -> Callable[[Keys], Keys]:
    """A function that puts values that PBT has moved out of their bounds back into them."""
    ends = {
        key: (min(drawn.extremes), max(drawn.extremes))
        for key, drawn in space.search.mutated.items()
        if drawn.kind != "choice"
    }

    def clamp(keys: Keys) -> Keys:
        return {
            key: min(max(value, ends[key][0]), ends[key][1]) if key in ends else value
            for key, value in keys.items()
        }

    return clamp
