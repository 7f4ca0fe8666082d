"""One optimizer step, for reinforcement learning and supervised fine-tuning: AdamW, warm-up, clipping."""

from typing import Any

import torch


def make_optimizer(
    model: Any, *, betas: tuple[float, float] = (0.9, 0.95), weight_decay: float = 0.0
) -> torch.optim.AdamW:
    """AdamW over the parameters that are trained; `set_learning_rate` before each step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(parameters, betas=betas, weight_decay=weight_decay, fused=True)


def warm_up(step: int, warmup_steps: int) -> float:
    """Share of the learning rate at a step, counted from 1: linear up to 1 over `warmup_steps`."""
    return min(1.0, step / max(warmup_steps, 1))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def clip_gradient(model: Any, max_grad_norm: float) -> float:
    """Scale the gradient down to at most `max_grad_norm` (L2); returns its norm before that."""
    return torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm).item()


def supervised_step(model: Any, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> float:
    """One step on a loss, the gradient clipped to norm 1; returns the loss."""
    optimizer.zero_grad()
    loss.backward()
    clip_gradient(model, 1.0)
    optimizer.step()
    return loss.item()
