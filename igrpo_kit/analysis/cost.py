"""What a training step costs: FLOPs, seconds and bytes, for GRPO and iGRPO (Section 3.2.5, Table S.3).

Section 3.2.5 counts completions: at N + G = G_GRPO the two methods cost the same. Three things are left out
of that count, and this model has them: iGRPO trains on G of its R = N + G completions, q' is longer than q,
and the two stages follow each other. GRPO is the case `num_drafts=0` everywhere.

Lengths are means in tokens, work is in FLOPs, time in seconds, memory in bytes. Every length and count may be
an array; arrays broadcast. What a model like this is good for is ratios; for absolute numbers calibrate it
(`Device.flops_share`) on a run of your own.
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
    """What of a dense decoder the cost depends on."""

    parameters: float
    layers: int
    hidden: int
    kv_width: int
    """entries of a key per token and layer: key-value heads times their size"""
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
"""The 7B and 14B of the paper (DeepSeek-R1-Distill-Qwen, OpenMath-Nemotron, OpenReasoning-Nemotron) have
the Qwen2.5 shapes. Nemotron-H, half of it not attention, is not here."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """One accelerator: the first three numbers are its data sheet's, the others are assumptions."""

    flops: float
    """peak FLOP/s, dense bfloat16"""
    bandwidth: float
    """peak bytes/s of its memory"""
    memory: float
    """bytes"""
    flops_share: float = 0.35
    """of the peak that an update reaches, everything that is not a matrix product counted in"""
    bandwidth_share: float = 0.7
    """of the peak that decoding reaches"""
    launch_seconds: float = 0.002
    """of one decode step, whatever its size: scheduling, sampling, kernel launches"""


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
    """Floating-point operations of one step, per prompt; arrays where the arguments were."""

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
    """FLOPs of the tokens at positions start to stop, each attending to all before it."""
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
    """FLOPs per prompt of one GRPO (num_drafts = 0) or iGRPO step; attention is counted.

    With Lq `question`, Ld `draft` as it stands in q', Lt `template` around it, Lo `completion`, linear terms
    only: prefill 2P Lq, and 2P (Lq + Lt + Ld) more for q'; decode 2P (N + G) Lo; update c P G (Lp + Lo), Lp
    being the length of the trained prompt, or c P (Lp + G Lo) with `shared_prefix`. Each prompt is prefilled
    once for its group (a prefix cache). c is `update_factor`: 6 for forward and backward, 8 with full
    activation checkpointing, 2 more for each pass that only scores (old or reference policy).

    Raises ValueError naming an argument that is negative or not finite.
    """
    _not_negative(num_drafts=num_drafts, num_refinements=num_refinements, question=question)
    _not_negative(completion=completion, draft=draft, template=template, update_factor=update_factor)
    N, G, Lq, Lo = (np.asarray(x, np.float64) for x in (num_drafts, num_refinements, question, completion))
    drafts_drawn = N > 0
    Lp = Lq + drafts_drawn * (np.asarray(template, np.float64) + np.asarray(draft, np.float64))
    prefill = _forward(shape, 0, Lp) + drafts_drawn * _forward(shape, 0, Lq)
    decode = N * _forward(shape, Lq, Lq + Lo) + G * _forward(shape, Lp, Lp + Lo)
    prompts_encoded = np.where(G > 0, 1, 0) if shared_prefix else G
    trained = prompts_encoded * _forward(shape, 0, Lp) + G * _forward(shape, Lp, Lp + Lo)
    return StepFlops(prefill, decode, update_factor / 2 * trained)


def active_sequences(
    drafts: Int[np.ndarray, "P N"],
    refinements: Int[np.ndarray, "P G"],
    schedule: Schedule,
    *,
    right: Bool[np.ndarray, "P N"] | None = None,
) -> Int[np.ndarray, " S"]:
    """How many sequences are decoded at each decode step of one training step, from the lengths in tokens.

    - "two barriers": all drafts, then all refinements (the paper's Algorithm 1 read literally).
    - "pipelined": a prompt's refinements start when its own drafts are done.
    - "early stop": as pipelined, but a prompt's drafts end with the first `right` one to finish, which binary
      rewards allow (and which favors short drafts).
    - "one step ahead": the next step's drafts run beside this step's refinements. A draft carries no gradient
      and no importance ratio, so being one update old needs no correction; it shifts the distribution of q'.

    Enough slots for all are assumed. N = 0 is GRPO. Raises ValueError for lengths below 1, or where `right`
    and "early stop" do not come together.
    """
    if (right is not None) != (schedule == "early stop"):
        raise ValueError('right: needed by "early stop" and by nothing else')
    for name, lengths in (("drafts", drafts), ("refinements", refinements)):
        if np.any(lengths < 1):
            raise ValueError(f"{name}: lengths of at least one token are needed, got {lengths.min()}")
    stop = drafts.copy()
    if right is not None:
        first_right = np.where(right, drafts, drafts.max(axis=1, initial=0)[:, None]).min(axis=1)
        stop = np.minimum(stop, first_right[:, None])
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
    """Seconds of one decode step of `active` sequences that hold `context` tokens each: a roofline.

    Either the memory is the limit (all weights and the caches are read once) or the arithmetic (2 FLOPs per
    parameter and sequence), plus `Device.launch_seconds`.
    """
    _not_negative(active=active, context=context)
    active, context = np.asarray(active, np.float64), np.asarray(context, np.float64)
    read = (_BF16 * shape.parameters + active * context * shape.kv_bytes) / device.bandwidth
    compute = 2 * shape.parameters * active / device.flops
    return np.maximum(read, compute) / device.bandwidth_share + device.launch_seconds


def log_normal_lengths(
    size: tuple[int, ...], *, mean: float, spread: float, cap: int, rng: np.random.Generator
) -> Int[np.ndarray, "..."]:
    """Completion lengths in tokens: log-normal with this mean and log-sd `spread`, then cut at `cap`.

    The cut lowers the mean. Raises ValueError where mean or cap is below 1 or spread is negative.
    """
    if not (mean >= 1 and cap >= 1 and spread >= 0):
        raise ValueError(f"mean and cap of at least 1, spread of at least 0, got {mean=}, {cap=}, {spread=}")
    drawn = rng.lognormal(np.log(mean) - spread**2 / 2, spread, size)
    return np.clip(np.rint(drawn), 1, cap).astype(np.int64)


def update_bytes(
    shape: ModelShape,
    *,
    micro_batch: Numbers,
    prompt: Numbers,
    completion: Numbers,
    shards: Numbers = 1,
    logit_copies: float = 2,
) -> np.ndarray | np.floating:
    """Peak memory of an update on one GPU, with full activation checkpointing.

    2P weights + (2P gradients + 12P AdamW state with float32 master weights) / `shards` (ZeRO-2)
    + b (Lp + Lo) layers * hidden * 2 checkpoints + b Lo V * 2 * `logit_copies` for logits and their
    gradient. b is `micro_batch`, completions per GPU at a time; lengths are the longest of a batch, as it is
    padded. The working set of a single layer is not counted.

    Raises ValueError naming an argument that is negative or not finite, or `shards` below 1.
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
    """A training run to be estimated. The defaults are the paper's 7B run (Sec. 4.1, Table S.2) as far as it
    says; `completion`, `question`, `template` and `spread` it does not say, and they are assumptions."""

    shape: ModelShape = SHAPES["qwen2.5-7b"]
    device: Device = DEVICES["A100-80GB"]
    train_gpus: int = 8
    sampler_gpus: int = 8
    """each samples with a whole copy of the model; 0: the training GPUs sample too, in turn"""
    prompts: int = 128
    """per step"""
    steps: int = 59
    """one epoch of 7,500 problems at 128 a step"""
    num_drafts: int = 4
    num_refinements: int = 4
    question: float = 150
    template: float = 100
    completion: float = 1800
    spread: float = 0.7
    """standard deviation of log length"""
    cap: int = 4096
    draft: float | None = None
    """tokens of the draft in q'; None: all of it"""
    right: float = 0.7
    """share of right drafts, which "early stop" needs"""
    update_factor: float = 8
    shared_prefix: bool = False
    micro_batch: int = 16


@dataclass(frozen=True)
class JobCost:
    """What `job_cost` estimates; seconds are means over simulated steps."""

    decode_seconds: float
    prefill_seconds: float
    update_seconds: float
    gpu_hours: float
    peak_update_bytes: float

    @property
    def sampling_seconds(self) -> float:
        """Of one step: prefill and decode."""
        return self.decode_seconds + self.prefill_seconds

    @property
    def step_seconds(self) -> float:
        """Of one step: sampling, then the update."""
        return self.sampling_seconds + self.update_seconds


def _draw(job: Job, replicas: int, rng: np.random.Generator) -> list[tuple[np.ndarray, ...]]:
    """Lengths of drafts and refinements, and which drafts are right, for each replica and one step."""
    size, drawn = (replicas, job.prompts // replicas), []
    for count in (job.num_drafts, job.num_refinements):
        lengths = log_normal_lengths(
            (*size, count), mean=job.completion, spread=job.spread, cap=job.cap, rng=rng
        )
        drawn.append(lengths)
    return list(zip(*drawn, rng.random((*size, job.num_drafts)) < job.right, strict=True))


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
    """Seconds per step, GPU-hours and peak bytes of a run, by simulating `trials` steps of its sampling.

    Lengths are log-normal; there is one update per step, after its sampling; a step waits for the slowest
    replica; prefill runs at the update's share of the peak. Not counted: loading, evaluation, sending weights
    to the sampler, grading.

    Raises ValueError naming what does not fit: prompts that do not divide over the replicas, an empty group.
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
        for drafts, refinements, right in _draw(job, replicas, rng):
            known = right if schedule == "early stop" else None
            active = active_sequences(drafts, refinements, schedule, right=known)
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
    """The job with the `Device.flops_share` at which `job_cost` gives the `gpu_hours` that a run took.

    Everything the model leaves out (padding, transfers, grading, waiting) goes into that share. Calibrate on
    one run, predict another. Raises ValueError where the hours do not even cover the decoding, or would need
    more than the device's peak.
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
