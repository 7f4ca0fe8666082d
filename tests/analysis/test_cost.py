"""The cost model against hand counts, a loop oracle, and what must not be silent."""

import dataclasses

import numpy as np
import pytest

from igrpo_kit.analysis.cost import (
    DEVICES,
    SCHEDULES,
    SHAPES,
    Device,
    Job,
    ModelShape,
    active_sequences,
    calibrated,
    decode_step_seconds,
    job_cost,
    log_normal_lengths,
    step_flops,
    update_bytes,
)

ONE = ModelShape(parameters=1.0, layers=0, hidden=0, kv_width=0, vocabulary=0)  # FLOPs per parameter
GRPO = {"num_drafts": 0, "num_refinements": 8, "question": 150, "template": 100}
IGRPO = {"num_drafts": 4, "num_refinements": 4, "question": 150, "template": 100}


def test_flops_counted_by_hand():
    grpo = step_flops(ONE, completion=300, **GRPO)
    assert (grpo.prefill, grpo.decode, grpo.update) == (2 * 150, 2 * 8 * 300, 8 * 8 * 450)
    igrpo = step_flops(ONE, completion=300, draft=300, **IGRPO)
    assert (igrpo.prefill, igrpo.decode, igrpo.update) == (2 * (150 + 550), 4800, 8 * 4 * 850)
    assert igrpo.sampling == 6200
    assert igrpo.total == 33400


def test_a_shared_prompt_is_encoded_once_per_group():
    grpo = step_flops(ONE, completion=300, shared_prefix=True, **GRPO)
    igrpo = step_flops(ONE, completion=300, draft=300, shared_prefix=True, **IGRPO)
    assert (grpo.prefill, grpo.decode, grpo.update) == (300, 4800, 8 * (150 + 8 * 300))
    assert (igrpo.prefill, igrpo.decode, igrpo.update) == (1400, 4800, 8 * (550 + 4 * 300))


def test_shorter_drafts_make_igrpo_cheaper_and_whole_ones_do_not():
    """Counted by hand for completions of 1,000 tokens: prefill, decode and update."""
    grpo = 300 + 16_000 + 64 * 1150
    for draft, igrpo in ((300, 1400 + 16_000 + 32 * 1550), (1000, 2800 + 16_000 + 32 * 2250)):
        assert step_flops(ONE, completion=1000, **GRPO).total == grpo == 89_900
        assert step_flops(ONE, completion=1000, draft=draft, **IGRPO).total == igrpo
        assert (igrpo < grpo) == (draft == 300)


def loop_flops(shape, *, N, G, question, completion, draft, template, shared):
    """Token by token: 2 FLOPs a parameter, and 4 * layers * hidden for each position attended to."""

    def tokens(start, stop):
        return sum(
            2 * shape.parameters + 4 * shape.layers * shape.hidden * (s + 0.5) for s in range(start, stop)
        )

    asked = question + template + draft if N else question
    prefill, decode, trained = tokens(0, asked), 0.0, 0.0
    if N:
        prefill += tokens(0, question)
    for _ in range(N):
        decode += tokens(question, question + completion)
    for j in range(G):
        decode += tokens(asked, asked + completion)
        trained += tokens(asked, asked + completion)
        if j == 0 or not shared:
            trained += tokens(0, asked)
    return prefill, decode, 4 * trained  # 8 FLOPs where a forward pass has 2


@pytest.mark.parametrize("shared", [False, True])
def test_flops_against_a_loop_over_tokens(shared):
    """Forty jobs at once, with and without drafts: arrays broadcast."""
    shape = ModelShape(parameters=1000.0, layers=2, hidden=3, kv_width=3, vocabulary=5)
    rng = np.random.default_rng(0)
    N, G, question, completion, draft, template = rng.integers(
        [[0], [1], [1], [1], [0], [0]], [[4], [5], [60], [60], [40], [20]], (6, 40)
    )
    seen = step_flops(
        shape, num_drafts=N, num_refinements=G, question=question, completion=completion, draft=draft,
        template=template, shared_prefix=shared,
    )  # fmt: skip
    assert {0, 1, 2, 3} == set(N)
    for i in range(40):
        expected = loop_flops(
            shape, N=N[i], G=G[i], question=question[i], completion=completion[i], draft=draft[i],
            template=template[i], shared=shared,
        )  # fmt: skip
        assert (seen.prefill[i], seen.decode[i], seen.update[i]) == pytest.approx(expected, rel=1e-12)


def test_attention_is_the_sum_over_positions():
    shape = ModelShape(parameters=0.0, layers=2, hidden=3, kv_width=3, vocabulary=5)
    flops = step_flops(shape, num_drafts=0, num_refinements=1, question=0, completion=100)
    # Position s attends to s + 1/2 earlier ones on average over its own token: 4 * layers * hidden each.
    assert flops.decode == pytest.approx(sum(4 * 2 * 3 * (s + 0.5) for s in range(100)))


def test_attention_is_a_few_percent_at_4k():
    """At position 2,000, the mean: 4 * 28 * 3584 * 2000 over 2 * 7.62e9 is 0.0527."""
    shape = SHAPES["qwen2.5-7b"]
    bare = dataclasses.replace(shape, layers=0)
    job = {"num_drafts": 0, "num_refinements": 8, "question": 150, "completion": 3850}
    assert step_flops(shape, **job).total / step_flops(bare, **job).total == pytest.approx(1.053, abs=1e-3)


@pytest.mark.parametrize("name", ["num_drafts", "question", "completion", "draft"])
@pytest.mark.parametrize("bad", [-1, float("nan"), float("inf")])
def test_flops_name_a_bad_argument(name, bad):
    arguments = {**IGRPO, "completion": 10, "draft": 10, name: bad}
    with pytest.raises(ValueError, match=name):
        step_flops(ONE, **arguments)


DRAFTS = np.array([[1, 3], [2, 2]])
REFINEMENTS = np.array([[2, 1], [1, 4]])


@pytest.mark.parametrize(
    ("schedule", "active"),
    [
        # drafts: 4 at once, then 3, then 1; refinements 4, 2, 1, 1
        ("two barriers", [4, 3, 1, 4, 2, 1, 1]),
        # the second prompt's refinements start after 2 steps, the first's after 3
        ("pipelined", [4, 3, 1 + 2, 1 + 2, 1 + 1, 1]),
        # the first prompt's first draft is correct after 1 step: the second is aborted
        ("early stop", [4, 2 + 2, 1 + 2, 1, 1, 1]),
        ("one step ahead", [8, 3 + 2, 1 + 1, 1]),
    ],
)
def test_schedules_counted_by_hand(schedule, active):
    correct = np.array([[True, False], [False, False]]) if schedule == "early stop" else None
    assert active_sequences(DRAFTS, REFINEMENTS, schedule, correct=correct).tolist() == active


def test_grpo_is_the_schedule_without_drafts():
    none = np.zeros((2, 0), dtype=int)
    assert {tuple(active_sequences(none, REFINEMENTS, s)) for s in SCHEDULES if s != "early stop"} == {
        (4, 2, 1, 1)
    }


def test_schedules_against_a_loop():
    rng = np.random.default_rng(0)
    drafts, refinements = rng.integers(1, 40, (5, 3)), rng.integers(1, 40, (5, 4))
    begin = {"two barriers": [drafts.max()] * 5, "pipelined": drafts.max(axis=1), "one step ahead": [0] * 5}
    for schedule, starts in begin.items():
        seen = active_sequences(drafts, refinements, schedule)
        for step, count in enumerate(seen):
            running = sum(step < length for length in drafts.ravel())
            for start, row in zip(starts, refinements, strict=True):
                running += sum(start <= step < start + length for length in row)
            assert count == running, (schedule, step)
        assert seen.sum() == drafts.sum() + refinements.sum()  # every token is decoded once


def test_schedules_refuse_what_has_no_meaning():
    with pytest.raises(ValueError, match="correct: needed by"):
        active_sequences(DRAFTS, REFINEMENTS, "early stop")
    with pytest.raises(ValueError, match="correct: needed by"):
        active_sequences(DRAFTS, REFINEMENTS, "pipelined", correct=DRAFTS > 1)
    with pytest.raises(ValueError, match="drafts: lengths of at least one"):
        active_sequences(DRAFTS - 1, REFINEMENTS, "pipelined")


def test_decode_is_bound_by_memory_and_then_by_arithmetic():
    shape = ModelShape(parameters=1e9, layers=10, hidden=1000, kv_width=100, vocabulary=10)
    assert shape.kv_bytes == 4000
    device = Device(flops=1e14, bandwidth=1e12, memory=8e10, bandwidth_share=0.5, launch_seconds=0.001)
    # 2 GB of weights + 4 MB of cache at 0.5 TB/s; then 2e9 * 1000 FLOPs at 0.5e14/s
    few, many = decode_step_seconds(shape, device, np.array([1, 1000]), np.array([1000, 0]))
    assert few == pytest.approx(0.001 + 0.004008)
    assert many == pytest.approx(0.001 + 0.04)


def test_lengths_have_the_mean_and_the_cap():
    rng = np.random.default_rng(0)
    lengths = log_normal_lengths((200, 500), mean=1000, spread=0.5, cap=10**9, rng=rng)
    assert lengths.mean() == pytest.approx(1000, rel=0.01)
    assert log_normal_lengths((100,), mean=50, spread=1.0, cap=40, rng=rng).max() == 40
    with pytest.raises(ValueError, match="mean"):
        log_normal_lengths((2,), mean=0, spread=1.0, cap=40, rng=rng)


def test_memory_counted_by_hand():
    shape = ModelShape(parameters=1000, layers=3, hidden=5, kv_width=5, vocabulary=7)
    seen = update_bytes(shape, micro_batch=2, prompt=10, completion=20, shards=2)
    assert seen == 1000 * (2 + 7) + 2 * 30 * 15 * 2 + 2 * 20 * 7 * 2 * 2
    with pytest.raises(ValueError, match="shards"):
        update_bytes(shape, micro_batch=2, prompt=10, completion=20, shards=0)


def test_a_draft_in_the_prompt_costs_memory():
    """3.2 MB a token in the paper's setting, so its 6.3 MB (Table S.3) are two tokens."""
    setting = {"micro_batch": 16, "completion": 2048, "shards": 8}
    a, b = update_bytes(SHAPES["qwen2.5-7b"], prompt=np.array([150, 151]), **setting)
    assert b - a == pytest.approx(3.2e6, rel=0.01)


def test_the_papers_job():
    """Naive scheduling costs more than Table S.3 says, one-step-ahead drafts about as much as GRPO."""
    grpo = job_cost(Job(num_drafts=0, num_refinements=8))
    ratio = {s: job_cost(Job(), s).gpu_hours / grpo.gpu_hours for s in SCHEDULES}
    assert ratio["two barriers"] > ratio["early stop"] > ratio["one step ahead"]
    assert ratio["two barriers"] == pytest.approx(1.29, abs=0.03)
    assert ratio["one step ahead"] == pytest.approx(1.02, abs=0.03)
    assert job_cost(Job(draft=300), "one step ahead").gpu_hours / grpo.gpu_hours < 0.8
    assert grpo.gpu_hours == pytest.approx(grpo.step_seconds * 59 * 16 / 3600)


def test_gpus_that_do_both_are_paid_once():
    together = job_cost(Job(sampler_gpus=0))
    assert together.gpu_hours == pytest.approx(together.step_seconds * 59 * 8 / 3600)


def test_jobs_that_cannot_be_say_why():
    with pytest.raises(ValueError, match="prompts: 100 do not divide over 8"):
        job_cost(Job(prompts=100))
    with pytest.raises(ValueError, match="num_refinements"):
        job_cost(Job(num_refinements=0))


@pytest.mark.parametrize(
    ("name", "feed_forward", "embeddings"),
    [
        ("tiny", 288, 1),
        ("smollm2-135m", 1536, 1),  # input and output embedding are one
        ("qwen2.5-0.5b", 4864, 1),
        ("qwen2.5-1.5b", 8960, 1),
        ("qwen2.5-7b", 18944, 2),
        ("qwen2.5-14b", 13824, 2),
    ],
)
def test_a_shape_has_the_parameters_of_its_matrices(name, feed_forward, embeddings):
    """Per layer q and o, k and v, and the three of the feed-forward part; norms and biases are few."""
    s = SHAPES[name]
    layer = s.hidden * (2 * s.hidden + 2 * s.kv_width + 3 * feed_forward)
    assert s.parameters == pytest.approx(embeddings * s.vocabulary * s.hidden + s.layers * layer, rel=5e-3)


def test_the_tiny_shape_is_that_of_the_committed_policy(tiny_policy):
    model, shape = tiny_policy.model, SHAPES["tiny"]
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    config = model.config
    assert (shape.layers, shape.hidden, shape.vocabulary) == (
        config.num_hidden_layers, config.hidden_size, config.vocab_size,
    )  # fmt: skip
    assert shape.kv_width == model.model.layers[0].self_attn.k_proj.out_features


def test_a_token_of_cache_by_hand():
    assert SHAPES["qwen2.5-7b"].kv_bytes == 57344  # 2 * 28 layers * 4 heads * 128 * 2 bytes


def test_decoding_one_sequence_by_hand():
    """A step of the 7B reads its weights once: 15.24 GB at 70% of 2.039 TB/s, and a launch."""
    seconds = decode_step_seconds(SHAPES["qwen2.5-7b"], DEVICES["A100-80GB"], 1, 0)
    assert seconds == pytest.approx(0.002 + 0.010678, abs=1e-5)


def test_a_calibrated_job_takes_the_hours_it_was_calibrated_on():
    grpo = calibrated(Job(num_drafts=0, num_refinements=8), 83.3)
    assert job_cost(grpo).gpu_hours == pytest.approx(83.3, rel=1e-9)
    assert 0.15 < grpo.device.flops_share < 0.25
    with pytest.raises(ValueError, match="gpu_hours: 10 leave"):
        calibrated(grpo, 10)


def over_grpo(completion, cap=2048):
    """iGRPO over GRPO in GPU-hours, by schedule; calibrated on Table S.3's GRPO at this cap."""
    grpo = calibrated(Job(num_drafts=0, num_refinements=8, completion=completion, cap=cap), 83.3)
    igrpo = dataclasses.replace(grpo, num_drafts=4, num_refinements=4)
    return [job_cost(igrpo, schedule).gpu_hours / 83.3 for schedule in SCHEDULES]


def test_calibrated_on_grpos_hours_the_model_lands_near_igrpos():
    """Table S.3 has 1.130, and 1.206 by throughput; lengths are assumed, so only the size can be right."""
    assert [over_grpo(n)[0] for n in (600, 1000, 1800, 2500, 3500)] == pytest.approx(
        [1.085, 1.098, 1.110, 1.115, 1.119], abs=2e-3
    )


def test_at_the_cap_of_the_measurement_the_schedules_cannot_be_told_apart():
    """Where refinements wait for drafts, the unknown length matters more than what they wait for."""
    waiting = [over_grpo(n)[:3] for n in (1000, 1800, 2500, 3500)]
    assert max(max(row) - min(row) for row in waiting) < 0.015
    assert max(row[0] for row in waiting) - min(row[0] for row in waiting) > 0.02
    assert all(1.08 < ratio < 1.125 for row in waiting for ratio in row)
    at_4096 = over_grpo(1800, cap=4096)  # there they could be
    assert at_4096[0] - at_4096[2] > 0.03
    assert all(over_grpo(n)[3] < 1.05 for n in (600, 1800, 3500))


def test_the_ratio_falls_as_the_update_grows():
    """The wait for a second round of decoding is the same; 1.29 comes from a fast update and a late cap."""

    def ratio(grpo):
        igrpo = dataclasses.replace(grpo, num_drafts=4, num_refinements=4)
        return job_cost(igrpo).gpu_hours / job_cost(grpo).gpu_hours

    assumed = Job(num_drafts=0, num_refinements=8)
    assert ratio(assumed) == pytest.approx(1.287, abs=2e-3)
    assert ratio(dataclasses.replace(assumed, cap=2048)) == pytest.approx(1.201, abs=2e-3)
    assert ratio(calibrated(assumed, 83.3)) == pytest.approx(1.192, abs=2e-3)
    assert ratio(calibrated(dataclasses.replace(assumed, cap=2048), 83.3)) == pytest.approx(1.110, abs=2e-3)


def test_the_papers_memory_is_near_the_models_for_grpo_and_not_for_igrpo():
    """Table S.3 has 54.93 GB for both, with 16 completions per GPU and a cap of 2,048."""
    peak = {n: job_cost(Job(num_drafts=n, num_refinements=8 - n, cap=2048), trials=1) for n in (0, 4)}
    assert peak[0].peak_update_bytes / 1e9 == pytest.approx(55.56, abs=0.01)
    assert peak[4].peak_update_bytes / 1e9 == pytest.approx(62.46, abs=0.01)
