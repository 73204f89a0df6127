"""Ray's private and unstable calls are there and do what is asked of them."""

import os
import pickle
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
from ray import cloudpickle
from ray.tune import tune as tune_run
from ray.tune.constants import TUNE_ENV_VARS
from ray.tune.experiment import Trial
from ray.tune.experimental.output import get_air_verbosity
from ray.tune.result import EXPR_ERROR_FILE
from ray.tune.trainable import FunctionTrainable, function_trainable
from ray.util.debug import log_once

from timellama_dist.compat import ray as compat


def test_a_message_that_is_silenced_is_logged_no_more() -> None:
    compat.silence_once("a message of this test")
    assert not log_once("a message of this test")


def test_ray_data_s_advice_on_progress_bars_is_under_the_key_that_is_silenced() -> None:
    from ray.data._internal import progress

    from timellama_dist import cluster

    for module in (progress, cluster):
        source = Path(str(module.__file__)).read_text(encoding="utf-8")
        assert '"ray_data_progress_manager_disabled"' in source


@pytest.mark.parametrize(("info", "expected"), [(None, False), (SimpleNamespace(), True)])
def test_a_node_leaves_once_ray_train_has_preemption_info(
    info: Any, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of a real cluster's node: tests/integration/test_preemption.py.
    assert callable(ray.train.get_preemption_info)
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: info)
    assert compat.node_leaves() is expected


def test_ray_tune_reads_the_variables_that_quieten_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in (*TUNE_ENV_VARS, "RAY_AIR_NEW_OUTPUT"):
        monkeypatch.delenv(key, raising=False)
    before = set(os.environ)
    compat.quieten_tune()
    compat.wait_for_last_step(600)
    added = set(os.environ) - before
    for key in added:
        monkeypatch.delenv(key)
    assert len(added) == 5
    assert added - TUNE_ENV_VARS == {"RAY_AIR_NEW_OUTPUT"}


def test_ray_tune_s_newer_output_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in (*TUNE_ENV_VARS, "RAY_AIR_NEW_OUTPUT"):
        monkeypatch.setenv(key, "")
    assert get_air_verbosity(0) is not None
    compat.quieten_tune()
    assert get_air_verbosity(0) is None


def test_ray_tune_waits_for_a_trial_s_last_step_as_long_as_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TUNE_FUNCTION_THREAD_TIMEOUT_S", "2")
    compat.wait_for_last_step(600)
    assert os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] == "600"
    source = Path(str(function_trainable.__file__)).read_text(encoding="utf-8")
    assert 'int(os.environ.get("TUNE_FUNCTION_THREAD_TIMEOUT_S"' in source


def test_a_running_search_ends_at_the_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE_DISABLE_SIGINT_HANDLER", "1")
    before = signal.getsignal(signal.SIGUSR1)
    try:
        # As `tune.run` does at its start.
        interrupted = tune_run._setup_signal_catching()
        assert not interrupted.is_set()
        compat.stop_search()
        assert interrupted.is_set()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_search_that_does_not_listen_yet_is_interrupted() -> None:
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        compat.stop_search()


def test_a_trial_s_error_is_read_from_its_file_before_the_storage_has_it(tmp_path: Path) -> None:
    assert {"local_path", "get_error"} <= set(dir(Trial))
    nothing = SimpleNamespace(local_path=None, get_error=lambda: None)
    assert compat.trial_error(nothing) == ""
    late = SimpleNamespace(local_path=str(tmp_path), get_error=lambda: "from the storage")
    assert compat.trial_error(late) == "from the storage"
    (tmp_path / EXPR_ERROR_FILE).write_text("from the file")
    assert compat.trial_error(late) == "from the file"


@pytest.mark.parametrize("problem", [None, RuntimeError("the trial's own")])
def test_a_trial_s_process_waits_after_ray_tune_has_cleaned_up(
    problem: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def clean_up(self: Any) -> None:
        order.append("cleaned up")
        if problem is not None:
            raise problem

    monkeypatch.setattr(FunctionTrainable, "cleanup", clean_up)
    trainable = compat.patient_trainable(lambda keys: None, lambda: order.append("waited"))
    trial = object.__new__(trainable)
    if problem is None:
        trial.cleanup()
    else:
        with pytest.raises(RuntimeError, match="the trial's own"):
            trial.cleanup()
    assert order == ["cleaned up", "waited"]


def test_the_class_of_a_trial_travels_to_other_processes() -> None:
    trainable = compat.patient_trainable(print, compat.quieten_tune)
    assert issubclass(pickle.loads(cloudpickle.dumps(trainable)), FunctionTrainable)
