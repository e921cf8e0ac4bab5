"""Devices: memory errors have a hint, determinism is requested on a GPU, and small images train with plain attention."""

from __future__ import annotations

import os
import warnings

import pytest
import torch

from pathsynth.core import devices
from pathsynth.core.devices import MAX_PLAIN_ATTENTION, catch_out_of_memory, describe_device, pick_device, training_attention
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
    monkeypatch.setattr(devices, "_report_device", lambda: None)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", requested.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device(True) == "cpu" and requested == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device(False) == "cuda" and requested == []
    assert pick_device(True) == "cuda" and requested == [True]
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"


OLD_DRIVER = "CUDA initialization: The NVIDIA driver on your system is too old (found version 12020). Please update"


@pytest.mark.parametrize(("variables", "built", "warning", "reason"), [
    ({}, None, None, "this PyTorch is built without CUDA"),
    ({"CUDA_VISIBLE_DEVICES": ""}, "13.0", None, "CUDA_VISIBLE_DEVICES= hides all GPUs"),
    ({"CUDA_VISIBLE_DEVICES": "-1"}, "13.0", None, "CUDA_VISIBLE_DEVICES=-1 hides all GPUs"),
    ({"CUDA_VISIBLE_DEVICES": "MIG-1"}, "13.0", OLD_DRIVER, "The NVIDIA driver on your system is too old (found version 1202"),
    ({}, "13.0", None, "no NVIDIA GPU found"),
    ({"CUDA_VISIBLE_DEVICES": "7", "vendor": "0x10de"}, "13.0", None, "CUDA_VISIBLE_DEVICES=7 names no GPU of this machine"),
    ({"vendor": "0x10de"}, "13.0", None, "there is an NVIDIA GPU, but no driver for it; in a container"),
])  # fmt: skip
def test_reason_for_using_the_cpu_is_named(variables, built, warning, reason, monkeypatch, tmp_path):
    left = [warning] if warning else []

    def is_available() -> bool:
        # torch warns once in a process
        if left:
            warnings.warn(left.pop(), stacklevel=2)
        return False

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(devices, "_warnings", [])
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "vendor").write_text(variables.get("vendor", "0x8086") + "\n")
    monkeypatch.setattr(devices, "PCI_DEVICES", tmp_path)
    # as when a checkpoint's key is computed
    assert not devices.gpu_available()
    assert f" ({reason}" in describe_device()


def test_gpu_is_named_and_the_device_once(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    devices._report_device.cache_clear()
    assert pick_device() == pick_device() == "cuda"
    assert capsys.readouterr().err == "device: NVIDIA H200\n"
    devices._report_device.cache_clear()


@pytest.mark.parametrize(
    ("device", "pixels", "fused"),
    [("cpu", MAX_PLAIN_ATTENTION, False), ("cpu", MAX_PLAIN_ATTENTION + 1, True), ("cuda", 1, True)],
)
def test_plain_attention_is_for_small_images_on_a_cpu(device, pixels, fused):
    with training_attention(device, pixels):
        assert torch.backends.cuda.flash_sdp_enabled() == fused
