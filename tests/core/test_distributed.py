"""Several processes: the same images and the same training as one, and one clear line if a process fails. All on the CPU."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from ast import literal_eval
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import ROOT, empty_slots, run_stage, tiny_lora, tiny_tree, write_params

from pathsynth.core.distributed import MPI, WORLD, clean_distributed_environment, describe_failure, launch
from pathsynth.core.errors import ProcessError, TrainingError
from pathsynth.core.metric_files import read_details
from pathsynth.finetuning.batches import check_process_count, micro_batches
from pathsynth.finetuning.settings import LoraSettings

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
ACCELERATE = (
    f"{Path(sys.executable).parent}/accelerate", "launch", "--multi_gpu", "--num_processes", "3",
    "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
)  # fmt: skip


def _run(command: list[object], **environment: str) -> subprocess.CompletedProcess:
    command = [str(part) for part in command]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT | environment, capture_output=True, text=True)


def _params(folder: Path, base: Path, processes: int, **training: object) -> Path:
    tree = tiny_tree(base) | {"processes": processes}
    tree["loras"]["r2"]["training"].update(training)
    return write_params(folder / "params.yaml", tree)


def _training(folder: Path, params: Path, prepared: Path) -> list[object]:
    """The arguments of train_lora, with all outs in `folder`."""
    return [
        "--params", params, "--prepared", prepared, "--out", folder / "out", "--metrics", folder / "lora.json",
        "--curves", folder / "curves", "--sheets", folder / "sheets",
        "--scratch", folder / "scratch", "--logs", folder / "logs",
    ]  # fmt: skip


# results


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "stage"), [
    ((sys.executable,), "generate_filtered"),
    (ACCELERATE, "generate_filtered"),
    ((sys.executable,), "generate_controls"),
], ids=["processes: 2", "accelerate launch", "controls"])  # fmt: skip
def test_several_processes_generate_the_same_set_as_one(launcher, stage, finished, tiny_base, tmp_path):
    params = _params(tmp_path, tiny_base, 2)
    options = [] if stage == "generate_controls" else [
        "--gate", finished / "models" / "gate", "--metrics", tmp_path / "generation.json", "--logs", tmp_path / "logs",
    ]  # fmt: skip
    done = _run([
        *launcher, "-m", f"stages.{stage}", "--params", params, "--lora", finished / "models" / "lora", *options,
        "--out", tmp_path / "out", "--scratch", tmp_path / "scratch",
    ], ACCELERATE_USE_CPU="true")  # fmt: skip
    assert done.returncode == 0, done.stderr
    outs, files = {
        "generate_filtered": ("generated", {"raw.npz", "accepted.npz", "attempts.csv"}),
        "generate_controls": ("controls", {"untuned.npz", "paraphrased.npz"}),
    }[stage]
    several, one = ({path.name: path.read_bytes() for path in folder.iterdir()}
                    for folder in (tmp_path / "out", finished / "data" / outs))  # fmt: skip
    assert several == one and files <= set(one)
    assert not list((tmp_path / "scratch" / "resume").glob("*"))


@pytest.mark.parametrize(("mixed_precision", "threads"), [("no", 1), pytest.param("bf16", 2, marks=pytest.mark.slow)])
def test_batch_size_and_threads_do_not_change_the_set_on_a_cpu(mixed_precision, threads, finished, tiny_base, tmp_path):
    import torch

    from pathsynth.classifiers.model import load_classifier
    from pathsynth.data import labels
    from pathsynth.diffusion.adapter import attach_lora
    from pathsynth.diffusion.base import load_base, unet_sha256
    from pathsynth.generation.filtering import generate_filtered
    from pathsynth.generation.sampler import Sampler
    from pathsynth.generation.settings import SamplerSettings

    gate = load_classifier(finished / "models" / "gate", "cpu", labels.SLUGS).probabilities
    settings = tiny_tree()["benchmarks"]["tiny"]["generation"]["sampler"] | {"mixed_precision": mixed_precision}
    tables, images = [], []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for size in (1, 7, 32):
            pipeline = load_base(tiny_base, "cpu")
            attach_lora(pipeline, finished / "models" / "lora", unet_sha256(tiny_base))
            sampler = Sampler(
                pipeline, list("abcdefghi"), SamplerSettings.model_validate(settings | {"batch_size": size}), 7, 32
            )
            slots = empty_slots(tmp_path / str(size), 9, 5, 32, 7)
            generate_filtered(sampler, gate, slots, 2, sampler.batch_size)
            tables.append(slots.table(labels.SLUGS))
            images.append(slots.raw()[0][:])
    finally:
        torch.set_num_threads(before)
    assert all((other == images[0]).all() for other in images[1:])
    assert all(other.equals(tables[0]) for other in tables[1:])


@pytest.mark.slow
def test_training_on_two_processes_follows_the_single_one(tiny_base, tiny_prepared, tmp_path):
    training = {"train_batch_size": 2, "gradient_accumulation_steps": 2, "merged": True, "max_train_steps": 20}
    losses, images_seen = [], []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        args = _training(folder, _params(folder, tiny_base, processes, **training), tiny_prepared.folder)
        if processes == 1:
            assert run_stage("train_lora", *args).exit_code == 0
        else:
            done = _run([sys.executable, "-m", "stages.train_lora", *args])
            assert done.returncode == 0, done.stderr
        losses.append(np.loadtxt(folder / "curves/plots/metrics/train/loss.tsv", skiprows=1)[:, 1])
        images_seen.append(read_details(folder / "lora.json")["images_seen"])
        assert not list((folder / "scratch").glob("pathsynth-*"))
    assert len(losses[0]) == 2 and images_seen == [80, 80]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


RECORDED = """
import sys
import time
from pathlib import Path
from conftest import tiny_lora
from pathsynth.core.checkpoint import Checkpoint
from pathsynth.core.distributed import init_distributed
from pathsynth.data.prepared import open_prepared
from pathsynth.diffusion.base import load_base
from pathsynth.finetuning.recorder import Records
from pathsynth.finetuning.settings import LoraSettings
from pathsynth.finetuning.train import train_lora

base, prepared, out, late, until = sys.argv[1:]
out = Path(out)

class Late(Checkpoint):
    def load(self, name):
        # the main process would save its first state meanwhile
        time.sleep(float(late))
        return super().load(name)

tree = tiny_lora() | {"validation": {"validation_steps": 2, "validation_images": 1, "sheet_steps": 2}}
tree["training"].update(max_train_steps=4, train_batch_size=2, gradient_accumulation_steps=2)
points = []

def log(step, values):
    points.append((step, values["validation/loss"]))
    if step == int(until):
        raise SystemExit(3)

with init_distributed() as processes:
    checkpoint = (Checkpoint if processes.main else Late)(out / "state", writes=processes.main)
    train_lora(load_base(Path(base), "cpu"), open_prepared(prepared), [f"tissue {i}" for i in range(9)],
               LoraSettings.model_validate(tree), 3, log if processes.main else lambda *_: None, scratch=out,
               processes=processes, checkpoint=checkpoint, records=Records(out / "sheets"))
    if processes.main:
        print(points)
"""


def _record(base: Path, prepared: Path, out: Path, processes: int, late: float, until: int = -1) -> subprocess.CompletedProcess:
    """Trains with validation and sheets; the main process ends after the records of the step `until`."""
    out.mkdir(exist_ok=True)
    (out / "recorded.py").write_text(RECORDED)
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", processes] if processes > 1 else []
    # with SIGTERM, upon which the launcher ends its processes
    return _run(["timeout", 90, sys.executable, *launcher, out / "recorded.py", base, prepared, out, late, until])


@pytest.mark.slow
def test_records_of_two_processes_are_those_of_one_even_if_a_process_is_late(tiny_base, tiny_prepared, tmp_path):
    curves = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        done = _record(tiny_base, tiny_prepared.folder, out, processes, late=3)
        assert done.returncode == 0, done.stderr
        assert "resuming" not in done.stderr
        curves.append(dict(literal_eval(done.stdout)))
        assert {path.name for path in (out / "sheets").iterdir()} == {"0000.png", "0002.png", "0004.png"}
    assert list(curves[0]) == list(curves[1]) == [0, 2, 4]
    assert list(curves[1].values()) == pytest.approx(list(curves[0].values()), rel=1e-4)
    out = tmp_path / "killed"
    assert _record(tiny_base, tiny_prepared.folder, out, 2, late=0, until=4).returncode != 0
    resumed = _record(tiny_base, tiny_prepared.folder, out, 2, late=3)
    assert resumed.returncode == 0 and "resuming after step 2 of 4" in resumed.stderr, resumed.stderr
    assert dict(literal_eval(resumed.stdout)) == curves[1]


GRADIENT = """
import sys
from pathlib import Path
import torch
from accelerate import Accelerator
from conftest import tiny_lora
from pathsynth.core.distributed import init_distributed
from pathsynth.data.prepared import open_prepared
from pathsynth.diffusion.base import load_base
from pathsynth.finetuning.settings import LoraSettings
from pathsynth.finetuning.train import train_lora

base, prepared, out, *splits = sys.argv[1:]
grads = []
clip = Accelerator.clip_grad_norm_

def record(self, parameters, most):
    grads.append(torch.cat([p.grad.flatten() for p in parameters]).clone())
    return clip(self, parameters, most)

Accelerator.clip_grad_norm_ = record
tree = tiny_lora()
tree["objective"].update(rotate90=True)
prompts = [f"tissue {i}" for i in range(9)]
with init_distributed() as processes:
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


def _first_gradients(base: Path, prepared: Path, out: Path, processes: int, *splits: str) -> list[np.ndarray]:
    """The first gradient for every split into micro-batches (size x accumulation)."""
    import torch

    out.mkdir()
    (out / "gradient.py").write_text(GRADIENT)
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", processes] if processes > 1 else []
    done = _run([sys.executable, *launcher, out / "gradient.py", base, prepared, out, *splits])
    assert done.returncode == 0, done.stderr
    return [gradient.numpy() for gradient in torch.load(out / "gradients.pt", weights_only=True)]


@pytest.mark.slow
def test_equal_effective_batches_have_equal_first_gradients(tiny_base, tiny_prepared, tmp_path):
    whole, *others = (
        gradient
        for processes, splits in {1: ["12x1", "3x4"], 3: ["6x2"]}.items()
        for gradient in _first_gradients(tiny_base, tiny_prepared.folder, tmp_path / str(processes), processes, *splits)
    )
    assert np.linalg.norm(whole) > 1e-3 and len(others) == 2
    for other in others:
        assert np.linalg.norm(other - whole) <= 1e-5 * np.linalg.norm(whole)


# work shares


@pytest.mark.parametrize(("effective", "limit", "count", "per_process", "size"), [
    (96, 24, 1, 4, 24), (96, 24, 2, 2, 24), (96, 24, 3, 2, 16), (96, 24, 4, 1, 24), (96, 24, 8, 1, 12), (96, 24, 16, 1, 6),
    (96, 48, 1, 2, 48), (96, 20, 1, 6, 16), (6, 1, 3, 2, 1), (5, 5, 5, 1, 1), (14, 4, 2, 7, 1),
])  # fmt: skip
def test_processes_have_equal_shares_of_a_step_in_few_parts(effective, limit, count, per_process, size):
    parts = [micro_batches(effective, limit, index, count) for index in range(count)]
    rows = np.concatenate([np.arange(effective)[part] for own in parts for part in own])
    assert rows.tolist() == list(range(effective))
    assert {len(own) for own in parts} == {per_process}
    assert {part.stop - part.start for own in parts for part in own} == {size}


def test_step_that_processes_cannot_share_equally_is_refused():
    with pytest.raises(TrainingError, match=r"processes: 5 cannot share a step of 96 images equally; allowed: divisors of 96"):
        micro_batches(96, 24, 0, 5)


def test_dropout_is_refused_on_several_processes():
    settings = LoraSettings.model_validate(tiny_lora(lora_dropout=0.1))
    check_process_count(settings, 1)
    with pytest.raises(TrainingError, match="processes: 2 "):
        check_process_count(settings, 2)


def test_more_processes_than_gpus_are_refused(monkeypatch, tmp_path):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ProcessError, match="processes: 3, but this machine has 2 GPUs; allowed: 1 to 2"):
        launch(3, tmp_path)


# environments of clusters


@pytest.mark.parametrize(("variables", "note"), [
    ({}, ""),
    ({"RANK": "0"}, "ignoring RANK=0, because WORLD_SIZE is not set"),
    ({"LOCAL_RANK": "3", "MASTER_ADDR": "node1"}, "ignoring LOCAL_RANK=3, because WORLD_SIZE is not set"),
    ({"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "node1", "MASTER_PORT": "23456"}, ""),
    ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},
     "ignoring OMPI_COMM_WORLD_SIZE=2: MPI starts independent copies of a stage; use `processes` instead"),
    ({"PMI_SIZE": "1", "PMI_RANK": "0", "SLURM_NTASKS": "4"}, ""),
])  # fmt: skip
def test_variables_of_a_world_without_other_processes_are_ignored(variables, note, monkeypatch, capsys):
    for name in (*WORLD, *MPI):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    clean_distributed_environment()
    assert capsys.readouterr().err.strip() == note
    assert not {*WORLD, *MPI} & set(os.environ)


COMPLETE = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(("change", "problem"), [
    ({"MASTER_ADDR": None, "MASTER_PORT": None}, "WORLD_SIZE=2 without MASTER_ADDR, MASTER_PORT"),
    ({"LOCAL_RANK": None}, "WORLD_SIZE=2 without LOCAL_RANK"),
    ({"RANK": "2"}, "RANK=2, but WORLD_SIZE=2"),
    ({"RANK": "first"}, "RANK=first: must be an integer >= 0"),
    ({"MASTER_ADDR": "nowhere.invalid"}, "MASTER_ADDR=nowhere.invalid: "),
    ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0: must be an integer >= 1"),
    ({"WORLD_SIZE": ""}, "WORLD_SIZE=: must be an integer >= 1"),
])  # fmt: skip
def test_incomplete_world_of_several_processes_is_one_line_error(change, problem, monkeypatch, tmp_path):
    for name, value in (COMPLETE | change).items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    clean_distributed_environment()
    with pytest.raises(ProcessError, match=f"^environment: {re.escape(problem)}"):
        launch(1, tmp_path)


@pytest.mark.slow
def test_rank_alone_does_not_keep_a_stage_from_starting_its_processes(tiny_base, tiny_prepared, tmp_path):
    training = {"train_batch_size": 2, "gradient_accumulation_steps": 2}
    args = _training(tmp_path, _params(tmp_path, tiny_base, 2, **training), tiny_prepared.folder)
    done = _run([sys.executable, "-m", "stages.train_lora", *args], RANK="0")
    assert done.returncode == 0 and "ignoring RANK=0" in done.stderr
    assert json.loads(next((tmp_path / "logs").rglob("train_lora.json")).read_text())["processes"] == 2


# failures


FAILS = """
import sys
from pathlib import Path
import click
import torch
from pathsynth.cli.options import run_as_command
from pathsynth.core.distributed import TIMEOUT, init_distributed, launch
from pathsynth.core.errors import TrainingError

@click.command()
@run_as_command
def main():
    if launch(2, Path(sys.argv[1])):
        return
    with init_distributed() as processes:
        group = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
        assert group.options._timeout == TIMEOUT
        if processes.index == 1 and sys.argv[2] == "CUDA":
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        if processes.index == 1 or sys.argv[2] == "both":
            raise TrainingError("step 3: the loss is nan")
        processes.gather("waits for the other")

main(args=[])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("which", "message"), [
    ("one", "step 3: the loss is nan"),
    ("both", "step 3: the loss is nan"),
    ("CUDA", "CUDA error: an illegal memory access was encountered: start again"),
])  # fmt: skip
def test_error_of_a_process_is_printed_once(which, message, tmp_path):
    (tmp_path / "fails.py").write_text(FAILS)
    done = _run([sys.executable, tmp_path / "fails.py", tmp_path / "scratch", which])
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith(f"error: {message}")
    assert len(re.findall("^error: ", done.stderr, re.M)) == 1 and "Traceback" not in done.stderr
    assert not list((tmp_path / "scratch").iterdir())


@pytest.fixture
def running(tiny_base, tiny_prepared, tmp_path):
    """A LoRA training on two processes that would run for hours, once it has begun, and the file of its messages."""
    args = _training(tmp_path, _params(tmp_path, tiny_base, 2, max_train_steps=100_000), tiny_prepared.folder)
    messages = tmp_path / "messages"
    command = [str(part) for part in (sys.executable, "-m", "stages.train_lora", *args)]
    with open(messages, "w") as file:
        run = subprocess.Popen(command, cwd=ROOT, stderr=file, env=ENVIRONMENT, start_new_session=True)
    curve = tmp_path / "curves" / "plots" / "metrics" / "train" / "loss.tsv"
    while not curve.exists() and run.poll() is None:
        time.sleep(0.2)
    assert curve.exists(), messages.read_text()
    yield psutil.Process(run.pid), run, messages
    run.kill()
    run.wait()


@pytest.mark.slow
def test_killed_process_ends_the_stage_with_one_line(running, tmp_path):
    process, run, messages = running
    process.children()[1].kill()
    assert run.wait(timeout=90) == 1
    last = messages.read_text().splitlines()[-1]
    assert "error: process 1 of 2 was killed by SIGKILL" in last and "Traceback" not in messages.read_text()
    assert not (tmp_path / "out").exists() and not (tmp_path / "lora.json").exists()
    assert not list((tmp_path / "scratch").glob("pathsynth-*"))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_ended_stage_leaves_no_process_behind(how, running, tmp_path):
    process, run, messages = running
    children = process.children()
    run.send_signal(how)
    run.wait(timeout=60)
    assert len(children) == 2 and not psutil.wait_procs(children, timeout=20)[1]
    assert not (tmp_path / "out").exists()
    if how == signal.SIGTERM:
        assert run.returncode == 1 and "Traceback" not in messages.read_text()
        assert messages.read_text().splitlines()[-1] == "error: ended by SIGTERM, together with its 2 processes"
        assert not list((tmp_path / "scratch").glob("pathsynth-*"))


@pytest.mark.parametrize(("failures", "expected"), [
    ({0: (-6, None), 1: (1, "out of memory: lower x")}, "out of memory: lower x"),
    ({0: (-9, None), 1: (1, "out of memory: lower x")}, "out of memory: lower x"),
    ({0: (1, None), 1: (-9, None)}, "process 1 of 2 was killed by SIGKILL; the system does this when memory runs out"),
    ({0: (-15, None), 1: (-11, None)}, "process 1 of 2 was killed by SIGSEGV"),
    ({0: (-15, None), 1: (3, None)}, "process 1 of 2 ended with exit code 3; its messages are above"),
])  # fmt: skip
def test_first_failure_is_described(failures, expected, tmp_path):
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    found = {}
    for rank, (exitcode, message) in failures.items():
        report = tmp_path / f"{rank}.json"
        if message:
            report.write_text(json.dumps({"message": message, "timestamp": rank}))
        found[rank] = ProcessFailure(local_rank=rank, pid=rank, exitcode=exitcode, error_file=str(report))
    assert describe_failure(found, 2) == expected
