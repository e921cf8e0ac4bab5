"""Devices: which one is used and named, number formats, attention kernels, and running out of memory."""

from __future__ import annotations

import os
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import DistributedType, PartialState

from pathsynth.core import devices
from pathsynth.core.devices import (
    MAX_PLAIN_ATTENTION,
    catch_out_of_memory,
    pick_device,
    supported_precision,
    tf32,
    training_attention,
)
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


def test_deterministic_restricts_the_kernels_of_a_gpu_only(machine, monkeypatch):
    requested = []
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", requested.append)
    machine(gpus=1)
    assert pick_device("cpu", True) == "cpu" and requested == []
    assert pick_device("auto", False) == "cuda" and requested == []
    assert pick_device("auto", True) == "cuda" and requested == [True]
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"


@pytest.mark.parametrize(("device", "facts", "line"), [
    ("auto", {"gpus": 1}, "NVIDIA H200"),
    ("cuda", {"gpus": 8}, "NVIDIA H200 (1 of 8)"),
    ("auto", {"gpus": 8, "WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}, "NVIDIA H200, 4 processes"),
    ("auto", {"gpus": 8, "WORLD_SIZE": "4", "RANK": "1", "LOCAL_RANK": "1"}, None),
    ("auto", {"WORLD_SIZE": "2"}, "CPU, 1 thread, 2 processes (no NVIDIA GPU found)"),
    ("cpu", {"gpus": 1}, "CPU, 1 thread (params: device: cpu)"),
])  # fmt: skip
def test_device_is_named_once_by_the_main_process(device, facts, line, machine, monkeypatch, capsys):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    machine(**facts)
    assert pick_device(device) == pick_device(device)
    assert capsys.readouterr().err == (f"device: {line}\n" if line else "")


@pytest.mark.parametrize(("gpus", "expected"), [(1, "cuda:0"), (2, "cuda:1"), (8, "cuda:3")])
def test_process_takes_the_same_gpu_as_accelerate(gpus, expected, machine, monkeypatch):
    machine(gpus=gpus, LOCAL_RANK="3")
    state = SimpleNamespace(device=None, distributed_type=DistributedType.MULTI_GPU, local_process_index=3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    PartialState.set_device(state)
    assert pick_device("auto") == expected == str(state.device)


def test_emulated_bf16_is_kept_with_one_warning(machine, capsys):
    machine("Tesla T4", gpus=1, capability=(7, 5), bf16=False)
    assert [supported_precision("cuda", name) for name in ("bf16", "bf16", "fp16", "no")] == ["bf16", "bf16", "fp16", "no"]
    error = capsys.readouterr().err
    assert error.startswith("warning: Tesla T4 emulates bf16, which is slow: ") and error.count("\n") == 1


@pytest.mark.parametrize(("features", "precision"), [
    ({"avx512_bf16": True}, "bf16"),
    ({"amx_bf16": True}, "bf16"),
    ({"architecture": "aarch64", "bf16": True}, "bf16"),
    # Ice Lake and Skylake: AVX-512, but no product of bf16
    ({"avx512_f": True, "avx512_vnni": True, "avx512_bf16": False, "amx_bf16": False}, "no"),
    ({"avx2": True}, "no"),
])  # fmt: skip
def test_cpu_without_bf16_instructions_computes_in_fp32_and_says_so_once(features, precision, monkeypatch, capsys):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    devices._has_bf16_instructions.cache_clear()
    assert [supported_precision("cpu", name) for name in ("bf16", "bf16", "fp16", "no")] == [precision, precision, "no", "no"]
    devices._has_bf16_instructions.cache_clear()
    assert capsys.readouterr().err.count("computing in fp32 instead\n") == (precision == "no")


def test_native_bf16_needs_no_warning(machine, capsys):
    machine(gpus=1)
    assert supported_precision("cuda:0", "bf16") == "bf16" and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("device", "pixels", "fused", "cudnn"),
    [("cpu", MAX_PLAIN_ATTENTION, False, False), ("cpu", MAX_PLAIN_ATTENTION + 1, True, True), ("cuda", 1, True, False)],
)
def test_attention_is_plain_for_small_images_on_a_cpu_and_never_cudnns_on_a_gpu(device, pixels, fused, cudnn):
    with training_attention(device, pixels):
        assert torch.backends.cuda.flash_sdp_enabled() == fused
        assert torch.backends.cuda.cudnn_sdp_enabled() == cudnn


@pytest.mark.parametrize("enabled", [True, False])
def test_tf32_is_reset_also_after_an_error(enabled):
    assert not torch.backends.cuda.matmul.allow_tf32
    with suppress(ZeroDivisionError), tf32(enabled):
        assert torch.backends.cuda.matmul.allow_tf32 == enabled
        raise ZeroDivisionError
    assert not torch.backends.cuda.matmul.allow_tf32
