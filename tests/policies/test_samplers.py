"""Samplers: what is recorded equals a pass from scratch; a completion ends where EOS was sampled."""

import pytest
import torch
from torch import Tensor

from igrpo_kit.core.prompts import PAPER_FORMAT, Messages
from igrpo_kit.policies.policy import DRAFT_AFTER
from igrpo_kit.policies.samplers import hf
from igrpo_kit.policies.samplers.hf import CachedDecoder, HFSampler, sample_tokens
from igrpo_kit.policies.samplers.llama import SmallLlamaDecoder, is_small_llama
from igrpo_kit.policies.samplers.sampler import Sampler, Samples, SamplingSettings
from igrpo_kit.policies.samplers.scripted import ScriptedSampler
from tests.tiny_models import ANSWER, BOS, EOS, PAD, VOCABULARY, gpt2, llama, qwen, small_policy, tokenizer

MODELS = {"llama": llama, "grouped-query llama": lambda: llama(kv_heads=1), "qwen2": qwen, "gpt2": gpt2}


def chat(*questions: str) -> list[Messages]:
    return [[{"role": "user", "content": question}] for question in questions]


def sampler_of(
    model: torch.nn.Module, max_new_tokens: int = 8, temperature: float = 1.0, **options
) -> HFSampler:
    return HFSampler(small_policy(model), SamplingSettings(max_new_tokens, temperature), **options)


def from_scratch(model: torch.nn.Module, samples: Samples, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies by definition: each row alone, unpadded, without a cache."""
    log_probs, entropies = torch.zeros(samples.mask.shape), torch.zeros(samples.mask.shape)
    for i, row in enumerate(samples.completion_ids.tolist()):
        prompt = samples.prompt_ids[i // samples.num_samples]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + row])).logits[0]
        for t in range(len(row)):
            if samples.mask[i, t]:
                p = (logits[len(prompt) + t - 1] / temperature).softmax(dim=0)
                log_probs[i, t], entropies[i, t] = p[row[t]].log(), -(p * p.log()).sum()
    return log_probs, entropies


@pytest.mark.parametrize("questions", [("1+2", "3+4"), ("1", "12345+67890", "a,b,c")], ids=["even", "ragged"])
@pytest.mark.parametrize("name", MODELS)
def test_log_probs_and_entropies_equal_a_pass_from_scratch(name: str, questions: tuple[str, ...]) -> None:
    model = MODELS[name]()
    assert is_small_llama(model) == ("llama" in name)
    samples = sampler_of(model, temperature=0.8).sample(chat(*questions), 6)
    assert 1 < samples.mask.sum(dim=1).float().mean() < 8  # some rows end early, some do not
    assert set(samples.finish_reasons) == {"stop", "length"}
    log_probs, entropies = from_scratch(model, samples, 0.8)
    torch.testing.assert_close(samples.log_probs, log_probs, atol=1e-5, rtol=0)
    assert samples.entropies is not None
    torch.testing.assert_close(samples.entropies, entropies, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_the_decoder_for_small_llamas_equals_transformers(kv_heads: int) -> None:
    model, tokens = llama(kv_heads), torch.randint(4, VOCABULARY, (20, 6))
    ids, attention = hf.left_pad([[1, 9, 8, 3], [1, 3], [1, 4, 5, 6, 7, 8, 3]], torch.device("cpu"))
    decoders = [SmallLlamaDecoder(model, max_new_tokens=20), CachedDecoder(model)]
    with torch.no_grad():
        mine, theirs = (decoder.prefill(ids, attention, 2) for decoder in decoders)
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
        for t, row in enumerate(tokens):
            if t == 10:
                kept = torch.tensor([0, 3, 5])
                for decoder in decoders:
                    decoder.keep(kept)
            row = row[:3] if t >= 10 else row
            mine, theirs = (decoder.step(row) for decoder in decoders)
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


def test_the_decoder_for_small_llamas_keeps_to_what_it_computes_right() -> None:
    assert is_small_llama(llama())
    assert not is_small_llama(qwen())
    assert not is_small_llama(llama().bfloat16())
    assert not is_small_llama(llama(attention_bias=True))
    assert not is_small_llama(llama(hidden_act="gelu"))
    assert not is_small_llama(
        llama(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0})
    )
    hooked = llama()
    hooked.model.layers[0].register_forward_hook(lambda module, args, out: out)
    assert not is_small_llama(hooked)
    adapted = llama()
    adapted.model.layers[1].mlp.down_proj = torch.nn.utils.parametrizations.orthogonal(
        adapted.model.layers[1].mlp.down_proj
    )
    assert not is_small_llama(adapted)


def test_it_samples_the_weights_as_they_are_now() -> None:
    model = llama()
    sampler = sampler_of(model)
    sampler.sample(chat("1+2"), 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    samples = sampler.sample(chat("1+2"), 4)
    torch.testing.assert_close(samples.log_probs, from_scratch(model, samples, 1.0)[0], atol=1e-5, rtol=0)


def test_tokens_come_with_the_probabilities_of_the_softmax() -> None:
    logits = torch.tensor([2.0, 0.0, -torch.inf, 1.0, -3.0, 0.5])
    rows = 200_000
    tokens, log_probs, entropies = sample_tokens(
        logits.expand(rows, 6), 0.5, torch.Generator().manual_seed(0)
    )
    expected = (logits / 0.5).softmax(dim=0)
    counts = torch.bincount(tokens, minlength=6)
    assert counts[2] == 0
    error = (expected * (1 - expected) / rows).sqrt()
    assert ((counts / rows - expected).abs() <= 4 * error).all()
    torch.testing.assert_close(log_probs, expected.log()[tokens])
    assert entropies[0].item() == pytest.approx(0.5955, abs=1e-4)  # p: .8309 .0152 0 .1125 .0000 .0414


def test_the_nucleus_holds_the_most_probable_tokens_up_to_top_p() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.25, 0.15], [0.25, 0.25, 0.25, 0.25]]).log()
    for top_p, kept in [
        (0.5, [[1], [0, 1]]),  # 0.5 is reached by the first; of equals the first come first
        (0.6, [[1, 2], [0, 1, 2]]),
        (0.9, [[1, 2, 3], [0, 1, 2, 3]]),
        (1e-9, [[1], [0]]),
    ]:
        cut = hf.keep_nucleus(logits, 1.0, top_p)
        assert [row.isfinite().nonzero().flatten().tolist() for row in cut] == kept
        assert torch.equal(cut[cut.isfinite()], logits[cut.isfinite()])
    # At temperature 0.5 the probabilities are squared: .01 .25 .0625 .0225 of .345, so the first holds 0.72.
    assert hf.keep_nucleus(logits[:1], 0.5, 0.7).isfinite().sum() == 1
    assert torch.equal(hf.keep_nucleus(logits, 1.0, 1.0), logits)
    assert torch.equal(hf.keep_nucleus(logits, 0.0, 0.5), logits)


def test_top_p_samples_from_the_nucleus_alone() -> None:
    model = llama()
    wide, narrow = (
        HFSampler(small_policy(model), settings).sample(chat("1+2"), 32)
        for settings in (SamplingSettings(8), SamplingSettings(8, top_p=1e-6))
    )
    assert len(set(wide.texts)) > 1 and len(set(narrow.texts)) == 1
    assert narrow.entropies is not None and narrow.entropies.abs().max() < 1e-5


@pytest.mark.parametrize("top_p", [0.0, -0.1, 1.01, float("nan")])
def test_a_top_p_that_is_no_probability_is_refused(top_p: float) -> None:
    with pytest.raises(ValueError, match="top_p must lie in"):
        SamplingSettings(8, top_p=top_p)


def test_a_large_vocabulary_is_sampled_in_pieces_and_its_rare_tokens_survive() -> None:
    V, rows = 150_000, 60  # 60 * 150,000 is more than one piece
    logits = torch.zeros(rows, V)
    logits[:, V - 1] = torch.tensor(float(V - 1)).log()  # the last token has half the mass
    tokens, log_probs, _ = sample_tokens(logits, 1.0, torch.Generator().manual_seed(0))
    assert 15 <= (tokens == V - 1).sum() <= 45
    rare = tokens[tokens != V - 1]
    assert rare.max() > V / 2 and len(rare.unique()) > len(rare) - 3
    assert log_probs[tokens != V - 1].mean().item() == pytest.approx(-12.6115, abs=1e-3)  # log 1/299,998


class ForcedDecoder:
    """Makes each row sample a given sequence, and notes which rows are still asked for."""

    def __init__(self, sequences: list[list[int]]) -> None:
        self.sequences, self.rows, self.t = sequences, list(range(len(sequences))), 0
        self.asked: list[list[int]] = []

    def _logits(self) -> Tensor:
        self.asked.append(list(self.rows))
        logits = torch.full((len(self.rows), VOCABULARY), -torch.inf)
        for i, row in enumerate(self.rows):
            logits[i, self.sequences[row][self.t]] = 0.0
        self.t += 1
        return logits

    def prefill(self, ids: Tensor, attention: Tensor, num_samples: int) -> Tensor:
        return self._logits()

    def step(self, tokens: Tensor) -> Tensor:
        return self._logits()

    def keep(self, rows: Tensor) -> None:
        self.rows = [self.rows[i] for i in rows.tolist()]


def forced(monkeypatch: pytest.MonkeyPatch, sampler: HFSampler, sequences: list[list[int]]) -> ForcedDecoder:
    decoder = ForcedDecoder(sequences)
    monkeypatch.setattr(sampler, "_decoder", lambda: decoder)
    return decoder


def test_the_mask_ends_with_the_first_eos_and_never_reads_pad(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = sampler_of(llama(), max_new_tokens=4)
    forced(
        monkeypatch,
        sampler,
        [
            [5, EOS, 6, EOS],  # what follows the end is noise
            [PAD, PAD, 7, 8],  # the policy may sample the pad token: it is a token like any other
            [EOS, 5, 5, 5],
            [5, 6, 7, EOS],
        ],
    )
    samples = sampler.sample(chat("1", "2"), 2)
    assert samples.mask.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert samples.finish_reasons == ["stop", "length", "stop", "stop"]
    assert samples.texts == ["1", "<pad><pad>34", "", "123"]
    assert samples.prompt_ids == [[BOS, 5, ANSWER], [BOS, 6, ANSWER]]
    assert samples.num_samples == 2


def test_pad_may_be_eos_and_several_tokens_may_end(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    model.generation_config.eos_token_id = [EOS, 9]
    sampler = HFSampler(small_policy(model, pad_token="<eos>"), SamplingSettings(3))
    forced(monkeypatch, sampler, [[5, 9, 0], [EOS, 0, 0], [6, 7, 8]])
    samples = sampler.sample(chat("1"), 3)
    assert samples.mask.int().tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 1]]
    assert samples.finish_reasons == ["stop", "stop", "length"]
    assert samples.texts == ["1", "", "234"]


def test_rows_that_ended_leave_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = sampler_of(llama(), max_new_tokens=9)
    decoder = forced(
        monkeypatch, sampler, [[5, EOS, *[6] * 7], [*[7] * 9], [EOS, *[8] * 8], [*[9] * 6, EOS, 6, 6]]
    )
    samples = sampler.sample(chat("1"), 4)
    assert decoder.asked == [[0, 1, 2, 3], [0, 1, 2, 3], *[[1, 3]] * 5, *[[1]] * 2]
    assert samples.mask.sum(dim=1).tolist() == [2, 9, 1, 7]
    assert samples.completion_ids[3].tolist()[:7] == [9, 9, 9, 9, 9, 9, EOS]


def test_sampling_stops_when_every_row_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = sampler_of(llama(), max_new_tokens=500)
    decoder = forced(monkeypatch, sampler, [[5, EOS], [EOS, 6]])
    samples = sampler.sample(chat("1"), 2)
    assert len(decoder.asked) == 2
    assert samples.completion_ids.shape == (2, 2)


@pytest.mark.parametrize("build", [llama, qwen])
def test_each_prompt_is_encoded_once(build, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    shapes = []
    monkeypatch.setattr(
        hf.CachedDecoder, "prefill", recording(hf.CachedDecoder.prefill, shapes), raising=True
    )
    monkeypatch.setattr(SmallLlamaDecoder, "prefill", recording(SmallLlamaDecoder.prefill, shapes))
    samples = sampler_of(model).sample(chat("1+2", "3"), 5)
    assert shapes == [(2, 5)]  # two prompts, the longer of five tokens, whatever the number of samples
    assert len(samples.texts) == 10


def recording(prefill, shapes: list[tuple[int, ...]]):
    def recorded(self, ids, attention, num_samples):
        shapes.append(tuple(ids.shape))
        return prefill(self, ids, attention, num_samples)

    return recorded


def test_chunks_of_prompts_keep_within_the_row_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shapes = llama(), []
    monkeypatch.setattr(SmallLlamaDecoder, "prefill", recording(SmallLlamaDecoder.prefill, shapes))
    questions = chat("1", "12+34", "5", "6", "a,b,c,d")
    samples = sampler_of(model, max_rows=7).sample(questions, 3)
    assert [rows for rows, _ in shapes] == [2, 2, 1]
    assert samples.prompt_ids[4] == [BOS, 20, 18, 21, 18, 22, 18, 23, ANSWER]
    torch.testing.assert_close(samples.log_probs, from_scratch(model, samples, 1.0)[0], atol=1e-5, rtol=0)


def test_the_same_state_gives_the_same_samples() -> None:
    model = llama()
    one, two, other = sampler_of(model, seed=3), sampler_of(model, seed=3), sampler_of(model, seed=4)
    first = one.sample(chat("1+2"), 8).texts
    assert two.sample(chat("1+2"), 8).texts == first
    assert other.sample(chat("1+2"), 8).texts != first
    state = one.state_dict()
    torch.manual_seed(99)  # the global generator has no part in it
    second = one.sample(chat("1+2"), 8)
    assert second.texts != first
    two.load_state_dict(state)
    again = two.sample(chat("1+2"), 8)
    assert again.texts == second.texts
    assert torch.equal(again.log_probs, second.log_probs)


@pytest.mark.parametrize("build", [llama, qwen])
def test_temperature_zero_is_greedy(build) -> None:
    model = build()
    samples = sampler_of(model, temperature=0.0).sample(chat("1+2", "34"), 1)
    assert samples.log_probs.abs().sum() == 0
    for i, prompt in enumerate(samples.prompt_ids):
        ids = torch.tensor([prompt])
        greedy = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=PAD
        )[0, len(prompt) :]
        mine = samples.completion_ids[i][samples.mask[i]]
        assert mine.tolist() == greedy.tolist()[: len(mine)]


def test_dropout_is_off_while_sampling_and_the_mode_is_given_back() -> None:
    model = gpt2()  # its dropout is 0.1
    samples = sampler_of(model.train()).sample(chat("1+2"), 4)
    assert model.training
    log_probs, _ = from_scratch(model.eval(), samples, 1.0)
    torch.testing.assert_close(samples.log_probs, log_probs, atol=1e-5, rtol=0)


def test_samples_may_enter_a_loss() -> None:
    samples = sampler_of(llama()).sample(chat("1+2"), 2)
    weight = torch.ones(samples.log_probs.shape, requires_grad=True)
    (weight * samples.log_probs).sum().backward()  # inference tensors could not be saved for this
    assert weight.grad is not None


def test_bfloat16_models_are_sampled_in_their_own_precision() -> None:
    model = qwen().bfloat16()
    samples = sampler_of(model).sample(chat("1+2", "3"), 4)
    assert samples.log_probs.dtype == torch.float32
    log_probs, _ = from_scratch(model.float(), samples, 1.0)
    torch.testing.assert_close(samples.log_probs, log_probs, atol=0.5, rtol=0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("build", [llama, qwen])
def test_a_broken_policy_is_an_error(build, temperature: float) -> None:
    model = build()
    model.model.norm.weight.data[3] = torch.nan
    with pytest.raises(FloatingPointError, match="NaN"):
        sampler_of(model, temperature=temperature).sample(chat("1+2"), 2)


def test_bad_requests_are_named() -> None:
    sampler = sampler_of(llama())
    with pytest.raises(ValueError, match="prompts: at least one"):
        sampler.sample([], 2)
    with pytest.raises(ValueError, match="num_samples must be >= 1, got 0"):
        sampler.sample(chat("1"), 0)
    with pytest.raises(ValueError, match=r"prompts\[1\] holds no message"):
        sampler.sample([*chat("1"), []], 2)
    with pytest.raises(ValueError, match=r"prompts\[1\] cannot be encoded .*What\?"):
        sampler.sample(chat("1+2", "What?"), 2)
    with pytest.raises(ValueError, match="max_new_tokens must be >= 1, got 0"):
        SamplingSettings(0)
    with pytest.raises(ValueError, match="temperature must be >= 0, got nan"):
        SamplingSettings(4, float("nan"))
    endless = llama()
    endless.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="eos_token_id"):
        HFSampler(small_policy(endless, eos_token=None), SamplingSettings(4))


def test_the_script_is_read_in_order() -> None:
    script = ScriptedSampler(["7", "3*7+5", "", "26"])
    assert script.settings == SamplingSettings(max_new_tokens=6)
    first = script.sample(chat("3,7,5:26", "q"), 1)
    assert first.texts == ["7", "3*7+5"]
    assert first.prompt_ids[1] == [ord("q")]
    assert first.completion_ids.tolist() == [[55, 0, 0, 0, 0, 0], [51, 42, 55, 43, 53, 0]]
    assert first.mask.int().tolist() == [[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]]
    assert first.log_probs.abs().sum() == 0
    state = script.state_dict()
    assert script.sample(chat("q"), 2).texts == ["", "26"]
    with pytest.raises(RuntimeError, match="the script has 0 texts left, 2 were asked for"):
        script.sample(chat("q"), 2)
    script.load_state_dict(state)
    assert script.sample(chat("q"), 1).texts == [""]


def test_a_script_with_a_tokenizer_and_log_probs() -> None:
    script = ScriptedSampler(["1+2", "3"], tokenizer(), [[-0.1, -0.2, -0.3, -0.4], [-1.0, -2.0]])
    samples = script.sample(chat("12"), 2)
    assert samples.prompt_ids == [[BOS, 5, 6, ANSWER]]
    assert samples.completion_ids.tolist() == [[5, 14, 6, EOS], [7, EOS, EOS, EOS]]
    assert samples.mask.int().tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    torch.testing.assert_close(
        samples.log_probs, torch.tensor([[-0.1, -0.2, -0.3, -0.4], [-1.0, -2.0, 0.0, 0.0]])
    )
    with pytest.raises(ValueError, match=r"log_probs\[1\] has 1 entries for 2 tokens"):
        ScriptedSampler(["1", "3"], tokenizer(), [[-0.1, -0.2], [-1.0]])


def test_a_sampler_says_whom_it_asks_and_how() -> None:
    asked = small_policy(llama())
    sampler = HFSampler(asked, SamplingSettings(8))
    assert isinstance(sampler, Sampler)
    assert sampler.policy is asked and sampler.model is asked.model
    script = ScriptedSampler(["1"], tokenizer(), prompt_format=DRAFT_AFTER)
    assert isinstance(script, Sampler)
    assert script.policy.prompt_format == DRAFT_AFTER and script.policy.tokenizer is script.tokenizer
    assert ScriptedSampler(["1"]).policy.prompt_format == PAPER_FORMAT
