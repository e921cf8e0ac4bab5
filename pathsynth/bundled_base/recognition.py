"""How often the motif of a caption is recognised in a generated texture, as a measure of what the base can draw.

A linear probe of the structure features is trained on real textures, so colour plays no part. It is a measure of the base
alone: no tissue, prompt or LoRA is involved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pathsynth.bundled_base import textures
from pathsynth.bundled_base.motifs import MOTIFS
from pathsynth.bundled_base.textures import AMOUNTS, Layer, Recipe
from pathsynth.core.progress import progress_bar
from pathsynth.features.structure import structure_features

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

PROBE_IMAGES = 60
STEPS, GUIDANCE = 20, 3.0


def recognise_motifs(pipeline: StableDiffusionPipeline, seed: int, per_motif: int = 16) -> dict[str, dict[str, float]]:
    """Generates textures of one motif each from their captions, and recognises the motif.

    Args:
        pipeline: the base, sampled with its own scheduler in 20 steps and guidance scale 3.
        seed: seed of recipes and noise.
        per_motif: captions of each motif.

    Returns:
        Share of recognised motifs in [0, 1], by motif: `real`, textures drawn with the same recipes, and `generated`.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    known, targets, _ = _draw_set(PROBE_IMAGES, (seed, 0), size)
    probe = make_pipeline(StandardScaler(), LinearDiscriminantAnalysis()).fit(structure_features(known), targets)
    real, labels, captions = _draw_set(per_motif, (seed, 1), size)
    generated = _generate(pipeline, captions, seed)
    shares = {}
    for name, images in (("real", real), ("generated", generated)):
        right = probe.predict(structure_features(images)) == labels
        shares[name] = {motif: round(float(right[labels == i].mean()), 3) for i, motif in enumerate(MOTIFS)}
    return shares


def _draw_set(per_motif: int, entropy: tuple[int, int], size: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Textures uint8 (N, size, size, 3) with one layer in contrast to a plain ground, their motifs (N,) and captions."""
    images, captions = [], []
    for index in range(len(MOTIFS) * per_motif):
        rng = np.random.default_rng([*entropy, index])
        ground = textures.draw_recipe(rng)
        motif = list(MOTIFS)[index % len(MOTIFS)]
        amount, extent = (str(rng.choice(names)) for names in (list(AMOUNTS)[1:], MOTIFS[motif].sizes))
        layer = Layer(motif, amount, extent, *textures.draw_contrast(rng, ground.shade, ground.colour))
        recipe = Recipe("plain", ground.shade, ground.colour, ground.colour, (layer,))
        images.append(textures.render(recipe, rng, size))
        captions.append(
            f"{amount} {extent} {layer.shade} {layer.colour} {layer.motif} on plain {recipe.shade} {recipe.colour} ground"
        )
    return np.stack(images), np.arange(len(images)) % len(MOTIFS), [" ".join(text.split()) for text in captions]


def _generate(pipeline: StableDiffusionPipeline, captions: list[str], seed: int, batch_size: int = 32) -> np.ndarray:
    """Images uint8 (N, H, W, 3), each from its own noise."""
    import torch

    batches = []
    for start in progress_bar(range(0, len(captions), batch_size), "generating textures"):
        texts = captions[start : start + batch_size]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(texts))]
        made = pipeline(texts, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators, output_type="np")
        batches.append((made.images * 255).round().astype(np.uint8))
    return np.concatenate(batches)
