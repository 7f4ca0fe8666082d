"""Cost of a training step in FLOPs, seconds and bytes, for GRPO and iGRPO (Section 3.2.5, Table S.3).

Section 3.2.5 of https://arxiv.org/abs/2602.09000 counts completions: at N + G = G_GRPO both methods cost the
same. This model includes three effects that the count leaves out: iGRPO trains on G of its R = N + G
completions, q' is longer than q, and the two stages run one after the other. GRPO is `num_drafts=0`
everywhere.

Lengths are means in tokens, work is in FLOPs, time in seconds, memory in bytes. Every length and count may be
an array; arrays broadcast. The model is suited to ratios. For absolute numbers, calibrate
`Device.flops_share` on a run of your own (`calibrated`).
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Int

from igrpo_kit.core.toy import Numbers

Schedule = Literal["two barriers", "pipelined", "early stop", "one step ahead"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)

_BF16 = 2  # bytes


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The dimensions of a dense decoder that determine its cost."""

    parameters: float
    layers: int
    hidden: int
    kv_width: int
    """entries of a key per token and layer: number of key-value heads times their size"""
    vocabulary: int

    @property
    def kv_bytes(self) -> int:
        """Bytes of cache per token, keys and values in bfloat16."""
        return 2 * self.layers * self.kv_width * _BF16


SHAPES: dict[str, ModelShape] = {
    "tiny": ModelShape(parameters=362784, layers=3, hidden=96, kv_width=96, vocabulary=28),
    "smollm2-135m": ModelShape(parameters=134.5e6, layers=30, hidden=576, kv_width=192, vocabulary=49152),
    "qwen2.5-0.5b": ModelShape(parameters=0.494e9, layers=24, hidden=896, kv_width=128, vocabulary=151936),
    "qwen2.5-1.5b": ModelShape(parameters=1.54e9, layers=28, hidden=1536, kv_width=256, vocabulary=151936),
    "qwen2.5-7b": ModelShape(parameters=7.62e9, layers=28, hidden=3584, kv_width=512, vocabulary=152064),
    "qwen2.5-14b": ModelShape(parameters=14.77e9, layers=48, hidden=5120, kv_width=1024, vocabulary=152064),
}
"""The 7B and 14B models of the paper (DeepSeek-R1-Distill-Qwen, OpenMath-Nemotron, OpenReasoning-Nemotron)
have the Qwen2.5 shapes. Nemotron-H is not included, because half of it is not attention."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """An accelerator. The first three numbers are from its data sheet, the others are assumptions."""

    flops: float
    """peak FLOP/s, dense bfloat16"""
    bandwidth: float
    """peak memory bandwidth in bytes/s"""
    memory: float
    """bytes"""
    flops_share: float = 0.35
    """fraction of the peak that an update reaches, including all work other than matrix products"""
    bandwidth_share: float = 0.7
    """fraction of the peak bandwidth that decoding reaches"""
    launch_seconds: float = 0.002
    """overhead of a decode step of any size: scheduling, sampling, kernel launches"""


DEVICES: dict[str, Device] = {
    "A100-80GB": Device(flops=312e12, bandwidth=2.039e12, memory=80e9),
    "H100-80GB": Device(flops=989e12, bandwidth=3.35e12, memory=80e9),
    "H200-141GB": Device(flops=989e12, bandwidth=4.8e12, memory=141e9),
}


def _not_negative(**arguments: Numbers) -> None:
    for name, value in arguments.items():
        array = np.asarray(value, dtype=np.float64)
        if not np.all(np.isfinite(array) & (array >= 0)):
            raise ValueError(f"{name} must be finite and not negative, got {value!r}")


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one step per prompt; arrays if the arguments were arrays."""

    prefill: np.ndarray | np.floating | float
    decode: np.ndarray | np.floating | float
    update: np.ndarray | np.floating | float

    @property
    def sampling(self) -> np.ndarray | np.floating | float:
        """Prefill and decode."""
        return self.prefill + self.decode

    @property
    def total(self) -> np.ndarray | np.floating | float:
        """Sampling and update."""
        return self.sampling + self.update


def _forward(shape: ModelShape, start: Numbers, stop: Numbers) -> np.ndarray | np.floating:
    """FLOPs of the tokens at positions start to stop, each attending to all tokens before it."""
    start, stop = np.asarray(start, np.float64), np.asarray(stop, np.float64)
    # 2 per parameter and token; 4 * layers * hidden per token and attended position, summed over positions.
    return 2 * shape.parameters * (stop - start) + 2 * shape.layers * shape.hidden * (stop**2 - start**2)


def step_flops(
    shape: ModelShape,
    *,
    num_drafts: Numbers,
    num_refinements: Numbers,
    question: Numbers,
    completion: Numbers,
    draft: Numbers = 0,
    template: Numbers = 0,
    update_factor: float = 8,
    shared_prefix: bool = False,
) -> StepFlops:
    """FLOPs per prompt of one step of GRPO (num_drafts = 0) or iGRPO, including attention.

    With Lq = `question`, Ld = `draft`, Lt = `template`, Lo = `completion`, Lp the length of the trained
    prompt and c = `update_factor`, the linear terms are:

        prefill   2P Lq, and for q' another 2P (Lq + Lt + Ld); once per group (prefix cache)
        decode    2P (N + G) Lo
        update    c P G (Lp + Lo), or c P (Lp + G Lo) with `shared_prefix`

    Args:
        shape: the model, with P parameters.
        num_drafts: N.
        num_refinements: G.
        question: tokens of q.
        completion: tokens of a completion.
        draft: tokens of the draft in q'.
        template: tokens around the draft in q'.
        update_factor: 6 for forward and backward pass, 8 with full activation checkpointing, and 2 more for
            each additional forward pass (old or reference policy).
        shared_prefix: the update encodes the prompt once per group instead of once per completion.

    Raises:
        ValueError: an argument is negative or not finite (the message names it).
    """
    _not_negative(num_drafts=num_drafts, num_refinements=num_refinements, question=question)
    _not_negative(completion=completion, draft=draft, template=template, update_factor=update_factor)
    N, G, Lq, Lo = (np.asarray(x, np.float64) for x in (num_drafts, num_refinements, question, completion))
    drafts_sampled = N > 0
    Lp = Lq + drafts_sampled * (np.asarray(template, np.float64) + np.asarray(draft, np.float64))
    prefill = _forward(shape, 0, Lp) + drafts_sampled * _forward(shape, 0, Lq)
    decode = N * _forward(shape, Lq, Lq + Lo) + G * _forward(shape, Lp, Lp + Lo)
    prompts_encoded = np.where(G > 0, 1, 0) if shared_prefix else G
    trained = prompts_encoded * _forward(shape, 0, Lp) + G * _forward(shape, Lp, Lp + Lo)
    return StepFlops(prefill, decode, update_factor / 2 * trained)


def active_sequences(
    drafts: Int[np.ndarray, "P N"],
    refinements: Int[np.ndarray, "P G"],
    schedule: Schedule,
    *,
    correct: Bool[np.ndarray, "P N"] | None = None,
) -> Int[np.ndarray, " S"]:
    """Number of sequences being decoded at each decode step of one training step.

    Unlimited slots are assumed. N = 0 is GRPO. The schedules are:

    - "two barriers": all drafts, then all refinements (Algorithm 1 taken literally).
    - "pipelined": the refinements of a prompt start when its own drafts are finished.
    - "early stop": as pipelined, but the drafts of a prompt end when the first correct one is finished. This
      requires binary rewards, and favors short drafts.
    - "one step ahead": the drafts of the next step are decoded together with the refinements of this one.
      Drafts have no gradient and no importance ratio, so no correction is needed for being one update old;
      but the distribution of q' shifts.

    Args:
        drafts: lengths in tokens.
        refinements: lengths in tokens.
        schedule: one of the above.
        correct: which drafts are correct, for "early stop" only.

    Returns:
        The number of sequences at each of S decode steps.

    Raises:
        ValueError: a length is below 1, or `correct` is missing for "early stop" or given for another
            schedule.
    """
    if (correct is not None) != (schedule == "early stop"):
        raise ValueError('correct: needed by "early stop" and by nothing else')
    for name, lengths in (("drafts", drafts), ("refinements", refinements)):
        if np.any(lengths < 1):
            raise ValueError(f"{name}: lengths of at least one token are needed, got {lengths.min()}")
    stop = drafts.copy()
    if correct is not None:
        first_correct = np.where(correct, drafts, drafts.max(axis=1, initial=0)[:, None]).min(axis=1)
        stop = np.minimum(stop, first_correct[:, None])
    own = stop.max(axis=1, initial=0)
    start = {"two barriers": np.full_like(own, own.max(initial=0)), "one step ahead": np.zeros_like(own)}
    begin = np.broadcast_to(start.get(schedule, own)[:, None], refinements.shape)
    ends = np.concatenate([stop.ravel(), (begin + refinements).ravel()])
    change = np.zeros(ends.max(initial=0) + 1, dtype=np.int64)
    np.add.at(change, np.concatenate([np.zeros(stop.size, np.int64), begin.ravel()]), 1)
    np.add.at(change, ends, -1)
    return np.cumsum(change)[:-1]


def decode_step_seconds(
    shape: ModelShape, device: Device, active: Numbers, context: Numbers
) -> np.ndarray | np.floating:
    """Seconds of one decode step (roofline model).

    The step is limited either by memory (all weights and caches are read once) or by arithmetic (2 FLOPs per
    parameter and sequence). `Device.launch_seconds` is added.

    Args:
        shape: the model.
        device: the accelerator.
        active: number of sequences.
        context: tokens in the cache of each sequence.
    """
    _not_negative(active=active, context=context)
    active, context = np.asarray(active, np.float64), np.asarray(context, np.float64)
    read = (_BF16 * shape.parameters + active * context * shape.kv_bytes) / device.bandwidth
    compute = 2 * shape.parameters * active / device.flops
    return np.maximum(read, compute) / device.bandwidth_share + device.launch_seconds


def log_normal_lengths(
    size: tuple[int, ...], *, mean: float, spread: float, cap: int, rng: np.random.Generator
) -> Int[np.ndarray, "..."]:
    """Completion lengths in tokens: log-normal, then truncated at `cap`, which lowers the mean.

    Args:
        size: shape of the result.
        mean: mean before truncation, in tokens.
        spread: standard deviation of the log length.
        cap: maximum length.
        rng: source of randomness.

    Raises:
        ValueError: mean or cap is below 1, or spread is negative.
    """
    if not (mean >= 1 and cap >= 1 and spread >= 0):
        raise ValueError(f"mean and cap of at least 1, spread of at least 0, got {mean=}, {cap=}, {spread=}")
    sampled = rng.lognormal(np.log(mean) - spread**2 / 2, spread, size)
    return np.clip(np.rint(sampled), 1, cap).astype(np.int64)


def update_bytes(
    shape: ModelShape,
    *,
    micro_batch: Numbers,
    prompt: Numbers,
    completion: Numbers,
    shards: Numbers = 1,
    logit_copies: float = 2,
) -> np.ndarray | np.floating:
    """Peak memory of an update on one GPU, in bytes, with full activation checkpointing.

        2P weights + (2P gradients + 12P AdamW state with float32 master weights) / `shards` (ZeRO-2)
        + b (Lp + Lo) layers * hidden * 2 checkpoints
        + b Lo V * 2 * `logit_copies` for logits and their gradient

    The working memory of a single layer is not counted.

    Args:
        shape: the model, with P parameters and vocabulary V.
        micro_batch: b, completions per GPU at a time.
        prompt: Lp, tokens of the longest prompt of a batch (batches are padded).
        completion: Lo, tokens of the longest completion of a batch.
        shards: number of GPUs that share gradients and optimizer state.
        logit_copies: number of bfloat16 copies of the logits.

    Raises:
        ValueError: an argument is negative or not finite, or `shards` is below 1 (the message names it).
    """
    _not_negative(micro_batch=micro_batch, prompt=prompt, completion=completion, logit_copies=logit_copies)
    if np.any(np.asarray(shards) < 1):
        raise ValueError(f"shards must be at least 1, got {shards!r}")
    b, Lp, Lo = (np.asarray(x, np.float64) for x in (micro_batch, prompt, completion))
    state = shape.parameters * (2 + 14 / np.asarray(shards, np.float64))
    checkpoints = b * (Lp + Lo) * shape.layers * shape.hidden * _BF16
    return state + checkpoints + b * Lo * shape.vocabulary * _BF16 * logit_copies


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training run whose cost is to be estimated.

    The defaults are the paper's 7B run (Section 4.1, Table S.2) where the paper states them. It does not
    state `completion`, `question`, `template` and `spread`; their values are assumptions.
    """

    shape: ModelShape = SHAPES["qwen2.5-7b"]
    device: Device = DEVICES["A100-80GB"]
    train_gpus: int = 8
    sampler_gpus: int = 8
    """each holds a full copy of the model; 0: the training GPUs also sample, in turn"""
    prompts: int = 128
    """per step"""
    steps: int = 59
    """one epoch of 7,500 problems at 128 per step"""
    num_drafts: int = 4
    num_refinements: int = 4
    question: float = 150
    template: float = 100
    completion: float = 1800
    spread: float = 0.7
    """standard deviation of log length"""
    cap: int = 4096
    draft: float | None = None
    """tokens of the draft in q'; None: the whole draft"""
    draft_accuracy: float = 0.7
    """fraction of correct drafts, for the schedule "early stop" only"""
    update_factor: float = 8
    shared_prefix: bool = False
    micro_batch: int = 16


@dataclass(frozen=True)
class JobCost:
    """The estimate of `job_cost`; seconds are means over simulated steps."""

    decode_seconds: float
    prefill_seconds: float
    update_seconds: float
    gpu_hours: float
    peak_update_bytes: float

    @property
    def sampling_seconds(self) -> float:
        """Seconds per step: prefill and decode."""
        return self.decode_seconds + self.prefill_seconds

    @property
    def step_seconds(self) -> float:
        """Seconds per step: sampling, then the update."""
        return self.sampling_seconds + self.update_seconds


def _sample(job: Job, replicas: int, rng: np.random.Generator) -> list[tuple[np.ndarray, ...]]:
    """Lengths of drafts and refinements, and which drafts are correct, for each replica in one step."""
    size, sampled = (replicas, job.prompts // replicas), []
    for count in (job.num_drafts, job.num_refinements):
        lengths = log_normal_lengths(
            (*size, count), mean=job.completion, spread=job.spread, cap=job.cap, rng=rng
        )
        sampled.append(lengths)
    return list(zip(*sampled, rng.random((*size, job.num_drafts)) < job.draft_accuracy, strict=True))


def _job_flops(job: Job, completion: float) -> StepFlops:
    return step_flops(
        job.shape,
        num_drafts=job.num_drafts,
        num_refinements=job.num_refinements,
        question=job.question,
        completion=completion,
        draft=completion if job.draft is None else min(job.draft, completion),
        template=job.template,
        update_factor=job.update_factor,
        shared_prefix=job.shared_prefix,
    )


def job_cost(job: Job, schedule: Schedule = "two barriers", *, trials: int = 20, seed: int = 0) -> JobCost:
    """Seconds per step, GPU-hours and peak bytes of a run, from `trials` simulated sampling steps.

    Assumptions: lengths are log-normal; each step has one update, after its sampling; a step waits for the
    slowest replica; prefill runs at the update's fraction of the peak. Not included: loading, evaluation,
    sending weights to the sampler, grading.

    Args:
        job: the run.
        schedule: see `active_sequences`.
        trials: number of simulated steps.
        seed: of the simulated lengths.

    Raises:
        ValueError: the prompts do not divide over the replicas, or num_refinements or trials is below 1.
    """
    replicas = job.sampler_gpus or job.train_gpus
    if job.prompts % replicas:
        raise ValueError(f"prompts: {job.prompts} do not divide over {replicas} sampling GPUs")
    if job.num_refinements < 1 or trials < 1:
        raise ValueError(f"num_refinements and trials: at least 1, got {job.num_refinements}, {trials}")
    rng, decode, lengths = np.random.default_rng(seed), [], []
    context = job.question + job.completion / 2
    for _ in range(trials):
        seconds = []
        for drafts, refinements, correct in _sample(job, replicas, rng):
            known = correct if schedule == "early stop" else None
            active = active_sequences(drafts, refinements, schedule, correct=known)
            seconds.append(decode_step_seconds(job.shape, job.device, active, context).sum())
            lengths.append(refinements.mean())
        decode.append(max(seconds))
    flops, rate = _job_flops(job, float(np.mean(lengths))), job.device.flops * job.device.flops_share
    mean_decode = float(np.mean(decode))
    prefill = float(flops.prefill) * job.prompts / (rate * replicas)
    update = float(flops.update) * job.prompts / (rate * job.train_gpus)
    hours = (mean_decode + prefill + update) * job.steps * (job.train_gpus + job.sampler_gpus) / 3600
    return JobCost(mean_decode, prefill, update, hours, _job_peak(job))


def calibrated(job: Job, gpu_hours: float, schedule: Schedule = "two barriers") -> Job:
    """The job with `Device.flops_share` set so that `job_cost` returns the measured `gpu_hours`.

    This fraction then also covers everything the model leaves out (padding, transfers, grading, waiting).
    Calibrate on one run to predict another.

    Args:
        job: the measured run.
        gpu_hours: its measured GPU-hours.
        schedule: see `active_sequences`.

    Raises:
        ValueError: the hours are too short for the decoding, or would require more than the device's peak.
    """
    cost = job_cost(job, schedule)
    gpus = job.train_gpus + job.sampler_gpus
    left = gpu_hours * 3600 / (job.steps * gpus) - cost.decode_seconds
    arithmetic = (cost.prefill_seconds + cost.update_seconds) * job.device.flops_share
    if left <= arithmetic:
        raise ValueError(f"gpu_hours: {gpu_hours} leave {left:.3g} s a step for {arithmetic:.3g} s at peak")
    return replace(job, device=replace(job.device, flops_share=arithmetic / left))


def _job_peak(job: Job) -> float:
    draft = job.cap if job.draft is None else job.draft
    prompt = job.question + (job.template + draft if job.num_drafts else 0)
    return float(
        update_bytes(
            job.shape, micro_batch=job.micro_batch, prompt=prompt, completion=job.cap, shards=job.train_gpus
        )
    )
