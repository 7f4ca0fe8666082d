"""The same loss and the same gradient as TRL 1.16's own GRPOTrainer, batch by batch.

TRL's loss is a method, so it is called on a namespace that holds just what it reads, with our log-probs in
place of a model's. A second, independent implementation of each objective, written by other people.
"""

from types import SimpleNamespace

import pytest
import torch

from igrpo_kit.core.losses import CISPO, DAPO, GRPO, GSPO, DrGRPO
from tests.core.test_losses import ragged_batch

pytest.importorskip("trl")

CASES = {
    "grpo": (GRPO(), {"loss_type": "grpo"}),
    "grpo clip-higher": (GRPO(clip_high=0.28), {"loss_type": "grpo", "epsilon_high": 0.28}),
    "dr_grpo": (DrGRPO(max_length=9), {"loss_type": "dr_grpo", "max_completion_length": 9}),
    "dapo": (DAPO(), {"loss_type": "dapo", "epsilon_high": 0.28}),
    "gspo": (
        GSPO(),
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon_low": 3e-4,
            "epsilon_high": 4e-4,
        },
    ),
    "cispo": (CISPO(), {"loss_type": "cispo", "epsilon_high": 5.0}),
    "grpo with KL": (GRPO(beta=0.05), {"loss_type": "grpo", "beta": 0.05}),
    "grpo with KL times ratio": (
        GRPO(beta=0.05, kl_importance_weight=True),
        {"loss_type": "grpo", "beta": 0.05, "use_bias_correction_kl": True},
    ),
    "dapo with KL": (DAPO(beta=0.05), {"loss_type": "dapo", "epsilon_high": 0.28, "beta": 0.05}),
}


def trl_loss(log_probs, old, ref, advantages, mask, settings):
    from collections import defaultdict

    from trl import GRPOTrainer

    settings = dict(settings)
    accelerator = SimpleNamespace(
        num_processes=1, gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x,
        sync_gradients=True,
    )  # fmt: skip
    args = SimpleNamespace(
        use_bias_correction_kl=settings.pop("use_bias_correction_kl", False),
        delta=None,
        steps_per_generation=1,
    )
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (log_probs, torch.zeros_like(log_probs), None),
        accelerator=accelerator, args=args, model=SimpleNamespace(training=True),
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False,
        importance_sampling_level="token", beta=0.0, epsilon_low=0.2, epsilon_high=0.2,
        current_gradient_accumulation_steps=1, max_completion_length=None, _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )  # fmt: skip
    for name, value in settings.items():
        assert hasattr(trainer, name) or name == "loss_type", name
        setattr(trainer, name, value)
    B = len(mask)
    batch = {
        "prompt_ids": torch.zeros(B, 1, dtype=torch.long),
        "prompt_mask": torch.ones(B, 1, dtype=torch.long),
        "completion_ids": torch.zeros(mask.shape, dtype=torch.long),
        "completion_mask": mask.long(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": ref,
        "num_items_in_batch": mask.sum(),
    }
    return GRPOTrainer._compute_loss(trainer, None, batch)


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_equal_trl(case):
    objective, settings = CASES[case]
    seen = set()
    for seed in range(20):
        log_probs, old, ref, advantages, mask = ragged_batch(seed, spread=1.0)  # ratios beyond every clip
        ours, _ = objective.loss(
            log_probs, old, advantages, mask, ref_log_probs=ref if objective.beta else None
        )
        theirs = trl_loss(log_probs, old, ref, advantages, mask, settings)
        (our_grad,) = torch.autograd.grad(ours, log_probs)
        (their_grad,) = torch.autograd.grad(theirs, log_probs)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        torch.testing.assert_close(our_grad, their_grad, rtol=0, atol=1e-12)
        seen.add(round(ours.item(), 9))
    assert len(seen) == 20  # twenty different numbers agreed, not one constant


def test_on_policy_loss_equals_trl():
    log_probs, _, _, advantages, mask = ragged_batch(0)
    ours, _ = GRPO().loss(log_probs, None, advantages, mask)
    theirs = trl_loss(log_probs, None, None, advantages, mask, {"loss_type": "grpo"})
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
