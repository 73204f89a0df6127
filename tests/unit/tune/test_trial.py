"""What a search is told of a trial that went wrong; whole searches are in test_search_job."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.execution.tune_controller import TuneController
from ray.tune.schedulers import FIFOScheduler

from tests.support.runs import plain, plain_run
from timellama_dist.config.schema import BackboneSection, ModelSection
from timellama_dist.train.worker.results import Stopped, StorageFailed
from timellama_dist.tune.proposals import Proposals
from timellama_dist.tune.settings import Objective, SearchConfig
from timellama_dist.tune.space import Space
from timellama_dist.tune.trial import cut_short, diverged


@pytest.mark.parametrize("objectives", [["validation"], ["validation", "active_parameters"]])
def test_ray_tune_and_optuna_take_a_trial_that_diverged(
    objectives: list[Objective], tiny_llama: Path, tmp_path: Path
) -> None:
    search = SearchConfig(
        space={"train.learning_rate": {"loguniform": [1e-4, 1e-2]}},
        objectives=objectives,
        scheduler="none",
    )
    base = plain_run(
        backbone=plain(BackboneSection, name=str(tiny_llama), num_blocks=2),
        model=plain(ModelSection, alignment_heads=4),
    )
    proposals = Proposals(Space(search=search, base=base, num_channels=3), tmp_path / "pruned")
    controller: Any = SimpleNamespace(
        _metric=None, _scheduler_alg=FIFOScheduler(), _search_alg=proposals
    )
    for number in range(15):
        assert isinstance(proposals.suggest(f"trial-{number}"), dict)
        result: dict[str, Any] = {"step": 10} | dict.fromkeys(objectives, 1.0 + number)
        if number % 3 == 2:
            result = diverged("the loss is nan", search.objectives)
        # Raises, at which the whole search would end, where a metric is absent.
        TuneController._validate_result_metrics(controller, result)
        assert {result[key] for key in objectives} == {
            math.inf if number % 3 == 2 else 1.0 + number
        }
        result["training_iteration"] = 1
        proposals.on_trial_result(f"trial-{number}", result)
        proposals.on_trial_complete(f"trial-{number}", result)


def test_a_trial_whose_storage_failed_says_so() -> None:
    problem = "the checkpoint of step 5 could not be saved"
    assert cut_short(StorageFailed(problem=problem)) == problem
    assert cut_short(Stopped(step=5)) == "the run ended early, at step 5"
