"""`python -m pathsynth export`: the file gives the images of the saved LoRA, in stock diffusers and by kohya's formula."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import ROOT, same_pixels, sample_images, save_random_lora, tiny_tree, write_params
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pathsynth.__main__ import main
from pathsynth.core.params import read_yaml, resolve_lora
from pathsynth.diffusion.adapter import METADATA, WEIGHTS, attach_lora
from pathsynth.diffusion.base import load_base, unet_sha256

PARAMS = ROOT / "params.yaml"
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
WIDE = resolve_lora(PARAMS, read_yaml(PARAMS), "sd_r64_wide")["adapter"]["target_modules"]
# Weak enough that rounding errors do not grow from step to step.
LORAS = {
    "attention": {"target_modules": ATTENTION, "lora_alpha": 3.0},
    "wide": {"target_modules": WIDE, "lora_alpha": 1.0},
    "rslora": {"target_modules": WIDE, "rank": 3, "lora_alpha": 1.0, "use_rslora": True},
}
DORA = {"target_modules": WIDE, "use_dora": True}


def run_export(lora: Path, out: Path, *args: object):
    return CliRunner().invoke(main, ["export", "--format", "kohya", "--lora", str(lora), "--out", str(out), *map(str, args)])


def export(lora: Path, out: Path, base: Path) -> Path:
    result = run_export(lora, out, "--params", write_params(lora / "params.yaml", tiny_tree(base)))
    assert result.exit_code == 0, result.output
    return out


def sample_merged(base: Path, lora: Path) -> np.ndarray:
    pipeline = load_base(base, "cpu")
    attach_lora(pipeline, lora, unet_sha256(base))
    return sample_images(pipeline)


def sample_stock(base: Path, file: Path) -> np.ndarray:
    pipeline = load_base(base, "cpu")
    pipeline.load_lora_weights(file.parent, weight_name=file.name)
    return sample_images(pipeline)


def sample_by_formula(base: Path, file: Path) -> np.ndarray:
    """Samples with W + alpha / rank * up @ down, or W + diff, in every layer of the file; the file must hold nothing else."""
    pipeline = load_base(base, "cpu")
    modules = {f"lora_unet_{name.replace('.', '_')}": part for name, part in pipeline.unet.named_modules()}
    tensors = load_file(file)
    for layer in sorted({name.split(".")[0] for name in tensors}):
        weight = modules[layer].weight.data
        if (change := tensors.pop(f"{layer}.diff", None)) is None:
            down, up = tensors.pop(f"{layer}.lora_down.weight"), tensors.pop(f"{layer}.lora_up.weight")
            change = tensors.pop(f"{layer}.alpha") / len(down) * up.flatten(1) @ down.flatten(1)
        weight += change.reshape(weight.shape)
    assert not tensors
    return sample_images(pipeline)


@pytest.mark.parametrize("name", [*LORAS, "dora"])
def test_export_gives_the_same_images(name, tiny_base, tmp_path):
    save_random_lora(tiny_base, tmp_path, **LORAS.get(name, DORA))
    images = sample_merged(tiny_base, tmp_path)
    file = export(tmp_path, tmp_path / "new" / "kohya.safetensors", tiny_base)
    assert not same_pixels(images, sample_images(load_base(tiny_base, "cpu")), bound=3), "the adapter changes nothing"
    # within one grey level, because sums are rounded in another order
    assert same_pixels(images, sample_by_formula(tiny_base, file))
    # diffusers reads no differences of weights, as which a DoRA is exported
    if name != "dora":
        assert same_pixels(images, sample_stock(tiny_base, file))


@pytest.mark.parametrize("name", LORAS)
def test_images_depend_on_alpha(name, tiny_base, tmp_path):
    save_random_lora(tiny_base, tmp_path, **LORAS[name])
    file = export(tmp_path, tmp_path / "kohya.safetensors", tiny_base)
    images = sample_stock(tiny_base, file)
    save_file({name: value for name, value in load_file(file).items() if not name.endswith(".alpha")}, file)
    assert not same_pixels(images, sample_stock(tiny_base, file), bound=3)


def test_same_lora_gives_the_same_bytes(lora, tiny_base, tmp_path):
    first, second = (export(lora, tmp_path / f"{i}.safetensors", tiny_base) for i in (1, 2))
    assert first.read_bytes() == second.read_bytes()
    with safe_open(first, "pt") as file:
        assert "Not for diagnosis" in str(file.metadata())


@pytest.fixture(scope="module")
def saved_lora(tiny_base, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    save_random_lora(tiny_base, folder)
    return folder


@pytest.fixture
def lora(saved_lora, tmp_path) -> Path:
    return shutil.copytree(saved_lora, tmp_path / "lora")


def rewrite(weights: Path, metadata: object, without: str = "") -> None:
    tensors = {name: value for name, value in load_file(weights).items() if name != without}
    save_file(tensors, weights, None if metadata is None else {METADATA: json.dumps(metadata)})


SCALING = {"unet.lora_alpha": 4.0, "unet.use_rslora": False, "unet.use_dora": False}
FAULTS = {
    "missing": (Path.unlink, f"has no {WEIGHTS}; run the stage train_lora first"),
    "damaged": (lambda path: path.write_bytes(b"no safetensors"), "is not a .safetensors file, or it is damaged"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is not a .safetensors file, or it is damaged"),
    "no metadata": (lambda path: rewrite(path, None), "so its scale is unknown; run the stage train_lora again"),
    "no config": (lambda path: rewrite(path, 1), "holds a JSON int, not an object"),
    "no alpha": (lambda path: rewrite(path, {**SCALING, "unet.lora_alpha": None}), "unet.lora_alpha"),
    "no tensors": (lambda path: save_file({}, path, {METADATA: json.dumps(SCALING)}), "does not hold exactly .lora_A.weight"),
    "lost tensor": (
        lambda path: rewrite(path, SCALING, without=min(load_file(path))),
        "does not hold exactly .lora_A.weight, .lora_B.weight of UNet layers",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_unusable_lora_is_one_line_error(fault, lora, tmp_path):
    harm, problem = FAULTS[fault]
    harm(lora / WEIGHTS)
    result = run_export(lora, tmp_path / "new" / "kohya.safetensors")
    assert result.exit_code == 1 and problem in result.output and result.output.count("\n") == 1, result.output
    assert not (tmp_path / "new").exists()


def test_dora_of_another_base_is_refused(tiny_base, tmp_path):
    save_random_lora(tiny_base, tmp_path, use_dora=True)
    config = json.loads((tmp_path / "lora_config.json").read_text())
    (tmp_path / "lora_config.json").write_text(json.dumps(config | {"unet_sha256": "f" * 64}))
    params = write_params(tmp_path / "params.yaml", tiny_tree(tiny_base))
    result = run_export(tmp_path, tmp_path / "kohya.safetensors", "--params", params)
    assert result.exit_code == 1 and "was trained on a different base" in result.output, result.output


class TestUnusableOut:
    def test_existing_file_is_kept(self, lora, tmp_path):
        out = tmp_path / "kohya.safetensors"
        out.write_bytes(b"mine")
        result = run_export(lora, out)
        assert result.exit_code == 1 and result.output == f"error: {out}: exists already; name a new file\n"
        assert out.read_bytes() == b"mine"

    @pytest.mark.parametrize(
        ("out", "problem"),
        [
            ("kohya.pt", "needs a name that ends with .safetensors"),
            (f"lora/{WEIGHTS}/kohya.safetensors", "could not be written"),
            (f"{'x' * 300}.safetensors", "could not be written: File name too long"),
        ],
    )
    def test_out_that_cannot_be_made_is_one_line_error(self, out, problem, lora, tmp_path):
        result = run_export(lora, tmp_path / out)
        assert result.exit_code == 1 and problem in result.output and result.output.count("\n") == 1, result.output
        assert list(tmp_path.iterdir()) == [lora]

    def test_unknown_format_is_refused(self, lora, tmp_path):
        result = run_export(lora, tmp_path / "kohya.safetensors", "--format", "onnx")
        assert result.exit_code == 2 and "'onnx' is not 'kohya'" in result.output, result.output
