"""The linear shortcut inside the model: where a run starts, what trains, what is missing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.runs import plain, plain_run
from timellama_dist.config.schema import BackboneSection, DataSection, ModelSection
from timellama_dist.evaluation.windows import evaluate
from timellama_dist.model.linear_fit import fill_missing
from timellama_dist.model.linear_map import LinearShortcut, fill_forward
from timellama_dist.model.timellama import (
    TimeLlama,
    build_model,
    path_shares,
    with_path_share,
)

CONTEXT, HORIZON = 12, 4


def model(llama: Path, maps: list[torch.Tensor] | None, **section) -> TimeLlama:
    config = plain_run(
        data=plain(DataSection, context_len=CONTEXT, horizon=HORIZON),
        backbone=plain(BackboneSection, name=str(llama), num_blocks=2),
        model=plain(ModelSection, alignment_heads=4, **section),
    )
    return build_model(
        config, llama, num_channels=3, prompts=["the a", "of b"], shortcuts=maps
    ).eval()


def random_map(context: int = CONTEXT, horizon: int = HORIZON) -> torch.Tensor:
    raw = torch.rand(context, horizon, generator=torch.Generator().manual_seed(context))
    return raw / raw.sum(dim=0)


@pytest.mark.parametrize("section", [{}, {"affine": True}, {"centre": "last"}, {"clip": 4.0}])
def test_a_run_begins_with_the_map_of_each_data_set(
    tiny_llama: Path, section: dict[str, Any]
) -> None:
    maps = [random_map(), random_map(8, 3)]
    started = model(tiny_llama, maps, shortcut="frozen", **section)
    past = 5 + 3 * torch.randn(2, CONTEXT, 3, generator=torch.Generator().manual_seed(0))
    past[0, 3:5, 1] = past[1, -1, 0] = torch.nan
    most = section.get("clip", np.inf)
    filled = torch.from_numpy(fill_missing(past.numpy())).clamp(-most, most)
    for number, (steps, map_LH) in enumerate(zip((12, 8), maps, strict=True)):
        expected = torch.einsum("blc,lh->bhc", filled[:, -steps:], map_LH)
        found = started(past, number)[:, : map_LH.shape[1]]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_each_channel_may_have_a_map_of_its_own(tiny_llama: Path) -> None:
    maps = [torch.stack([random_map().roll(shift, 0) for shift in range(3)])] * 2
    started = model(tiny_llama, maps, shortcut="frozen", shortcut_per_channel=True)
    past = 5 + 3 * torch.randn(2, CONTEXT, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.einsum("blc,clh->bhc", past, maps[0])
    torch.testing.assert_close(started(past), expected, atol=1e-5, rtol=1e-5)
    emptied = model(tiny_llama, None, shortcut="frozen", shortcut_per_channel=True)
    # As it is before weights are read into it.
    emptied.load_state_dict({"shortcuts.1.map_LH": maps[1]}, strict=False)
    torch.testing.assert_close(emptied(past, 1), expected, atol=1e-5, rtol=1e-5)


def test_the_first_step_moves_the_head_and_a_trainable_map(tiny_llama: Path) -> None:
    for kind in ("frozen", "trainable"):
        started = model(tiny_llama, [random_map(), random_map()], shortcut=kind)
        started(torch.randn(2, CONTEXT, 3)).square().mean().backward()
        gradients = {name: p.grad for name, p in started.named_parameters() if p.grad is not None}
        moved = {name for name, gradient in gradients.items() if gradient.any()}
        assert {"head.weight", "head.bias"} <= moved
        assert ("shortcuts.0.map_LH" in moved) == (kind == "trainable")


def test_a_frozen_map_keeps_its_precision_where_the_model_is_cast() -> None:
    map_LH = random_map()
    frozen = LinearShortcut(map_LH, (CONTEXT, HORIZON)).bfloat16()
    assert torch.equal(frozen.map_LH, map_LH)
    trained = LinearShortcut(map_LH, (CONTEXT, HORIZON), trainable=True).bfloat16()
    assert trained.map_LH.dtype == torch.bfloat16
    past = torch.randn(2, CONTEXT, 3)
    assert trained(past, past.mean(dim=1, keepdim=True)).dtype == torch.float32


def test_missing_values_are_filled_as_the_linear_baseline_fills_them() -> None:
    rng = np.random.default_rng(0)
    past = rng.normal(size=(20, CONTEXT, 3))
    past[rng.random(past.shape) < 0.4] = np.nan
    past[3, :, 1] = np.nan
    np.testing.assert_array_equal(fill_forward(torch.from_numpy(past)).numpy(), fill_missing(past))


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_a_share_of_the_path_is_what_the_model_with_that_share_of_its_head_forecasts(
    tiny_llama: Path, share: float
) -> None:
    trained = model(tiny_llama, [random_map(), random_map()], shortcut="frozen", clip=1.0)
    rng = np.random.default_rng(0)
    batch = {
        "past": rng.normal(size=(4, CONTEXT, 3)).astype(np.float32),
        "future": rng.normal(size=(4, HORIZON, 3)).astype(np.float32),
        "weight": np.ones(4),
    }
    batch["past"][1, 2:4] = np.nan
    with torch.no_grad():
        trained.head.weight.normal_()
        trained.head.bias.normal_()

    def errors(*shares: float) -> dict[float, dict[str, float]]:
        found, _ = evaluate(
            trained, [batch], horizon=HORIZON, num_channels=3, dataset=1, shares=shares
        )
        return {one: sums.summary() for one, sums in found.items()}

    found = errors(1.0, share)
    assert found[1.0] == errors(1.0)[1.0] != found[share]
    # Not those of the 4-bit backbone, which has no names to load them by.
    own = {name: one.detach() for name, one in trained.named_parameters() if one.requires_grad}
    trained.load_state_dict(with_path_share(own, share), strict=False)
    assert errors(1.0)[1.0] == pytest.approx(found[share], rel=1e-5)


def test_the_path_is_divided_only_beside_a_map_that_stays() -> None:
    sections = ({"shortcut": "frozen"}, {"shortcut": "frozen", "affine": True})
    wholes = ({}, {"shortcut": "trainable"}, sections[1])
    assert len(path_shares(plain_run(model=plain(ModelSection, **sections[0])))) == 4
    assert {path_shares(plain_run(model=plain(ModelSection, **one))) for one in wholes} == {(1.0,)}


def test_without_a_shortcut_there_is_none(tiny_llama: Path) -> None:
    alone = model(tiny_llama, None)
    assert not alone.shortcuts
    assert alone.head.weight.any()
