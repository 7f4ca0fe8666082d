import copy
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from igrpo_kit.core.losses import ABCGRPO, CISPO, DAPO, GRPO, GSPO, DrGRPO
from igrpo_kit.core.randomness import derived_seed
from igrpo_kit.core.rows import read_rows
from igrpo_kit.policies.log_probs import completion_log_probs
from igrpo_kit.policies.policy import Policy
from igrpo_kit.policies.samplers.hf import HFSampler
from igrpo_kit.policies.samplers.sampler import SamplingSettings
from igrpo_kit.tasks.rewards import AccuracyReward, as_reward
from igrpo_kit.tasks.sets.generated import countdown_problems
from igrpo_kit.training import loop
from igrpo_kit.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from igrpo_kit.training.config import TrainConfig, learning_rate_at
from igrpo_kit.training.loop import problems_of_step, train
from igrpo_kit.training.rollout import igrpo_rollout
from igrpo_kit.training.update import NonFiniteError, train_step

ROOT = Path(__file__).parents[2]
PROBLEMS = countdown_problems(64, seed=0)
SMALL = TrainConfig(steps=4, prompts_per_step=4, num_drafts=2, num_refinements=4, warmup_steps=2)


@pytest.fixture
def policy(tiny_policy):
    return Policy("tiny", copy.deepcopy(tiny_policy.model), tiny_policy.tokenizer, tiny_policy.prompt_format)


def sampler_of(policy, seed=0, temperature=1.0):
    return HFSampler(policy, SamplingSettings(12, temperature), seed=seed)


def run(policy, config, **options):
    options = {"progress": False, **options}
    return list(train(sampler_of(policy), AccuracyReward(), PROBLEMS, config, **options))


def weights(policy):
    return {k: v.clone() for k, v in policy.model.state_dict().items()}


def make_rollout(policy, *, drafts=2, refinements=4, problems=6, temperature=1.0):
    return igrpo_rollout(
        sampler_of(policy, 1, temperature), AccuracyReward(), PROBLEMS[:problems], num_drafts=drafts,
        num_refinements=refinements,
    )  # fmt: skip


def gradient(policy, rollout, objective, temperature=1.0, **options):
    model = copy.deepcopy(policy.model)
    train_step(
        model, torch.optim.SGD(model.parameters(), 0.0), rollout, objective, temperature=temperature,
        max_grad_norm=1e9, **options,
    )  # fmt: skip
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def loop_gradient(policy, rollout, objective, temperature=1.0):
    """One completion at a time, unpadded, conditioned on the prompt it was drawn from; no library scoring."""
    model = copy.deepcopy(policy.model)
    samples, (P, G) = rollout.refinements.samples, rollout.refinements.rewards.shape
    advantages = objective.advantages(rollout.refinements.rewards)
    lengths = samples.mask.sum(dim=1).tolist()
    total = 0.0
    for i in range(P):
        for j in range(G):
            row = i * G + j
            completion = samples.completion_ids[row, : lengths[row]]
            ids = torch.cat([torch.tensor(samples.prompt_ids[i]), completion])[None]
            logits = model(input_ids=ids).logits[0, -lengths[row] - 1 : -1] / temperature
            log_probs = logits.log_softmax(-1).gather(1, completion[:, None]).squeeze(1)
            term = (log_probs - log_probs.detach()).exp() * advantages[i, j]
            if isinstance(objective, CISPO):
                term = advantages[i, j] * log_probs
            if isinstance(objective, DAPO | CISPO):
                weight = 1 / sum(lengths)
            elif isinstance(objective, DrGRPO):
                weight = 1 / (P * G * objective.max_length)
            else:
                weight = 1 / (P * G * lengths[row])
            total = total - weight * term.sum()
    total.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    "objective",
    [GRPO(), DrGRPO(max_length=12), DAPO(), GSPO(), CISPO(), ABCGRPO()],
    ids=lambda o: type(o).__name__,
)
def test_the_update_is_that_of_a_loop_over_completions(policy, objective):
    """Shared prefixes, dropped dead groups, padding and reductions: none of them changes the gradient."""
    rollout = make_rollout(policy)
    assert 0 < (rollout.refinements.rewards.std(dim=1) == 0).float().mean() < 1  # some groups are dead
    expected = loop_gradient(policy, rollout, objective)
    got = gradient(policy, rollout, objective)
    assert expected.norm() > 1e-3
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_the_update_is_scored_at_the_samplers_temperature(policy):
    rollout = make_rollout(policy, temperature=0.7)
    expected = loop_gradient(policy, rollout, GRPO(), temperature=0.7)
    torch.testing.assert_close(
        gradient(policy, rollout, GRPO(), temperature=0.7), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("objective", [GRPO(), DAPO(), DrGRPO(max_length=12)], ids=lambda o: type(o).__name__)
def test_micro_batches_do_not_change_the_gradient(policy, objective):
    rollout = make_rollout(policy)
    whole = gradient(policy, rollout, objective)
    for pieces in (2, 5, 50):
        torch.testing.assert_close(
            gradient(policy, rollout, objective, micro_batches=pieces), whole, rtol=1e-4, atol=1e-6
        )


def test_dead_groups_are_computed_where_a_penalty_acts_on_them(policy):
    rollout = make_rollout(policy)
    reference = copy.deepcopy(policy.model)
    with torch.no_grad():
        reference.lm_head.weight.mul_(1.1)  # tied: the embedding too
    objective = GRPO(beta=0.1)
    rollout.refinements.rewards.fill_(1.0)
    assert gradient(policy, rollout, GRPO()).norm() == 0
    assert gradient(policy, rollout, objective, reference=reference).norm() > 1e-4


def test_training_the_drafts_too_is_the_mean_over_both_stages(policy):
    rollout = make_rollout(policy, drafts=4)
    as_grpo = replace(rollout, drafts=None, selected=None, refinements=rollout.drafts)
    both = gradient(policy, rollout, GRPO(), train_drafts=True)
    mean = (gradient(policy, rollout, GRPO()) + gradient(policy, as_grpo, GRPO())) / 2
    torch.testing.assert_close(both, mean, rtol=1e-4, atol=1e-6)


def test_a_second_iteration_leaves_ratio_one(policy):
    rollout = make_rollout(policy)
    optimizer = torch.optim.SGD(policy.model.parameters(), 0.05)
    row = train_step(policy.model, optimizer, rollout, GRPO(), temperature=1.0, num_iterations=3)
    assert row["ratio_max"] > 1.0
    assert row["sampler_gap"] < 1e-5  # measured before the first update
    once = train_step(policy.model, optimizer, make_rollout(policy), GRPO(), temperature=1.0)
    assert once["ratio_max"] == once["ratio_mean"] == 1.0


def test_training_raises_the_reward_of_a_problem(policy):
    """The sign of everything at once: a policy trained on four problems gets them right more often."""
    config = TrainConfig(
        steps=25, prompts_per_step=4, num_drafts=0, num_refinements=8, learning_rate=1e-3, warmup_steps=0
    )
    rows = list(train(sampler_of(policy), AccuracyReward(), PROBLEMS[:4], config, progress=False))
    assert sum(r["reward"] for r in rows[-5:]) / 5 > sum(r["reward"] for r in rows[:5]) / 5 + 0.2


def test_learning_rate_by_hand():
    config = TrainConfig(steps=110, learning_rate=1.0, warmup_steps=10, min_lr_ratio=0.1)
    got = [learning_rate_at(s, config) for s in (1, 10, 60, 110)]
    assert got == pytest.approx([0.1, 1.0, 0.55, 0.1])
    assert learning_rate_at(77, replace(config, min_lr_ratio=1.0)) == 1.0


def test_every_epoch_holds_every_problem_once():
    config = replace(SMALL, steps=100)
    ids = [p.id for step in range(1, 33) for p in problems_of_step(PROBLEMS, step, config)]
    assert sorted(ids[:64]) == sorted(ids[64:]) == sorted(p.id for p in PROBLEMS)
    assert ids[:64] != ids[64:]
    assert derived_seed(0, "a") != derived_seed(0, "b") != derived_seed(1, "b")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"steps": 0}, "steps"),
        ({"num_drafts": -1}, "num_drafts"),
        ({"num_refinements": 1}, "num_refinements"),
        ({"num_drafts": 1, "train_drafts": True}, "num_drafts"),
        ({"stop_at": 1.0, "select": "random"}, "stop_at"),
        ({"select": "luckiest"}, "select"),
        ({"num_drafts": 0, "draft_ahead": True}, "draft_ahead"),
        ({"train_drafts": True, "stop_at": 1.0}, "stop_at"),
        ({"train_drafts": True, "draft_ahead": True}, "draft_ahead"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(changes, name):
    with pytest.raises(ValueError, match=name):
        replace(SMALL, **changes)


def test_a_run_is_recorded(policy, tmp_path):
    rows = run(policy, SMALL, folder=tmp_path / "run", samples_every=2)
    recorded = list(read_rows(tmp_path / "run" / "metrics.jsonl"))
    assert [r["step"] for r in recorded] == [1, 2, 3, 4]
    assert recorded == json.loads(
        json.dumps([{k: None if v != v else v for k, v in r.items()} for r in rows])
    )
    assert {r["step"] for r in read_rows(tmp_path / "run" / "samples.jsonl")} == {2, 4}
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["schema"], config["objective"]["name"]) == (2, "GRPO")
    assert config["versions"]["torch"] == torch.__version__
    assert rows[-1]["tokens_sampled"] == sum(r["tokens"] + r["stage1/tokens"] for r in rows)
    assert rows[-1]["tokens_trained"] == sum(r["tokens"] for r in rows)


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_drafts": 0}, {"train_drafts": True}, {"num_iterations": 2}, {"objective": GRPO(beta=0.01)}],
    ids=str,
)
def test_live_tokens_are_those_with_an_advantage(policy, tmp_path, changes):
    """Counted again from the recorded completions: one token per character, one for the end within 12."""
    config = replace(SMALL, steps=3, **changes)
    rows = run(policy, config, folder=tmp_path, samples_every=1)
    live = {row["step"]: 0 for row in rows}
    for sample in read_rows(tmp_path / "samples.jsonl"):
        for group in [sample["completions"]] + ([sample["drafts"]] if config.train_drafts else []):
            mean = sum(c["reward"] for c in group) / len(group)
            live[sample["step"]] += sum(min(len(c["text"]) + 1, 12) for c in group if c["reward"] != mean)
    assert [row["live_tokens"] for row in rows] == list(live.values())
    assert [row["tokens_live"] for row in rows] == [
        live[1], live[1] + live[2], live[1] + live[2] + live[3]
    ]  # fmt: skip
    assert 0 < rows[-1]["tokens_live"] < rows[-1]["tokens_trained"]


def test_time_and_memory_of_each_phase_are_recorded(policy):
    igrpo, grpo = (run(policy, replace(SMALL, steps=1, num_drafts=n))[0] for n in (2, 0))
    phases = [igrpo[f"seconds/{name}"] for name in ("sampling", "scoring", "update")]
    assert min(phases) > 0
    assert sum(phases) <= igrpo["seconds/step"]
    assert 0 < igrpo["seconds/stage1_sampling"] < igrpo["seconds/sampling"]
    assert "seconds/stage1_sampling" not in grpo
    assert min(igrpo["memory/rollout_mb"], igrpo["memory/update_mb"]) > 10


def timeless(rows):
    return [{k: v for k, v in r.items() if not k.startswith(("seconds/", "memory/"))} for r in rows]


VARIANTS = {
    "igrpo": SMALL,
    "grpo": replace(SMALL, num_drafts=0),
    "random draft": replace(SMALL, select="random"),
    "draft ahead": replace(SMALL, draft_ahead=True),
    "draft ahead, one batch": replace(SMALL, num_drafts=4, draft_ahead=True),
    "early stop": replace(SMALL, stop_at=1.0),
    "both stages": replace(SMALL, train_drafts=True),
    "KL, two iterations": replace(SMALL, objective=GRPO(beta=0.05), num_iterations=2),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_stop_and_resume_equals_the_uninterrupted_run(tiny_policy, tmp_path, variant):
    config = VARIANTS[variant]

    def fresh():
        return Policy(
            "tiny", copy.deepcopy(tiny_policy.model), tiny_policy.tokenizer, tiny_policy.prompt_format
        )

    whole, interrupted, resumed = fresh(), fresh(), fresh()
    expected = timeless(run(whole, config))
    stop = threading.Event()
    first = []
    rows = train(
        sampler_of(interrupted), AccuracyReward(), PROBLEMS, config, folder=tmp_path, stop=stop,
        progress=False,
    )  # fmt: skip
    for row in rows:
        first.append(row)
        if row["step"] == 2:
            stop.set()
    assert [r["step"] for r in first] == [1, 2]
    second = run(resumed, config, folder=tmp_path, resume=True)
    assert repr(timeless(first + second)) == repr(expected)
    recorded = timeless(read_rows(tmp_path / "metrics.jsonl"))
    assert recorded == json.loads(
        json.dumps([{k: None if v != v else v for k, v in r.items()} for r in expected])
    )
    for name, value in weights(whole).items():
        assert resumed.model.state_dict()[name].equal(value), name


def test_what_counts_as_correct_is_the_rewards(policy):
    """Accuracy + format: a wrong, well-formed answer earns 1 of 2 and is not correct."""

    def both(problems, texts):
        return [v + 1.0 for v in AccuracyReward().score(problems, texts).values]

    (row,) = train(
        sampler_of(policy), as_reward(both, full_reward=2.0), PROBLEMS, replace(SMALL, steps=1),
        progress=False,
    )  # fmt: skip
    assert row["correct"] == pytest.approx(row["reward"] - 1.0)
    assert 0 < row["stage1/correct"] < 1


def test_drafting_ahead_uses_the_policy_before_the_update(tiny_policy):
    """The drafts of step 2 carry the log-probs of the untrained policy, though step 1 has changed it."""
    policy = Policy("t", copy.deepcopy(tiny_policy.model), tiny_policy.tokenizer, tiny_policy.prompt_format)
    config = replace(SMALL, num_drafts=4, draft_ahead=True, learning_rate=0.03, warmup_steps=0)
    seen = []
    original = loop.rollout_metrics
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            loop, "rollout_metrics", lambda rollout, **k: seen.append(rollout) or original(rollout, **k)
        )
        rows = train(sampler_of(policy), AccuracyReward(), PROBLEMS, config, progress=False)
        next(rows)
        after_one = copy.deepcopy(policy.model)
        next(rows)
    drafts, refinements = seen[1].drafts.samples, seen[1].refinements.samples

    def gap(model, samples):
        scored = completion_log_probs(model, samples.prompt_ids, samples.completion_ids, samples.mask)
        return (scored - samples.log_probs)[samples.mask].abs().max().item()

    assert gap(tiny_policy.model, drafts) < 1e-4 < 0.01 < gap(after_one, drafts)
    assert gap(after_one, refinements) < 1e-4 < 0.01 < gap(tiny_policy.model, refinements)


RUNNER = """
import sys, json, torch
from pathlib import Path
torch.set_num_threads(1)
from igrpo_kit.policies.load import load_policy
from igrpo_kit.policies.samplers.hf import HFSampler
from igrpo_kit.policies.samplers.sampler import SamplingSettings
from igrpo_kit.tasks.rewards import AccuracyReward
from igrpo_kit.tasks.sets.generated import countdown_problems
from igrpo_kit.training.config import TrainConfig
from igrpo_kit.training.loop import train
config = TrainConfig(
    steps=12, prompts_per_step=4, num_drafts=2, num_refinements=4, draft_ahead=True, select="random"
)
sampler = HFSampler(load_policy("tiny", device="cpu"), SamplingSettings(12), seed=0)
print("ready", flush=True)
rows = train(sampler, AccuracyReward(), countdown_problems(64, seed=0), config,
             folder=Path(sys.argv[1]), checkpoint_every=int(sys.argv[2]), samples_every=3, resume=True,
             progress=False)
for row in rows:
    print(row["step"], flush=True)
"""


def start_runner(folder, every=2):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", RUNNER, str(folder), str(every)],
        stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def wait_for(process, line):
    for out in process.stdout:
        if out.strip() == line:
            return
    raise AssertionError(f"the run ended before it printed {line!r}")


@pytest.mark.faults
def test_kill_9_at_any_moment_then_resume_equals_the_uninterrupted_run(tmp_path):
    """Killed after an odd step, a few ms later each time, so also in the middle of a checkpoint's write."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start_runner(whole)
    assert process.communicate(timeout=200)[0].split()[-1] == "12"
    for step, delay in ((1, 0.0), (4, 0.004), (6, 0.011), (9, 0.02)):
        process = start_runner(killed, every=1)
        wait_for(process, str(step))
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    # a crash in the middle of an append, too
    with open(killed / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 10, "rew')
    process = start_runner(killed, every=1)
    assert process.communicate(timeout=200)[0].split()[-1] == "12"
    expected, got = (timeless(read_rows(f / "metrics.jsonl")) for f in (whole, killed))
    assert [r["step"] for r in got] == list(range(1, 13))
    assert got == expected
    assert list(read_rows(whole / "samples.jsonl")) == list(read_rows(killed / "samples.jsonl"))
    final, again = (load_checkpoint(f / "checkpoint.safetensors")["model"] for f in (whole, killed))
    assert all(final[name].equal(again[name]) for name in final)


def test_ctrl_c_finishes_the_step_checkpoints_and_exits_cleanly(tmp_path):
    process = start_runner(tmp_path, every=100)
    wait_for(process, "3")  # printed by the caller's own code, between two steps
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=100)
    state = load_checkpoint(tmp_path / "checkpoint.safetensors")
    rows = list(read_rows(tmp_path / "metrics.jsonl"))
    assert state["step"] == rows[-1]["step"] < 12
    assert process.returncode == 0


def test_the_interrupt_handler_is_put_back(policy):
    before = signal.getsignal(signal.SIGINT)
    rows = train(sampler_of(policy), AccuracyReward(), PROBLEMS, SMALL, progress=False)
    next(rows)
    assert signal.getsignal(signal.SIGINT) is not before
    rows.close()
    assert signal.getsignal(signal.SIGINT) is before


def test_nan_stops_before_the_weights_change_and_saves_the_batch(policy, tmp_path):
    before = weights(policy)
    real = policy.model.lm_head.forward
    calls = []

    def poisoned(hidden):
        calls.append(1)
        logits = real(hidden)
        return logits * float("nan") if torch.is_grad_enabled() else logits

    policy.model.lm_head.forward = poisoned
    with pytest.raises(NonFiniteError, match=r"step 1: loss nan.*nonfinite_step_1\.safetensors"):
        run(policy, SMALL, folder=tmp_path)
    assert calls
    assert all(value.equal(before[name]) for name, value in weights(policy).items())
    batch = load_checkpoint(tmp_path / "nonfinite_step_1.safetensors")
    assert batch["parts"][0]["completion_ids"].shape == batch["parts"][0]["mask"].shape
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_a_checkpoint_of_another_run_is_refused(policy, tmp_path):
    run(policy, SMALL, folder=tmp_path, checkpoint_every=2)
    with pytest.raises(CheckpointError, match="of another run: learning_rate, seed differ"):
        run(policy, replace(SMALL, learning_rate=1.0, seed=9), folder=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match=r"full_reward, problems, reward, sampling differ"):
        other = train(
            sampler_of(policy, temperature=0.5),
            as_reward(lambda problems, texts: [0.0] * len(texts), full_reward=2.0), PROBLEMS[:3], SMALL,
            folder=tmp_path, resume=True, progress=False,
        )  # fmt: skip
        next(other)
    with pytest.raises(FileExistsError, match="holds a run already"):
        run(policy, SMALL, folder=tmp_path)
    content = bytearray((tmp_path / "checkpoint.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "checkpoint.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        run(policy, SMALL, folder=tmp_path, resume=True)


def test_a_checkpoint_without_a_count_of_live_tokens_is_refused_by_name(policy, tmp_path):
    run(policy, SMALL, folder=tmp_path, checkpoint_every=2)
    path = tmp_path / "checkpoint.safetensors"
    state = load_checkpoint(path)
    save_checkpoint(path, state | {"tokens": state["tokens"][:2]})
    with pytest.raises(CheckpointError, match="of an older version, which did not count live tokens"):
        run(policy, SMALL, folder=tmp_path, resume=True)


def test_no_problems_is_an_error(policy):
    with pytest.raises(ValueError, match="problems"):
        next(train(sampler_of(policy), AccuracyReward(), [], SMALL, progress=False))
