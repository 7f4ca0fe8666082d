"""Log-probs of given completions: against a forward pass per row, and the two layouts against each other."""

import copy

import pytest
import torch
from torch import Tensor

from igrpo_kit.policies import log_probs as scoring
from igrpo_kit.policies.log_probs import completion_log_probs
from tests.tiny_models import VOCABULARY, gpt2, llama, qwen

PROMPTS = [[1, 9, 8, 7, 3], [1, 5, 3], [1, 20, 21, 22, 23, 24, 25, 3]]
G, T = 3, 6
MODELS = {
    "llama": llama,
    "grouped-query llama": lambda: llama(kv_heads=1),
    "eager llama": lambda: llama(attn_implementation="eager"),
    "qwen2": qwen,
    "gpt2": gpt2,
}


def completions() -> tuple[Tensor, Tensor]:
    """Nine ragged rows; one has a single token, one is masked out as a whole."""
    ids = torch.randint(4, VOCABULARY, (9, T), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([6, 1, 4, 2, 6, 3, 0, 5, 6])
    return ids, torch.arange(T) < lengths[:, None]


def one_row_at_a_time(model: torch.nn.Module, ids: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """The definition, in a loop: one unpadded sequence, one softmax per token."""
    rows = []
    for i in range(len(ids)):
        prompt = PROMPTS[i // G]
        logits = model(input_ids=torch.tensor([prompt + ids[i].tolist()])).logits[0]
        row = []
        for t in range(T):
            scaled = logits[len(prompt) + t - 1] / temperature
            log_prob = scaled[ids[i, t]] - scaled.exp().sum().log()
            row.append(log_prob if mask[i, t] else torch.zeros(()))
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.mark.parametrize("shared_prefix", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_log_probs_and_gradients_equal_those_of_a_row_at_a_time(name: str, shared_prefix: bool) -> None:
    model, (ids, mask) = MODELS[name](), completions()
    weight = torch.linspace(-1, 1, 9 * T).view(9, T)  # so that no two tokens could be exchanged

    expected = one_row_at_a_time(model, ids, mask, 0.7)
    (expected * weight).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    ours = completion_log_probs(model, PROMPTS, ids, mask, 0.7, shared_prefix=shared_prefix)
    (ours * weight).sum().backward()
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    assert gradients
    for name, parameter in model.named_parameters():
        if name in gradients:
            scale = gradients[name].abs().max().clamp(min=1)
            torch.testing.assert_close(parameter.grad / scale, gradients[name] / scale, atol=1e-5, rtol=0)


def test_a_completion_sees_neither_its_siblings_nor_their_order() -> None:
    model, (ids, mask) = llama(), completions()
    before = completion_log_probs(model, PROMPTS, ids, mask)
    changed = ids.clone()
    changed[0] = 5
    after = completion_log_probs(model, PROMPTS, changed, mask)
    assert not torch.allclose(before[0], after[0], atol=1e-2)
    torch.testing.assert_close(before[1:], after[1:], atol=1e-6, rtol=0)
    order = [2, 0, 1]
    swapped = completion_log_probs(model, PROMPTS[:1], ids[order], mask[order])
    torch.testing.assert_close(swapped, before[order], atol=1e-5, rtol=0)


def test_any_subset_of_whole_groups_may_be_given() -> None:
    model, (ids, mask) = qwen(), completions()
    everything = completion_log_probs(model, PROMPTS, ids, mask)
    rows = [0, 1, 2, 6, 7, 8]
    part = completion_log_probs(model, [PROMPTS[0], PROMPTS[2]], ids[rows], mask[rows])
    torch.testing.assert_close(part, everything[rows], atol=1e-5, rtol=0)


def test_what_stands_outside_the_mask_is_not_read() -> None:
    model, (ids, mask) = llama(), completions()
    garbage = ids.masked_fill(~mask, 17)
    assert torch.equal(
        completion_log_probs(model, PROMPTS, ids, mask), completion_log_probs(model, PROMPTS, garbage, mask)
    )


def test_a_hole_in_the_mask_is_context_but_not_scored() -> None:
    model, (ids, mask) = llama(), completions()
    holed = mask.clone()
    holed[0, 2] = False
    whole, part = (completion_log_probs(model, PROMPTS, ids, m) for m in (mask, holed))
    assert part[0, 2] == 0
    torch.testing.assert_close(part[0, 3:], whole[0, 3:], atol=1e-6, rtol=0)


def test_a_vocabulary_too_large_for_one_piece_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (ids, mask) = llama(), completions()
    whole = completion_log_probs(model, PROMPTS, ids, mask)
    whole.sum().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    monkeypatch.setattr(scoring, "_LOGITS_AT_ONCE", 5 * VOCABULARY)
    sizes = []
    model.lm_head.register_forward_hook(lambda module, args, out: sizes.append(len(args[0])))
    pieces = completion_log_probs(model, PROMPTS, ids, mask)
    assert sizes == [5, 5, 5, 5, 5, 5, 3]  # 33 trained tokens, five at a time
    pieces.sum().backward()
    torch.testing.assert_close(pieces, whole, atol=1e-6, rtol=0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-5)


def test_autocast_to_bfloat16_stays_near_float32() -> None:
    model, (ids, mask) = llama(), completions()
    with torch.no_grad():
        exact = completion_log_probs(model, PROMPTS, ids, mask)
        with torch.autocast("cpu", torch.bfloat16):
            near = completion_log_probs(model, PROMPTS, ids, mask)
        half = completion_log_probs(copy.deepcopy(model).bfloat16(), PROMPTS, ids, mask)
    assert near.dtype == half.dtype == torch.float32
    torch.testing.assert_close(near, exact, atol=0.3, rtol=0)
    torch.testing.assert_close(half, exact, atol=0.3, rtol=0)


def test_bad_input_is_named() -> None:
    model, (ids, mask) = llama(), completions()
    with pytest.raises(ValueError, match="9 rows cannot be shared out evenly among 2 prompts"):
        completion_log_probs(model, PROMPTS[:2], ids, mask)
    with pytest.raises(ValueError, match="0 prompts"):
        completion_log_probs(model, [], ids, mask)
    with pytest.raises(ValueError, match=r"prompt_ids\[1\] is empty"):
        completion_log_probs(model, [[1, 2], [], [3]], ids, mask)
    with pytest.raises(ValueError, match="temperature"):
        completion_log_probs(model, PROMPTS, ids, mask, 0.0)


def test_models_that_cannot_take_a_block_mask_are_refused_and_scored_row_by_row() -> None:
    windowed = qwen(use_sliding_window=True, sliding_window=4, max_window_layers=0)
    ids, mask = completions()
    with pytest.raises(ValueError, match="shared_prefix: every layer must attend fully"):
        completion_log_probs(windowed, PROMPTS, ids, mask)
    ours = completion_log_probs(windowed, PROMPTS, ids, mask, shared_prefix=False)
    expected = one_row_at_a_time(windowed, ids, mask, 1.0)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    model = llama()
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match="shared_prefix: needs sdpa or eager"):
        completion_log_probs(model, PROMPTS, ids, mask)


def test_a_head_that_rescales_its_logits_is_refused() -> None:
    model, (ids, mask) = llama(), completions()
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(NotImplementedError, match="rescales its logits"):
        completion_log_probs(model, PROMPTS, ids, mask)
