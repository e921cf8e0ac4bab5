"""Muon: equals torch.optim.Muon, and takes convolutions too."""

from __future__ import annotations

import copy

import pytest
import torch

from pathsynth.core import muon
from pathsynth.core.muon import Muon, orthogonalize

SHAPES = [(8, 24), (24, 8), (8, 24), (16, 16)]


def draw(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bf16", [True, False])
def test_updates_are_those_of_torch(bf16, monkeypatch):
    monkeypatch.setattr(muon, "computes_bf16", lambda device: bf16)
    ours, theirs = ([torch.nn.Parameter(draw(shape, i)) for i, shape in enumerate(SHAPES)] for _ in range(2))
    optimizers = Muon(ours, 0.1, 0.01), torch.optim.Muon(theirs, 0.1, 0.01, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        for weights, optimizer in zip((ours, theirs), optimizers, strict=True):
            for i, weight in enumerate(weights):
                weight.grad = draw(weight.shape, 10 * step + i)
            optimizer.step()
    for i, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        own, other = (weight.detach() - draw(SHAPES[i], i) for weight in (own, other))
        # torch iterates in bf16
        assert (own - other).norm() < 0.02 * other.norm()


def test_convolutions_are_matrices_with_a_row_for_each_output_channel():
    weight = torch.nn.Parameter(torch.zeros(8, 4, 3, 3).to(memory_format=torch.channels_last))
    matrix = torch.nn.Parameter(torch.zeros(8, 36))
    weight.grad = draw((8, 4, 3, 3), 0).to(memory_format=torch.channels_last)
    matrix.grad = weight.grad.flatten(1)
    Muon([weight, matrix], 0.1, 0.0).step()
    update = matrix.detach()
    torch.testing.assert_close(weight.detach().flatten(1), update, rtol=0, atol=0)
    singular = torch.linalg.svdvals(update)
    assert singular.max() < 2.5 * singular.min() and update.square().mean().sqrt() == pytest.approx(0.02, rel=0.2)


def test_state_is_restored_in_another_memory_format():
    weights = [
        torch.nn.Parameter(draw((8, 4, 3, 3), 0).to(memory_format=each))
        for each in (torch.contiguous_format, torch.channels_last)
    ]
    first, second = (Muon([weight], 0.1, 0.0) for weight in weights)
    for weight in weights:
        weight.grad = draw(weight.shape, 1)
    first.step()
    # copied, as a checkpoint does, because loading does not
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    with torch.no_grad():
        weights[1].copy_(weights[0])
    for weight, optimizer in zip(weights, (first, second), strict=True):
        weight.grad = draw(weight.shape, 2)
        optimizer.step()
    torch.testing.assert_close(weights[0], weights[1])


def test_weights_without_a_gradient_stay_as_they_are():
    weights = [torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2)]
    weights[0].grad = draw((4, 4), 0)
    Muon(weights, 0.1, 0.1).step()
    assert not weights[0].eq(1).any() and weights[1].eq(1).all()


def test_scaled_gradients_are_unscaled():
    weight, gradient = torch.nn.Parameter(torch.zeros(4, 8)), draw((4, 8), 0)
    optimizer, scaler = Muon([weight], 0.1, 0.0), torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale((weight * gradient).sum()).backward()
    scaler.unscale_(optimizer)
    torch.testing.assert_close(weight.grad, gradient)


def test_overflowing_gradients_change_nothing():
    weight = torch.nn.Parameter(torch.zeros(4, 8))
    optimizer, scaler = Muon([weight], 0.1, 0.0), torch.amp.GradScaler("cpu")
    scaler.scale(weight.sum() * torch.inf).backward()
    scaler.step(optimizer)
    assert weight.eq(0).all() and not optimizer.state


def test_zeros_stay_zeros():
    assert orthogonalize(torch.zeros(2, 4, 8)).eq(0).all()


def test_vectors_are_refused():
    with pytest.raises(ValueError, match=r"two dimensions or more, not of shape \(3,\)"):
        Muon([torch.nn.Parameter(torch.zeros(3))], 0.1, 0.0)
