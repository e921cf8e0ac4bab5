"""Doubles for the tests: the real classes, made small. A tiny base, tiny data and a parameter file that fits them."""

from __future__ import annotations

import copy
import importlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parent.parent
# Real PathMNIST images of two centres, which are in no repository.
SAMPLE = ROOT.parent / "shared" / "data" / "pathmnist_real_28.npz"
NO_SAMPLE = f"{SAMPLE.name} is not there"
needs_sample = pytest.mark.skipif(not SAMPLE.exists(), reason=NO_SAMPLE)

for _name in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "ITERATIVE_DO_NOT_TRACK", "DVC_NO_ANALYTICS"):
    os.environ.setdefault(_name, "1")
# Read when torch is imported: layers this small gain nothing from threads, and lose much where other programs use the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A script's background jobs ignore Ctrl-C, and so would what the tests start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# The same few cases each time; HYPOTHESIS_PROFILE=many tries HYPOTHESIS_CASES, and others each time.
_shared = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
settings.register_profile("few", max_examples=30, derandomize=True, **_shared)
settings.register_profile("many", max_examples=int(os.environ.get("HYPOTHESIS_CASES", "20000")), **_shared)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "few"))


# What takes longest begins first, so that no process is left alone with it in the end.
LONGEST = (
    "test_fake_cuda", "test_pipeline", "test_remotes", "test_graph", "test_workflow", "test_full_size", "test_distributed",
    "test_faults", "test_benchmarks", "test_report", "test_checkpoint", "test_classifiers", "test_same", "test_train",
    "test_fuzz",
)  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fail-on-skip", action="store_true", help="Fail when a test is skipped, but for want of real images.")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not session.config.getoption("--fail-on-skip") or reporter is None:
        return
    skipped = [report for report in reporter.stats.get("skipped", []) if NO_SAMPLE not in str(report.longrepr)]
    if skipped:
        reporter.write_line(f"error: {len(skipped)} tests were skipped, and --fail-on-skip is set", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "PATHSYNTH_FAULTS" not in os.environ:
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
    for item in items:
        _skip_without_enough_gpus(item)
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def _skip_without_enough_gpus(item: pytest.Item) -> None:
    """Skips a test that asks for several GPUs, `@pytest.mark.gpu(count=2)`, where there are fewer."""
    marker = item.get_closest_marker("gpu")
    if marker is None or "count" not in marker.kwargs:
        return
    import torch

    if (found := torch.cuda.device_count()) < marker.kwargs["count"]:
        item.add_marker(pytest.mark.skip(reason=f"needs {marker.kwargs['count']} GPUs, this machine has {found}"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fails `make test-gpu` on a machine where it would skip every test."""
    if session.config.option.markexpr == "gpu" and session.items:
        from pathsynth.core.devices import describe_device
        from pathsynth.core.gpu import gpu_available

        if not gpu_available():
            raise pytest.UsageError(f"tests marked gpu need a GPU that torch can use, but the device is {describe_device()}")


def tiny_base_settings():
    """Settings of a base of some tens of thousands of weights that is trained for a handful of steps."""
    from pathsynth.bundled_base.settings import BaseSettings

    vae = {
        "block_out_channels": [8, 8, 8], "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4,
        "steps": 8, "batch_size": 4, "learning_rate": 1e-3, "edge_weight": 1.0, "kl_weight": 1e-4,
    }  # fmt: skip
    phase = {"steps": 8, "learning_rate": 1e-3, "warmup_steps": 2}
    unet = {
        "block_out_channels": [8, 16], "layers_per_block": 1, "attention_heads": 2, "norm_num_groups": 4,
        "text_width": 16, "text_layers": 1, "batch_size": 4, "ema_decay": 0.9, "caption_dropout": 0.1,
        "phases": [phase | {"log_snr": {"mean": mean, "deviation": 2.0}} for mean in (0.0, 1.0)],
    }  # fmt: skip
    textures = {"count": 40, "image_size": 32, "kinds": 5, "kind_share": 0.25, "vocab_size": 800, "max_length": 48}
    return BaseSettings.model_validate({"seed": 1, "textures": textures, "vae": vae, "unet": unet})


@pytest.fixture(scope="session")
def made_once(tmp_path_factory, worker_id) -> Callable[[str, Callable[[Path], object]], Path]:
    """Gives a folder that the first process of the tests to need it fills, and all of them read."""
    common = tmp_path_factory.getbasetemp()
    common = common if worker_id == "master" else common.parent

    def folder_of(name: str, fill: Callable[[Path], object]) -> Path:
        folder, filled = common / "made_once" / name, common / "made_once" / f"{name}.filled"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{name}.lock")):
            if not filled.exists():
                fill(folder)
                filled.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def tiny_base(made_once) -> Path:
    """A tiny Stable Diffusion in diffusers' layout, made by the code that makes the bundled one."""
    from pathsynth.bundled_base.training import train_base

    return made_once("tiny", lambda folder: train_base(tiny_base_settings(), folder / "base", "cpu")) / "base"


@pytest.fixture(scope="session")
def sd15_base(tmp_path_factory) -> Path:
    """A random base of Stable Diffusion 1.5's structure as on the hub: two variants, a file nobody wants, and a pickle."""
    from benchmarks.random_base import random_base

    folder = tmp_path_factory.mktemp("sd15") / "base"
    random_base(folder, "sd15_small", dtype="fp32")
    half = folder.parent / "half"
    random_base(half, "sd15_small", dtype="fp16", variant="fp16")
    for path in half.rglob("*.fp16.safetensors"):
        path.rename(folder / path.relative_to(half))
    (folder / "v1-5-pruned.ckpt").write_bytes(b"not wanted")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Chromium, for modules with the marks `chromium.IN_BROWSER`."""
    from chromium import launch

    with launch() as running:
        yield running


def tiny_tree(base: Path | str = "base") -> dict:
    """The tree of a params.yaml for phantoms of 32 px that every stage runs through in seconds."""
    augmentation = {"flips": True, "rotate90": True, "stain": 0.1, "brightness": 0.1, "blur": 0.2}
    classifier = {
        "architecture": "resnet18", "weights": "none", "weights_sha256": None, "stem": "standard", "input_size": 32,
        "epochs": 1, "checkpoint": "best", "batch_size": 18,
        "learning_rate": 1e-3, "weight_decay": 0.0, "lr_scheduler": "one_cycle", "label_smoothing": 0.0,
        "mixed_precision": "no", "augmentation": augmentation, "seed": 1,
    }  # fmt: skip
    judge = classifier | {"architecture": "squeezenet1_1", "seed": 2}
    from pathsynth.data import labels

    benchmark = {
        "dataset": {
            "source": "phantom", "labels": "pathmnist", "channels": 3, "image_size": 32,
            "train_per_tissue": 4, "val_per_tissue": 2, "test_per_tissue": 2,
        },
        "base": {"pretrained_model_name_or_path": str(base), "revision": None, "variant": None},
        "classifiers": {"gate": classifier, "judge": judge},
        "prompts": {
            "plain": "an area with {label}", "described": {slug: f"many pink {slug} dots" for slug in labels.SLUGS},
            "paraphrased": {slug: [f"pink {slug} dots", f"dots in pink, {slug}"] for slug in labels.SLUGS},
        },
        "generation": {
            "images_per_tissue": 2, "filter": {"max_attempts": 2, "quota": 0.0}, "snapshot": None,
            "sampler": {
                "scheduler": "DPMSolverMultistepScheduler",
                "num_inference_steps": 2, "guidance_scale": 2.0, "batch_size": 6, "mixed_precision": "no",
            },
        },
        "evaluation": {
            "observation": {
                "features": {"extractor": "judge"}, "colour_images_per_tissue": 4,
                "robustness": {"images_per_tissue": 1, "haematoxylin_eosin": True},
            },
            "usefulness": {"repeats": 2, "classifier": classifier | {"checkpoint": "last", "input_size": 16, "seed": 3}},
        },
    }  # fmt: skip
    return {
        "seeds": {"data": 7, "observers": 7, "training": 7, "drawing": 7},
        "deterministic": False,
        "processes": 1,
        "device": "auto",
        "benchmark": "tiny",
        "lora": "r2",
        "benchmarks": {"tiny": benchmark},
        "loras": {"r2": tiny_lora(), "r3": tiny_lora(rank=3)},
    }


def tiny_lora(rank: int = 2, **adapter) -> dict:
    """A LoRA configuration of two steps; keyword arguments replace adapter settings."""
    return {
        "prompts": "plain",
        "adapter": {
            "rank": rank, "lora_alpha": 4.0, "target_modules": ["to_q", "to_k", "conv1"],
            "lora_dropout": 0.0, "use_rslora": False, "use_dora": False,
        } | adapter,
        "optimizer": {
            "learning_rate": 1e-2, "weight_decay": 0.0, "max_grad_norm": 1.0
        },
        "schedule": {"lr_scheduler": "cosine", "warmup_steps": 0, "restart_steps": None, "restart_mult": None},
        "training": {
            "max_train_steps": 2, "train_batch_size": 4, "gradient_accumulation_steps": 1, "mixed_precision": "no",
            "weight_dtype": "fp32", "gradient_checkpointing": False, "merged": False,
        },
        "objective": {
            "noise_offset": 0.1, "snr_gamma": 5.0, "caption_dropout": 0.1, "flips": True, "rotate90": False,
            "rotation_degrees": 0.0,
        },
    }  # fmt: skip


def save_random_lora(base: Path, folder: Path, **adapter):
    """Saves an adapter with random weights; returns the pipeline that has it."""
    import torch

    from pathsynth.diffusion.adapter import add_lora, save_lora
    from pathsynth.diffusion.base import load_base, unet_sha256
    from pathsynth.finetuning.settings import LoraSettings

    settings = LoraSettings.model_validate(tiny_lora(**adapter))
    pipeline = load_base(base, "cpu")
    random = torch.Generator().manual_seed(1)
    for parameter in add_lora(pipeline.unet, settings.adapter):
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=random)
    save_lora(folder, pipeline.unet, settings, "card", unet_sha256(base))
    return pipeline


def sample_images(pipeline) -> np.ndarray:
    """Samples two images, uint8 (2, H, W, 3)."""
    import torch

    generators = [torch.Generator().manual_seed(i) for i in (1, 2)]
    images = pipeline(["tissue", "stroma"], num_inference_steps=3, generator=generators, output_type="np").images
    return (images * 255).astype(np.uint8)


def graph_stages() -> dict[str, dict]:
    """The stages of dvc.yaml in its order, with `foreach` unrolled and the selectors filled in, as DVC would."""
    import json

    from pathsynth.core.params import read_yaml

    params, graph, found = read_yaml(ROOT / "params.yaml"), read_yaml(ROOT / "dvc.yaml"), {}
    variables = {key: value for part in graph["vars"] for key, value in part.items()}
    for name, stage in graph["stages"].items():
        for item in stage.get("foreach", [None]):
            text = json.dumps(stage["do"] if item else stage)
            for key, value in {**variables, "item": item, "benchmark": params["benchmark"], "lora": params["lora"]}.items():
                text = text.replace("${" + key + "}", str(value))
            found[f"{name}@{item}" if item else name] = json.loads(text)
    return found


def run_stage(stage: str, *args: object):
    """Runs a stage's command in this process."""
    from click.testing import CliRunner

    command = importlib.import_module(f"stages.{stage}").main
    return CliRunner().invoke(command, [str(arg) for arg in args], catch_exceptions=False)


def stage_command(name: str, folder: Path, params: Path) -> list[str]:
    """The words of a stage's command in dvc.yaml after `python`, with every path but that of the params put into `folder`."""
    dash_m, module, *words = graph_stages()[name]["cmd"].partition(" python ")[2].split()
    places = {"metrics", "plots", "logs", "scratch"}
    args = [params if word == "params.yaml" else folder / word if "/" in word or word in places else word for word in words]
    command = importlib.import_module(module).main
    own = {option for param in command.params for option in param.opts} - set(words)
    for place in sorted(own & {"--scratch", "--logs"}):
        args += [place, folder / place.removeprefix("--")]
    return [dash_m, module, *map(str, args)]


def run_graph(folder: Path, params: Path) -> None:
    """Runs all stages with the commands of dvc.yaml on paths in `folder`."""
    for name in graph_stages():
        _, module, *args = stage_command(name, folder, params)
        result = run_stage(module.removeprefix("stages."), *args)
        assert result.exit_code == 0, f"{name}: {result.output}"


def write_yaml(path: Path, tree: object) -> Path:
    """Writes a YAML file, and the folders above it."""
    from ruamel.yaml import YAML

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(tree, file)
    return path


def write_params(path: Path, tree: dict) -> Path:
    """Writes params.yaml, and the benchmarks and prompts of `tree` to files under configs/ beside it."""
    tree = {"lora_families": {}, **copy.deepcopy(tree)}
    for name, benchmark in tree.pop("benchmarks").items():
        prompts = benchmark.pop("prompts", None)
        write_yaml(path.parent / "configs" / "benchmarks" / f"{name}.yaml", benchmark)
        if prompts is not None:
            write_yaml(path.parent / "configs" / "prompts" / f"{name}.yaml", prompts)
    tree["loras"] = {name: [entry] if isinstance(entry, dict) else entry for name, entry in tree["loras"].items()}
    return write_yaml(path, tree)


@pytest.fixture(scope="session")
def finished(made_once, tiny_base) -> Path:
    """A folder in which all stages have run on tiny params; nothing in it may be changed."""
    return made_once("stages", lambda folder: run_graph(folder, write_params(folder / "params.yaml", tiny_tree(tiny_base))))


def dvc(folder: Path, *args: str) -> str:
    """Runs dvc in `folder` and returns what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        [sys.executable, "-m", "dvc", *args], cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def git(folder: Path, *args: object) -> str:
    """Runs git in `folder` as a user of the tests and returns what it printed."""
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(["git", *identity, *map(str, args)], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="session")
def workspace(made_once, tiny_base) -> Path:
    """A repository with this graph and tiny params in which `dvc repro` has run; nothing in it may be changed."""

    def fill(folder: Path) -> None:
        for name in ("pathsynth", "stages", ".ci"):
            shutil.copytree(ROOT / name, folder / name)
        shutil.copytree(tiny_base, folder / "base")
        shutil.copy(ROOT / "dvc.yaml", folder)
        write_params(folder / "params.yaml", tiny_tree())
        for name in (".dvcignore", ".gitignore"):
            (folder / name).write_text("__pycache__\n")
        git(folder, "init", "-q", "-b", "main")
        dvc(folder, "init", "-q")
        shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc" / "config")
        shutil.copytree(ROOT / ".dvc" / "plots", folder / ".dvc" / "plots")
        git(folder, "add", "-A")
        git(folder, "commit", "-qm", "start")
        dvc(folder, "repro")
        git(folder, "add", "-A")
        git(folder, "commit", "-qm", "scores")

    return made_once("workspace", fill)


@pytest.fixture(scope="module")
def own_workspace(workspace, tmp_path_factory) -> Path:
    """A copy of `workspace` that the tests of one file may change."""
    return shutil.copytree(workspace, tmp_path_factory.mktemp("own") / "workspace")


def empty_slots(folder: Path, tissues: int, per_tissue: int, size: int, seed: int = 1):
    """Slots that are kept in `folder`."""
    from pathsynth.core.checkpoint import Checkpoint
    from pathsynth.generation.slots import Slots

    return Slots(Checkpoint(folder), tissues, per_tissue, size, seed)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Sets what torch, the system and the environment report about GPUs, and clears what the process has reported."""
    import torch

    from pathsynth.core import devices, gpu

    for name in ("CUDA_VISIBLE_DEVICES", "LOCAL_RANK", "RANK", "WORLD_SIZE", "CUDA_LAUNCH_BLOCKING"):
        monkeypatch.delenv(name, raising=False)

    def install(
        name="NVIDIA H200", *, gpus=0, capability=(9, 0), built="13.0", warning=None, vendor=None, driver=None, bf16=True,
        **variables,
    ):  # fmt: skip
        # torch warns once in a process
        left = [warning] if warning else []

        def is_available() -> bool:
            if left:
                warnings.warn(left.pop(), stacklevel=2)
            return gpus > 0

        def get_device_capability() -> tuple[int, int]:
            warnings.warn("Found GPU0 which is of compute capability", stacklevel=2)
            return capability

        cuda = {
            "is_available": is_available, "device_count": lambda: gpus, "get_device_name": lambda: name,
            "get_device_capability": get_device_capability, "get_arch_list": lambda: ["sm_75", "sm_80", "sm_86", "sm_90"],
            "is_bf16_supported": lambda including_emulation: bf16 or including_emulation,
        }  # fmt: skip
        for function, double in cuda.items():
            monkeypatch.setattr(torch.cuda, function, double)
        monkeypatch.setattr(torch, "__version__", "2.14.1+cu130")
        monkeypatch.setattr(torch.version, "cuda", built)
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value)
        vendor = vendor or (gpu.NVIDIA if gpus else "0x8086")
        (tmp_path / "pci" / "0").mkdir(parents=True)
        (tmp_path / "pci" / "0" / "vendor").write_text(f"{vendor}\n")
        if driver:
            text = f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Fri Sep 27 16:29:34 UTC 2024\nGCC 12.3.0\n"
            (tmp_path / "version").write_text(text)
        for constant, path in (("PCI_DEVICES", "pci"), ("DRIVER_VERSION", "version"), ("WINDOWS_GPU", "dxg")):
            monkeypatch.setattr(gpu, constant, tmp_path / path)
        monkeypatch.setattr(gpu, "_warnings", [])

    def forget() -> None:
        devices._report_device.cache_clear()
        devices._warn_of_emulated_bf16.cache_clear()

    forget()
    yield install
    forget()


@pytest.fixture(scope="session")
def tiny_prepared(tmp_path_factory):
    """Prepared phantoms of 32 px: 4, 2 and 2 per tissue."""
    from pathsynth.data import labels
    from pathsynth.data.prepared import open_prepared, write_prepared
    from pathsynth.sources import phantom

    splits = {split: phantom.draw_split(n, 7, 32, split) for split, n in (("train", 4), ("val", 2), ("test", 2))}
    folder = tmp_path_factory.mktemp("tiny") / "prepared"
    write_prepared(folder, "tiny", labels.PATHMNIST, splits, {"source": "phantom"}, 32)
    return open_prepared(folder)


def same_pixels(first: np.ndarray, second: np.ndarray, bound: int = 1) -> bool:
    """Whether two uint8 arrays differ by at most `bound`, which is what another order of float sums may do."""
    return first.shape == second.shape and int(np.abs(first.astype(int) - second.astype(int)).max()) <= bound


def send_hub_client_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does to a process that has not imported the client yet."""
    from huggingface_hub import constants

    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", url)


def medmnist_archive(flag: str, side: int = 28, per_label: int = 2) -> bytes:
    """A small archive in the format of a MedMNIST set."""
    import medmnist

    info, rng = medmnist.INFO[flag], np.random.default_rng(0)
    labels = np.repeat(np.arange(len(info["label"]), dtype=np.uint8), per_label)[:, None]
    colour = (3,) if info["n_channels"] == 3 else ()
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 256, (len(labels), side, side, *colour), np.uint8)
        arrays[f"{split}_labels"] = labels
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A server that stands for hub and archive, and clients that know no other, have no cache yet and do not wait."""
    import huggingface_hub as hub
    from huggingface_hub import constants
    from loopback import Server

    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    hub.close_session()
    with Server() as running:
        send_hub_client_to(running.url, monkeypatch)
        yield running
    hub.close_session()
