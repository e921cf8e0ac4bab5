"""A CUDA device that computes nothing, to run code for a GPU on a machine without one.

torch's fake tensors have a shape, a dtype and a device but no values. Here they are all tensors on the device `cuda`; those on
the CPU stay real. A stub of the CUDA runtime (`fake_cuda.c`) makes torch's C++ code believe in a GPU: device guards, autograd
and the choice of attention kernels. Mixed devices and dtypes raise as on a GPU. Copies from the device hold zeros.

Operators are a few more than on a GPU: torch clips the gradients of fake tensors one by one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

SOURCE = Path(__file__).with_suffix(".c")
ROOT = SOURCE.parent.parent
SITE = Path(torch.__file__).parent.parent
# The wheel of the runtime has the struct of this version, triton the headers of the compiler that it includes.
INCLUDES = ("nvidia/*/include/driver_types.h", "triton/backends/nvidia/include/driver_types.h")
HEADERS = [path.parent for pattern in INCLUDES for path in SITE.glob(pattern)]
needs_stub = pytest.mark.skipif(
    shutil.which("gcc") is None or len(HEADERS) != len(INCLUDES), reason="gcc or the headers of CUDA are missing"
)

# What `item` returns. Floats are not 0, so that a training with this loss goes on.
BOOL, INTEGER, FLOAT = True, 0, 0.5

aten = torch.ops.aten
# On a GPU they raise for inputs of different dtypes or devices; fake ones do not.
SAME_DTYPE = {aten.mm.default, aten.addmm.default, aten.native_group_norm.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


def build_stub(folder: Path) -> None:
    """Compiles the stub; its name makes it torch's driver too."""
    name, version = "libcuda.so.1", f"-DCUDA_VERSION={str(torch.version.cuda).replace('.', '0')}0"
    options = ["-shared", "-fPIC", f"-Wl,-soname,{name}", version, *(f"-I{path}" for path in HEADERS)]
    subprocess.run(["gcc", *options, "-o", str(folder / name), str(SOURCE)], check=True)


def run_on_fake_gpu(stub: Path, capability: int, script: str, args: Sequence[object]) -> None:
    """Runs a script in a child process whose GPU has a compute capability, such as 90."""
    added = {
        "FAKE_SM": str(capability),
        "LD_PRELOAD": "libcuda.so.1",
        "LD_LIBRARY_PATH": str(stub),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    command = [sys.executable, script, *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | added, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@dataclass
class Record:
    """What ran on the device.

    Attributes:
        operators: by name.
        syncs: reads of values, by the line that read.
        copies: copies from the host, by the line that copied.
        doubles: operators with a float64 output, by the line that called.
    """

    operators: Counter[str] = field(default_factory=Counter)
    syncs: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    doubles: Counter[str] = field(default_factory=Counter)

    def since(self, earlier: Record) -> Record:
        return Record(*(getattr(self, each.name) - getattr(earlier, each.name) for each in fields(self)))

    def copy(self) -> Record:
        return deepcopy(self)


class _FakeDevice(TorchDispatchMode):
    """Runs operators on the device with fake tensors, and those on the CPU for real."""

    def __init__(self, fake_mode: FakeTensorMode, record: Record):
        super().__init__()
        self.fake_mode, self.record = fake_mode, record

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # torch would wrap the method below to hide it from its compiler, which is not used here
        return False

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operator.namespace == "prim":
            return operator(*args, **kwargs)
        # only inference mode passes composite operators on whole
        if torch.is_inference_mode_enabled() and operator._can_decompose():
            with self:
                return operator.decompose(*args, **kwargs)
        inputs, target = list(_tensors([*args, *kwargs.values()])), kwargs.get("device")
        real = [tensor for tensor in inputs if not _is_fake(tensor)]
        target = None if target is None else torch.device(target).type
        if len(real) == len(inputs) and target != "cuda":
            with unset_fake_temporarily():
                return operator(*args, **kwargs)
        if operator is aten._local_scalar_dense.default:
            self.record.syncs[_caller()] += 1
            return _read(args[0])
        if operator is aten.nonzero.default:
            self.record.syncs[_caller()] += 1
            return torch.zeros(1, args[0].ndim, dtype=torch.int64, device=args[0].device)
        if target in ("cpu", "meta"):
            return self._leave(args[0], target, kwargs.get("dtype") or args[0].dtype)
        if operator is aten.copy_.default and not _is_fake(args[0]):
            copied = self._leave(args[1], "cpu", args[0].dtype)
            with unset_fake_temporarily():
                return args[0].copy_(copied)
        if operator in SAME_DTYPE and len({tensor.dtype for tensor in inputs}) > 1:
            raise RuntimeError(f"{operator} of different dtypes: {', '.join(str(tensor.dtype) for tensor in inputs)}")
        if operator in INDEXING and not _is_fake(args[0]):
            raise RuntimeError(f"{operator}: a tensor on device cpu is indexed by one on cuda")
        self.record.operators[operator.name()] += 1
        if real:
            args, kwargs = tree_map_only(torch.Tensor, self._as_fake, (args, kwargs))
        result = operator(*args, **kwargs)
        # a kernel takes numbers without dimensions as arguments
        if any(tensor.ndim or target for tensor in real):
            self.record.copies[_caller()] += 1
        if any(tensor.dtype == torch.float64 for tensor in _tensors([result])):
            self.record.doubles[_caller()] += 1
        return result

    def _leave(self, tensor: torch.Tensor, target: str, dtype: torch.dtype) -> torch.Tensor:
        """Copies a tensor from the device to `cpu` or `meta`."""
        if target == "cpu":
            self.record.syncs[_caller()] += 1
        with unset_fake_temporarily():
            return torch.zeros(tensor.shape, dtype=dtype, device=target)

    def _as_fake(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if _is_fake(tensor) else self.fake_mode.from_tensor(tensor)


def _tensors(values: Iterable[object]) -> Iterator[torch.Tensor]:
    """The tensors among values and lists of them; much faster than torch's trees."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _is_fake(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, FakeTensor)


def _read(tensor: torch.Tensor) -> bool | int | float:
    if tensor.dtype == torch.bool:
        return BOOL
    return FLOAT if tensor.is_floating_point() else INTEGER


def _caller() -> str:
    """The two innermost lines outside torch and this file."""
    lines: list[str] = []
    frame: FrameType | None = sys._getframe()
    while frame and len(lines) < 2:
        path = Path(frame.f_code.co_filename)
        if path != Path(__file__) and not path.is_relative_to(SITE / "torch"):
            base = SITE if path.is_relative_to(SITE) else ROOT
            lines.append(f"{path.relative_to(base) if path.is_relative_to(base) else path}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(lines)


def _apply(module: torch.nn.Module, convert: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
    """torch.nn.Module._apply, which would swap fake parameters, and torch refuses that."""
    for child in module.children() if recurse else ():
        child._apply(convert)
    for name, parameter in module._parameters.items():
        if parameter is None:
            continue
        with torch.no_grad():
            converted = convert(parameter)
        # like torch, keeps the parameter itself where it can: an optimizer may have it
        if _is_fake(parameter) == _is_fake(converted):
            parameter.data = converted
        else:
            module._parameters[name] = torch.nn.Parameter(converted, parameter.requires_grad)
    for name, buffer in module._buffers.items():
        module._buffers[name] = None if buffer is None else convert(buffer)
    return module


def _submit(pool: ThreadPoolExecutor, function: Callable[..., Any], *args: Any) -> Future[Any]:
    """ThreadPoolExecutor.submit, which calls at once, because a mode of torch holds in its own thread only."""
    future: Future[Any] = Future()
    future.set_result(function(*args))
    return future


@contextmanager
def fake_cuda() -> Iterator[Record]:
    """Makes the device `cuda` fake in a process of `run_on_fake_gpu`, and records what runs on it."""
    # else torch.tensor(..., device="cuda") would allocate before any mode sees it
    torch._C._set_only_lift_cpu_tensors(True)
    record = Record()
    with (
        patch.object(torch.nn.Module, "_apply", _apply),
        # the stub of the runtime has no page-locked memory
        patch.object(torch.Tensor, "pin_memory", lambda tensor: tensor),
        patch.object(ThreadPoolExecutor, "submit", _submit),
        # a copied tensor would belong to another mode
        patch.object(FakeTensorMode, "__deepcopy__", lambda mode, _: mode, create=True),
        FakeTensorMode() as fake_mode,
        _FakeDevice(fake_mode, record),
    ):
        yield record
