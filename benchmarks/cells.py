"""The cells of the tables of results: data sets, settings, ablations, others' architectures."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set with its recipe and horizons."""

    name: str
    """Also the name of its recipe and of its file of results."""
    file: str
    """Its table, or for M4 the folder of its tables."""
    horizons: tuple[int, ...]
    published: dict[str, tuple[float, ...]]
    """Test MSE by horizon, of other papers' methods, as they print it."""
    contexts: dict[int, int] = field(default_factory=dict)
    """By horizon, where it isn't the recipe's."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training."""

    task: Task
    horizon: int
    setting: str
    """`FULL_BATCHES`, or a key of `SETTINGS`, `ABLATIONS` or `PUBLISHED`; "full" is the recipe."""
    seed: int

    @property
    def name(self) -> str:
        """Its name in the results."""
        return f"{self.task.name}-{self.horizon}-{self.setting}-seed{self.seed}"


# Copied: Time-LLM, PatchTST and DLinear as Time-LLM's paper prints them, the others from their own
# papers. Nothing of it was measured here.
TASKS = (
    Task(
        name="etth1",
        file="ETTh1.csv",
        horizons=(96, 192, 336, 720),
        published={
            "Time-LlaMA (its paper)": (0.377, 0.410, 0.421, 0.443),
            "Time-LLM": (0.362, 0.398, 0.430, 0.442),
            "PatchTST": (0.370, 0.413, 0.422, 0.447),
            "DLinear": (0.375, 0.405, 0.439, 0.472),
            "AutoTimes, LLaMA-7B": (0.360, 0.388, 0.401, 0.406),
        },
        contexts={720: 672},
    ),
    Task(
        name="ettm1",
        file="ETTm1.csv",
        horizons=(96, 192, 336, 720),
        published={
            "Time-LlaMA (its paper)": (0.291, 0.326, 0.352, 0.405),
            "Time-LLM": (0.272, 0.310, 0.352, 0.383),
            "PatchTST": (0.290, 0.332, 0.366, 0.416),
            "DLinear": (0.299, 0.335, 0.369, 0.425),
        },
        contexts=dict.fromkeys((336, 720), 1344),
    ),
    Task(
        name="weather",
        file="weather.csv",
        horizons=(96, 192, 336, 720),
        published={
            "Time-LlaMA (its paper)": (0.151, 0.193, 0.242, 0.313),
            "Time-LLM": (0.147, 0.189, 0.262, 0.304),
            "PatchTST": (0.149, 0.194, 0.245, 0.314),
            "DLinear": (0.176, 0.220, 0.265, 0.333),
        },
    ),
    Task(
        name="illness",
        file="national_illness.csv",
        horizons=(24, 36, 48, 60),
        published={
            "Time-LLM": (1.285, 1.404, 1.523, 1.531),
            "PatchTST": (1.319, 1.430, 1.553, 1.470),
            "DLinear": (2.215, 1.963, 2.130, 2.368),
        },
    ),
)
M4 = tuple(
    Task(name=name, file="m4", horizons=(horizon,), published={})
    for name, horizon in (("m4_hourly", 48), ("m4_weekly", 13))
)
# Of few windows fewer steps, as epochs count; judged after each.
_FEW: dict[str, Any] = {"train.epochs": 3, "train.validate_every": "null"}
SETTINGS: dict[str, dict[str, Any]] = {
    "full": {},
    "few5": {"data.train_fraction": 0.05, **_FEW},
    "few10": {"data.train_fraction": 0.1, **_FEW},
}
# Others' code tests the windows of full batches only, of 16 on ILI, where that leaves out most; the
# setting ends ILI's test part, of these rows, with the last full batch.
FULL_BATCHES = "full-batches"
_ILLNESS_ROWS, _ILLNESS_BATCH = (676, 97, 193), 16
# What each part adds: the recipe without it.
_NO_DLORA = {"dlora.enabled": False}
ABLATIONS: dict[str, dict[str, Any]] = {
    "random": {"backbone.init": "random"},
    "frozen": _NO_DLORA,
    "no-backbone": {"backbone.kind": "none", **_NO_DLORA},
    "attention": {"backbone.kind": "attention", **_NO_DLORA},
    "no-alignment": {"model.alignment": False},
    "prefix": {"model.alignment": False, "model.prefix": True},
    "lora": {"dlora.num_experts": 1, "dlora.top_n": 7},
    "moe-lora": {"dlora.scope": "module", "dlora.top_n": 2},
    **{f"top-{n}": {"dlora.num_experts": 1, "dlora.top_n": n} for n in range(1, 7)},
    "experts-8": {"dlora.num_experts": 8, "dlora.rank": 2, "dlora.top_n": 32},
    "shortcut": {"model.shortcut": "frozen"},
    "no-shortcut": {"model.shortcut": "none"},
    "no-average": {"train.average_steps": 0},
}
ABLATED = (("illness", 24), ("ettm1", 96), ("weather", 96))
# Where the recipe is that already.
_NOT_ABLATED = {"shortcut": ABLATED[1:], "no-shortcut": ABLATED[:1]}
FEW_SHOT = (("etth1", 96), ("weather", 96))
# Others' architectures in the library's sizes; in smaller ones, as in their papers, where there are
# few windows.
PUBLISHED = {"patchtst": "PatchTST", "itransformer": "iTransformer", "dlinear": "DLinear"}
FEW_WINDOWS = ("etth1", "illness", "m4_hourly", "m4_weekly")
BUDGET = {"epochs": 30, "max_steps": 1000}
SMALLER: dict[str, dict[str, Any]] = {
    "patchtst": {
        "hidden_size": 16,
        "n_heads": 4,
        "linear_hidden_size": 128,
        "dropout": 0.3,
        "fc_dropout": 0.3,
    },
    "itransformer": {"hidden_size": 128, "d_ff": 128},
}


def all_cells(num_seeds: int) -> Iterator[Cell]:
    """Every cell: the first seed of all before the second of any, recipes before ablations."""
    everywhere = [(task.name, horizon) for task in (*TASKS, *M4) for horizon in task.horizons]
    settings = {
        "full": everywhere,
        FULL_BATCHES: [place for place in everywhere if place[0] == "illness"],
        **dict.fromkeys(("few5", "few10"), FEW_SHOT),
        **dict.fromkeys(PUBLISHED, everywhere),
        **{
            name: [place for place in ABLATED if place not in _NOT_ABLATED.get(name, ())]
            for name in ABLATIONS
        },
    }
    tasks = {task.name: task for task in (*TASKS, *M4)}
    for seed in range(num_seeds):
        for setting, places in settings.items():
            for name, horizon in places:
                yield Cell(task=tasks[name], horizon=horizon, setting=setting, seed=seed)


def keys_of(cell: Cell) -> dict[str, Any]:
    """The keys in which a cell differs from its recipe."""
    if cell.setting != FULL_BATCHES:
        return (SETTINGS | ABLATIONS)[cell.setting]
    train, validation, test = _ILLNESS_ROWS
    left_out = (test - cell.horizon + 1) % _ILLNESS_BATCH
    return {"data.split": [train, validation, test - left_out]}
