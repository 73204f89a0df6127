import hashlib
import json
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.runs import plain, plain_run
from timellama_dist import TimeLlamaForecaster
from timellama_dist.backbone.fingerprint import backbone_fingerprint
from timellama_dist.config.schema import (
    BackboneSection,
    DataSection,
    DLoraSection,
    MixturePart,
    ModelSection,
    RunConfig,
)
from timellama_dist.errors import CheckpointError, ConfigError
from timellama_dist.evaluation.exported_model import ExportedModel
from timellama_dist.model.build import build_model
from timellama_dist.model.card import DatasetCard, ModelCard, read_card
from timellama_dist.model.exported import load_model, save_model
from timellama_dist.model.timellama import TimeLlama

PROMPT = "the price of a b"
TABLE = DatasetCard(
    name="table",
    channels=["a", "b"],
    frequency="h",
    prompt=PROMPT,
    season_len=24,
    options={},
    context_len=16,
    horizon=4,
)


def trained_model(config: RunConfig) -> TimeLlama:
    model = build_model(
        config,
        Path(config.backbone.name),
        num_channels=2,
        prompts=[PROMPT] * len(config.data.parts),
    ).eval()
    torch.manual_seed(5)
    maps = [buffer for name, buffer in model.named_buffers() if name.startswith("shortcuts.")]
    for parameter in (*model.parameters(), *maps):
        if parameter.requires_grad or not isinstance(parameter, nn.Parameter):
            nn.init.normal_(parameter, std=0.2)
    return model


def export(config: RunConfig, folder: Path) -> TimeLlama:
    model = trained_model(config)
    backbone = backbone_fingerprint(config, Path(config.backbone.name))
    card = ModelCard(config=config.to_dict(), datasets=[TABLE], backbone=backbone)
    scalers = folder.parent / "series.parquet"
    rows = {"unique_id": ["table"], "mean": [[0.0, 1.0]], "std": [[1.0, 2.0]]}
    pq.write_table(pa.table(rows), scalers)
    weights = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    save_model(model, weights, folder, card, [scalers])
    return model


@pytest.fixture
def config(tiny_llama: Path) -> RunConfig:
    return plain_run(
        data=plain(DataSection, context_len=16, horizon=4),
        backbone=plain(BackboneSection, name=str(tiny_llama), num_blocks=2, quantization="none"),
        dlora=DLoraSection(num_experts=2, rank=2, top_n=5),
        model=plain(ModelSection, alignment_heads=4),
    )


@pytest.mark.parametrize("kind", ["attention", "none"])
def test_a_model_without_llama_forecasts_as_before_its_export(
    kind: Any, config: RunConfig, tmp_path: Path
) -> None:
    config = replace(
        config,
        backbone=replace(config.backbone, kind=kind),
        dlora=replace(config.dlora, enabled=False),
    )
    model = export(config, tmp_path / "model")
    loaded, _ = load_model(tmp_path / "model")
    past = torch.randn(3, 16, 2)
    with torch.no_grad():
        torch.testing.assert_close(loaded(past), model(past), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize(("dlora", "shortcut"), [(True, "frozen"), (False, "trainable")])
def test_an_exported_model_forecasts_as_before(
    quantization: str, dlora: bool, shortcut: Any, config: RunConfig, tmp_path: Path
) -> None:
    config = replace(
        config,
        model=replace(config.model, shortcut=shortcut, shortcut_per_channel=dlora, clip=1.0),
        backbone=replace(config.backbone, quantization=quantization),
        dlora=replace(config.dlora, enabled=dlora),
    )
    model = export(config, tmp_path / "model")
    loaded, card = load_model(tmp_path / "model")
    past = torch.randn(3, 16, 2)
    with torch.no_grad():
        torch.testing.assert_close(loaded(past), model(past), rtol=1e-5, atol=1e-5)
    assert card.datasets == [TABLE]
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("unpack", [None, True, False])
def test_it_forecasts_alike_however_it_is_loaded(
    unpack: bool | None, config: RunConfig, tmp_path: Path
) -> None:
    config = replace(config, backbone=replace(config.backbone, quantization="nf4"))
    model = export(config, tmp_path / "model")
    loaded, _ = load_model(tmp_path / "model", unpack=unpack)
    past = torch.randn(3, 16, 2)
    with torch.no_grad():
        expected = model(past)
    torch.testing.assert_close(loaded(past), expected, rtol=1e-6, atol=1e-6)
    # On a CPU it is unpacked unless told otherwise.
    packed = [module for module in loaded.modules() if isinstance(module, Linear4bit)]
    assert len(packed) == (14 if unpack is False else 0)


def test_in_bfloat16_forecasts_are_near_those_in_float32(config: RunConfig, tmp_path: Path) -> None:
    model = export(config, tmp_path / "model")
    loaded, _ = load_model(tmp_path / "model", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    past = torch.randn(8, 16, 2)
    with torch.no_grad():
        expected, actual = model(past), loaded(past)
    assert actual.dtype == torch.float32
    assert (actual - expected).std() < 0.1 * expected.std()


def test_it_holds_no_pickle_and_not_the_backbone(config: RunConfig, tmp_path: Path) -> None:
    export(config, tmp_path / "model")
    files = {path.suffix for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert files == {".json", ".safetensors", ".parquet"}
    size = sum(path.stat().st_size for path in (tmp_path / "model").rglob("*") if path.is_file())
    trained = sum(p.numel() for p in trained_model(config).parameters() if p.requires_grad)
    assert size < 4 * trained + 20_000


def test_another_prompt_takes_the_place_of_the_trained_one(
    config: RunConfig, tmp_path: Path
) -> None:
    model = export(config, tmp_path / "model")
    other = build_model(config, Path(config.backbone.name), num_channels=2, prompts=["c d of e"])
    other.load_state_dict(model.state_dict() | {"prompt_0_PD": other.prompt_0_PD})
    loaded, card = load_model(tmp_path / "model", prompts={0: "c d of e"})
    past = torch.randn(3, 16, 2)
    with torch.no_grad():
        torch.testing.assert_close(loaded(past), other.eval()(past), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(loaded(past), model(past), atol=1e-3)
    assert card.datasets == [TABLE]


def flip_a_byte(folder: Path) -> None:
    path = folder / "timellama.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def flip_a_byte_of_the_adapter(folder: Path) -> None:
    path = folder / "adapter" / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def leave_out(*keys: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        content = json.loads(path.read_text())
        part = content
        for key in keys[:-1]:
            part = part[key]
        del part[keys[-1]]
        path.write_text(json.dumps(content))

    return apply


def write_config(content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.json").write_bytes(content) and None


def rewrite(**changes: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return apply


def add_hash(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        content = json.loads(path.read_text())
        content["sha256"] = {name: "0"} | content["sha256"]
        path.write_text(json.dumps(content))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_byte, r"timellama\.safetensors is damaged: sha256 \w+, not \w+"),
        (flip_a_byte_of_the_adapter, r"adapter_model\.safetensors is damaged: sha256 \w+, not"),
        (rewrite(schema_version=None), r"schema_version must be 2, got None"),
        (
            rewrite(schema_version=1),
            r"schema_version must be 2, got 1; load it with the version .* that exported it$",
        ),
        (rewrite(datasets=[{"name": "a"}]), r"config\.json is damaged: .*'channels'"),
        (rewrite(surplus=1), r"config\.json is damaged: .*'surplus'"),
        (rewrite(sha256={"/etc/hostname": "0"}), r"lacks the sha256 of timellama\.safetensors"),
        (leave_out("sha256"), r"config\.json is damaged: 'sha256'"),
        (leave_out("datasets"), r"config\.json is damaged: .*'datasets'"),
        (
            leave_out("sha256", "adapter/adapter_model.safetensors"),
            r"lacks the sha256 of adapter/adapter_model\.safetensors",
        ),
        (write_config(b"\xff{}"), r"holds no exported model: 'utf-8' codec"),
        (write_config(b'{"schema_version": 2'), r"holds no exported model: Expecting"),
        (write_config(b"[]"), r"schema_version must be 2, got None"),
        (rewrite(schema_version=99), r"schema_version must be 2, got 99"),
        (add_hash("../outside"), r"names a file outside of it: \.\./outside"),
        (lambda folder: (folder / "config.json").unlink(), r"holds no exported model"),
        (lambda folder: (folder / "series-0.parquet").unlink(), r"cannot read .*series-0\.parquet"),
    ],
)
def test_a_damaged_model_is_refused_by_name(
    damage: Callable[[Path], None], message: str, config: RunConfig, tmp_path: Path
) -> None:
    export(config, tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(CheckpointError, match=message):
        read_card(tmp_path / "model")


class Trap:
    """What its pickle does when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["timellama.safetensors", "adapter/adapter_model.safetensors"])
def test_a_pickle_in_the_place_of_weights_is_refused_and_not_run(
    name: str, config: RunConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    export(config, folder)
    sprung = tmp_path / "sprung"
    (folder / name).write_bytes(pickle.dumps(Trap(sprung)))
    card = json.loads((folder / "config.json").read_text())
    # As one who wants it to be run would.
    card["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "config.json").write_text(json.dumps(card))

    with pytest.raises(CheckpointError, match=rf"cannot read .*{name}"):
        TimeLlamaForecaster.load(folder)

    assert not sprung.exists()
    pickle.loads((folder / name).read_bytes())
    assert sprung.exists()


def test_a_shard_is_not_exported_for_a_whole(config: RunConfig, tmp_path: Path) -> None:
    model = trained_model(config)
    card = ModelCard(config={}, datasets=[])
    with pytest.raises(CheckpointError, match=r"cannot export head\.weight: it is empty"):
        save_model(model, {"head.weight": torch.empty(0)}, tmp_path / "m", card, [])


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
from tests.support.runs import plain, plain_run

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


def two_sets(config: RunConfig, folder: Path) -> TimeLlama:
    """Export a model of two data sets, each with its own prompt, channels and scalers."""
    parts = [MixturePart(path="table.csv"), MixturePart(path="days.csv", name="days")]
    config = replace(config, data=replace(config.data, mixture=parts))
    days = DatasetCard(
        name="days",
        channels=["x"],
        frequency="D",
        prompt="d e f",
        season_len=7,
        options={},
        context_len=16,
        horizon=4,
    )
    model = build_model(
        config, Path(config.backbone.name), num_channels=2, prompts=[PROMPT, "d e f"]
    ).eval()
    files = []
    for mean, std in (([0.0, 1.0], [1.0, 2.0]), ([5.0], [10.0])):
        files.append(folder.parent / f"scalers-of-{len(mean)}.parquet")
        rows = {"unique_id": ["table"], "mean": [mean], "std": [std]}
        pq.write_table(pa.table(rows), files[-1])
    card = ModelCard(config=config.to_dict(), datasets=[TABLE, days])
    weights = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    save_model(model, weights, folder, card, files)
    return model


def test_a_model_of_two_sets_forecasts_each_by_its_prompt_channels_and_scalers(
    config: RunConfig, tmp_path: Path
) -> None:
    model = two_sets(config, tmp_path / "model")
    forecaster = TimeLlamaForecaster.load(tmp_path / "model")
    assert forecaster.datasets == ["table", "days"]
    values = np.random.default_rng(0).normal(5, 10, 16)
    frame = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=16, freq="D"), "x": values})
    actual = forecaster.predict(frame, dataset="days")
    past = torch.tensor((values - 5) / 10, dtype=torch.float32)[None, :, None]
    with torch.no_grad():
        mine, others = model(past, 1)[0, :, 0] * 10 + 5, model(past, 0)[0, :, 0] * 10 + 5
    np.testing.assert_allclose(actual["yhat"], mine.numpy(), rtol=1e-4, atol=1e-3)
    assert not torch.allclose(mine, others, rtol=1e-4, atol=1e-3)
    assert set(actual["channel"]) == {"x"}
    assert actual["ds"].iloc[0] == pd.Timestamp("2024-01-17")


def test_with_several_data_sets_the_frame_s_must_be_named(
    config: RunConfig, tmp_path: Path
) -> None:
    two_sets(config, tmp_path / "model")
    forecaster = TimeLlamaForecaster.load(tmp_path / "model")
    missing = r"^dataset must be given, for the model knows several: table, days$"
    with pytest.raises(ConfigError, match=missing):
        forecaster.predict(pd.DataFrame())
    with pytest.raises(ConfigError, match=missing):
        _ = forecaster.channels
    with pytest.raises(ConfigError, match=r"^dataset must be one of table, days, got 'hours'$"):
        forecaster.predict(pd.DataFrame(), dataset="hours")


def test_the_only_data_set_need_not_be_named(config: RunConfig, tmp_path: Path) -> None:
    export(config, tmp_path / "model")
    forecaster = TimeLlamaForecaster.load(tmp_path / "model")
    frame = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=16, freq="h")})
    frame["a"], frame["b"] = range(16), range(16)
    pd.testing.assert_frame_equal(
        forecaster.predict(frame), forecaster.predict(frame, dataset="table")
    )
    assert forecaster.channels == ["a", "b"]


def test_a_card_that_lacks_a_data_set_is_damaged(config: RunConfig, tmp_path: Path) -> None:
    two_sets(config, tmp_path / "model")
    content = json.loads((tmp_path / "model" / "config.json").read_text())
    rewrite(datasets=content["datasets"][:1])(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"is damaged: 1 datasets, and 2 in its config"):
        load_model(tmp_path / "model")


def test_weights_of_another_shape_are_refused_by_parameter(
    config: RunConfig, tmp_path: Path
) -> None:
    export(config, tmp_path / "model")
    rewrite(config=replace(config, data=replace(config.data, horizon=5)).to_dict())(
        tmp_path / "model"
    )
    with pytest.raises(
        CheckpointError,
        match=r"timellama\.safetensors is of another configuration: head\.weight has shape "
        r"\(4, 64\), the model wants \(5, 64\)",
    ):
        load_model(tmp_path / "model")


@pytest.fixture
def own_llama(config: RunConfig, tmp_path: Path) -> Path:
    """A copy of the backbone that a test may change."""
    return Path(shutil.copytree(config.backbone.name, tmp_path / "llama"))


def of_backbone(config: RunConfig, folder: Path) -> RunConfig:
    return replace(config, backbone=replace(config.backbone, name=str(folder)))


def write_other_weights(folder: Path) -> None:
    """Other weights of the same shape."""
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig.from_pretrained(folder)).save_pretrained(folder)


def test_a_backbone_with_other_weights_is_refused(
    config: RunConfig, own_llama: Path, tmp_path: Path
) -> None:
    config, folder = of_backbone(config, own_llama), tmp_path / "model"
    export(config, folder)
    expected = read_card(folder).backbone
    write_other_weights(own_llama)
    actual = backbone_fingerprint(config, own_llama)
    message = (
        f"backbone.name: '{own_llama}' has other weights now than those the model in {folder} was "
        f"trained with: fingerprint {actual}, not {expected} (read from {own_llama}); put the "
        "former ones back, or train anew"
    )
    opened = (load_model, TimeLlamaForecaster.load, lambda place: ExportedModel.open(str(place)))
    for opening in opened:
        with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
            opening(folder)


def test_the_same_backbone_in_another_place_forecasts_as_before(
    config: RunConfig, own_llama: Path, tmp_path: Path
) -> None:
    config, folder = of_backbone(config, own_llama), tmp_path / "model"
    model = export(config, folder)
    moved = own_llama.rename(tmp_path / "moved")
    rewrite(config=of_backbone(config, moved).to_dict())(folder)
    loaded, _ = load_model(folder)
    past = torch.randn(3, 16, 2)
    with torch.no_grad():
        torch.testing.assert_close(loaded(past), model(past), rtol=1e-5, atol=1e-5)


def test_a_model_from_before_there_were_fingerprints_loads(
    config: RunConfig, own_llama: Path, tmp_path: Path
) -> None:
    export(of_backbone(config, own_llama), tmp_path / "model")
    leave_out("backbone")(tmp_path / "model")
    write_other_weights(own_llama)
    _, card = load_model(tmp_path / "model")
    assert card.backbone is None
