"""The running mean of weights."""

from __future__ import annotations

import torch

from sparsecbm.averaging import RunningMean


def test_after_one_step_it_is_that_steps_weights() -> None:
    mean = RunningMean({"w": torch.zeros(2)}, 0.9)
    mean.update({"w": torch.tensor([1.0, 2.0])})
    torch.testing.assert_close(mean.weights()["w"], torch.tensor([1.0, 2.0]))


def test_it_weighs_steps_by_the_decay() -> None:
    mean = RunningMean({"w": torch.zeros(())}, 0.5)
    for value in (1.0, 2.0, 4.0):
        mean.update({"w": torch.tensor(value)})
    torch.testing.assert_close(mean.weights()["w"], torch.tensor((1 + 2 * 2 + 4 * 4) / 7))


def test_it_holds_no_gradients() -> None:
    weight = torch.ones(3, requires_grad=True)
    mean = RunningMean({"w": weight.detach()}, 0.5)
    mean.update({"w": weight})
    assert not mean.weights()["w"].requires_grad
