import subprocess
import sys


def test_a_driver_reads_results_and_events_without_a_framework() -> None:
    program = (
        "import sys; from timellama_dist.train.worker import entry, results;"
        "from timellama_dist.console import events;"
        "from timellama_dist.train.checkpoint import position;"
        "assert not {'ray', 'deepspeed', 'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
