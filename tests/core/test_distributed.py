"""Several processes: the same images, the same training, and one clear line when a process fails. All on the CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, empty_slots, run_stage, tiny_tree, write_params

from pathsynth.core.errors import TrainingError
from pathsynth.core.metric_files import read_details
from pathsynth.finetuning.batches import micro_batches


def _args(name: str, params: Path, *args: object) -> list[object]:
    logs = [] if name == "train_classifier" else ["--logs", params.parent / "logs"]
    return ["--params", params, *args, *logs]


def _stage(name: str, params: Path, *args: object, launcher: tuple[str, ...] = (), **env: str) -> subprocess.CompletedProcess:
    """Runs a stage as dvc.yaml does, in a process of its own."""
    command = [*(launcher or (sys.executable,)), "-m", f"stages.{name}", *_args(name, params, *args)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | env
    return subprocess.run([str(part) for part in command], cwd=ROOT, env=environment, capture_output=True, text=True)


def _stage_here(name: str, params: Path, *args: object) -> None:
    """Runs a stage in this process, which has imported already what a stage imports."""
    done = run_stage(name, *_args(name, params, *args))
    assert done.exit_code == 0, done.output


def _params(folder: Path, base: Path, name: str, *, processes: int = 1, lora: dict | None = None, **generation) -> Path:
    tree = tiny_tree(base)
    tree["processes"] = processes
    tree["benchmarks"]["tiny"]["generation"].update({"images_per_tissue": 5, "max_attempts": 2} | generation)
    for section, values in (lora or {}).items():
        tree["loras"]["r2"][section].update(values)
    return write_params(folder / f"{name}.yaml", tree)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_base, tiny_prepared) -> Path:
    """A folder with a gate and a LoRA, which one process has trained."""
    folder = tmp_path_factory.mktemp("processes")
    params = _params(folder, tiny_base, "one")
    for name, args in (
        ("train_classifier", ["--role", "gate", "--out", folder / "gate", "--metrics", folder / "gate.json"]),
        ("train_lora", ["--out", folder / "lora", "--metrics", folder / "lora.json"]),
    ):  # fmt: skip
        _stage_here(name, params, "--prepared", tiny_prepared.folder, "--curves", folder / "curves" / name,
                    "--scratch", folder / "scratch", *args)  # fmt: skip
    return folder


def _models(trained: Path, out: Path) -> list[object]:
    """Generation's arguments."""
    return ["--lora", trained / "lora", "--gate", trained / "gate", "--out", out, "--metrics", out / "generation.json",
            "--gate-metrics", trained / "gate.json", "--scratch", out.with_name(f"{out.name}_scratch")]  # fmt: skip


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _generated(trained: Path, params: Path, out: Path, **launch) -> dict[str, bytes]:
    done = _stage("generate_filtered", params, *_models(trained, out), **launch)
    assert done.returncode == 0, done.stderr
    return _files(out)


@pytest.fixture(scope="module")
def by_one(trained: Path, tiny_base: Path) -> dict[str, bytes]:
    out = trained / "by_one"
    _stage_here("generate_filtered", _params(trained, tiny_base, "one"), *_models(trained, out))
    return _files(out)


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_makes_the_same_set(processes, trained, tiny_base, by_one, tmp_path):
    params = _params(tmp_path, tiny_base, "several", processes=processes)
    assert _generated(trained, params, tmp_path / "out") == by_one
    assert {"raw.npz", "accepted.npz", "attempts.csv"} < set(by_one)


def test_accelerate_launch_makes_the_same_set(trained, tiny_base, by_one, tmp_path):
    launcher = (f"{Path(sys.executable).parent}/accelerate", "launch", "--multi_gpu", "--num_processes", "2",
                "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")  # fmt: skip
    params = _params(tmp_path, tiny_base, "one")
    made = _generated(trained, params, tmp_path / "out", launcher=launcher, ACCELERATE_USE_CPU="true")
    assert made == by_one


@pytest.fixture(params=[1, 2])
def threads(request):
    """Runs the test on one thread, then on two."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_batch_sizes_make_the_same_set_on_a_cpu(mixed_precision, threads, trained, tiny_base, tmp_path):
    from pathsynth.classifiers.model import load_classifier
    from pathsynth.core.params import load_params
    from pathsynth.data import labels
    from pathsynth.diffusion.adapter import attach_lora
    from pathsynth.diffusion.base import load_base, unet_sha256
    from pathsynth.generation.filtering import generate_filtered
    from pathsynth.generation.sampler import Sampler

    gate = load_classifier(trained / "gate", "cpu", labels.SLUGS).probabilities
    tables, pictures = [], []
    for size in (1, 7, 32):
        tree = tiny_tree(tiny_base)
        tree["benchmarks"]["tiny"]["generation"].update(batch_size=size, mixed_precision=mixed_precision)
        params = load_params(write_params(trained / "batches.yaml", tree))
        pipeline = load_base(tiny_base, "cpu")
        attach_lora(pipeline, trained / "lora", unet_sha256(tiny_base))
        sampler = Sampler(pipeline, params.benchmark.texts("plain"), params.benchmark.generation, 7, 32)
        slots = empty_slots(tmp_path / str(size), 9, 5, 32, 7)
        generate_filtered(sampler, gate, slots, 2, sampler.batch_size)
        tables.append(slots.table(labels.SLUGS))
        pictures.append(slots.raw()[0][:])
    assert (pictures[0] == pictures[1]).all() and (pictures[0] == pictures[2]).all()
    assert tables[0].equals(tables[1]) and tables[0].equals(tables[2])


def _losses(folder: Path) -> np.ndarray:
    lines = (folder / "plots" / "metrics" / "train" / "loss.tsv").read_text().splitlines()[1:]
    return np.array([float(line.split("\t")[1]) for line in lines])


@pytest.mark.parametrize(
    "training",
    [{"train_batch_size": 4}, {"train_batch_size": 2, "gradient_accumulation_steps": 2, "merged": True}],
    ids=["whole", "accumulated-and-merged"],
)
def test_training_on_two_processes_follows_the_single_one(training, tiny_base, tiny_prepared, tmp_path):
    lora = {"training": training | {"max_train_steps": 20}, "optimizer": {"learning_rate": 1e-3}}

    def args(name: str, processes: int) -> list[object]:
        return [
            "train_lora", _params(tmp_path, tiny_base, name, processes=processes, lora=lora),
            "--prepared", tiny_prepared.folder, "--out", tmp_path / name, "--metrics", tmp_path / f"{name}.json",
            "--curves", tmp_path / "curves" / name, "--scratch", tmp_path / "scratch",
        ]  # fmt: skip

    _stage_here(*args("one", 1))
    done = _stage(*args("two", 2))
    assert done.returncode == 0, done.stderr
    one, two = (_losses(tmp_path / "curves" / name) for name in ("one", "two"))
    assert len(one) == len(two) == 2
    np.testing.assert_allclose(two, one, rtol=1e-4)
    assert not list((tmp_path / "scratch").glob("pathsynth-*"))
    metrics = [read_details(tmp_path / f"{name}.json") for name in ("one", "two")]
    assert metrics[0]["images_seen"] == metrics[1]["images_seen"] == 80


GRADIENT = """
import sys
from pathlib import Path
import torch
from accelerate import Accelerator
from conftest import tiny_lora
from pathsynth.base_model import load_base
from pathsynth.lora_training import train_lora
from pathsynth.settings import LoraSettings
from pathsynth.prepared import open_prepared
from pathsynth.processes import joined

base, prepared, out, *splits = sys.argv[1:]
grads = []
real = Accelerator.clip_grad_norm_

def watched(self, parameters, most):
    grads.append(torch.cat([p.grad.flatten() for p in parameters]).clone())
    return real(self, parameters, most)

Accelerator.clip_grad_norm_ = watched
tree = tiny_lora()
tree["objective"].update(rotate90=True)
prompts = [f"tissue {i}" for i in range(9)]
with joined() as processes:
    for split in splits:
        size, accumulation = map(int, split.split("x"))
        tree["training"].update(max_train_steps=1, train_batch_size=size, gradient_accumulation_steps=accumulation)
        settings = LoraSettings.model_validate(tree)
        train_lora(load_base(Path(base), "cpu"), open_prepared(prepared), prompts, settings, 3, lambda *_: None,
                   scratch=Path(out), processes=processes)
    assert len(grads) == len(splits)
    if processes.main:
        torch.save(grads, Path(out) / "gradients.pt")
"""


def _gradients(base: Path, prepared: Path, out: Path, processes: int, *splits: str) -> list[np.ndarray]:
    """Of the first step, for every split into micro-batches (size x accumulation)."""
    import torch

    out.mkdir()
    (out / "gradient.py").write_text(GRADIENT)
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)] if processes > 1 else []
    command = [sys.executable, *launcher, out / "gradient.py", base, prepared, out, *splits]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run([str(part) for part in command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [gradient.numpy() for gradient in torch.load(out / "gradients.pt", weights_only=True)]


@pytest.mark.slow
def test_the_same_effective_batch_gives_the_same_first_gradient(tiny_base, tiny_prepared, tmp_path):
    splits = {1: ["12x1", "3x4"], 2: ["3x4"], 3: ["6x2"]}
    whole, *others = (
        gradient
        for processes, ways in splits.items()
        for gradient in _gradients(tiny_base, tiny_prepared.folder, tmp_path / str(processes), processes, *ways)
    )
    assert np.linalg.norm(whole) > 1e-3 and len(others) == 3
    for other in others:
        assert np.linalg.norm(other - whole) <= 1e-5 * np.linalg.norm(whole)


@pytest.mark.parametrize(
    ("size", "accumulation", "count"), [(24, 4, 1), (24, 4, 2), (24, 4, 4), (24, 4, 3), (24, 4, 8), (1, 6, 3), (5, 1, 5)]
)
def test_parts_of_all_processes_are_the_whole_batch(size, accumulation, count):
    parts = [micro_batches(size, accumulation, index, count) for index in range(count)]
    seen = np.concatenate([np.arange(size * accumulation)[rows] for own in parts for rows in own])
    assert sorted(seen) == list(range(size * accumulation))
    assert len({len(own) for own in parts}) == 1
    assert len({rows.stop - rows.start for own in parts for rows in own}) == 1


def test_a_batch_that_cannot_be_shared_evenly_is_refused():
    with pytest.raises(TrainingError, match=r"processes: 5 cannot share a step evenly; allowed: numbers that divide .* \(4\)"):
        micro_batches(24, 4, 0, 5)


def test_a_mistake_is_told_once(tiny_base, tiny_prepared, tmp_path):
    params = _params(tmp_path, tiny_base, "two", processes=2, lora={"adapter": {"target_modules": ["to_nothing"]}})
    done = _stage(
        "train_lora", params, "--prepared", tiny_prepared.folder, "--out", tmp_path / "out",
        "--metrics", tmp_path / "m.json", "--curves", tmp_path / "curves", "--scratch", tmp_path / "scratch",
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("matches no layer of the UNet") == 1 and "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert not (tmp_path / "out").exists()


def _children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return sorted(found)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="children are found by /proc")
@pytest.mark.parametrize("which", [0, 1], ids=["main", "other"])
def test_a_process_that_is_killed_ends_the_stage_with_one_line(which, tiny_base, tiny_prepared, tmp_path):
    run, said = _started(tiny_base, tiny_prepared, tmp_path)
    os.kill(_children(run.pid)[which], signal.SIGKILL)
    assert run.wait(timeout=90) == 1
    last = said.read_text().splitlines()[-1]
    assert "error: process " in last and "of 2 was killed by SIGKILL" in last
    assert not (tmp_path / "out").exists() and not (tmp_path / "m.json").exists()
    assert not list((tmp_path / "scratch").glob("pathsynth-*")), "the latents are gone"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="children are found by /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stage_that_is_ended_leaves_no_process_behind(how, tiny_base, tiny_prepared, tmp_path):
    run, said = _started(tiny_base, tiny_prepared, tmp_path)
    children = _children(run.pid)
    os.kill(run.pid, how)
    run.wait(timeout=60)
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() for pid in children):
            break
        time.sleep(0.2)
    assert len(children) == 2 and not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert not (tmp_path / "out").exists()
    if how == signal.SIGINT:
        assert run.returncode == 1 and "Traceback" not in said.read_text()
        assert said.read_text().splitlines()[-1] == "error: ended by SIGINT, and so were its 2 processes"
        assert not list((tmp_path / "scratch").glob("pathsynth-*"))


def _started(base: Path, prepared, folder: Path) -> tuple[subprocess.Popen, Path]:
    """A LoRA training on two processes that has begun and would go on for long, and the file of what it says."""
    params = _params(folder, base, "two", processes=2, lora={"training": {"max_train_steps": 100_000}})
    args = ("--prepared", prepared.folder, "--out", folder / "out", "--metrics", folder / "m.json",
            "--curves", folder / "curves", "--scratch", folder / "scratch")  # fmt: skip
    command = [str(part) for part in (sys.executable, "-m", "stages.train_lora", "--params", params, *args)]
    said = folder / "said"
    with open(said, "w") as file:
        run = subprocess.Popen(
            command, cwd=ROOT, stderr=file, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True
        )
    curve = folder / "curves" / "plots" / "metrics" / "train" / "loss.tsv"
    for _ in range(600):
        if curve.exists() or run.poll() is not None:
            break
        time.sleep(0.2)
    assert curve.exists(), said.read_text()
    return run, said


ONE_FAILS = """
import os, sys
import click
from pathsynth.cli import reports_errors
from pathsynth.errors import TrainingError
from pathsynth.processes import joined, launch

@click.command()
@reports_errors
def main():
    if launch(2):
        return
    with joined() as processes:
        if processes.index == 1:
            raise TrainingError("step 3: the loss is nan")
        processes.gather("waits for the other")

main()
"""


def test_an_error_in_one_process_alone_is_what_is_told(tmp_path):
    (tmp_path / "one_fails.py").write_text(ONE_FAILS)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, tmp_path / "one_fails.py"], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == "error: step 3: the loss is nan"
    assert "Traceback" not in done.stderr


def _fault(tmp_path: Path, rank: int, exitcode: int, message: str | None = None):
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    file = tmp_path / f"{rank}.json"
    if message is not None:
        file.write_text(json.dumps({"message": message, "timestamp": rank}))
    return ProcessFailure(local_rank=rank, pid=rank, exitcode=exitcode, error_file=str(file))


@pytest.mark.parametrize(
    ("faults", "told"),
    [
        ({0: (-6, None), 1: (1, "out of memory: lower x")}, "out of memory: lower x"),
        ({0: (-9, None), 1: (1, "out of memory: lower x")}, "out of memory: lower x"),
        ({0: (1, "lost touch with another process: gloo"), 1: (-15, "the reason")}, "the reason"),
        ({0: (1, "lost touch with another process: gloo"), 1: (-9, None)}, "process 1 of 2 was killed by SIGKILL"),
        ({0: (-15, None), 1: (-11, None)}, "process 1 of 2 was killed by SIGSEGV; the others were ended"),
        ({0: (1, "lost touch with another process: NCCL error")}, "lost touch with another process: NCCL error"),
        ({0: (1, None)}, "process 0 of 2 ended with exit code 1; its messages stand above"),
    ],
)
def test_the_fault_where_it_began_is_told(faults, told, tmp_path):
    from pathsynth.core.distributed import first_fault

    assert first_fault({rank: _fault(tmp_path, rank, *fault) for rank, fault in faults.items()}, 2).startswith(told)


def test_dropout_is_not_shared():
    from conftest import tiny_lora

    from pathsynth.finetuning.batches import check_shared
    from pathsynth.finetuning.settings import LoraSettings

    settings = LoraSettings.model_validate(tiny_lora(lora_dropout=0.1))
    check_shared(settings, 1)
    with pytest.raises(TrainingError, match="processes: 2 draw other dropout masks than one would"):
        check_shared(settings, 2)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    import torch

    from pathsynth.core.distributed import launch
    from pathsynth.core.errors import ProcessError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ProcessError, match="processes: 3, but this machine has 2 GPUs; allowed: 1 to 2"):
        launch(3)
