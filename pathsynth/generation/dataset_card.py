"""The card of a synthetic set: contents, provenance, filtering and limits of use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pathsynth.data.provenance import DUPLICATES_PLACEHOLDER, SCORES_PLACEHOLDER, data_licence, data_source, escape_markdown
from pathsynth.data.settings import AnyDataset
from pathsynth.diffusion.base import base_licence, base_name
from pathsynth.diffusion.settings import BaseModelSettings
from pathsynth.generation.settings import GenerationSettings

_CARD = """\
---
pretty_name: Synthetic {recipe.benchmark}, {recipe.lora}
task_categories: [image-classification]
tags: [synthetic, pathsynth, not-for-diagnosis]
---

# Synthetic images of {recipe.benchmark} by LoRA `{recipe.lora}`

**Synthetic, not for diagnosis.** Every image is generated and may resemble a training image closely (see the scores). Research
and teaching only.

- files: `accepted.npz` (images that the gate accepted) and `raw.npz` (the first attempt at every slot), in MedMNIST's format,
  split `train`, {recipe.dataset.image_size} px; `attempts.csv`, one row per attempt with its seed
- generator: base `{base}` with LoRA `{recipe.lora}`, prompt set `{recipe.prompt_set}`, {sampler.scheduler},
  {sampler.num_inference_steps} steps, guidance {sampler.guidance_scale}, noise seed {recipe.seed}
- training data of generator and gate: {source}
- duplicates in the data set: {duplicates}
- licence: training data, {licence}; base, {base_licence}. Check both before you redistribute images.
- gate: a {recipe.gate} that accepts an image if it predicts the prompted class
- acceptance: {counts[accepted]} of {counts[attempted]} attempts ({counts[acceptance_rate]:.1%}), at most
  {recipe.generation.filter.max_attempts} per slot; {counts[unfilled]} of {requested} slots are unfilled

## Load

```python
import numpy as np

with np.load("accepted.npz") as archive:
    images, labels = archive["train_images"], archive["train_labels"]
```
{loader}
## Scores

{scores}

## Prompts and acceptance

| class | prompt | accepted | attempts | unfilled |
|---|---|---|---|---|
{rows}
"""
_LOADER = """
MedMNIST's own loader reads the file under the name of its set; it needs the number of images:

```python
import medmnist

medmnist.INFO["{flag}"]["n_samples"]["train"] = {accepted}
data = medmnist.{python_class}(split="train", root=".", size={size})  # accepted.npz as {file}.npz
```
"""


@dataclass(frozen=True)
class Recipe:
    """How a synthetic set was made.

    Attributes:
        benchmark, lora: names of the benchmark and the LoRA configuration.
        seed: seed of the noise.
        prompt_set: `plain` or `described`.
        prompts: one per tissue, in label order.
        gate: architecture of the gate.
        dataset, base, generation: the sections.
    """

    benchmark: str
    lora: str
    seed: int
    prompt_set: str
    prompts: Sequence[str]
    gate: str
    dataset: AnyDataset
    base: BaseModelSettings
    generation: GenerationSettings


def dataset_card(recipe: Recipe, counts: Mapping[str, Any]) -> str:
    """Returns the card with placeholders in place of the scores and of the duplicates of the data set.

    Args:
        recipe: how the set was made.
        counts: dict of metrics/generation.json.
    """
    return _CARD.format(
        recipe=recipe,
        sampler=recipe.generation.sampler,
        counts=counts,
        base=base_name(recipe.base),
        base_licence=base_licence(recipe.base),
        source=data_source(recipe.dataset),
        licence=data_licence(recipe.dataset),
        requested=counts["accepted"] + counts["unfilled"],
        loader=_loader(recipe.dataset, counts["accepted"]),
        duplicates=DUPLICATES_PLACEHOLDER,
        scores=SCORES_PLACEHOLDER,
        rows=_rows(recipe, counts["per_tissue"]),
    )


def _loader(dataset: AnyDataset, accepted: int) -> str:
    """How MedMNIST's loader reads the set; empty if labels or size are not MedMNIST's."""
    from medmnist import INFO

    flag, size = dataset.labels, dataset.image_size
    if not isinstance(flag, str) or size not in (28, 64, 128, 224):
        return ""
    file = flag if size == 28 else f"{flag}_{size}"
    return _LOADER.format(flag=flag, accepted=accepted, python_class=INFO[flag]["python_class"], size=size, file=file)


def _rows(recipe: Recipe, per_tissue: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for slug, label, prompt in zip(recipe.dataset.slugs, recipe.dataset.label_names, recipe.prompts, strict=True):
        counts = per_tissue[slug]
        cells = [escape_markdown(label), escape_markdown(prompt)]
        cells += [str(counts[name]) for name in ("accepted", "attempted", "unfilled")]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
