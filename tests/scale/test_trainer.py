"""IGRPOTrainer: only refinements are trained, on q', whatever the processes; TRL's traps stay shut."""

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl")

from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from trl import GRPOConfig, GRPOTrainer, TrlParser

from igrpo_kit.core.losses import DAPO, GRPO, GSPO, DrGRPO
from igrpo_kit.policies.samplers.sampler import Samples
from igrpo_kit.scale import trainer as module
from igrpo_kit.scale.trainer import IGRPOConfig, IGRPOTrainer, TRLMovedError, check_trl, problem_dataset
from igrpo_kit.tasks.rewards import AccuracyReward, FormatReward, Scores
from igrpo_kit.tasks.sets.generated import countdown_problems
from igrpo_kit.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from igrpo_kit.training.rollout import Rollout, Stage
from igrpo_kit.training.update import train_step
from tests import tiny_models
from tests.scale.trainer_worker import (
    QUESTIONS,
    Recorded,
    Scripted,
    config,
    dataset,
    digit_share,
    main,
    trainer,
)

ROOT = Path(__file__).parents[2]


def text(ids):
    return tiny_models.tokenizer().decode(ids, skip_special_tokens=True)


def gradient_of_one_step(tmp_path, **options):
    """The run of one optimizer step, the model before it, and the gradient the optimizer was given."""
    model, gradient = tiny_models.llama(), {}
    before = copy.deepcopy(model)
    optimizer = SGD(model.parameters(), lr=1.0)

    def keep(*_):
        gradient.update({name: p.grad.clone() for name, p in model.named_parameters()})

    optimizer.register_step_pre_hook(keep)
    options = {"max_steps": 1, **options}
    run = trainer(
        config(tmp_path, **options), Recorded, model=model,
        optimizers=(optimizer, LambdaLR(optimizer, lambda step: 1.0)),
    )  # fmt: skip
    run.train()
    return run, before, gradient


def share(ids):
    return digit_share(None, [[{"content": text(ids)}]])[0]


def by_hand(run):
    """Rewards, the shown draft, q' and advantages of a run's only generation, group by group, row by row."""
    (draft_prompts, drafts), (prompts, refinements) = run.calls
    rows = []
    for group in range(len(drafts) // 4):
        mine = range(4 * group, 4 * group + 4)
        rewards = [share(drafts[i]) for i in mine]
        best = text(drafts[mine[rewards.index(max(rewards))]])
        question = text(draft_prompts[mine[0]])
        refined = tiny_models.tokenizer().encode(f"<bos>{question}:{best}=<a>")
        values = torch.tensor([share(refinements[i]) for i in mine], dtype=torch.float64)
        for i, advantage in zip(mine, (values - values.mean()) / values.std(), strict=True):
            assert prompts[i] == refined
            rows.append((refined, refinements[i], float(advantage)))
    return rows


def test_only_refinements_are_trained_and_on_the_refinement_prompt(tmp_path):
    """TRL's padded, batched step against one forward pass per row, without padding, from texts."""
    run, before, gradient = gradient_of_one_step(tmp_path)
    rows = by_hand(run)
    loss = torch.zeros(())
    for prompt, completion, advantage in rows:
        logits = before(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        log_probs = logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).squeeze(1)
        ratios = (log_probs - log_probs.detach()).exp()
        loss = loss - advantage * ratios.mean() / len(rows)
    loss.backward()
    log = run.state.log_history[0]
    assert abs(log["loss"] - loss.item()) < 1e-6
    largest = max(p.grad.abs().max() for p in before.parameters())
    assert 0.1 < largest < 10  # not two zeros
    for name, parameter in before.named_parameters():
        assert (gradient[name] - parameter.grad).abs().max() < 1e-6, name


OBJECTIVES = {
    "grpo": (GRPO(), {}),
    "grpo clip-higher": (GRPO(clip_high=0.28), {"epsilon_high": 0.28}),
    "dr_grpo": (DrGRPO(max_length=6), {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    "dapo": (DAPO(), {"loss_type": "dapo", "epsilon_high": 0.28}),
    "gspo": (GSPO(), {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4}),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_update_is_the_kits_own_on_the_same_rollout(tmp_path, name):
    """Two engines, one algorithm: TRL's gradient against `train_step`, both refined from the same drafts."""
    objective, options = OBJECTIVES[name]
    run, before, gradient = gradient_of_one_step(tmp_path, **options)
    rollout = as_rollout(run)
    train_step(
        before, SGD(before.parameters(), lr=0.0), rollout, objective, temperature=1.0, max_grad_norm=1e6
    )
    assert max(p.grad.abs().max() for p in before.parameters()) > 0.05
    for name, parameter in before.named_parameters():
        assert (gradient[name] - parameter.grad).abs().max() < 1e-6, name


def as_rollout(run):
    """The kit's Rollout of what a Recorded trainer sampled (its drafts are not trained and left out)."""
    _, (prompts, refinements) = run.calls
    T = max(map(len, refinements))
    ids = torch.zeros(len(refinements), T, dtype=torch.long)
    mask = torch.zeros(len(refinements), T, dtype=torch.bool)
    for row, completion in enumerate(refinements):
        ids[row, : len(completion)] = torch.tensor(completion)
        mask[row, : len(completion)] = True
    texts = [text(completion) for completion in refinements]
    values = [share(completion) for completion in refinements]
    none = torch.zeros(ids.shape)
    samples = Samples(prompts[::4], ids, mask, none, none, texts, ["stop"] * len(texts))
    scores, rewards = Scores(values, ["scored"] * len(values)), torch.tensor(values).view(-1, 4)
    stage = Stage(samples, scores, rewards, 0.0, 0.0, full_reward=1.0)
    return Rollout([], None, None, stage)


# One generation at a time, with completions typed by hand.


def ids(completion):
    return [*tiny_models.tokenizer().encode(completion, add_special_tokens=False), tiny_models.EOS]


class Typed(Recorded):
    """Answers each call of the engine with the next list of completions in `script`."""

    script: list[list[str]]

    def sample(self, prompt_ids, *rest):
        completions = [ids(completion) for completion in self.script.pop(0)]
        assert len(completions) == len(prompt_ids)
        return completions, None


def typed(tmp_path, *script, reward=digit_share, questions=QUESTIONS, **options):
    """One generation of a trainer whose engine answers `script`: the trainer and TRL's batch."""
    G = options.get("num_generations", 4)
    options = {"per_device_train_batch_size": len(questions) * G, **options}
    run = trainer(config(tmp_path, **options), Typed, reward)
    run.script = [list(part) for part in script]
    run.model.train()
    rows = [row for row in dataset(questions) for _ in range(G)]
    return run, run._generate_and_score_completions(rows)


def numbers(prompts, completions, **columns):
    """The completion is its own reward, in tenths; `a` could not be scored."""
    texts = [completion[0]["content"] for completion in completions]
    return [None if text == "a" else int(text) / 10 for text in texts]


def asked(run, stage):
    """The engine's prompts of a stage, as the text between `<bos>` and `<a>`."""
    return [text(prompt) for prompt in run.calls[stage][0]]


NO_MATTER = "1234"


@pytest.mark.parametrize(("select", "shown"), [("best", "9"), ("worst", "3"), ("first", "5"), ("none", None)])
def test_one_draft_is_shown_to_the_whole_group(tmp_path, select, shown):
    run, _ = typed(
        tmp_path, ["5", "9", "9", "3"], NO_MATTER, reward=numbers, questions=["3+4"], select=select
    )
    assert asked(run, 0) == ["3+4"] * 4
    assert asked(run, 1) == ["3+4" if shown is None else f"3+4:{shown}="] * 4


def test_the_random_control_shows_every_draft_sometime(tmp_path):
    torch.manual_seed(0)
    questions = ["3+4"] * 12
    run, _ = typed(tmp_path, "1234" * 12, "5" * 48, reward=numbers, questions=questions, select="random")
    shown = asked(run, 1)
    assert all(len(set(shown[i : i + 4])) == 1 for i in range(0, 48, 4))
    assert set(shown) == {f"3+4:{draft}=" for draft in "1234"}


def test_a_draft_that_was_not_scored_is_not_shown(tmp_path):
    drafts = "a2a1" + "aaaa"
    run, batch = typed(tmp_path, drafts, "1a22" + "aaaa", reward=numbers, questions=["3+4", "5+2"])
    assert asked(run, 1) == ["3+4:2="] * 4 + ["5+2"] * 4  # q itself where there is nothing to show
    # the mean, 1/6, and the std are those of the three that were scored
    std = math.sqrt(((1 / 15) ** 2 + 2 * (1 / 30) ** 2) / 2)
    expected = [-1 / 15 / std, 0, 1 / 30 / std, 1 / 30 / std, 0, 0, 0, 0]
    torch.testing.assert_close(batch["advantages"], torch.tensor(expected), rtol=0, atol=1e-6)
    assert batch["advantages"][4:].tolist() == [0.0] * 4


def test_the_draft_is_cut_from_its_front_and_the_question_is_not(tmp_path):
    run, _ = typed(tmp_path, ["123", "45678", "a", "b"], NO_MATTER, questions=["3+4"], max_draft_tokens=2)
    assert asked(run, 1) == ["3+4:78="] * 4


def test_fewer_or_more_drafts_than_refinements(tmp_path):
    more, batch = typed(
        tmp_path, "132" + "231", ["1", "2"] * 2, reward=numbers, questions=["3+4", "5+2"],
        num_drafts=3, num_generations=2,
    )  # fmt: skip
    assert asked(more, 0) == ["3+4"] * 3 + ["5+2"] * 3
    assert asked(more, 1) == ["3+4:3="] * 2 + ["5+2:3="] * 2
    torch.testing.assert_close(batch["advantages"], torch.tensor([-1.0, 1.0] * 2) / math.sqrt(2))
    assert more.num_generations == 2
    one, _ = typed(tmp_path, "1" + "2", "1234" * 2, reward=numbers, questions=["3+4", "5+2"], num_drafts=1)
    assert asked(one, 1) == ["3+4:1="] * 4 + ["5+2:2="] * 4


def test_no_drafts_is_grpo(tmp_path):
    run, batch = typed(tmp_path, "0010", reward=numbers, questions=["3+4"], num_drafts=0)
    assert len(run.calls) == 1
    assert asked(run, 0) == ["3+4"] * 4
    assert batch["advantages"].tolist() == pytest.approx([-0.5, -0.5, 1.5, -0.5], abs=1e-6)


def test_plain_text_prompts(tmp_path):
    run = trainer(config(tmp_path, per_device_train_batch_size=4), Typed)
    run.script = [["1", "a", "b", "c"], list(NO_MATTER)]
    run.model.train()
    run._generate_and_score_completions([{"prompt": "3+4"}] * 4)
    assert asked(run, 1) == ["3+4:1="] * 4


def test_rewards_judge_the_answer_to_the_question(tmp_path):
    """Both stages: the data set's own prompt and columns, never q'."""
    seen = []

    def spy(prompts, completions, answer, **columns):
        seen.append(([prompt[-1]["content"] for prompt in prompts], answer))
        return [0.0, 1.0] * (len(prompts) // 2)

    typed(tmp_path, "1" * 8, "1" * 8, reward=spy, questions=["3+4", "5+2"])
    assert seen == [(["3+4"] * 4 + ["5+2"] * 4, ["4+3"] * 4 + ["2+5"] * 4)] * 2


DEAD = {
    "group": {"scale_rewards": "group"},
    "none": {"scale_rewards": "none"},
    "batch": {"scale_rewards": "batch"},
    "each reward": {"multi_objective_aggregation": "normalize_then_sum"},
}


@pytest.mark.parametrize("how", DEAD)
def test_a_dead_group_has_advantage_exactly_zero(tmp_path, how):
    """Eight times 0.7: their mean is not 0.7 in float32, and TRL divides the rest by 1e-4."""
    run, batch = typed(
        tmp_path, "1" * 16, "7" * 8 + "12121212", reward=numbers, questions=["3+4", "5+2"],
        num_generations=8, num_drafts=8, **DEAD[how],
    )  # fmt: skip
    assert batch["advantages"][:8].tolist() == [0.0] * 8
    assert (batch["advantages"][8:] != 0).all()
    assert list(run._logs["advantages"]) == batch["advantages"].tolist()
    assert run._metrics["train"]["igrpo/dead_groups"] == [0.5]


def test_trl_itself_leaves_noise_in_a_dead_group(tmp_path, monkeypatch):
    """What the last test guards against is there: without our correction it would fail."""
    monkeypatch.setattr(IGRPOTrainer, "_exact_advantages", lambda self, advantages: advantages)
    _, batch = typed(
        tmp_path, "1" * 8, "7" * 8, reward=numbers, questions=["3+4"], num_generations=8, num_drafts=8
    )
    assert batch["advantages"].abs().max() > 1e-4


def test_what_is_logged_of_both_stages(tmp_path):
    def chatty(prompts, completions, log_extra, log_metric, **columns):
        values = numbers(prompts, completions)
        log_extra("tenths", values)
        log_metric("first", values[0])
        return values

    run, _ = typed(
        tmp_path, "1234" + "5555", "4221" + "5555", reward=[chatty, digit_share], questions=["3+4", "5+2"],
        reward_weights=[1.0, 0.0],
    )  # fmt: skip
    metrics = {name: values[-1] for name, values in run._metrics["train"].items()}
    expected = {
        "reward": (0.4 + 0.2 + 0.2 + 0.1 + 2.0) / 8,
        "igrpo/stage1/reward": (0.1 + 0.2 + 0.3 + 0.4 + 2.0) / 8,
        "igrpo/stage1/rewards/chatty/mean": 3.0 / 8,
        "igrpo/stage1/rewards/digit_share/mean": 0.5,
        "igrpo/shown_draft_reward": (0.4 + 0.5) / 2,
        "igrpo/stage1/dead_groups": 0.5,
        "igrpo/dead_groups": 0.5,
        "igrpo/copy_rate": 5 / 8,  # one 4, four 5
        "igrpo/stage1/completions/mean_length": 2.0,
        "igrpo/stage1/first": 0.1,
        "first": 0.4,
        # <bos>3+4<a> and <bos>3+4:4=<a> for eight rows each, and eight times two completions of two tokens
        "num_tokens": 8 * 5 + 8 * 8 + 16 * 2,
    }
    assert {name: pytest.approx(metrics[name]) for name in expected} == expected
    assert "igrpo/stage1/num_tokens" not in metrics
    assert list(run._logs["extra"]["tenths"]) == [0.4, 0.2, 0.2, 0.1, 0.5, 0.5, 0.5, 0.5]
    assert run._logs["prompt"][0][-1]["content"] == "3+4:4="


def test_evaluation_is_single_shot_from_the_question(tmp_path):
    args = config(tmp_path, per_device_eval_batch_size=4, num_generations_eval=2)
    run = trainer(args, Scripted, eval_dataset=dataset(["3+4", "5+2"]))
    metrics = run.evaluate()
    assert sorted(prompt for call in range(len(run.calls)) for prompt in asked(run, call)) == [
        *["3+4"] * 2,
        *["5+2"] * 2,
    ]
    assert "eval_reward" in metrics
    assert not [name for name in metrics if "igrpo" in name]


def test_images_are_refused(tmp_path):
    run = trainer(config(tmp_path))
    run.model.train()
    with pytest.raises(ValueError, match="images"):
        run._generate_and_score_completions([{"prompt": "3+4", "image": None}])


class Engine:
    """Stands where TRL keeps its vLLM engine, and keeps the contract of its server mode."""

    def __init__(self):
        self.syncs, self.requests = 0, []

    def sync_weights(self):
        self.syncs += 1

    def generate(self, prompts, images, num_generations, profiler):
        distinct = prompts[::num_generations]
        assert prompts == [prompt for prompt in distinct for _ in range(num_generations)]
        self.requests.append((len(distinct), num_generations))
        completions = [ids(str(row % 7)) for row in range(len(prompts))]
        return prompts, completions, [[[-1.0]] * len(c) for c in completions], None


def test_an_engine_is_asked_per_prompt_and_synced_once_for_both_stages(tmp_path):
    run = trainer(config(tmp_path, num_drafts=6, per_device_train_batch_size=8))
    run.use_vllm, run.vllm_generation, run._last_loaded_step = True, Engine(), -1
    run.model.train()
    rows = [row for row in dataset(["3+4", "5+2"]) for _ in range(4)]
    batch = run._generate_and_score_completions(rows)
    assert run.vllm_generation.requests == [(2, 6), (2, 4)]
    assert run.vllm_generation.syncs == 1
    assert "importance_sampling_ratio" not in batch  # Eq. 5 has no such factor
    run.state.global_step += 1
    run._generate_and_score_completions(rows)
    assert run.vllm_generation.syncs == 2


@pytest.mark.vllm
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")  # the engine's own
def test_vllm_colocated_on_a_cpu_follows_the_weights(tmp_path, monkeypatch):
    """The engine's log-probs are the trainer's within bfloat16, also after all weights have moved by 0.1."""
    pytest.importorskip("vllm")
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": 29531}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    sizes = {"hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 1}  # heads the engine can do
    model = tiny_models.llama(**sizes)
    model.save_pretrained(tmp_path / "model")  # TRL's engine starts from files
    tiny_models.tokenizer().save_pretrained(tmp_path / "model")
    args = config(
        tmp_path, use_vllm=True, vllm_mode="colocate", vllm_max_model_length=64, learning_rate=0.1,
        vllm_gpu_memory_utilization=0.2, vllm_importance_sampling_correction=True,
    )  # fmt: skip
    run = trainer(args, Recorded, model=type(model).from_pretrained(tmp_path / "model"))
    run.train()
    assert len(run.calls) == 4
    gaps = [row["sampling/sampling_logp_difference/mean"] for row in run.state.log_history[:2]]
    assert max(gaps) < 0.1
    moved = [(p - q).abs().max() for p, q in zip(run.model.parameters(), model.parameters(), strict=True)]
    assert max(moved) > 0.1


# Resume.


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run that saved every step and draws anew every fourth: step 3 is amid a rollout, 4 at its end."""
    out = tmp_path_factory.mktemp("saved")
    run = trainer(resumable(out), Recorded)
    run.train()
    return out, run


def resumable(out, **options):
    options = {"steps_per_generation": 2, "num_iterations": 2, "max_steps": 5, **options}
    return config(out, select="random", save_strategy="steps", save_steps=1, learning_rate=1e-3, **options)


def history(run):
    times = ("step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss")
    return [{k: v for k, v in row.items() if k not in times} for row in run.state.log_history]


@pytest.mark.parametrize("step", [3, 4])
def test_a_resumed_run_is_the_same_bit_for_bit(saved, tmp_path, step):
    out, whole = saved
    run = trainer(resumable(tmp_path), Recorded)
    run.train(resume_from_checkpoint=str(out / f"checkpoint-{step}"))
    assert history(run) == history(whole)
    assert len(run.calls) == 2  # those of the fifth step alone
    for ours, theirs in zip(run.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_rollout_that_is_lost_or_damaged_is_an_error_not_another_run(saved, tmp_path):
    run = trainer(resumable(tmp_path))
    run.state.global_step = 3
    checkpoint = tmp_path / "checkpoint-3"
    checkpoint.mkdir()
    with pytest.raises(ValueError, match=r"middle of a rollout.*holds no igrpo_state_0\.safetensors"):
        run._load_rng_state(str(checkpoint))
    state = load_checkpoint(saved[0] / "checkpoint-3" / "igrpo_state_0.safetensors")
    file = checkpoint / "igrpo_state_0.safetensors"
    save_checkpoint(file, {**state, "processes": 4})
    with pytest.raises(ValueError, match="written by 4 processes and this is a run of 1"):
        run._load_rng_state(str(checkpoint))
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="damaged"):
        run._load_rng_state(str(checkpoint))


def test_a_checkpoint_of_trl_itself_resumes_between_rollouts(saved, tmp_path):
    run = trainer(resumable(tmp_path))
    run.state.global_step = 4
    run._load_rng_state(str(tmp_path))
    assert run._step == 0


# What is refused.


def test_the_guard_passes_the_pinned_trl_and_names_what_has_moved(monkeypatch):
    check_trl()
    monkeypatch.setattr(module.trl, "__version__", "9.9")
    with monkeypatch.context() as patch:
        patch.delattr(GRPOTrainer, "_calculate_rewards")
        with pytest.raises(TRLMovedError, match=r"trl 9\.9: GRPOTrainer\._calculate_rewards has moved"):
            check_trl()
    with monkeypatch.context() as patch:
        patch.setattr(GRPOTrainer, "_generate", lambda self, prompts, images: None)
        patch.setattr(module, "_GENERATE_RETURNS", "")
        check_trl()  # a new last parameter is none of our business ...
        patch.setattr(GRPOTrainer, "_generate", lambda self, batch: None)
        with pytest.raises(TRLMovedError, match=r"_generate has moved \(parameters \('self', 'batch'\)"):
            check_trl()  # ... a renamed one is
    with monkeypatch.context() as patch:
        patch.setattr(GRPOTrainer, "_generate", lambda self, prompts: ("completions", "prompt_ids"))
        with pytest.raises(TRLMovedError, match=r"_generate has moved.*no longer ends in"):
            check_trl()


def test_the_guard_asks_the_trainer_too(tmp_path, monkeypatch):
    run = trainer(config(tmp_path))
    del run._pending_metrics
    with pytest.raises(TRLMovedError, match=r"trl 1\.16\.0: GRPOTrainer\._pending_metrics has moved"):
        check_trl(run)
    monkeypatch.setattr(GRPOTrainer, "_save_rng_state", lambda self: None, raising=False)
    with pytest.raises(TRLMovedError, match="_save_rng_state"):
        trainer(config(tmp_path))


def test_the_version_written_for_is_the_pinned_one():
    assert f"trl=={module.WRITTEN_FOR}\n" in (ROOT / "constraints.txt").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_drafts": -1}, "num_drafts must be >= 0, got -1"),
        ({"select": "bst"}, "select: expected one of best, .*'bst'"),
        ({"max_draft_tokens": 0}, "max_draft_tokens must be >= 1, got 0"),
        ({"refinement_template": "{question}"}, "refinement: needs {draft} exactly once"),
        ({"use_vllm": True, "vllm_max_model_length": 12}, "vllm_max_model_length=12 has no room"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_trained_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **options)


def test_a_group_across_processes_is_refused_where_the_stages_differ_in_size(tmp_path, monkeypatch):
    monkeypatch.setattr(IGRPOConfig, "world_size", 2, raising=False)
    config(tmp_path, per_device_train_batch_size=6)  # 12 rows are three groups; N = G may straddle
    with pytest.raises(ValueError, match=r"num_drafts=3 with num_generations=4 .* but one holds 6 rows"):
        config(tmp_path, per_device_train_batch_size=6, num_drafts=3)


def test_sleep_mode_warns_of_the_second_sync(tmp_path):
    with pytest.warns(UserWarning, match="sent twice per generation"):
        config(tmp_path, use_vllm=True, vllm_enable_sleep_mode=True)


def test_every_field_is_a_flag_of_trls_parser(tmp_path):
    parser = TrlParser((IGRPOConfig,))
    flags = ["--output_dir", str(tmp_path), "--num_drafts", "2", "--num_generations", "2"]
    args = parser.parse_args([*flags, "--select", "random", "--max_draft_tokens", "64"])
    assert (args.num_drafts, args.select, args.max_draft_tokens) == (2, "random", 64)
    assert args.refinement_template.startswith("{question}")
    with pytest.raises(SystemExit):
        parser.parse_args([*flags, "--select", "bst"])


def test_the_defaults_are_the_papers_objective(tmp_path):
    args = IGRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=4)
    assert (args.num_drafts, args.num_generations, args.loss_type, args.beta) == (4, 4, "grpo", 0.0)
    assert args.vllm_importance_sampling_correction is False


def test_arguments_stage_one_knows_nothing_of_are_refused(tmp_path):
    with pytest.raises(TypeError, match="expected an IGRPOConfig, got GRPOConfig"):
        trainer(GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False))
    for name in ("tools", "rollout_func", "environment_factory"):
        with pytest.raises(ValueError, match=name):
            trainer(config(tmp_path), **{name: [print]})


def test_the_kits_policy_problems_and_rewards_train_on_trl(tmp_path, tiny_policy):
    problems = countdown_problems(6, seed=0)
    form = tiny_policy.prompt_format
    rows = problem_dataset(problems, form)
    assert rows.column_names == ["prompt", "id", "question", "answer", "source"]
    assert rows[0]["prompt"] == form.problem_messages(problems[0].question)
    seen = []

    class Spy(AccuracyReward):
        def score(self, problems, completions):
            seen.extend(problems)
            return super().score(problems, completions)

    args = config(tmp_path, max_steps=1, max_completion_length=12, refinement_template=form.refinement)
    run = trainer(
        args, Recorded, [Spy(), FormatReward()], model=copy.deepcopy(tiny_policy.model), train_dataset=rows,
        processing_class=tiny_policy.tokenizer,
    )  # fmt: skip
    run.train()
    log = run.state.log_history[0]
    assert seen == [p for p in problems[:2] for _ in range(4)] * 2
    assert log["igrpo/shown_draft_reward"] >= log["igrpo/stage1/reward"] > 0
    prompts, shown = run.calls[1][0], run.processing_class.decode(run.calls[1][0][0])
    assert problems[0].question in shown.replace(" ", "")
    assert prompts[:4] == [prompts[0]] * 4 != prompts[4:]


# Several processes.

TIMES = {"step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second"}


def launch(out, *arguments, python=sys.executable, **environment):
    """Two processes of tests/trainer_worker.py, as torchrun starts them; what each of them reports."""
    command = [python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, "-m", "tests.scale.trainer_worker", str(out), *arguments],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((out / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def assert_same_logs(ours, theirs, tolerance):
    assert len(ours) == len(theirs) == 3
    for row, other in zip(ours, theirs, strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - TIMES:
            assert row[name] == pytest.approx(other[name], rel=tolerance, abs=tolerance), name


def test_two_processes_see_what_one_sees_though_a_group_straddles_them(tmp_path):
    """Six rows each, groups of four: the second group's draft is chosen from both sides, once."""
    (tmp_path / "one").mkdir()
    main(tmp_path / "one", Scripted, 12)
    one = json.loads((tmp_path / "one" / "rank-0.json").read_text())
    left, right = launch(tmp_path)
    assert (one["processes"], left["processes"], right["processes"]) == (1, 2, 2)
    assert_same_logs(left["log"], one["log"], 1e-5)
    assert left["log"][0]["grad_norm"] > 1
    assert left["weights"] == right["weights"] == pytest.approx(one["weights"], rel=1e-6)


FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}
ZERO3 = {
    "zero_optimization": {"stage": 3},
    "train_micro_batch_size_per_gpu": "auto",
    "train_batch_size": "auto",
    "gradient_accumulation_steps": "auto",
}


@pytest.mark.scale
@pytest.mark.timeout(1800)  # DeepSpeed compiles its optimizer first
def test_fsdp2_and_zero3_train_as_ddp_does(tmp_path):
    """Real sampling on two processes, each with its own seed: weights in parts, the same numbers."""
    pytest.importorskip("deepspeed")
    out = {name: tmp_path / name for name in ("ddp", "fsdp2", "zero3")}
    for folder in out.values():
        folder.mkdir()
    (tmp_path / "zero3.json").write_text(json.dumps(ZERO3))
    zero3 = {
        "DS_ACCELERATOR": "cpu",
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(tmp_path / "zero3.json"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # where its ninja is
    }
    ddp = launch(out["ddp"], "sample")[0]
    sharded = launch(out["fsdp2"], "sample", **FSDP2)[0]
    assert sharded["fsdp"] and sharded["backend"] == "DistributedType.FSDP" and sharded["sharded"] == 20
    assert_same_logs(sharded["log"], ddp["log"], 1e-5)
    zero = launch(out["zero3"], "sample", **zero3)[0]
    assert zero["backend"] == "DistributedType.DEEPSPEED" and zero["sharded"] == 20
    assert_same_logs(zero["log"], ddp["log"], 1e-4)


@pytest.mark.scale
def test_lora_trains_its_adapter_alone_against_the_base_as_reference(tmp_path):
    peft = pytest.importorskip("peft")
    adapter = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    run = trainer(config(tmp_path, beta=0.1), Recorded, peft_config=adapter)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.train()
    moved = {name for name, p in run.model.named_parameters() if not torch.equal(p, before[name])}
    assert all("lora_" in name for name in moved)
    assert len([name for name in moved if "lora_B" in name]) == 4  # two layers, q and v
    first, second = run.state.log_history[:2]
    assert first["kl"] == 0.0 < second["kl"]
    assert "igrpo/stage1/reward" in first
