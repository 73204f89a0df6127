"""How trials are numbered; what is shown and written of whole searches is in test_search_job."""

import json
import pickle
from pathlib import Path

from ray.tune.experiment import Trial

from timellama_dist.tune.watcher import RESULTS, Watcher


def test_trials_keep_their_numbers_when_a_search_goes_on_in_another_order(tmp_path: Path) -> None:
    facts = {"metric": "mse", "base": {"dlora.rank": 4}}
    trials = [
        Trial("search", stub=True, trial_id=name, config={"dlora.rank": rank})
        for rank, name in enumerate("abcd")
    ]
    begun = Watcher(tmp_path, 4, facts)
    # Ray Tune keeps its callbacks as they were before the first trial.
    kept = pickle.dumps(begun)
    begun.write(trials[:2])
    begun.write(trials[:3])
    resumed = pickle.loads(kept)
    resumed.write([*reversed(trials[:3]), trials[3]])
    found = json.loads((tmp_path / RESULTS).read_text())["trials"]
    assert [(one["number"], one["id"]) for one in found] == list(enumerate("abcd", start=1))
