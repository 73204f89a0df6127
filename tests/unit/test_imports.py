"""What a command imports; the arrows between rooms are import-linter's (pyproject.toml)."""

import subprocess
import sys
from pathlib import Path


def test_a_plan_loads_no_framework() -> None:
    program = (
        "import sys, timellama_dist.cli.plan as plan;"
        "code = plan.main(['--gpu', 'a100-80g', '--json']);"
        "assert not {'ray', 'deepspeed', 'torch', 'transformers'} & set(sys.modules);"
        "sys.exit(code)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_a_mistake_is_told_before_a_framework_is_loaded(tmp_path: Path) -> None:
    program = (
        "import sys; from timellama_dist.cli.train import main;"
        f"code = main(['--data.path', '/nowhere.csv', '--run.dir', {str(tmp_path / 'run')!r}]);"
        "assert not {'deepspeed', 'torch', 'transformers', 'peft'} & set(sys.modules);"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: /nowhere.csv: no such file\n")


def test_a_driver_and_a_trial_load_nothing_that_only_a_worker_needs() -> None:
    program = (
        "import sys; from timellama_dist.train import driver, trainer;"
        "from timellama_dist.tune import trial, tuning;"
        "from timellama_dist.report import page, plots;"
        "assert not {'deepspeed', 'transformers', 'peft', 'bitsandbytes'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_importing_the_package_loads_no_framework() -> None:
    program = (
        "import sys, timellama_dist;"
        "assert not {'ray', 'deepspeed', 'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
