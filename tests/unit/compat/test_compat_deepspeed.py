"""DeepSpeed's private calls do what is asked of them: real engines on one gloo rank."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from timellama_dist.compat import deepspeed as compat

POLICIES: dict[str, dict[str, Any]] = {
    "stage 0": {},
    "stage 0 in bf16": {"bf16": {"enabled": True}},
    "stage 1": {"zero_optimization": {"stage": 1}},
    "stage 3": {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}},
}
ZERO = ("stage 1", "stage 3")


def ds_config(name: str) -> dict[str, Any]:
    common = {"train_micro_batch_size_per_gpu": 2, "gradient_clipping": 0.0}
    return {
        **common,
        "optimizer": {"type": "AdamW", "params": {"lr": 0.1, "torch_adam": True}},
        "zero_allow_untested_optimizer": True,
        **POLICIES[name],
    }


class Twice(nn.Module):
    """Two linear layers, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


@pytest.fixture(scope="module", autouse=True)
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import deepspeed

    if deepspeed.get_accelerator().device_name() != "cpu":
        pytest.skip("gloo ranks need DS_ACCELERATOR=cpu")
    rendezvous = tmp_path_factory.mktemp("group") / "rendezvous"
    os.environ["LOCAL_RANK"] = "0"
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1
    )
    compat.init_process_group()
    yield
    torch.distributed.destroy_process_group()


def make_engine(name: str, model: nn.Module | None = None) -> Any:
    import deepspeed

    torch.manual_seed(0)
    model = model or Twice()
    parameters = list(model.parameters())
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=parameters, config=ds_config(name)
    )
    return engine


@pytest.fixture(scope="module", params=POLICIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def engine(name: str) -> Any:
    """An engine that has made one step."""
    engine = make_engine(name)
    compat.forget_made_step(engine)
    step(engine)
    return engine


def step(engine: Any, target: float = 1.0) -> None:
    dtype = next(engine.module.parameters()).dtype
    forecast = engine(torch.ones(2, 3, dtype=dtype))
    engine.backward((forecast - target).square().mean())
    engine.step()


def test_deepspeed_knows_the_process_group() -> None:
    import deepspeed

    assert deepspeed.comm.get_world_size() == 1


def test_blocks_are_sharded_one_after_the_other_and_keep_their_shape() -> None:
    first, second = nn.Linear(3, 4), nn.Linear(4, 2)
    weight = first.weight.detach().clone()
    sharded = compat.shard_first(first, ds_config("stage 3"))
    compat.shard_more(sharded, second.parameters())
    for block, shape in ((first, (4, 3)), (second, (2, 4))):
        assert block.weight.numel() == 0
        assert compat.whole_shape(block.weight) == shape
    import deepspeed

    with deepspeed.zero.GatheredParameters([first.weight]):
        assert torch.equal(first.weight, weight)


def test_the_shape_of_a_plain_parameter_is_its_own() -> None:
    assert compat.whole_shape(nn.Parameter(torch.zeros(2, 5))) == (2, 5)


def test_a_class_of_modules_is_gathered_at_once_and_one_that_is_absent_is_no_error() -> None:
    from deepspeed.utils import z3_leaf_module

    model = nn.Sequential(Twice())
    compat.gather_at_once(model, [Twice, nn.Conv1d])
    assert z3_leaf_module(model[0])
    assert not z3_leaf_module(model)


def test_the_inner_optimizer_is_torch_s_and_counts_the_steps(engine: Any) -> None:
    optimizer = compat.torch_optimizer(engine)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert {float(state["step"]) for state in optimizer.state.values()} == {1.0}


def test_a_fresh_engine_has_counted_no_step(name: str) -> None:
    engine = make_engine(name)
    compat.forget_made_step(engine)
    states = compat.torch_optimizer(engine).state.values()
    assert all(float(state["step"]) == 0 for state in states)


def test_the_count_of_steps_is_set_for_every_parameter(engine: Any) -> None:
    compat.set_step_count(engine, 7)
    states = list(compat.torch_optimizer(engine).state.values())
    assert states
    assert {float(state["step"]) for state in states} == {7.0}
    compat.set_step_count(engine, 1)


def test_zero_alone_keeps_optimizer_state_in_shards(name: str, engine: Any) -> None:
    for parameter in engine.module.parameters():
        assert compat.is_sharded(parameter) == (name in ZERO)
        assert (compat.plain_state(engine, parameter) is None) == (name in ZERO)


def test_plain_state_holds_the_moments(name: str, engine: Any) -> None:
    for parameter in engine.module.parameters():
        state = compat.plain_state(engine, parameter)
        if state is None:
            # ZeRO's are DeepSpeed's public calls to get.
            assert name in ZERO
            continue
        assert state["exp_avg"].shape == parameter.shape
        assert state["exp_avg"].any()


def test_bf16_without_zero_alone_has_plain_masters(name: str, engine: Any) -> None:
    masters = compat.plain_masters(engine)
    if name != "stage 0 in bf16":
        assert masters == {}
        return
    assert masters.keys() == set(engine.module.parameters())
    for parameter, master in masters.items():
        assert master.dtype == torch.float32
        assert torch.equal(master.bfloat16(), parameter)


def test_it_is_known_which_engines_skip_a_gradient_that_is_not_finite(name: str) -> None:
    engine = make_engine(name)
    step(engine, target=float("inf"))
    weights = [p.detach().float() for p in engine.module.parameters() if p.numel()]
    made = any(not weight.isfinite().all() for weight in weights)
    if compat.skips_overflow(engine):
        assert not engine.was_step_applied()
        assert not made
    else:
        assert name == "stage 0"
        assert made
