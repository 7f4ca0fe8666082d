"""Optimizer steps, shared by reinforcement learning and fine-tuning: AdamW, warm-up, gradient clipping."""

from typing import Any

import torch


def make_optimizer(
    model: Any, *, betas: tuple[float, float] = (0.9, 0.95), weight_decay: float = 0.0
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters. Call `set_learning_rate` before each step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(parameters, betas=betas, weight_decay=weight_decay, fused=True)


def warm_up(step: int, warmup_steps: int) -> float:
    """Fraction of the learning rate at a step (counted from 1): linear up to 1 over `warmup_steps`."""
    return min(1.0, step / max(warmup_steps, 1))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def clip_gradient(model: Any, max_grad_norm: float) -> float:
    """Scale the gradient to an L2 norm of at most `max_grad_norm`, and return its norm before scaling."""
    return torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm).item()


def supervised_step(model: Any, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> float:
    """Take one optimizer step on a loss, with the gradient clipped to norm 1, and return the loss."""
    optimizer.zero_grad()
    loss.backward()
    clip_gradient(model, 1.0)
    optimizer.step()
    return loss.item()
