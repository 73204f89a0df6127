"""Private and unstable calls of Ray, Ray Train and Ray Tune (2.60).

ray is imported inside functions: a command tells a mistake before it loads Ray.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.tune import Trainable


def node_leaves() -> bool:
    """Has Ray been told that a node of this Ray Train run will be taken away (`ray drain-node`)?

    `get_preemption_info` is alpha, and there in Ray Train's second version only. It is a barrier:
    every worker must call it as often as the others.
    """
    import ray.train

    return ray.train.get_preemption_info() is not None


def silence_once(key: str) -> None:
    """Mark a message that Ray logs once a process as logged.

    `log_once` isn't documented, and neither are the messages' keys.
    """
    from ray.util.debug import log_once

    log_once(key)


def quieten_tune() -> None:
    """Keep Ray Tune from talking and from handling Ctrl-C.

    None of these environment variables is a documented setting of its own. Ray Tune reads them on
    the driver when a search starts.
    """
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    # The other one prints a table even where it shall be silent.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # A killed search loses no more than the trials that ended in this time.
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "1"


def patient_trainable(
    function: Callable[[dict[str, Any]], None], wait: Callable[[], None]
) -> "type[Trainable]":
    """Make Ray Tune's class for a function, which is never cut off in the middle.

    Ray Tune doesn't wait for the last step of a trial that it stops, and ends the process. Its
    class for a function is made by `wrap_function`, which is for developers; `cleanup` is the last
    that it calls.

    Args:
        function: what a trial runs.
        wait: called in the trial's process before it ends; of a module, by whose name it travels.
    """
    from ray.tune.trainable import wrap_function

    class Trial(wrap_function(function, name="trial")):  # type: ignore[misc]
        def cleanup(self) -> None:
            try:
                super().cleanup()
            finally:
                wait()

    return Trial


def wait_for_last_step(seconds: int) -> None:
    """Let Ray Tune wait so long for a stopped trial's last step; called in the trial's process.

    It waits 2 s by default, and only this environment variable changes that.
    """
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(seconds)


def stop_search() -> None:
    """End the search that runs in this thread as Ray Tune ends it at Ctrl-C: saved.

    Ray Tune listens for SIGUSR1 while it runs; no call does the same.

    Raises:
        KeyboardInterrupt: it doesn't listen yet, or not any more.
    """
    if not callable(signal.getsignal(signal.SIGUSR1)):
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGUSR1)


def trial_error(trial: Any) -> str:
    """The text of a failed trial's error, empty if there is none.

    `Trial.get_error` reads the storage, which has it only some time later than the file that Ray
    Tune writes for itself.
    """
    from ray.tune.result import EXPR_ERROR_FILE

    written = Path(trial.local_path or "", EXPR_ERROR_FILE)
    text = written.read_text(encoding="utf-8") if written.is_file() else trial.get_error()
    return str(text or "")


def this_node() -> str:
    """Name of the resource that only this node has, 1 of it.

    Each node has one, named by its address; it isn't among the documented resources.
    """
    import ray

    number = ray.get_runtime_context().get_node_id()
    (address,) = {node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == number}
    return f"node:{address}"
