import math

import pytest
import torch

from igrpo_kit.core import tokens
from igrpo_kit.core.tokens import completion_mask, masked_mean, token_entropy, token_log_probs

EOS, PAD = 2, 0


def test_mask_keeps_the_first_eos_and_drops_what_follows():
    ids = torch.tensor([[5, 6, EOS, PAD], [EOS, PAD, PAD, PAD], [5, 6, 7, 8], [5, EOS, 9, EOS]])
    assert completion_mask(ids, EOS).int().tolist() == [
        [1, 1, 1, 0],
        [1, 0, 0, 0],
        [1, 1, 1, 1],
        [1, 1, 0, 0],
    ]


def test_pad_equal_to_eos_keeps_the_eos_that_was_sampled():
    ids = torch.tensor([[5, EOS, EOS, EOS], [5, 6, 7, EOS]])
    assert completion_mask(ids, EOS).int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


def test_a_pad_id_sampled_as_a_token_is_trained():
    assert completion_mask(torch.tensor([[PAD, 5, PAD, EOS]]), EOS).int().tolist() == [[1, 1, 1, 1]]


def test_several_eos_ids():
    ids = torch.tensor([[5, 3, 7, EOS], [5, EOS, 3, 3]])
    assert completion_mask(ids, [EOS, 3]).int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]
    with pytest.raises(ValueError, match="eos_id"):
        completion_mask(ids, [])


def test_log_probs_by_hand():
    # softmax of [0, ln 3] is [1/4, 3/4]
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, math.log(3.0)]]])
    got = token_log_probs(logits, torch.tensor([[0, 1]]))
    torch.testing.assert_close(got, torch.tensor([[math.log(0.25), math.log(0.75)]]))


def test_temperature_by_hand():
    # at temperature 2, ln 9 becomes ln 3
    logits = torch.tensor([[[0.0, math.log(9.0)]]])
    torch.testing.assert_close(
        token_log_probs(logits, torch.tensor([[1]]), 2.0), torch.tensor([[math.log(0.75)]])
    )


def test_entropy_by_hand():
    logits = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [0.0, -math.inf, -math.inf, -math.inf]]])
    torch.testing.assert_close(token_entropy(logits), torch.tensor([[math.log(4.0), 0.0]]))
    # [1/4, 3/4]: 0.562335 nats; at temperature 2 the logits are [0, ln 3]
    tempered = token_entropy(torch.tensor([[[0.0, math.log(9.0)]]]), 2.0)
    torch.testing.assert_close(tempered, torch.tensor([[0.56233514]]))


@pytest.fixture(params=[1, 40, 1 << 22], ids=["a position at a time", "ragged chunks", "one chunk"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(tokens, "_CHUNK_ELEMENTS", request.param)


@pytest.mark.usefixtures("chunk")
def test_chunks_change_neither_value_nor_gradient():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 13, generator=generator, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(13, (3, 5), generator=generator)
    weight = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    reference = (logits / 0.7).log_softmax(-1)
    expected = reference.gather(2, ids[..., None]).squeeze(2)
    (expected_grad,) = torch.autograd.grad((expected * weight).sum(), logits)
    got = token_log_probs(logits, ids, 0.7)
    (grad,) = torch.autograd.grad((got * weight).sum(), logits)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(grad, expected_grad)
    torch.testing.assert_close(token_entropy(logits, 0.7), -(reference.exp() * reference).sum(-1).detach())


def test_numerical_gradient():
    logits = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[0, 1, 2], [3, 4, 0]])
    assert torch.autograd.gradcheck(lambda x: token_log_probs(x, ids, 1.3), logits)


def test_half_precision_is_scored_in_float32():
    logits = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    ids = torch.zeros(2, 3, dtype=torch.long)
    got = token_log_probs(logits, ids)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, logits.float().log_softmax(-1)[..., 0])


class _Peak(torch.utils._python_dispatch.TorchDispatchMode):
    """Largest tensor any operation returned, in elements."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        is_view = any(r.alias_info is not None for r in func._schema.returns)
        if isinstance(out, torch.Tensor) and not is_view:
            self.largest = max(self.largest, out.numel())
        return out


def test_forward_makes_nothing_as_large_as_the_logits():
    logits = torch.randn(8, 64, 2048, requires_grad=True)  # 1 M elements
    ids = torch.zeros(8, 64, dtype=torch.long)
    with _Peak() as peak, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "_CHUNK_ELEMENTS", 1 << 15)
        token_log_probs(logits, ids, 0.9)
        token_entropy(logits, 0.9)
    assert 0 < peak.largest <= 1 << 15
    with _Peak() as naive:
        (logits / 0.9).log_softmax(-1)
    assert naive.largest == logits.numel()


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="temperature"):
        token_log_probs(torch.zeros(1, 1, 2), torch.zeros(1, 1, dtype=torch.long), temperature)
    with pytest.raises(ValueError, match="temperature"):
        token_entropy(torch.zeros(1, 1, 2), temperature)


def test_masked_mean_reads_only_the_mask():
    x = torch.tensor([[1.0, 2.0, float("nan")], [6.0, float("inf"), float("nan")]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_mean(x, mask).item() == 3.0
    with pytest.raises(ValueError, match="mask"):
        masked_mean(x, torch.zeros(2, 3, dtype=torch.bool))


def test_shape_annotations_are_executed():
    with pytest.raises(Exception, match="Type-check"):
        token_log_probs(torch.zeros(2, 3, 4), torch.zeros(3, 2, dtype=torch.long))
