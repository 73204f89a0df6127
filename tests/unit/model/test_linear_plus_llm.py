"""The linear map beside the LLM path: where a run starts, what trains, what a share changes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.runs import plain, plain_run
from timellama_dist.config.schema import BackboneSection, DataSection, ModelSection
from timellama_dist.evaluation.windows import evaluate
from timellama_dist.model.build import build_model
from timellama_dist.model.linear_fit import fill_missing
from timellama_dist.model.linear_plus_llm import path_shares, with_path_share
from timellama_dist.model.timellama import TimeLlama

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
        forecast = started(past, number)[:, : map_LH.shape[1]]
        torch.testing.assert_close(forecast, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_the_forecast_is_the_paper_s_plus_the_map_s(tiny_llama: Path, clip: float | None) -> None:
    maps = [random_map(), random_map(8, 3)]
    both = model(tiny_llama, maps, shortcut="frozen", clip=clip)
    with torch.no_grad():
        both.head.weight.normal_(generator=torch.Generator().manual_seed(1))
    paper = model(tiny_llama, None)
    assert type(paper) is TimeLlama
    weights = {name: p for name, p in both.named_parameters() if p.requires_grad}
    paper.load_state_dict({name: p.detach() for name, p in weights.items()}, strict=False)
    past = 5 + 3 * torch.randn(2, CONTEXT, 3, generator=torch.Generator().manual_seed(0))
    seen = past if clip is None else past.clamp(-clip, clip)
    centred = seen - seen.mean(dim=1, keepdim=True)
    expected = paper(seen) + torch.einsum("blc,lh->bhc", centred, maps[0])
    torch.testing.assert_close(both(past), expected, atol=1e-5, rtol=1e-5)
    mapped = torch.einsum("blc,lh->bhc", seen, maps[0])
    torch.testing.assert_close(both.mapped(past), mapped, atol=1e-5, rtol=1e-5)


def test_a_clip_without_a_map_bounds_what_the_model_sees(tiny_llama: Path) -> None:
    clipped, plain = model(tiny_llama, None, clip=1.0), model(tiny_llama, None)
    past = 3 * torch.randn(2, CONTEXT, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(clipped(past), plain(past.clamp(-1, 1)))
    assert not torch.equal(clipped(past), plain(past))


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
        sums_by_share, _ = evaluate(
            trained, [batch], horizon=HORIZON, num_channels=3, dataset=1, shares=shares
        )
        return {share: sums.summary() for share, sums in sums_by_share.items()}

    measured = errors(1.0, share)
    assert measured[1.0] == errors(1.0)[1.0] != measured[share]
    # Not those of the 4-bit backbone, which has no names to load them by.
    own = {name: p.detach() for name, p in trained.named_parameters() if p.requires_grad}
    trained.load_state_dict(with_path_share(own, share), strict=False)
    assert errors(1.0)[1.0] == pytest.approx(measured[share], rel=1e-5)


def test_the_path_is_divided_only_beside_a_map_that_stays() -> None:
    sections = ({"shortcut": "frozen"}, {"shortcut": "frozen", "affine": True})
    wholes = ({}, {"shortcut": "trainable"}, sections[1])
    assert len(path_shares(plain_run(model=plain(ModelSection, **sections[0])))) == 4
    assert {path_shares(plain_run(model=plain(ModelSection, **section))) for section in wholes} == {
        (1.0,)
    }


def test_without_a_shortcut_there_is_none(tiny_llama: Path) -> None:
    alone = model(tiny_llama, None)
    assert type(alone) is TimeLlama
    assert not [name for name in alone.state_dict() if name.startswith("shortcuts.")]
    assert alone.head.weight.any()
