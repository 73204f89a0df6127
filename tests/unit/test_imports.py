"""The arrows of the architecture, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "timellama_dist"
EVERYBODY = {"config", "errors", "storage"}
ONLY_ERRORS = {"dlora", "config", "assets", "storage", "pools"}
# Who may import whom, inside the package; a part may always import itself.
ALLOWED = {
    "errors": set(),
    "pools": set(),
    "config": {"pools"},
    "storage": set(),
    "dlora": {"pools"},
    "assets": set(),
    "modeling": {"dlora", "pools", "assets"},
    "data": set(),
    "engine": {"modeling", "data", "dlora"},
    "report": set(),
    "planning": set(),
    "plan": {"planning", "data", "launch"},
    "launch": {"engine", "modeling", "data", "assets", "report", "planning", "forecaster"},
    # launch where it trains, when it does.
    "forecaster": {"modeling", "data", "launch"},
    "__init__": {"forecaster", "modeling", "dlora"},
}
WITHOUT_RAY_AND_DEEPSPEED = {
    "config",
    "dlora",
    "modeling",
    "report",
    "planning",
    "plan",
    "forecaster",
    "storage",
    "__init__",
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(module: str) -> str:
    if module == "timellama_dist.data.assets":
        return "assets"  # files fetched by name, backbones among them; knows nothing of data
    return module.split(".")[1] if "." in module else "__init__"


def name_of(path: Path) -> str:
    return ".".join(["timellama_dist", *path.relative_to(PACKAGE).with_suffix("").parts])


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_follow_the_arrows(path: Path) -> None:
    part = part_of(name_of(path))
    used = {part_of(name) for name in imports(path) if name.startswith("timellama_dist")}
    shared = {"errors"} if part in ONLY_ERRORS else EVERYBODY
    assert used <= ALLOWED[part] | shared | {part}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_mathematics_needs_neither_ray_nor_deepspeed(path: Path) -> None:
    name = name_of(path)
    streams = name == "timellama_dist.data.stream"
    if part_of(name) in WITHOUT_RAY_AND_DEEPSPEED or (part_of(name) == "data" and not streams):
        roots = {imported.split(".")[0] for imported in imports(path)}
        assert not roots & {"ray", "deepspeed"}


def test_a_plan_loads_no_framework() -> None:
    program = (
        "import sys, timellama_dist.plan as plan;"
        "code = plan.main(['--gpu', 'a100-80g', '--json']);"
        "assert not {'ray', 'deepspeed', 'torch', 'transformers'} & set(sys.modules);"
        "sys.exit(code)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_a_mistake_is_told_before_a_framework_is_loaded(tmp_path: Path) -> None:
    program = (
        "import sys; from timellama_dist.launch.train import main;"
        f"code = main(['--data.path', '/nowhere.csv', '--run.dir', {str(tmp_path / 'run')!r}]);"
        "assert not {'deepspeed', 'torch', 'transformers', 'peft'} & set(sys.modules);"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: /nowhere.csv: no such file\n")


def test_a_driver_and_a_trial_load_nothing_that_only_a_worker_needs() -> None:
    program = (
        "import sys; from timellama_dist.launch import train, trainer, trial, tuning;"
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
