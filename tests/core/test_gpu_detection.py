"""GPUs that torch cannot use, the reason why there is none, and errors of CUDA as one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import click
import pytest
import torch
from click.testing import CliRunner
from conftest import ROOT

from pathsynth.cli.options import run_as_command
from pathsynth.core.devices import pick_device
from pathsynth.core.errors import DeviceError
from pathsynth.core.gpu import check_device, explain_gpu_error, gpu_available

OLD_DRIVER = "CUDA initialization: The NVIDIA driver on your system is too old (found version 12020). Please update your GPU"
TOO_OLD = (
    "(CUDA 12.2) is too old for PyTorch 2.14.1 (CUDA 13.0), which needs driver 580 or newer: update it, install another build"
)
FAULT = "CUDA initialization: CUDA unknown error - this may be due to an incorrectly set up environment"


@pytest.mark.parametrize(("facts", "reason"), [
    ({"built": None, "vendor": "0x10de"}, "this PyTorch is built without CUDA"),
    ({"CUDA_VISIBLE_DEVICES": "", "warning": OLD_DRIVER, "vendor": "0x10de"}, "CUDA_VISIBLE_DEVICES= hides all GPUs"),
    ({"CUDA_VISIBLE_DEVICES": "-1"}, "CUDA_VISIBLE_DEVICES=-1 hides all GPUs"),
    ({"warning": OLD_DRIVER}, f"NVIDIA driver {TOO_OLD}"),
    ({}, "no NVIDIA GPU found"),
    ({"CUDA_VISIBLE_DEVICES": "7", "vendor": "0x10de"}, "CUDA_VISIBLE_DEVICES=7 names no GPU of this machine"),
    ({"vendor": "0x10de"}, "there is an NVIDIA GPU, but no driver for it; in a container"),
])  # fmt: skip
def test_without_a_gpu_the_reason_is_named_and_only_cuda_is_refused(facts, reason, machine, capsys):
    machine(**facts)
    # as when a checkpoint's key is computed
    assert not gpu_available()
    assert pick_device("auto") == "cpu"
    assert f" ({reason}" in capsys.readouterr().err
    with pytest.raises(DeviceError) as caught:
        pick_device("cuda")
    assert reason in str(caught.value)


@pytest.mark.parametrize("device", ["auto", "cuda"])
@pytest.mark.parametrize(("facts", "message"), [
    ({"warning": OLD_DRIVER, "vendor": "0x10de", "driver": "535.183.01"}, f"NVIDIA driver 535.183.01 {TOO_OLD}"),
    ({"warning": OLD_DRIVER, "vendor": "0x10de", "CUDA_VISIBLE_DEVICES": "MIG-1"}, f"NVIDIA driver {TOO_OLD}"),
    ({"warning": FAULT, "driver": "580.65.06"}, "torch cannot use the NVIDIA GPU: CUDA unknown error - this may be due to an"),
    ({"name": "Tesla V100", "gpus": 1, "capability": (7, 0)},
     "Tesla V100 (sm_70): PyTorch 2.14.1 (CUDA 13.0) has kernels for sm_75, sm_80, sm_86, sm_90 only: install another build"),
    ({"name": "B200", "gpus": 1, "capability": (10, 0)}, "B200 (sm_100): PyTorch"),
])  # fmt: skip
def test_gpu_that_torch_cannot_use_is_an_error_with_a_remedy(device, facts, message, machine, recwarn):
    machine(**facts)
    with pytest.raises(DeviceError) as caught:
        pick_device(device)
    text = str(caught.value)
    assert text.startswith(message) and text.endswith("or set `device: cpu`") and "\n" not in text
    assert not recwarn.list
    assert pick_device("cpu") == "cpu"


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 7), (8, 9), (9, 0)])
def test_code_runs_on_newer_gpus_of_the_same_major_version(capability, machine):
    machine(gpus=1, capability=capability)
    check_device("cuda")


def test_intermediate_code_runs_on_newer_gpus(machine, monkeypatch):
    machine(gpus=1, capability=(12, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90a", "compute_90"])
    check_device("cuda")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90a", "compute_121"])
    with pytest.raises(DeviceError):
        check_device("cuda")


def test_check_imports_torch_only_where_a_gpu_may_be(tmp_path):
    code = (
        "import sys; from pathlib import Path; from pathsynth.core import gpu\n"
        f"gpu.PCI_DEVICES = gpu.DRIVER_VERSION = gpu.WINDOWS_GPU = Path({str(tmp_path / 'none')!r})\n"
        "gpu.check_device('auto'); print('torch' in sys.modules)\n"
        f"gpu.WINDOWS_GPU = Path({str(tmp_path)!r})\n"
        "gpu.check_device('auto'); print('torch' in sys.modules)"
    )
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=hidden, capture_output=True, text=True)
    assert done.stdout == "False\nTrue\n", done.stderr


# messages of PyTorch 2.14 and NCCL 2.28
ILLEGAL = (
    "CUDA error: an illegal memory access was encountered\nSearch for `cudaErrorIllegalAddress' in https://docs.nvidia.com"
)
NO_KERNEL = "CUDA error: no kernel image is available for execution on the device\nSearch for `cudaErrorNoKernelImageForDevice'"
POOL = (
    "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but you set "
    "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation"
)
NCCL = "NCCL error in: NCCLUtils.cpp:94, unhandled system error (run with NCCL_DEBUG=INFO)\nncclSystemError\nLast error:\n"
SHARED = "Error while creating shared memory segment /dev/shm/nccl-x (size 9637888), error: No space left on device (28)"


@pytest.mark.parametrize(("error", "message"), [
    (torch.AcceleratorError(ILLEGAL), "CUDA error: an illegal memory access was encountered: start again; a stage"),
    (RuntimeError(NO_KERNEL), "CUDA error: no kernel image is available for execution on the device: this build of"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED: start again"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB."), "CUDA out of memory. Tried to allocate 20 MiB."),
    (torch.distributed.DistBackendError(NCCL + SHARED), f"{SHARED}: shared memory is too small: start the"),
    (RuntimeError(POOL), "params: deterministic: true: adaptive_avg_pool2d_backward_cuda has no deterministic kernel"),
])  # fmt: skip
def test_error_of_cuda_ends_a_command_with_one_line_and_a_remedy(error, message, monkeypatch):
    @click.command()
    @run_as_command
    def command() -> None:
        raise error

    monkeypatch.delenv("CUDA_LAUNCH_BLOCKING", raising=False)
    result = CliRunner().invoke(command, catch_exceptions=False)
    assert result.exit_code == 1 and result.stderr.startswith(f"error: {message}") and result.stderr.count("\n") == 1
    # whoever looks for the failed call needs the traceback
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    with pytest.raises(RuntimeError, match=re.escape(str(error))):
        CliRunner().invoke(command, catch_exceptions=False)


@pytest.mark.parametrize("error", [
    RuntimeError("The size of tensor a (3) must match the size of tensor b"), torch.distributed.DistBackendError(NCCL + "x"),
])  # fmt: skip
def test_other_errors_are_not_explained(error, monkeypatch):
    monkeypatch.delenv("CUDA_LAUNCH_BLOCKING", raising=False)
    assert explain_gpu_error(error) is None


def test_error_of_cuda_without_a_message_is_named_by_its_class(monkeypatch):
    monkeypatch.delenv("CUDA_LAUNCH_BLOCKING", raising=False)
    assert str(explain_gpu_error(torch.AcceleratorError(""))).startswith("AcceleratorError: start again")


def test_build_without_distributed_keeps_the_original_error(monkeypatch):
    monkeypatch.delenv("CUDA_LAUNCH_BLOCKING", raising=False)
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    monkeypatch.delattr(torch.distributed, "DistError")
    assert explain_gpu_error(RuntimeError(SHARED)) is None
