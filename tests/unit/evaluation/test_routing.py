"""What the routers chose, counted over windows that count."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.runs import plain, plain_run
from timellama_dist.config.schema import (
    BackboneSection,
    DataSection,
    DLoraSection,
    ModelSection,
)
from timellama_dist.evaluation.windows import evaluate
from timellama_dist.model.build import build_model


@pytest.mark.parametrize("attention", ["full", "independent"])
def test_padding_counts_nothing(attention: str, tiny_llama: Path) -> None:
    config = plain_run(
        data=plain(DataSection, context_len=12, horizon=4),
        backbone=plain(
            BackboneSection,
            name=str(tiny_llama),
            num_blocks=2,
            quantization="none",
            attention=attention,
        ),
        dlora=DLoraSection(num_experts=2, rank=2, top_n=5),
        model=plain(ModelSection, alignment_heads=4),
    )
    model = build_model(config, tiny_llama, num_channels=3, prompts=["a b"]).eval()
    rng = np.random.default_rng(0)
    past, future = rng.standard_normal((2, 4, 12, 3)).astype("f4")
    weight = np.array([1, 0, 1, 1], "f4")
    batches = [{"past": past, "future": future[:, :4], "weight": weight}] * 2
    _, found = evaluate(model, batches, horizon=4, num_channels=3)
    assert found is not None
    chosen, samples = np.zeros((2, 7, 2)), 0
    for number in (0, 2, 3):
        with torch.no_grad():
            model(torch.from_numpy(past[number : number + 1]))
        one = model.dlora.router_statistics()
        chosen += 2 * one.chosen.numpy()
        samples += 2 * int(one.num_samples)
    assert samples == (6 if attention == "full" else 18)
    assert found["samples"] == samples
    np.testing.assert_array_equal(found["chosen"], chosen)
    assert np.array(found["chosen"]).sum(axis=(1, 2)).tolist() == [5 * samples] * 2
    assert all(0 < one <= np.log(14) for one in found["entropy"])


def test_without_adapters_there_is_nothing_to_count() -> None:
    class Repeat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, past: torch.Tensor, dataset: int) -> torch.Tensor:
            return past[:, -1:]

    batch = {"past": np.ones((1, 2, 1)), "future": np.ones((1, 1, 1)), "weight": np.ones(1)}
    assert evaluate(Repeat(), [batch], horizon=1, num_channels=1)[1] is None
