"""What PEFT promises of a tuner: freezing, saving, several adapters, switching off, unloading."""

import copy
import pickle

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from tests.support.adapters import plain_config
from timellama_dist.dlora.layer import BlockRouter, DLoraLayer
from timellama_dist.errors import ConfigError


def run(model: nn.Module, hidden_BTD: Tensor) -> Tensor:
    output = model(inputs_embeds=hidden_BTD, use_cache=False)
    return output.logits if "logits" in output else output.last_hidden_state


def scramble(model: nn.Module, adapter: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if f".{adapter}." in name and "dlora_A" not in name:
            parameter.data.normal_(std=0.3, generator=generator)


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("nf4", [False, True])
@pytest.mark.parametrize("causal_lm", [False, True])
def test_only_dlora_parameters_train(dlora, causal_lm, nf4):
    model = dlora(causal_lm=causal_lm, nf4=nf4, pooling="attention")
    names = trainable(model)
    assert all("dlora_" in name for name in names)
    assert len(names) == 2 * (7 * 2 + 2)
    assert all(("dlora_" in name) == p.requires_grad for name, p in model.named_parameters())


@pytest.mark.parametrize("pooling", ["last", "attention"])
@pytest.mark.parametrize("nf4", [False, True])
@pytest.mark.parametrize("causal_lm", [False, True])
def test_a_saved_adapter_loads_with_equal_outputs(
    llama, dlora, hidden_BTD, tmp_path, causal_lm, nf4, pooling
):
    model = dlora(causal_lm=causal_lm, nf4=nf4, pooling=pooling).eval()
    model.save_pretrained(str(tmp_path))
    assert (tmp_path / "adapter_model.safetensors").exists()
    loaded = peft.PeftModel.from_pretrained(llama(causal_lm=causal_lm, nf4=nf4), str(tmp_path))
    assert torch.equal(run(loaded, hidden_BTD), run(model, hidden_BTD))
    assert not trainable(loaded)


def test_a_saved_adapter_loads_under_another_name_and_without_cpu_memory(
    llama, dlora, hidden_BTD, tmp_path
):
    model = dlora(pooling="attention").eval()
    model.save_pretrained(str(tmp_path))
    loaded = peft.PeftModel.from_pretrained(
        llama(), str(tmp_path), adapter_name="other", low_cpu_mem_usage=True, is_trainable=True
    ).eval()
    assert torch.equal(run(loaded, hidden_BTD), run(model, hidden_BTD))
    assert len(trainable(loaded)) == 2 * (7 * 2 + 2)


def test_a_state_dict_gathered_elsewhere_is_what_gets_saved(llama, dlora, hidden_BTD, tmp_path):
    model = dlora().eval()
    gathered = {name: 2 * value for name, value in model.state_dict().items() if "dlora" in name}
    selected = peft.get_peft_model_state_dict(model, state_dict=gathered)
    assert len(selected) == len(gathered) == 2 * (7 * 2 + 1)
    assert not any("default" in name for name in selected)
    model.save_pretrained(str(tmp_path), state_dict=gathered)
    loaded = peft.PeftModel.from_pretrained(llama(), str(tmp_path))
    for name, parameter in loaded.named_parameters():
        if "dlora" in name:
            assert torch.equal(parameter, gathered[name])
    model.load_state_dict(gathered, strict=False)
    assert torch.equal(run(loaded, hidden_BTD), run(model, hidden_BTD))


def test_adapters_side_by_side_route_and_train_for_themselves(llama, hidden_BTD):
    first = plain_config(num_experts=2, rank=2)
    second = plain_config(num_experts=3, rank=1, top_n=2, target_modules=["q_proj", "down_proj"])
    alone = {}
    for config, seed in ((first, 1), (second, 2)):
        model = peft.get_peft_model(llama(), config)
        torch.manual_seed(seed)
        scramble(model, "default", seed)
        alone[seed] = (run(model, hidden_BTD), model.state_dict())
    both = peft.get_peft_model(llama(), first, adapter_name="one")
    both.add_adapter("two", second)
    for name, seed in (("one", 1), ("two", 2)):
        weights = {k.replace("default", name): v for k, v in alone[seed][1].items()}
        wrapped = {k for k in both.state_dict() if f".{name}." in k}
        assert wrapped <= weights.keys()
        both.load_state_dict({k: weights[k] for k in wrapped}, strict=False)
    assert {name.split(".")[-2] for name in trainable(both)} == {"one"}
    assert torch.equal(run(both, hidden_BTD), alone[1][0])
    both.set_adapter("two")
    assert {name.split(".")[-2] for name in trainable(both)} == {"two"}
    assert any("dlora_router" in name for name in trainable(both))
    assert torch.equal(run(both, hidden_BTD), alone[2][0])
    assert both.router_statistics().chosen.shape == (2, 2, 3)


def test_adapters_active_together_route_for_themselves_and_add_up(llama, hidden_BTD):
    # One block, whose input and so whose routing doesn't depend on the adapters.
    model = peft.get_peft_model(llama(num_blocks=1), plain_config(rank=2), adapter_name="one")
    model.add_adapter("two", plain_config(rank=1, num_experts=2))
    scramble(model, "one", 1)
    scramble(model, "two", 2)
    query = model.base_model.model.layers[0].self_attn.q_proj
    outputs, losses = {}, {}
    for active in ([], ["one"], ["two"], ["one", "two"]):
        key = len(outputs)
        handle = query.register_forward_hook(
            lambda module, args, output, key=key: outputs.update({key: output})
        )
        if active:
            model.base_model.set_adapter(active)
            run(model, hidden_BTD)
            losses[len(losses)] = model.balance_loss()
        else:
            with model.disable_adapter():
                run(model, hidden_BTD)
        handle.remove()
    base, first, second, both = outputs.values()
    torch.testing.assert_close(both, first + second - base)
    torch.testing.assert_close(losses[2], losses[0] + losses[1])
    assert {name.split(".")[-2] for name in trainable(model)} == {"one", "two"}
    with pytest.raises(ValueError, match="adapter_name must be one of one, two, got None"):
        model.router_statistics()
    assert model.router_statistics("two").chosen.shape == (1, 7, 2)


@pytest.mark.parametrize("nf4", [False, True])
def test_a_disabled_adapter_leaves_exactly_the_base(llama, dlora, hidden_BTD, nf4):
    expected = run(llama(nf4=nf4), hidden_BTD)
    model = dlora(nf4=nf4)
    adapted = run(model, hidden_BTD)
    assert not torch.allclose(adapted, expected)
    with model.disable_adapter():
        assert torch.equal(run(model, hidden_BTD), expected)
    assert torch.equal(run(model, hidden_BTD), adapted)
    assert len(trainable(model)) == 2 * (7 * 2 + 1)


def test_a_deleted_adapter_is_gone_from_linears_and_routers(dlora, hidden_BTD):
    model = dlora(pooling="attention")
    before = run(model, hidden_BTD)
    model.add_adapter("two", plain_config(pooling="attention"))
    model.delete_adapter("two")
    assert not any(".two." in name for name in model.state_dict())
    assert torch.equal(run(model, hidden_BTD), before)
    model.add_adapter("three", plain_config())
    with pytest.warns(UserWarning, match="Setting active adapter to three"):
        model.delete_adapter("default")
    assert not any(".default." in name for name in model.state_dict())
    assert model.active_adapters == ["three"]
    run(model, hidden_BTD)
    assert model.router_statistics().num_samples == len(hidden_BTD)


@pytest.mark.parametrize("method", ["merge_and_unload", "merge_adapter"])
def test_merging_is_refused_with_the_reason(dlora, hidden_BTD, method):
    model = dlora()
    before = run(model, hidden_BTD)
    with pytest.raises(ValueError, match="which experts act depends on each input"):
        getattr(model, method)()
    assert torch.equal(run(model, hidden_BTD), before)


def test_merging_a_single_layer_is_refused_with_the_reason(dlora):
    layers = [module for module in dlora().modules() if isinstance(module, DLoraLayer)]
    for layer in layers:
        with pytest.raises(ValueError, match="D-LoRA cannot be merged"):
            layer.merge()


@pytest.mark.parametrize("nf4", [False, True])
def test_unloading_gives_the_base_model_back(llama, dlora, hidden_BTD, nf4):
    base = llama(nf4=nf4)
    expected = run(base, hidden_BTD)
    model = dlora(nf4=nf4).train()
    model.gradient_checkpointing_enable()
    run(model, hidden_BTD)
    unloaded = model.unload()
    assert type(unloaded) is type(base)
    assert unloaded.state_dict().keys() == base.state_dict().keys()
    assert torch.equal(run(unloaded, hidden_BTD), expected)
    assert not any(isinstance(module, DLoraLayer) for module in unloaded.modules())
    for layer in unloaded.layers:
        assert not layer._forward_pre_hooks
        assert not layer._forward_hooks
        assert "dlora" not in repr(layer._gradient_checkpointing_func)
        assert type(layer._gradient_checkpointing_func).__name__ != "CheckpointWithGates"
    again = peft.get_peft_model(unloaded, plain_config())
    assert torch.equal(run(again.eval(), hidden_BTD), expected)


def test_adapter_names_for_each_sample_are_refused(dlora, hidden_BTD):
    model = dlora()
    with pytest.raises(ValueError, match="does not take adapter_names"):
        model(inputs_embeds=hidden_BTD, adapter_names=["default"] * len(hidden_BTD))


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_a_model_in_use_works_apart_from_it(dlora, hidden_BTD, make_copy):
    model = dlora().train()
    expected = run(model, hidden_BTD)
    loss = model.balance_loss().item()
    other = make_copy(model)
    torch.testing.assert_close(run(other, hidden_BTD[:2]), expected[:2])
    assert other.router_statistics().num_samples == 2
    assert model.balance_loss().item() == loss
    unloaded = other.unload()
    assert not any(isinstance(module, BlockRouter) for module in unloaded.modules())
    assert not unloaded.layers[0]._forward_pre_hooks
    assert torch.equal(run(model, hidden_BTD), expected)


def test_a_copy_of_a_checkpointed_model_uses_its_own_routers(dlora, hidden_BTD):
    model = dlora().train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    run(model, hidden_BTD)
    other = copy.deepcopy(model)
    run(other, hidden_BTD[:2]).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert any(parameter.grad is not None for parameter in other.parameters())


@pytest.mark.parametrize("autocast_adapter_dtype", [True, False])
def test_adapters_of_a_bf16_base_follow_pefts_rule_for_dtypes(
    llama, hidden_BTD, autocast_adapter_dtype
):
    base = llama().to(torch.bfloat16)
    model = peft.get_peft_model(
        base, plain_config(pooling="attention"), autocast_adapter_dtype=autocast_adapter_dtype
    )
    scramble(model, "default", 1)
    expected = torch.float32 if autocast_adapter_dtype else torch.bfloat16
    dtypes = {p.dtype for name, p in model.named_parameters() if "dlora" in name}
    assert dtypes == {expected}
    output = run(model, hidden_BTD.to(torch.bfloat16))
    assert output.dtype == torch.bfloat16
    output.float().square().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        run(model, hidden_BTD.to(torch.bfloat16))
    assert model.balance_loss().dtype == torch.float32


def test_it_generates_text(dlora):
    model = dlora(causal_lm=True).eval()
    assert isinstance(model.base_model.model, LlamaForCausalLM)
    tokens = model.generate(input_ids=torch.tensor([[1, 2, 3]]), max_new_tokens=3, do_sample=False)
    assert tokens.shape[1] > 3


def test_statistics_count_what_was_chosen(dlora, hidden_BTD):
    model = dlora(num_experts=3, top_n=5)
    run(model, hidden_BTD)
    statistics = model.router_statistics()
    assert statistics.chosen.shape == statistics.probability_sum.shape == (2, 7, 3)
    assert statistics.chosen.sum(dim=(1, 2)).tolist() == [5 * len(hidden_BTD)] * 2
    torch.testing.assert_close(statistics.mean_probability.sum(dim=(1, 2)), torch.ones(2))
    # The first router, by hand.
    weight_XD = model.base_model.model.layers[0].dlora_router.dlora_score["default"].weight
    pooled_BD = torch.nn.functional.gelu(hidden_BTD[:, -1])
    probs_BX = (pooled_BD @ weight_XD.T).softmax(-1)
    counts_X = torch.bincount(probs_BX.topk(5).indices.flatten(), minlength=21)
    assert torch.equal(statistics.chosen[0].flatten(), counts_X)
    by_hand = -(probs_BX * probs_BX.log()).sum(-1).mean()
    torch.testing.assert_close(statistics.mean_entropy[0], by_hand)


@pytest.mark.parametrize("scope", ["block", "module"])
def test_the_balance_loss_of_even_routers_is_one_per_block(dlora, hidden_BTD, scope):
    model = dlora(scope=scope)
    for name, parameter in model.named_parameters():
        if "dlora_score" in name:
            parameter.data.zero_()
    run(model, hidden_BTD)
    torch.testing.assert_close(model.balance_loss(), torch.tensor(2.0))


def test_the_balance_loss_sums_over_blocks(dlora, hidden_BTD):
    model = dlora()
    inputs = []
    for layer in model.base_model.model.layers:
        layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach()))
    run(model, hidden_BTD)
    expected = 0.0
    for layer, block_input in zip(model.base_model.model.layers, inputs, strict=True):
        scores = layer.dlora_router.dlora_score["default"]
        probs = scores(torch.nn.functional.gelu(block_input[:, -1])).softmax(-1)
        first = probs.argmax(-1).tolist()
        shares = [first.count(i) / len(first) for i in range(28)]
        expected += 28 * sum(f * p for f, p in zip(shares, probs.mean(0).tolist(), strict=True))
    assert model.balance_loss().item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", ["balance_loss", "router_statistics"])
def test_reading_a_router_before_any_forward_pass_is_an_error(dlora, method):
    with pytest.raises(RuntimeError, match=method + r"\(\) needs a forward pass"):
        getattr(dlora(), method)()


def test_a_linear_called_outside_its_block_is_an_error(dlora, hidden_BTD):
    model = dlora()
    run(model, hidden_BTD)
    with pytest.raises(RuntimeError, match="only be called inside its block"):
        model.base_model.model.layers[0].self_attn.q_proj(hidden_BTD)


def test_active_parameters_are_the_chosen_share_of_experts_and_the_routers(dlora):
    # Per block: rank 2 x 5 experts x (in + out) of the seven linears, 3 of 35 experts active.
    shapes = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 48), (32, 48), (48, 32)]
    experts = sum(2 * 5 * (fan_in + fan_out) for fan_in, fan_out in shapes)
    router = 32 * 35
    block = dlora(num_experts=5, rank=2, top_n=3)
    assert block.active_parameters() == round(2 * (experts * 3 / 35 + router))
    module = dlora(num_experts=5, rank=2, top_n=3, scope="module")
    assert module.active_parameters() == round(2 * (experts * 3 / 5 + router))
    every = dlora(num_experts=1, rank=2, top_n=7)
    assert every.active_parameters() == sum(
        p.numel() for p in every.parameters() if p.requires_grad
    )


def test_a_target_outside_every_block_is_refused(llama):
    config = plain_config(target_modules=[*plain_config().target_modules, "lm_head"])
    with pytest.raises(ConfigError, match=r"dlora\.target_modules must name linears inside a b"):
        peft.get_peft_model(llama(causal_lm=True), config)


def test_blocks_with_differing_targets_are_refused(llama):
    model = llama()
    del model.layers[1].mlp.up_proj
    with pytest.raises(ConfigError, match=r"must match 7 linears in every block, got 6 in layers"):
        peft.get_peft_model(model, plain_config())


def test_a_configured_target_that_no_block_has_is_refused(llama):
    config = plain_config(target_modules=["q_proj", "w_proj"])
    with pytest.raises(ConfigError, match=r"must match 2 linears in every block, got 1 in layers"):
        peft.get_peft_model(llama(), config)


def test_top_n_is_checked_against_the_modules_an_expression_matches(llama):
    config = plain_config(target_modules=r".*\.(q|v)_proj", num_experts=2, top_n=5)
    with pytest.raises(ConfigError, match=r"between 1 and 4 \(2 modules x dlora.num_experts=2\)"):
        peft.get_peft_model(llama(), config)


def test_a_target_that_is_no_linear_is_refused(llama):
    config = plain_config(target_modules=["input_layernorm"], top_n=1)
    with pytest.raises(ConfigError, match=r"must name linears .*got layers.0.input_layernorm"):
        peft.get_peft_model(llama(), config)


def test_a_model_without_a_hidden_size_is_refused():
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"q_proj": nn.Linear(4, 4)})])})
    with pytest.raises(ConfigError, match=r"needs a model with config\.hidden_size"):
        peft.get_peft_model(model, plain_config(target_modules=["q_proj"]))
