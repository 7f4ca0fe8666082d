"""Loading a policy: the committed ones, directories, GGUF, and clear words where there is nothing to load."""

from pathlib import Path

import httpx
import pytest
import torch
from huggingface_hub import constants

from igrpo_kit.core.prompts import PAPER_FORMAT
from igrpo_kit.policies.load import load_policy, local_policies
from igrpo_kit.policies.policy import DRAFT_AFTER, DRAFT_BEFORE, Policy
from igrpo_kit.policies.samplers.encoding import encode_prompts
from tests.policies.test_gguf import write_gguf
from tests.tiny_models import llama, qwen, tokenizer


@pytest.mark.parametrize(
    ("name", "draft"),
    [
        ("tiny", DRAFT_BEFORE),
        ("tiny-max", DRAFT_BEFORE),
        ("tiny-addition", DRAFT_AFTER),
        ("tiny-after", DRAFT_AFTER),
    ],
)
def test_committed_policies_are_float32_and_know_how_they_are_asked(name: str, draft: object) -> None:
    policy = load_policy(name, device="cpu")
    assert sum(p.numel() for p in policy.model.parameters()) == 362_784
    assert {p.dtype for p in policy.model.parameters()} == {torch.float32}
    assert not policy.model.training
    assert policy.prompt_format == draft
    ids = policy.tokenizer.apply_chat_template(
        policy.prompt_format.refinement_messages("3,7,5:26", "3*7"),
        add_generation_prompt=True,
        return_dict=False,
    )
    expected = {
        DRAFT_BEFORE: "<bos> <d> 3 * 7 </d> 3 , 7 , 5 : 2 6 <a>",
        DRAFT_AFTER: "<bos> 3 , 7 , 5 : 2 6 <d> 3 * 7 </d> <a>",
    }
    assert policy.tokenizer.convert_ids_to_tokens(ids) == expected[draft].split()


def test_a_chat_that_ends_with_the_assistant_is_continued() -> None:
    begun = [{"role": "user", "content": "3,7:21"}, {"role": "assistant", "content": "3*"}]
    tiny = load_policy("tiny", device="cpu").tokenizer
    rows = encode_prompts(tiny, [begun[:1], begun, [begun[0], {"role": "assistant", "content": ""}]])
    asked = "<bos> 3 , 7 : 2 1 <a>"
    assert [" ".join(tiny.convert_ids_to_tokens(row)) for row in rows] == [asked, f"{asked} 3 *", asked]


def test_a_saved_policy_is_loaded_as_it_was(tmp_path: Path) -> None:
    policy = Policy("mine", llama(), tokenizer(), DRAFT_AFTER)
    policy.save(tmp_path / "mine")
    again = load_policy(tmp_path / "mine", device="cpu")
    assert again.prompt_format == DRAFT_AFTER
    for name, tensor in policy.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])


@pytest.mark.parametrize("kind", ["directory", "gguf"])
def test_another_precision_is_for_the_weights_alone(kind: str, tmp_path: Path) -> None:
    if kind == "gguf":
        write_gguf(tmp_path / "small.gguf", llama())
        source = tmp_path / "small.gguf"
    else:
        Policy("mine", llama(), tokenizer(), DRAFT_AFTER).save(tmp_path / "mine")
        source = tmp_path / "mine"
    model = load_policy(source, device="cpu", dtype=torch.bfloat16).model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_a_directory_without_a_format_is_asked_in_the_papers(tmp_path: Path) -> None:
    qwen().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    assert load_policy(tmp_path, device="cpu").prompt_format == PAPER_FORMAT


def test_bfloat16_files_are_loaded_in_float32(tmp_path: Path) -> None:
    qwen().bfloat16().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    assert load_policy(tmp_path, device="cpu").model.dtype == torch.float32


def test_a_gguf_file_is_a_policy(tmp_path: Path) -> None:
    model = llama()
    write_gguf(tmp_path / "small.gguf", model)
    policy = load_policy(tmp_path / "small.gguf", device="cpu")
    ids = torch.tensor([[4, 5, 6]])
    torch.testing.assert_close(policy.model(ids).logits, model(ids).logits, atol=1e-5, rtol=0)
    policy.save(tmp_path / "saved")
    assert torch.equal(
        load_policy(tmp_path / "saved", device="cpu").model(ids).logits, policy.model(ids).logits
    )


def test_pickled_weights_are_never_loaded(tmp_path: Path) -> None:
    model = llama()
    model.config.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pickled weights .* are not loaded"):
        load_policy(tmp_path)
    (tmp_path / "other.safetensors").write_bytes(b"")  # not the model's: the pickle must not step in
    with pytest.raises((OSError, ValueError), match="safetensors"):
        load_policy(tmp_path)


def test_a_base_model_is_asked_in_plain_text(tmp_path: Path) -> None:
    plain = tokenizer()
    plain.chat_template = None
    llama().save_pretrained(tmp_path)
    plain.save_pretrained(tmp_path)
    policy = load_policy(tmp_path)
    messages = [{"role": "system", "content": "1+"}, {"role": "user", "content": "2"}]
    text = policy.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == f"{policy.tokenizer.bos_token or ''}1+\n\n2\n\n"


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-0.5B-Instruct", "tinny", "/no/such/folder", "a b/c/d"])
def test_what_is_not_there_is_an_error_that_names_the_choices(name: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load_policy(name)
    message = str(caught.value)
    assert message.startswith(f"{name}: neither a directory here")
    for choice in [*local_policies(), "igrpo fetch smollm2"]:
        assert choice in message


def test_a_dead_network_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's own client would try for a minute and a half."""
    asked = []

    def dead(self: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        asked.append((request.method, str(request.url), request.extensions["timeout"]["connect"]))
        raise httpx.ConnectError("no route to host", request=request)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", dead)
    with pytest.raises(FileNotFoundError, match="neither a directory here"):
        load_policy("Qwen/Qwen2.5-0.5B-Instruct")
    assert asked == [("HEAD", "http://hub.invalid", 5.0)]
