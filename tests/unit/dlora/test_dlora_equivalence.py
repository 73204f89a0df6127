"""The model's outputs and gradients against PEFT's own LoRA and against a loop over experts."""

import itertools

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tests.support.adapters import plain_config
from timellama_dist.dlora import DLoraConfig
from timellama_dist.dlora.settings import LLAMA_LINEARS

EXACT = {"rtol": 1e-4, "atol": 1e-6}


def run(model: nn.Module, hidden_BTD: Tensor) -> Tensor:
    return model(inputs_embeds=hidden_BTD, use_cache=False).last_hidden_state


def backward(model: nn.Module, hidden_BTD: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients, each by its name up to the adapter's."""
    output = run(model, hidden_BTD)
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    (output * weights).sum().backward()
    return output.detach(), {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.grad is not None
    }


def lora_on(base: nn.Module, rank: int, alpha: float) -> peft.PeftModel:
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(LLAMA_LINEARS))
    return peft.get_peft_model(base, config)


def copy_experts(source: nn.Module, target: nn.Module) -> None:
    """Copy D-LoRA's stacked experts into a LoRA of the same total rank."""
    weights = dict(source.named_parameters())
    for name, parameter in target.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(weights[name.replace("lora_", "dlora_")].data)


@pytest.mark.parametrize("nf4", [False, True])
@pytest.mark.parametrize(
    ("num_experts", "rank", "lora_rank", "lora_alpha"),
    [(1, 4, 4, 16.0), (4, 2, 8, 64.0)],  # alpha / R is 4 and 8, of both
)
def test_with_every_expert_chosen_it_is_pefts_lora(
    llama, dlora, hidden_BTD, nf4, num_experts, rank, lora_rank, lora_alpha
):
    ours = dlora(nf4=nf4, num_experts=num_experts, rank=rank, top_n=7 * num_experts, gate="binary")
    theirs = lora_on(llama(nf4=nf4), lora_rank, lora_alpha)
    copy_experts(ours, theirs)
    our_output, our_gradients = backward(ours, hidden_BTD)
    their_output, their_gradients = backward(theirs, hidden_BTD)
    torch.testing.assert_close(our_output, their_output, **EXACT)
    assert len(their_gradients) == 2 * 7 * 2
    assert not any("router" in name for name in our_gradients)
    for name, gradient in their_gradients.items():
        torch.testing.assert_close(
            our_gradients[name.replace("lora_", "dlora_")], gradient, **EXACT
        )


class NaiveDLora:
    """D-LoRA written as loops over samples, modules and experts, hooked onto a plain model."""

    def __init__(self, base: nn.Module, ours: nn.Module, config: DLoraConfig) -> None:
        self.base, self.config = base, config
        self.parameters = {
            name.removeprefix("base_model.model."): parameter.detach().clone().requires_grad_()
            for name, parameter in ours.named_parameters()
            if "dlora_" in name
        }
        self.gates: dict[tuple[int, int], Tensor] = {}
        self.block = ""
        for index, layer in enumerate(base.layers):
            layer.register_forward_pre_hook(self.route(f"layers.{index}"))
        for name, module in base.named_modules():
            if name.endswith(LLAMA_LINEARS):
                module.register_forward_hook(self.add_experts(name))

    def __call__(self, hidden_BTD: Tensor) -> Tensor:
        """One sample at a time."""
        return torch.cat([run(self.base, hidden_BTD[i : i + 1]) for i in range(len(hidden_BTD))])

    def pool(self, hidden_TD: Tensor, router: str) -> Tensor:
        if self.config.pooling == "last":
            return hidden_TD[-1]
        if self.config.pooling == "mean":
            return sum(hidden_TD) / len(hidden_TD)
        query_D = self.parameters[f"{router}.dlora_pool.default.weight"][0]
        weights = [torch.exp(token_D @ query_D) for token_D in hidden_TD]
        weighted = [weight * token_D for weight, token_D in zip(weights, hidden_TD, strict=True)]
        return sum(weighted) / sum(weights)

    def route(self, block: str):
        def hook(module, args):
            c, router = self.config, f"{block}.dlora_router"
            act = {"gelu": F.gelu, "relu": F.relu, "tanh": torch.tanh, "none": lambda x: x}
            pooled_D = act[c.router_activation](self.pool(args[0][0], router))
            scores_X = self.parameters[f"{router}.dlora_score.default.weight"] @ pooled_D
            experts = list(itertools.product(range(7), range(c.num_experts)))
            pools = (
                [experts]
                if c.scope == "block"
                else [[(m, e) for e in range(c.num_experts)] for m in range(7)]
            )
            self.gates = {}
            for pool in pools:
                logits = torch.stack([scores_X[m * c.num_experts + e] for m, e in pool])
                p = torch.exp(logits) / torch.exp(logits).sum()
                ranked = sorted(range(len(pool)), key=lambda i, p=p: -p[i].item())
                winners = ranked[: c.top_n]
                for i, expert in enumerate(pool):
                    hard = torch.tensor(float(i in winners))
                    if c.gate == "probability":
                        self.gates[expert] = hard * c.top_n * p[i] / sum(p[j] for j in winners)
                    elif c.gate == "straight_through":
                        self.gates[expert] = hard + (p[i] - p[i].detach())
                    else:
                        self.gates[expert] = hard

        return hook

    def add_experts(self, linear: str):
        def hook(module, args, output):
            c = self.config
            m = LLAMA_LINEARS.index(linear.rsplit(".", 1)[1])
            A = self.parameters[f"{linear}.dlora_A.default.weight"].split(c.rank, dim=0)
            B = self.parameters[f"{linear}.dlora_B.default.weight"].split(c.rank, dim=1)
            for e in range(c.num_experts):
                expert_output = args[0] @ A[e].T @ B[e].T
                output = output + self.gates[m, e] * (c.alpha / c.rank) * expert_output
            return output

        return hook


CASES = [
    *(
        {"scope": scope, "gate": gate}
        for scope in ("block", "module")
        for gate in ("probability", "straight_through", "binary")
    ),
    {"pooling": "mean", "router_activation": "relu"},
    {"pooling": "attention", "router_activation": "tanh"},
    {"num_experts": 1, "top_n": 4, "router_activation": "none"},
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_stacked_experts_equal_a_loop_over_experts_and_samples(llama, dlora, hidden_BTD, case):
    values = {"num_experts": 3, "rank": 2, "alpha": 3.0, "top_n": 2, **case}
    ours = dlora(**values)
    naive = NaiveDLora(llama(), ours, plain_config(**values))
    our_output, our_gradients = backward(ours, hidden_BTD)
    naive_output = naive(hidden_BTD)
    torch.testing.assert_close(our_output, naive_output.detach(), **EXACT)
    weights = torch.linspace(-1, 1, naive_output.numel()).view_as(naive_output)
    (naive_output * weights).sum().backward()
    for name, parameter in naive.parameters.items():
        gradient = our_gradients.get(f"base_model.model.{name}")
        if gradient is None:
            assert case.get("gate") == "binary"
            assert parameter.grad is None
            assert "router" in name
        else:
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("nf4", [False, True])
def test_an_untrained_adapter_equals_its_base(llama, hidden_BTD, nf4):
    base = llama(nf4=nf4)
    expected = run(base, hidden_BTD)
    model = peft.get_peft_model(base, plain_config())
    assert torch.equal(run(model, hidden_BTD), expected)


def test_a_samples_output_does_not_depend_on_its_batch_mates(dlora, hidden_BTD):
    model = dlora(rank=2)
    together = run(model, hidden_BTD)
    chosen = model.router_statistics().chosen
    assert ((chosen > 0) & (chosen < len(hidden_BTD))).any()  # samples do choose differently
    for i in range(len(hidden_BTD)):
        torch.testing.assert_close(run(model, hidden_BTD[i : i + 1]), together[i : i + 1], **EXACT)


@pytest.mark.parametrize(
    ("gate", "reached"), [("probability", True), ("straight_through", True), ("binary", False)]
)
def test_the_task_loss_reaches_the_router_unless_gates_are_binary(dlora, hidden_BTD, gate, reached):
    model = dlora(gate=gate)
    _, gradients = backward(model, hidden_BTD)
    routers = [gradient for name, gradient in gradients.items() if "dlora_score" in name]
    assert len(routers) == (2 if reached else 0)
    assert all(gradient.abs().max() > 0 for gradient in routers)


@pytest.mark.parametrize("gate", ["probability", "straight_through", "binary"])
def test_the_balance_loss_reaches_every_router(dlora, hidden_BTD, gate):
    model = dlora(gate=gate)
    run(model, hidden_BTD)
    model.balance_loss().backward()
    routers = [p.grad for name, p in model.named_parameters() if "dlora_score" in name]
    assert all(gradient.abs().max() > 0 for gradient in routers)


def test_an_expert_starts_as_one_of_pefts_lora_does(llama):
    torch.manual_seed(3)
    model = peft.get_peft_model(llama(), plain_config(num_experts=4, rank=8))
    bound = (1 / 32) ** 0.5  # kaiming_uniform(a=sqrt(5)): 1 / sqrt(fan in)
    weight = model.get_submodule("base_model.model.layers.0.self_attn.q_proj").dlora_A["default"]
    for expert in weight.weight.split(8):
        assert expert.abs().max() <= bound
        assert abs(expert.std().item() - bound / 3**0.5) < 0.15 * bound


def test_dropout_acts_on_the_experts_input_only_in_training(dlora, hidden_BTD):
    model = dlora(dropout=0.5)
    model.eval()
    first = run(model, hidden_BTD)
    assert torch.equal(run(model, hidden_BTD), first)
    torch.testing.assert_close(first, run(dlora().eval(), hidden_BTD))
    model.train()
    assert not torch.allclose(run(model, hidden_BTD), first)
