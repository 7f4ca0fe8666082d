import pytest
import torch

from igrpo_kit.training.optimization import (
    clip_gradient,
    make_optimizer,
    set_learning_rate,
    supervised_step,
    warm_up,
)


def linear(weights):
    model = torch.nn.Linear(len(weights), 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([weights]))
    return model


def test_only_what_is_trained_is_optimized():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    model[0].requires_grad_(False)
    optimizer = make_optimizer(model, weight_decay=0.5, betas=(0.8, 0.9))
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in model[1].parameters()]
    assert (group["weight_decay"], group["betas"]) == (0.5, (0.8, 0.9))
    (group,) = make_optimizer(model).param_groups
    assert (group["weight_decay"], group["betas"]) == (0.0, (0.9, 0.95))


def test_the_learning_rate_of_every_group_is_set():
    one, two = linear([1.0]), linear([2.0])
    optimizer = torch.optim.SGD([{"params": one.parameters()}, {"params": two.parameters(), "lr": 5.0}], 1.0)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


@pytest.mark.parametrize(
    ("step", "warmup_steps", "share"),
    [(1, 10, 0.1), (5, 10, 0.5), (10, 10, 1.0), (11, 10, 1.0), (1, 1, 1.0), (1, 0, 1.0)],
)
def test_warm_up_by_hand(step, warmup_steps, share):
    assert warm_up(step, warmup_steps) == share


@pytest.mark.parametrize(("limit", "clipped"), [(1.0, [0.6, 0.8]), (2.5, [1.5, 2.0]), (6.0, [3.0, 4.0])])
def test_a_gradient_of_norm_5_is_clipped(limit, clipped):
    model = linear([0.0, 0.0])
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    assert clip_gradient(model, limit) == 5.0
    torch.testing.assert_close(model.weight.grad, torch.tensor([clipped]))


def test_a_supervised_step_by_hand():
    """The first step of Adam moves a weight by the learning rate against its gradient's sign."""
    model = linear([1.0, 2.0])
    optimizer = make_optimizer(model)
    set_learning_rate(optimizer, 0.1)
    model.weight.grad = torch.full((1, 2), -1e6)  # of an earlier step, to be forgotten
    loss = model(torch.tensor([[3.0, -4.0]])).sum()
    assert supervised_step(model, optimizer, loss) == -5.0  # the loss before the step
    torch.testing.assert_close(model.weight.data, torch.tensor([[0.9, 2.1]]))
    torch.testing.assert_close(model.weight.grad, torch.tensor([[0.6, -0.8]]))  # (3, -4) at norm 1
