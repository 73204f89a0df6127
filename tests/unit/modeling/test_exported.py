import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from timellama_dist.config.schema import (
    BackboneSection,
    DataSection,
    DLoraSection,
    ModelSection,
    RunConfig,
)
from timellama_dist.errors import CheckpointError
from timellama_dist.modeling.exported import ModelCard, load_model, read_card, save_model
from timellama_dist.modeling.timellama import TimeLlama, build_model

PROMPT = "the price of a b"


def trained_model(config: RunConfig) -> TimeLlama:
    model = build_model(config, Path(config.backbone.name), num_channels=2, prompt=PROMPT).eval()
    torch.manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def export(config: RunConfig, folder: Path) -> TimeLlama:
    model = trained_model(config)
    card = ModelCard(
        config=config.to_dict(), channels=["a", "b"], frequency="h", prompt=PROMPT, season_len=24
    )
    scalers = folder.parent / "series.parquet"
    rows = {"unique_id": ["table"], "mean": [[0.0, 1.0]], "std": [[1.0, 2.0]]}
    pq.write_table(pa.table(rows), scalers)
    weights = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    save_model(model, weights, folder, card, scalers)
    return model


@pytest.fixture
def config(tiny_llama: Path) -> RunConfig:
    return RunConfig(
        data=DataSection(context_len=16, horizon=4),
        backbone=BackboneSection(name=str(tiny_llama), num_blocks=2, quantization="none"),
        dlora=DLoraSection(num_experts=2, rank=2, top_n=5),
        model=ModelSection(alignment_heads=4),
    )


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("dlora", [True, False])
def test_an_exported_model_forecasts_as_before(
    quantization: str, dlora: bool, config: RunConfig, tmp_path: Path
) -> None:
    config = replace(
        config,
        backbone=replace(config.backbone, quantization=quantization),
        dlora=replace(config.dlora, enabled=dlora),
    )
    model = export(config, tmp_path / "model")
    loaded, card = load_model(tmp_path / "model")
    past = torch.randn(3, 16, 2)
    with torch.no_grad():
        torch.testing.assert_close(loaded(past), model(past), rtol=1e-5, atol=1e-5)
    assert card.channels == ["a", "b"]
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_it_holds_no_pickle_and_not_the_backbone(config: RunConfig, tmp_path: Path) -> None:
    export(config, tmp_path / "model")
    files = {path.suffix for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert files == {".json", ".safetensors", ".parquet"}
    size = sum(path.stat().st_size for path in (tmp_path / "model").rglob("*") if path.is_file())
    trained = sum(p.numel() for p in trained_model(config).parameters() if p.requires_grad)
    assert size < 4 * trained + 20_000


def flip_a_byte(folder: Path) -> None:
    path = folder / "timellama.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def rewrite(**changes: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_byte, r"timellama\.safetensors is damaged: sha256 \w+, not \w+"),
        (rewrite(schema_version=99), r"schema_version must be 1, got 99"),
        (rewrite(sha256={"../outside": "0"}), r"names a file outside of it: \.\./outside"),
        (lambda folder: (folder / "config.json").unlink(), r"holds no exported model"),
        (lambda folder: (folder / "series.parquet").unlink(), r"cannot read .*series\.parquet"),
    ],
)
def test_a_damaged_model_is_refused_by_name(
    damage: Callable[[Path], None], message: str, config: RunConfig, tmp_path: Path
) -> None:
    export(config, tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(CheckpointError, match=message):
        read_card(tmp_path / "model")


def test_a_shard_is_not_exported_for_a_whole(config: RunConfig, tmp_path: Path) -> None:
    model = trained_model(config)
    card = ModelCard(config={}, channels=[], frequency="h", prompt="", season_len=1)
    with pytest.raises(CheckpointError, match=r"cannot export head\.weight: it is empty"):
        save_model(model, {"head.weight": torch.empty(0)}, tmp_path / "m", card, tmp_path / "s")


def test_it_loads_and_forecasts_where_ray_and_deepspeed_are_absent(
    config: RunConfig, tmp_path: Path
) -> None:
    export(config, tmp_path / "model")
    program = f"""
import sys
from importlib.machinery import PathFinder

class Absent(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.split(".")[0] in ("ray", "deepspeed")
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Absent
import pandas as pd
from timellama_dist import TimeLlamaForecaster

forecaster = TimeLlamaForecaster.load({str(tmp_path / "model")!r})
frame = pd.DataFrame({{"date": pd.date_range("2024-01-01", periods=20, freq="h")}})
frame["a"], frame["b"] = range(20), [5.0, 7.0] * 10
forecast = forecaster.predict(frame, horizon=3)
assert len(forecast) == 6 and forecast["yhat"].notna().all()
assert list(forecast["ds"][:3].dt.hour) == [20, 21, 22]
assert not {{"ray", "deepspeed"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
