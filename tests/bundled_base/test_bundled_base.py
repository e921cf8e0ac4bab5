"""The bundled base and how it is made."""

from __future__ import annotations

import ast
import re

import numpy as np
import pytest
from conftest import ROOT, tiny_base_settings

from pathsynth.bundled_base import textures
from pathsynth.bundled_base.training import draw_pool
from pathsynth.data import labels

BASE = ROOT / "base"


def test_texture_depends_on_seed_and_index_alone():
    kinds = textures.invent_kinds(3, 10)
    first = textures.sample(3, 5, 32, kinds, 0.3)
    again = textures.sample(3, 5, 32, textures.invent_kinds(3, 10), 0.3)
    other = textures.sample(3, 6, 32, kinds, 0.3)
    assert np.array_equal(first[0], again[0]) and first[1] == again[1]
    assert not np.array_equal(first[0], other[0])


def test_pool_is_the_same_for_any_number_of_workers():
    settings = tiny_base_settings().textures
    one, two = draw_pool(settings, 1, 1), draw_pool(settings, 1, 2)
    assert np.array_equal(one[0], two[0]) and one[1] == two[1]
    assert one[0].shape == (40, 32, 32, 3)


@pytest.mark.parametrize("thing", textures.THINGS)
def test_every_thing_leaves_a_mark(thing):
    layer = textures.Layer(thing, "many", "medium", "dark", "purple")
    bare = textures.Recipe("plain", "", "grey", "grey", ())
    drawn = [
        textures.render(r, np.random.default_rng(0), 64).astype(int) for r in (bare, textures.replace(bare, layers=(layer,)))
    ]
    assert (np.abs(drawn[0] - drawn[1]).max(axis=2) > 40).mean() > 0.03


def test_no_tissue_renderer_is_reachable_from_the_base():
    modules = {path: path.read_text() for path in (ROOT / "pathsynth" / "base").glob("*.py")}
    imported = {alias for text in modules.values() for alias in _imports(text) if alias.startswith("pathsynth")}
    shared = ("drawing", "errors", "files", "labels", "pixels", "progress", "settings", "snr")
    own = {f"pathsynth.base.{path.stem}" for path in (ROOT / "pathsynth" / "base").glob("*.py")}
    assert imported <= own | {f"pathsynth.{name}" for name in shared}
    for name in shared:
        assert "pathsynth.sources.phantom" not in _imports((ROOT / "pathsynth" / f"{name}.py").read_text())


def test_no_caption_names_a_tissue():
    kinds = textures.invent_kinds(1337, 400)
    words = {
        w
        for i in range(3000)
        for w in re.findall(
            r"[a-z]+", textures.caption(textures.draw_recipe(np.random.default_rng(i)), np.random.default_rng(i))
        )
    }
    words |= {w for kind in kinds for w in kind.name.split()} | {
        w for frame in textures.FRAMES for w in re.findall(r"[a-z]+", frame)
    }
    named = {w for label in labels.PATHMNIST for w in re.findall(r"[a-z]+", label)}
    assert len(words) > 500
    assert not words & named


def test_bundled_base_loads_in_the_stock_pipeline_and_draws():
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(BASE, safety_checker=None)
    image = pipeline(
        "many dark purple dots", num_inference_steps=4, generator=torch.Generator().manual_seed(0), output_type="np"
    ).images
    assert image.shape == (1, 64, 64, 3)
    assert np.isfinite(image).all() and image.std() > 0.03


def test_bundled_base_is_small_and_holds_no_pickle():
    files = [path for path in BASE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".yaml", ".lock"}


def test_bundled_base_reads_what_it_was_taught():
    """Colour words must move the colours: the base is trained, and not only of the right shape."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(BASE, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    prompts = ["nothing on plain pale pink ground", "nothing on plain dark navy ground", "nothing on plain green ground"]
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    images = pipeline(prompts, num_inference_steps=12, guidance_scale=3.0, generator=generators, output_type="np").images
    pink, navy, green = images.mean(axis=(1, 2))
    assert pink.mean() > navy.mean() + 0.3
    assert pink[0] > pink[1] and navy[2] > navy[0] and green[1] > max(green[0], green[2])


def _imports(text: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {
                f"{node.module}.{alias.name}" if node.module in ("pathsynth", "pathsynth.base") else node.module
                for alias in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found
