"""iGRPO on TRL's GRPOTrainer: adds Stage 1 before TRL's generation and leaves the rest to TRL (Algorithm 1).

TRL repeats every prompt G times, samples one completion per row, scores it and trains on it. `IGRPOTrainer`
first runs Stage 1: it samples drafts from q with TRL's own generation (transformers, vLLM colocated or as a
server), scores them with the same reward functions, selects one draft per group, and passes the rows to TRL
with q' as their prompt. Log-probs, reference, ratios and loss are therefore conditioned on q', and only the
refinements are trained.

Groups are consecutive rows, over all processes in rank order, and may span two processes. Rewards and drafts
are therefore gathered before the selection. The module is written for the TRL version in constraints.txt. The
non-public parts of TRL that it uses are checked when a trainer is created (`check_trl`).

Algorithm, equations and tables: https://arxiv.org/abs/2602.09000.
"""

import inspect
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import trl
from accelerate.utils import broadcast, gather, gather_object
from datasets import Dataset
from jaxtyping import Bool, Float, Int
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from igrpo_kit.core.advantages import advantages_of_scored, dead_groups, group_advantages
from igrpo_kit.core.prompts import PAPER_FORMAT, PromptFormat
from igrpo_kit.core.selection import NO_DRAFT, SELECTORS, select_drafts
from igrpo_kit.policies.samplers.vllm import policy_weights
from igrpo_kit.tasks.problem import Problem
from igrpo_kit.tasks.rewards import text_of
from igrpo_kit.training.checkpoint import load_checkpoint, save_checkpoint

WRITTEN_FOR = "1.16.0"
"""The TRL version for which this module was written and tested."""


@dataclass
class IGRPOConfig(GRPOConfig):
    """GRPOConfig with Stage 1. `num_generations` is G, the refinements per prompt (in the paper 4 + 4).

    Some defaults differ from TRL's, to match the paper's objective (Eq. 5): the loss is a mean over sequences
    (`loss_type="grpo"`; TRL: "dapo"), there is no correction for the engine's rounding, and the KL term uses
    the plain k3 estimator. The other objectives of Table 2 are flags of TRL: `loss_type="dapo"` for DAPO
    (https://arxiv.org/abs/2503.14476), and `importance_sampling_level="sequence"` for GSPO
    (https://arxiv.org/abs/2507.18071).

    An update contains `generation_batch_size / num_generations` prompts, so GRPO with twice the group size
    has half as many. To compare the two, keep the number of prompts equal, not the number of rows.

    Raises:
        ValueError: the settings cannot be trained (the message says why).
    """

    num_drafts: int = field(default=4, metadata={"help": "N, the drafts per prompt; 0 is GRPO"})
    select: str = field(
        default="best", metadata={"help": "which draft Stage 2 is shown", "choices": list(SELECTORS)}
    )
    max_draft_tokens: int | None = field(
        default=None, metadata={"help": "the draft's end that q' holds; None is all of it"}
    )
    refinement_template: str = field(
        default=PAPER_FORMAT.refinement,
        metadata={"help": "the last user turn of q', with {question} and {draft}: PromptFormat.refinement"},
    )
    num_generations: int = field(default=4, metadata={"help": "G, the refinements per prompt"})
    loss_type: str = field(default="grpo", metadata={"help": "as in GRPOConfig; grpo is Eq. 5"})
    vllm_importance_sampling_correction: bool = field(
        default=False, metadata={"help": "as in GRPOConfig; Eq. 5 has no such factor"}
    )
    use_bias_correction_kl: bool = field(
        default=False, metadata={"help": "as in GRPOConfig; Eq. 5's KL term is not multiplied by the ratio"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_drafts < 0:
            raise ValueError(f"num_drafts must be >= 0, got {self.num_drafts}")
        if self.select not in SELECTORS:
            raise ValueError(f"select: expected one of {', '.join(SELECTORS)}, got {self.select!r}")
        if self.max_draft_tokens is not None and self.max_draft_tokens < 1:
            raise ValueError(f"max_draft_tokens must be >= 1, got {self.max_draft_tokens}")
        PromptFormat(None, self.refinement_template)
        assert self.steps_per_generation is not None  # set by GRPOConfig
        rows = self.per_device_train_batch_size * self.steps_per_generation
        if self.num_drafts not in (0, self.num_generations) and rows % self.num_generations:
            raise ValueError(
                f"num_drafts={self.num_drafts} with num_generations={self.num_generations} needs whole "
                f"groups on each process, but one holds {rows} rows (per_device_train_batch_size x "
                f"steps_per_generation): make that a multiple of {self.num_generations}, or the two equal"
            )
        if self.use_vllm and self.num_drafts:
            self._check_engine()

    def _check_engine(self) -> None:
        """Raise an error if the engine has no room for q', and warn about settings that make it slow."""
        longest, limit = self.vllm_max_model_length, self.max_completion_length
        draft = self.max_draft_tokens or limit
        if longest is not None and limit is not None and draft is not None and draft + limit >= longest:
            raise ValueError(
                f"vllm_max_model_length={longest} has no room for a question: a draft may take {draft} "
                f"tokens and its refinement {limit}; raise it, or set max_draft_tokens"
            )
        if self.vllm_mode == "colocate" and self.vllm_enable_sleep_mode:
            warnings.warn(
                "vllm_enable_sleep_mode discards the engine's weights after each of the two stages: they are "
                "sent twice per generation, and Stage 2 finds no cached prefix",
                stacklevel=4,
            )


def problem_dataset(problems: Iterable[Problem], prompt_format: PromptFormat = PAPER_FORMAT) -> Dataset:
    """Problems as a data set for the trainer: `prompt` holds q's chat messages, and every field is a column.

    The kit's rewards use the columns `id`, `question`, `answer` and `source`.
    """
    return Dataset.from_list(
        [
            {
                "prompt": prompt_format.problem_messages(problem.question),
                "id": problem.id,
                "question": problem.question,
                "answer": problem.answer,
                "source": problem.source,
            }
            for problem in problems
        ]
    )


class TRLMovedError(RuntimeError):
    """The installed TRL differs from the supported version in a part that this module uses."""


_METHODS = {
    "_generate": ("self", "prompts"),
    "_calculate_rewards": ("self", "inputs", "prompts", "completions", "completion_ids_list"),
    "_generate_and_score_completions": ("self", "inputs"),
    "_save_rng_state": ("self", "output_dir"),
    "_load_rng_state": ("self", "checkpoint"),
}
_GENERATE_RETURNS = "return prompt_ids, completion_ids, tool_mask, completions, "
_ATTRIBUTES = (
    "_metrics",
    "_pending_extra_logs",
    "_pending_metrics",
    "_logs",
    "_step",
    "_buffered_inputs",
    "num_generations",
    "num_iterations",
    "reward_weights",
    "reward_func_names",
    "scale_rewards",
    "multi_objective_aggregation",
)


def check_trl(trainer: GRPOTrainer | None = None) -> None:
    """Check that TRL has the members that this module uses.

    Args:
        trainer: check the attributes of this trainer; None checks the leading parameters of TRL's methods and
            the return value of `_generate`.

    Raises:
        TRLMovedError: a member is missing or has changed (the message has version and member).
    """

    def moved(member: str, found: str) -> TRLMovedError:
        return TRLMovedError(
            f"trl {trl.__version__}: GRPOTrainer.{member} has moved ({found}). IGRPOTrainer was written for "
            f"trl {WRITTEN_FOR}; install that version, which constraints.txt pins"
        )

    if trainer is not None:
        for name in _ATTRIBUTES:
            if not hasattr(trainer, name):
                raise moved(name, "no such attribute")
        return
    for name, expected in _METHODS.items():
        method = getattr(GRPOTrainer, name, None)
        if method is None:
            raise moved(name, "no such method")
        parameters = tuple(inspect.signature(method).parameters)
        if parameters[: len(expected)] != expected:
            raise moved(name, f"parameters {parameters}, expected {expected}")
    if _GENERATE_RETURNS not in inspect.getsource(GRPOTrainer._generate):
        raise moved("_generate", f"it no longer ends in `{_GENERATE_RETURNS}...`")


class IGRPOTrainer(GRPOTrainer):
    """GRPOTrainer with iGRPO's Stage 1. The arguments are those of GRPOTrainer; `args` is an IGRPOConfig.

    Rewards are always R(q, o): reward functions are given the data set's prompt and columns, never q'.
    Metrics of Stage 1 are logged under `igrpo/stage1/`, tokens of both stages are counted, and evaluation is
    single-shot from q. Advantages are those of `group_advantages`: no epsilon, and exactly 0 in a dead group
    (TRL's own leave rounding noise divided by 1e-4). Checkpoints contain the current rollout, so a run
    resumes bit for bit at any step, not only at those where TRL starts a new rollout.

    Prompts are chat messages or plain text. The last turn is the question, which is never truncated.

    Raises:
        TRLMovedError: the installed TRL differs in a part that this class uses.
        TypeError: `args` is not an IGRPOConfig.
        ValueError: tools, environments, a `rollout_func` or images, which Stage 1 does not support.
    """

    # Attributes that TRL leaves untyped or types less precisely.
    args: IGRPOConfig
    model: Any
    processing_class: Any
    num_generations: int
    _buffered_inputs: Any
    _logs: dict[str, Any]
    _tag_names = ["trl", "grpo", "igrpo"]  # noqa: RUF012, as TRL has it

    def __init__(self, model: Any, reward_funcs: Any, args: GRPOConfig, **options: Any) -> None:
        check_trl()
        if not isinstance(args, IGRPOConfig):
            raise TypeError(f"args: expected an IGRPOConfig, got {type(args).__name__}")
        for name in ("tools", "environment_factory", "rollout_func"):
            if options.get(name):
                raise ValueError(f"{name}: IGRPOTrainer drafts and refines in single turns without it")
        self._questions: list[Any] | None = None
        self._rewards, self._completion_ids = torch.empty(0), list[list[int]]()
        super().__init__(model, reward_funcs, args, **options)
        check_trl(self)
        if args.use_vllm and args.vllm_mode == "colocate" and self.accelerator.device.type == "cpu":
            self.vllm_generation.sync_weights = self._sync_cpu_engine  # type: ignore[method-assign]

    def _sync_cpu_engine(self) -> None:
        """Replaces TRL's `load_weights`, which fails on vLLM's CPU engine with its repacked weights."""
        engine = self.vllm_generation.llm
        weights = policy_weights(self.accelerator.unwrap_model(self.model))
        engine.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        engine.reset_prefix_cache()

    # One generation: Stage 1, TRL's own generation on q', and the advantages.

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        if "image" in inputs[0] or "images" in inputs[0]:
            raise ValueError("images: IGRPOTrainer refines text only; drop the column")
        rows, drafts = inputs, None
        if self.args.num_drafts:
            drafts = self._shown_drafts(inputs)
            prompts = [self._refine(row["prompt"], text) for row, text in zip(inputs, drafts, strict=True)]
            rows = [{**row, "prompt": prompt} for row, prompt in zip(inputs, prompts, strict=True)]
        self._questions = [row["prompt"] for row in inputs]
        try:
            batch = super()._generate_and_score_completions(rows)
        finally:
            self._questions = None
        batch["advantages"] = self._exact_advantages(batch["advantages"])
        if drafts is not None:
            self._log_copies(drafts)
        return batch

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        """TRL's rewards, on q instead of q' (Eq. 3 changes the prompt, not the task); kept for later use."""
        prompts = prompts if self._questions is None else self._questions
        self._completion_ids = completion_ids_list
        self._rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        return self._rewards

    def _shown_drafts(self, inputs: list[dict[str, Any]]) -> list[str | None]:
        """Stage 1: the draft in the Stage 2 prompt of each local row, None if none was scored or selected."""
        G, N = self.num_generations, self.args.num_drafts
        rows = inputs if N == G else [row for row in inputs[::G] for _ in range(N)]
        prompts = [row["prompt"] for row in rows]
        with self._stage_one(N):
            _, completion_ids, _, completions, *_ = self._generate(prompts)
            rewards = self._calculate_rewards(rows, prompts, completions, completion_ids)
        texts = gather_object(self.processing_class.batch_decode(completion_ids, skip_special_tokens=True))
        totals = self._totals(rewards).view(-1, N)
        selected = self._select(totals)
        self._log_drafts(rewards, totals, selected)
        first = self.accelerator.process_index * len(inputs)
        groups = [(first + row) // G for row in range(len(inputs))]
        return [None if selected[g] == NO_DRAFT else texts[g * N + int(selected[g])] for g in groups]

    @contextmanager
    def _stage_one(self, num_drafts: int) -> Iterator[None]:
        """Context for generating N rows per prompt, with metrics logged under `igrpo/stage1/`."""
        metrics, group_size = self._metrics["train"], self.num_generations
        self._metrics["train"], self.num_generations = defaultdict(list), num_drafts
        try:
            yield
            drafted = self._metrics["train"]
        finally:
            self._metrics["train"], self.num_generations = metrics, group_size
        del drafted["num_tokens"]  # a running total, logged by Stage 2
        for name, values in drafted.items():
            metrics[f"igrpo/stage1/{name}"].extend(values)
        # Values logged by reward functions: scalars become Stage 1 metrics. Columns are dropped, because they
        # belong to the table of completions, which has other rows.
        self._pending_extra_logs.clear()
        for name in list(self._pending_metrics):
            self._pending_metrics[f"igrpo/stage1/{name}"] = self._pending_metrics.pop(name)

    def _select(self, totals: Float[Tensor, "P N"]) -> Int[Tensor, " P"]:
        """One choice per group (Eq. 2), made by process 0 for all; NO_DRAFT if no draft was scored."""
        return broadcast(select_drafts(totals, self.args.select))

    def _refine(self, prompt: Any, draft: str | None) -> Any:
        """q' of a chat or of plain text; q without a draft."""
        if draft is None:
            return prompt
        messages = PromptFormat(None, self.args.refinement_template).refinement_messages(
            text_of(prompt),
            draft,
            max_draft_tokens=self.args.max_draft_tokens,
            tokenizer=self.processing_class,
        )
        turn = messages[-1]["content"]
        return turn if isinstance(prompt, str) else [*prompt[:-1], {**prompt[-1], "content": turn}]

    # Rewards to advantages.

    def _totals(self, rewards: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
        """sum_k w_k R_k over the functions that scored a row, NaN if none did."""
        totals = (rewards * self.reward_weights.to(rewards.device)).nansum(dim=1)
        return totals.masked_fill(rewards.isnan().all(dim=1), torch.nan)

    def _exact_advantages(self, advantages: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Advantages of the local rows, exactly 0 in dead groups; also written to the logged table."""
        start = self.accelerator.process_index * len(advantages)
        local = slice(start, start + len(advantages))
        G = self.num_generations
        grouped = self._totals(self._rewards).view(-1, G)
        if self.multi_objective_aggregation == "sum_then_normalize" and self.scale_rewards != "batch":
            dead = dead_groups(grouped)
            normalize = partial(group_advantages, scale_by_std=self.scale_rewards == "group")
            exact = advantages_of_scored(grouped, normalize).flatten()
        else:  # normalized over the batch by TRL
            dead = self._all_dead(grouped)
            exact = gather(advantages).masked_fill(dead.repeat_interleave(G), 0.0)
        self._logs["advantages"].extend(exact.tolist())
        self._log("dead_groups", dead.float().mean())
        return exact[local]

    def _all_dead(self, totals: Float[Tensor, "P G"]) -> Bool[Tensor, " P"]:
        """Groups in which the normalized quantity (each reward, or their sum) is constant."""
        if self.multi_objective_aggregation == "sum_then_normalize":
            return dead_groups(totals)
        parts = self._rewards.view(-1, totals.shape[1], self._rewards.shape[1]).unbind(dim=2)
        return torch.stack([dead_groups(part) for part in parts]).all(dim=0)

    # Metrics.

    def _log(self, name: str, value: Tensor) -> None:
        self._metrics["train"][f"igrpo/{name}"].append(value.item())

    def _log_drafts(self, rewards: Tensor, totals: Tensor, selected: Tensor) -> None:
        shown = totals.gather(1, selected.clamp(min=0)[:, None]).squeeze(1)
        self._log("shown_draft_reward", shown[selected != NO_DRAFT].nanmean())
        self._log("stage1/reward", totals.nanmean())
        for name, values in zip(self.reward_func_names, rewards.unbind(dim=1), strict=True):
            self._log(f"stage1/rewards/{name}/mean", values.nanmean())
        if totals.shape[1] > 1:
            self._log("stage1/dead_groups", dead_groups(totals).float().mean())

    def _log_copies(self, drafts: Sequence[str | None]) -> None:
        """Log the fraction of refinements that equal their draft exactly."""
        texts = self.processing_class.batch_decode(self._completion_ids, skip_special_tokens=True)
        copied = [torch.nan if d is None else float(d == t) for d, t in zip(drafts, texts, strict=True)]
        self._log("copy_rate", gather(torch.tensor(copied, device=self.accelerator.device)).nanmean())

    # Checkpoints: TRL does not save the current rollout and its position in it.

    @property
    def _period(self) -> int:
        """Micro-steps from one generation to the next."""
        return (self.args.steps_per_generation or 1) * self.num_iterations

    def _state_file(self, checkpoint: str) -> Path:
        return Path(checkpoint, f"igrpo_state_{self.accelerator.process_index}.safetensors")

    def _save_rng_state(self, output_dir: str) -> None:
        """Save what the next step needs besides weights and optimizer: random states, current rollout."""
        super()._save_rng_state(output_dir)
        state = {
            "step": self._step,
            "processes": self.accelerator.num_processes,
            "rollout": self._buffered_inputs if self._step % self._period else None,
        }
        save_checkpoint(self._state_file(output_dir), state)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        state = self._read_state(checkpoint)
        self._step = state["step"]
        rollout = state["rollout"]
        if rollout is not None:
            device = self.accelerator.device
            self._buffered_inputs = [
                {k: v.to(device) if isinstance(v, Tensor) else v for k, v in part.items()} for part in rollout
            ]

    def _read_state(self, checkpoint: str) -> dict[str, Any]:
        """Raises ValueError for a checkpoint made during a rollout that it does not contain completely."""
        path, processes = self._state_file(checkpoint), self.accelerator.num_processes
        if path.exists():
            state = load_checkpoint(path)
            if state["rollout"] is None or state["processes"] == processes:
                return state
            reason = f"was written by {state['processes']} processes and this is a run of {processes}"
        else:
            micro_steps = self.state.global_step * self.args.gradient_accumulation_steps
            if micro_steps % self._period == 0:
                return {"step": 0, "rollout": None}
            reason = f"holds no {path.name}"
        raise ValueError(
            f"{checkpoint}: the middle of a rollout (step {self.state.global_step}, sampled again every "
            f"steps_per_generation x num_iterations micro-steps), and it {reason}: resume another checkpoint"
        )
