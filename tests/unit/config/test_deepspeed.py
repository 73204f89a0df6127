import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import plain, plain_run
from timellama_dist.config.deepspeed import load_policy, resolve_deepspeed
from timellama_dist.config.schema import RunConfig, TrainSection
from timellama_dist.errors import ConfigError

POLICIES = sorted((Path(__file__).parents[3] / "ds_configs").glob("*.json"))


def resolve(policy: dict[str, Any], config: RunConfig | None = None, **facts: Any) -> Any:
    known = {"world_size": 2, "hidden_size": 4096, "use_gpu": False} | facts
    return resolve_deepspeed(policy, config or plain_run(), **known)


@pytest.mark.parametrize("file", POLICIES, ids=lambda file: file.name)
def test_every_shipped_policy_resolves_completely(file: Path) -> None:
    resolved = resolve(load_policy(str(file)))
    assert "auto" not in json.dumps(resolved)
    assert resolved["train_batch_size"] == 64


def test_a_run_without_a_policy_takes_the_packaged_zero3() -> None:
    (file,) = [file for file in POLICIES if file.name == "zero3.json"]
    assert json.loads(file.read_text()) == load_policy(None) == load_policy("zero3")


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 4), (2, 2), (4, 1)])
def test_the_global_batch_stays_when_workers_come_and_go(
    world_size: int, accumulation: int
) -> None:
    config = plain_run(train=plain(TrainSection, batch_size=64, micro_batch_size=16))
    resolved = resolve({}, config, world_size=world_size)
    assert resolved["gradient_accumulation_steps"] == accumulation
    assert resolved["train_batch_size"] == 64


def test_precision_follows_the_device_unless_said() -> None:
    assert not resolve({}, use_gpu=False)["bf16"]["enabled"]
    assert resolve({}, use_gpu=True)["bf16"]["enabled"]
    said = plain_run(train=plain(TrainSection, precision="fp32"))
    assert not resolve({}, said, use_gpu=True)["bf16"]["enabled"]


def test_not_clipping_is_written_out_because_deepspeed_clips_by_default() -> None:
    config = plain_run(train=replace(plain(TrainSection), clip_norm=0.0))
    assert resolve({}, config)["gradient_clipping"] == 0.0


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (
            {"train_batch_size": 65},
            r"train_batch_size=65 .* contradicts 64 from train\.batch_size",
        ),
        ({"gradient_clipping": 2.0}, r"gradient_clipping=2\.0 .* contradicts 1\.0"),
        (
            {"optimizer": {"params": {"lr": 0.5}}},
            r"optimizer\.params\.lr=0\.5 .* contradicts 0\.001 from train\.learning_rate",
        ),
        ({"optimizer": {"type": "SGD"}}, r"optimizer\.type='SGD' .* contradicts 'AdamW'"),
        (
            {"train_micro_batch_size_per_gpu": 16},
            r"train_micro_batch_size_per_gpu=16 .* contradicts 32 from train\.micro_batch_size",
        ),
        (
            {"gradient_accumulation_steps": 2},
            r"gradient_accumulation_steps=2 .* contradicts 1 from train\.batch_size, ",
        ),
        (
            {"optimizer": {"params": {"weight_decay": 0.1}}},
            r"optimizer\.params\.weight_decay=0\.1 .* contradicts 0\.0 from train\.weight_decay",
        ),
        (
            {"optimizer": {"params": {"torch_adam": False}}},
            r"optimizer\.params\.torch_adam=False .* contradicts True",
        ),
        (
            {"zero_force_ds_cpu_optimizer": True},
            r"zero_force_ds_cpu_optimizer=True .* contradicts False",
        ),
        ({"bfloat16": {"enabled": True}}, r"bfloat16 cannot be set .* the key is bf16"),
        ({"bf16": {"enabled": True}}, r"bf16\.enabled=True .* train\.precision"),
        ({"scheduler": {"type": "WarmupLR"}}, r"scheduler cannot be set .* train\.schedule"),
        ({"fp16": {"enabled": True}}, r"fp16 cannot be set"),
        ({"zero_optimization": {"stage": 4}}, r"stage must be 0, 1, 2 or 3, got 4"),
        ({"zero_optimization": {"stage": "3"}}, r"stage must be 0, 1, 2 or 3, got '3'"),
        ({"zero_optimization": {"stage": True}}, r"stage must be 0, 1, 2 or 3, got True"),
        ({"zero_optimization": 2}, r"zero_optimization must be a JSON object, got 2"),
        ({"optimizer": "AdamW"}, r"optimizer must be a JSON object, got 'AdamW'"),
        ({"optimizer": {"params": None}}, r"optimizer\.params must be a JSON object, got None"),
        ({"bf16": True}, r"bf16 must be a JSON object, got True"),
        (
            {"bf16": {"check_grad_overflow": False}},
            r"bf16\.check_grad_overflow must be true, got False; a step whose gradient is not",
        ),
        (
            {"zero_optimization": {"stage": 2, "compute_grad_norm": False}},
            r"zero_optimization\.compute_grad_norm must be true, got False",
        ),
        ({"comms_logger": {"prof_ops": ["auto"]}}, r'comms_logger\.prof_ops\[0\] is "auto"'),
        (
            {"zero_optimization": {"stage": 3, "sub_group_size": "auto"}},
            r'zero_optimization\.sub_group_size is "auto"',
        ),
    ],
)
def test_a_policy_that_contradicts_the_run_is_refused(policy: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(policy)


def test_auto_and_equal_values_are_accepted() -> None:
    policy = {"train_batch_size": 64, "gradient_clipping": "auto", "fp16": {"enabled": False}}
    assert resolve(policy)["gradient_clipping"] == 1.0


def test_a_file_written_for_transformers_resolves_every_auto() -> None:
    policy = {
        "fp16": {"enabled": "auto", "loss_scale": 0},
        "bf16": {"enabled": "auto"},
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
        },
        "zero_optimization": {
            "stage": 3,
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
        },
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }
    given = json.dumps(policy)
    resolved = resolve(policy)
    assert json.dumps(policy) == given, "the caller's policy was changed"
    assert resolved["fp16"]["enabled"] is False
    adam = resolved["optimizer"]["params"]
    assert (adam["lr"], adam["betas"], adam["eps"]) == (0.001, [0.9, 0.999], 1e-8)
    zero = resolved["zero_optimization"]
    assert zero["reduce_bucket_size"] == 4096 * 4096
    assert zero["stage3_prefetch_bucket_size"] == 15_099_494  # 0.9 x 4096 x 4096
    assert zero["stage3_param_persistence_threshold"] == 40_960


def test_what_the_file_says_of_its_own_is_kept() -> None:
    policy = {
        "optimizer": {"params": {"betas": [0.8, 0.9]}},
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 1000},
    }
    resolved = resolve(policy)
    assert resolved["optimizer"]["params"]["betas"] == [0.8, 0.9]
    assert resolved["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000}


def test_a_file_that_is_missing_or_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere\.json: No such file"):
        load_policy(str(tmp_path / "nowhere.json"))
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(ConfigError, match=r"broken\.json is not JSON: .* in line 1"):
        load_policy(str(broken))
    array = tmp_path / "array.json"
    array.write_text("[1]")
    with pytest.raises(ConfigError, match=r"array\.json must hold one JSON object, got a list$"):
        load_policy(str(array))
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe{")
    with pytest.raises(ConfigError, match=r"binary\.json is not JSON: 'utf-8' codec"):
        load_policy(str(binary))
