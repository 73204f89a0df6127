"""Draws the manual's figures as SVG: boxes in rows or columns, with arrows between them."""

from collections.abc import Sequence

WIDTH = 720
Box = tuple[str, str, bool]
"""Title, note below it, and whether it is frozen."""

WINDOW: Sequence[Box] = (
    ("context", "B x L x C", False),
    ("instance normalisation", "each channel by its own mean and deviation", False),
    ("one token a channel", "linear map, L to D (eq. 2)", False),
    ("alignment", "attention to the prompt's token embeddings (eq. 3)", False),
    ("first N blocks of a LLaMA, 4 bits", "each with a router and LoRA experts (eq. 9-11)", True),
    ("head", "linear map, D to H (eq. 4)", False),
    ("forecast", "B x H x C", False),
)

FLOW: Sequence[Sequence[Box]] = (
    (("my_table.csv", "wide, long or a row a series", False),),
    (("data/tables", "columns, times, faults counted", False),),
    (("data/prepared", "Parquet and a manifest: scalers, parts, prompt", False),),
    (("data/windows", "windows in an order fixed by seed, epoch, position", False),),
    (
        ("worker 0", "a share of the model and of each batch", False),
        ("worker 1", "and so on; ZeRO shards the frozen blocks", False),
    ),
    (("train/checkpoint", "what trains, free of world size and ZeRO stage", False),),
    (("exported model", "adapter, small modules, scalers, configuration", False),),
    (
        ("forecast", "a frame, or many series", False),
        ("serve", "HTTP", False),
        ("evaluate", "figures", False),
    ),
)

HOUSE: Sequence[Sequence[Box]] = (
    (("cli", "one module a command: read settings, call, print", False),),
    (
        ("train", "one run", False),
        ("tune", "searches", False),
        ("forecast", "frames", False),
        ("serve", "HTTP", False),
        ("evaluation", "scores", False),
        ("planning", "formulas", False),
    ),
    (
        ("model", "Time-LlaMA", False),
        ("data", "tables to windows", False),
        ("report", "pages", False),
        ("console", "progress", False),
    ),
    (
        ("dlora", "PEFT tuner", False),
        ("backbone", "frozen LLM", False),
        ("config", "the schema", False),
        ("assets", "public files", False),
    ),
    (("compat", "private calls", False), ("storage", "places", False), ("errors", "", False)),
)


def rows(boxes: Sequence[Sequence[Box]], label: str) -> str:
    """Draw rows of boxes, each row with an arrow down to the next."""
    height, gap, inset = 46, 26, 8
    total = len(boxes) * (height + gap) - gap + 2
    parts = [
        f'<svg class="figure" viewBox="0 0 {WIDTH} {total}" role="img" aria-label="{label}">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>',
    ]
    for number, row in enumerate(boxes):
        top = 1 + number * (height + gap)
        width = (WIDTH - 2) / len(row)
        for place, box in enumerate(row):
            left = 1 + place * width + (inset / 2 if len(row) > 1 else WIDTH * 0.15)
            inner = width - (inset if len(row) > 1 else WIDTH * 0.3)
            parts.append(_box(box, left, top, inner, height))
        if number + 1 < len(boxes):
            parts.append(
                f'<path d="M{WIDTH / 2:g} {top + height + 3:g}v{gap - 7:g}" '
                'marker-end="url(#tip)"/>'
            )
    return "".join([*parts, "</svg>"])


def _box(box: Box, left: float, top: float, width: float, height: float) -> str:
    title, note, frozen = box
    middle = left + width / 2
    kind = ' class="frozen"' if frozen else ""
    first = top + (height / 2 + 5 if not note else 19)
    return (
        f'<rect{kind} x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}"/>'
        f'<text x="{middle:g}" y="{first:g}" text-anchor="middle">{title}</text>'
        + (
            f'<text class="note" x="{middle:g}" y="{top + 36:g}" text-anchor="middle">{note}</text>'
            if note
            else ""
        )
    )


def window() -> str:
    """The way of a window through the model."""
    return rows([(box,) for box in WINDOW], "From a context to a forecast")


def flow() -> str:
    """The way of the data through a run."""
    return rows(FLOW, "From a table to forecasts")


def house() -> str:
    """The rooms of the package; arrows are imports."""
    return rows(HOUSE, "The rooms of the package, imports downwards")
