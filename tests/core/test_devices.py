"""Devices: memory errors have a hint, determinism is requested on a GPU, and small images train with plain attention."""

from __future__ import annotations

import os

import pytest
import torch

from pathsynth.core.devices import MAX_PLAIN_ATTENTION, catch_out_of_memory, pick_device, training_attention
from pathsynth.core.errors import OutOfMemory


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")], ids=["numpy", "torch"]
)
def test_full_memory_is_an_error_with_a_hint(error):
    with pytest.raises(OutOfMemory, match="out of memory: lower batch_size"), catch_out_of_memory("lower batch_size"):
        raise error


def test_other_errors_are_not_memory_errors():
    with pytest.raises(RuntimeError, match="something else"), catch_out_of_memory("lower batch_size"):
        raise RuntimeError("something else")


def test_deterministic_restricts_the_kernels_of_a_gpu_only(monkeypatch):
    requested = []
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", requested.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device(True) == "cpu" and requested == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device(False) == "cuda" and requested == []
    assert pick_device(True) == "cuda" and requested == [True]
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"


@pytest.mark.parametrize(
    ("device", "pixels", "fused"),
    [("cpu", MAX_PLAIN_ATTENTION, False), ("cpu", MAX_PLAIN_ATTENTION + 1, True), ("cuda", 1, True)],
)
def test_plain_attention_is_for_small_images_on_a_cpu(device, pixels, fused):
    with training_attention(device, pixels):
        assert torch.backends.cuda.flash_sdp_enabled() == fused
