import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, LlamaModel

from timellama_dist.backbone import folder as backbone_folder
from timellama_dist.backbone.folder import read_config, resolve_backbone
from timellama_dist.backbone.load import (
    embedding_rows,
    frozen_bytes,
    load_backbone,
    load_tokenizer,
)
from timellama_dist.errors import CheckpointError, ConfigError

BLOCKS = 3
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5)  # norms of one would hide a norm left out
    return model


@pytest.fixture(scope="module", params=["single", "sharded", "headless"])
def any_folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model = tiny_llama()
    if request.param == "sharded":
        model.save_pretrained(folder, max_shard_size="60KB")
        assert len(list(folder.glob("*.safetensors"))) > 2
    else:
        (model.model if request.param == "headless" else model).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def tokens():
    return torch.randn(4, 5, 64, generator=torch.Generator().manual_seed(1))


def plain(folder, **kwargs) -> LlamaModel:
    settings = {"num_blocks": 2, "quantization": "none", "dtype": torch.float32}
    return load_backbone(folder, **(settings | kwargs))


def edit_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("num_blocks", [1, 2, BLOCKS])
def test_outputs_equal_those_of_transformers_own_loader(any_folder, tokens, num_blocks):
    reference = AutoModel.from_pretrained(any_folder, num_hidden_layers=num_blocks).eval()
    model = plain(any_folder, num_blocks=num_blocks)
    expected = reference(inputs_embeds=tokens).last_hidden_state
    assert torch.equal(model(inputs_embeds=tokens).last_hidden_state, expected)


def test_nf4_equals_transformers_own_quantisation(any_folder, tokens):
    reference = AutoModel.from_pretrained(
        any_folder,
        num_hidden_layers=2,
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
            bnb_4bit_quant_storage=torch.uint8,
        ),
    ).eval()
    model = plain(any_folder, quantization="nf4")
    theirs = dict(reference.named_parameters())
    packed = {n: p for n, p in model.named_parameters() if hasattr(p, "quant_state")}
    assert len(packed) == 2 * 7
    for name, parameter in packed.items():
        assert parameter.dtype == torch.uint8
        assert torch.equal(parameter.data, theirs[name].data), name
        assert parameter.quant_state == theirs[name].quant_state, name
    torch.testing.assert_close(
        model(inputs_embeds=tokens).last_hidden_state,
        reference(inputs_embeds=tokens).last_hidden_state,
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
def test_4_bit_matrices_are_the_same_whatever_computes_with_them(tmp_path, tokens, stored):
    tiny_llama().to(stored).save_pretrained(tmp_path)
    exact, rounder = (
        plain(tmp_path, quantization="nf4", dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert exact(inputs_embeds=tokens).last_hidden_state.dtype == torch.float32
    forecast = rounder(inputs_embeds=tokens.bfloat16()).last_hidden_state
    assert forecast.dtype == torch.bfloat16
    theirs = dict(rounder.named_parameters())
    for name, parameter in exact.named_parameters():
        if state := getattr(parameter, "quant_state", None):
            other = theirs[name].quant_state
            assert torch.equal(parameter.data, theirs[name].data), name
            assert torch.equal(state.absmax, other.absmax), name
            assert torch.equal(state.state2.absmax, other.state2.absmax), name
            assert (state.dtype, other.dtype) == (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_loaded_model_is_frozen_whole_and_has_no_table(folder, quantization):
    model = plain(folder, quantization=quantization, dtype=torch.bfloat16)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert not any("embed" in name for name, _ in model.named_parameters())
    assert {p.dtype for n, p in model.named_parameters() if "norm" in n} == {torch.bfloat16}
    assert model.config.num_hidden_layers == 2 == len(model.layers)
    assert model.config.use_cache is False
    assert model.config.num_attention_heads == read_config(folder).num_attention_heads
    with pytest.raises(RuntimeError, match="pass inputs_embeds"):
        model(input_ids=torch.tensor([[1, 2]]))


def test_no_parameter_keeps_the_whole_file_mapped(folder):
    for parameter in plain(folder).parameters():
        assert parameter.untyped_storage().nbytes() == parameter.numel() * 4


def test_rotary_frequencies_stay_float32_when_the_model_is_cast(folder):
    model = plain(folder).to(torch.bfloat16)
    expected = 10_000.0 ** (-torch.arange(0, 16, 2) / 16)
    assert model.norm.weight.dtype == torch.bfloat16
    torch.testing.assert_close(model.rotary_emb.inv_freq, expected)


def test_each_finished_block_is_handed_over(folder):
    seen = []

    def note(index, block):
        seen.append((index, any(p.is_meta for p in block.parameters())))

    plain(folder, num_blocks=3, on_block=note)
    assert seen == [(0, False), (1, False), (2, False)]


def test_biases_are_read_and_kept_unquantised(tmp_path, tokens):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=9,
        attention_bias=True,
        mlp_bias=True,
    )
    reference = LlamaModel(config).eval()
    for name, parameter in reference.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    reference.save_pretrained(tmp_path)
    expected = reference(inputs_embeds=tokens).last_hidden_state
    out = plain(tmp_path, num_blocks=1)(inputs_embeds=tokens).last_hidden_state
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6)
    biases = dict(plain(tmp_path, num_blocks=1, quantization="nf4").named_parameters())
    bias = "layers.0.mlp.up_proj.bias"
    assert torch.equal(biases[bias], reference.get_parameter(bias))


def test_random_weights_follow_the_seed_and_not_the_number_of_blocks(folder):
    model = plain(folder, init="random", seed=3)
    again = plain(folder, init="random", seed=3, num_blocks=3)
    other = plain(folder, init="random", seed=4)
    name = "layers.1.mlp.up_proj.weight"
    assert torch.equal(model.get_parameter(name), again.get_parameter(name))
    assert not torch.equal(model.get_parameter(name), other.get_parameter(name))
    first = model.get_parameter("layers.0.mlp.up_proj.weight")
    assert not torch.equal(model.get_parameter(name), first)
    assert first.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(model.norm.weight, torch.ones(64))
    assert torch.equal(model.layers[1].input_layernorm.weight, torch.ones(64))


def test_random_weights_need_no_weight_file(folder, tokens):
    (folder / "model.safetensors").unlink()
    model = plain(folder, init="random", quantization="nf4")
    assert model(inputs_embeds=tokens).last_hidden_state.isfinite().all()


def test_attention_is_full_by_flag_or_mask_and_single_by_an_identity_mask(folder, tokens):
    model = plain(folder)
    causal = model(inputs_embeds=tokens).last_hidden_state
    full = model(inputs_embeds=tokens, is_causal=False).last_hidden_state
    boolean = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    additive = torch.zeros(4, 1, 5, 5)
    for mask in (boolean, additive):
        masked = model(inputs_embeds=tokens, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(masked, full, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(full, causal, atol=1e-3)
    eye = torch.eye(5, dtype=torch.bool)[None, None]
    alone = model(inputs_embeds=tokens.reshape(20, 1, 64)).last_hidden_state.view(4, 5, 64)
    masked = model(inputs_embeds=tokens, attention_mask=eye).last_hidden_state
    torch.testing.assert_close(masked, alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_peft_wraps_it_and_gradients_reach_the_inputs(folder, tokens, quantization, checkpointing):
    model = plain(folder, quantization=quantization)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model = get_peft_model(model, LORA).train()
    tokens.requires_grad_()
    out = model(inputs_embeds=tokens).last_hidden_state
    assert out.shape == tokens.shape
    out.square().sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.abs().min() > 0
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        assert (parameter.grad is not None) == ("lora_" in name), name


def test_a_saved_adapter_holds_no_path_and_loads_again(folder, tokens, tmp_path):
    model = get_peft_model(plain(folder), LORA).eval()
    model.save_pretrained(tmp_path / "adapter")
    assert str(tmp_path) not in (tmp_path / "adapter" / "adapter_config.json").read_text()
    from peft import PeftModel

    again = PeftModel.from_pretrained(plain(folder), tmp_path / "adapter").eval()
    expected = model(inputs_embeds=tokens).last_hidden_state
    assert torch.equal(again(inputs_embeds=tokens).last_hidden_state, expected)


def test_embedding_rows_are_those_of_the_table(any_folder):
    table = AutoModel.from_pretrained(any_folder).embed_tokens.weight
    ids = [7, 0, 39, 7]
    rows = embedding_rows(any_folder, ids)
    assert rows.dtype == torch.float32
    assert torch.equal(rows, table[ids])


def test_a_token_outside_the_table_is_refused(folder):
    with pytest.raises(CheckpointError, match=r"rows 0 to 39, asked for .*40"):
        embedding_rows(folder, [1, 40])


def test_frozen_bytes_counts_plain_weights_and_not_trained_ones(folder):
    model = plain(folder)
    block = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64 + 2 * 64
    rotary = 2 * 8
    expected = 4 * (2 * block + 64 + rotary)
    assert frozen_bytes(model) == expected
    assert frozen_bytes(get_peft_model(model, LORA)) == expected


def test_frozen_bytes_counts_the_quantisation_state(folder):
    linear = plain(folder, quantization="nf4").layers[0].mlp.up_proj
    values = 96 * 64
    packed, absmax, nested, code, nested_code, offset = values // 2, values // 64, 4, 64, 1024, 4
    assert frozen_bytes(linear) == packed + absmax + nested + code + nested_code + offset


def test_frozen_bytes_counts_a_partitioned_parameter_by_its_shard():
    layer = torch.nn.Linear(8, 8, bias=False).requires_grad_(False)
    layer.weight.ds_tensor = torch.empty(32)
    layer.weight.data = torch.empty(0)
    layer.weight.ds_numel = 64
    assert frozen_bytes(layer) == 32 * 4
    assert frozen_bytes(layer, unsharded=True) == 64 * 4


def test_a_missing_tensor_is_named_with_its_file(folder):
    state = load_file(folder / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, folder / "model.safetensors")
    assert plain(folder, num_blocks=1)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj.*model\.safetensors"):
        plain(folder)


def test_a_tensor_of_another_shape_is_refused(folder):
    edit_config(folder, intermediate_size=80)
    with pytest.raises(CheckpointError, match=r"has the shape \(96, 64\).*says \(80, 64\)"):
        plain(folder)


def test_a_truncated_file_is_refused(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        plain(folder)


def test_a_folder_without_safetensors_is_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        plain(folder)


@pytest.mark.parametrize("num_blocks", [0, 4])
def test_a_number_of_blocks_out_of_range_is_refused(folder, num_blocks):
    message = rf"backbone\.num_blocks must be between 1 and 3 \(.*tiny\), got {num_blocks}"
    with pytest.raises(ConfigError, match=message):
        read_config(folder, num_blocks)
    with pytest.raises(ConfigError, match=message):
        plain(folder, num_blocks=num_blocks)


def test_another_architecture_is_refused_by_name(folder):
    edit_config(folder, model_type="qwen3")
    with pytest.raises(ConfigError, match=r"backbone\.name.*'qwen3'; only 'llama'"):
        read_config(folder)


def test_a_checkpoint_quantised_already_is_refused(folder):
    edit_config(folder, quantization_config={"quant_method": "gptq"})
    with pytest.raises(ConfigError, match=r"quantised already \(gptq\)"):
        read_config(folder)


def test_a_folder_without_tokenizer_is_refused(folder):
    with pytest.raises(CheckpointError, match=r"no readable tokenizer in .*tiny"):
        load_tokenizer(folder)


def test_a_local_folder_is_its_own_answer(folder):
    assert resolve_backbone(str(folder)) == folder


def test_a_known_name_and_a_gguf_file_go_to_the_assets(monkeypatch, tmp_path):
    monkeypatch.setattr(backbone_folder, "fetch_backbone", lambda name: tmp_path / name)
    monkeypatch.setattr(backbone_folder, "convert_gguf", lambda file: file.with_suffix(".made"))
    (tmp_path / "own.gguf").write_bytes(b"GGUF")
    assert resolve_backbone("smollm2-135m") == tmp_path / "smollm2-135m"
    assert resolve_backbone(str(tmp_path / "own.gguf")) == tmp_path / "own.made"


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "~/nowhere", "a/b/c", "nowhere.gguf"])
def test_a_path_that_is_not_there_is_refused_without_asking_the_hub(name):
    with pytest.raises(ConfigError, match=r"backbone\.name"):
        resolve_backbone(name)


def test_a_hub_that_cannot_be_reached_is_told_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"backbone\.name: 'owner/model'.*smollm2.*hub") as caught:
        resolve_backbone("owner/model", revision="main")
    assert "\n" not in str(caught.value)
