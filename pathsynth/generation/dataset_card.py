"""The card that lies beside every synthetic set: what it is, where it is from, how it was filtered, what it is not for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pathsynth.core.errors import DataError
from pathsynth.data.provenance import DATA_LICENCES, data_source, markdown_cell
from pathsynth.data.settings import AnyDataset
from pathsynth.diffusion.base import base_licence, base_name
from pathsynth.diffusion.settings import BaseModelSettings
from pathsynth.generation.settings import GenerationSettings

_CARD = """\
---
pretty_name: Synthetic {benchmark}, {lora}
task_categories: [image-classification]
tags: [synthetic, pathsynth, not-for-diagnosis]
---

# Synthetic images of {benchmark} by LoRA `{lora}`

**Synthetic, not for diagnosis.** Every image is generated, and may come close to a training image (see the scores). Research
and teaching only.

- files: `accepted.npz` (what the gate let through) and `raw.npz` (the first attempt of every wanted image), in MedMNIST's
  format, split `train`, {size} px; `attempts.csv`, one row per attempt with its seed
- generator: base `{base}` with LoRA `{lora}`, prompt set `{prompts}`, {scheduler}, {steps} steps, guidance {guidance},
  seed {seed}
- source of the images that generator and gate learnt from: {source}
- licence: of those images, {licence}; of the base, {base_licence}. Check both before you pass images on.
- gate: a {gate} that accepts an image if it sees the prompted class; right on {gate_val:.1%} of the data set's validation and
  {gate_test:.1%} of its test images
- acceptance: {accepted} of {attempted} attempts ({rate:.1%}), at most {most} per image; {unfilled} of {wanted} wanted images
  are missing

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

| class | prompt | accepted | attempts | missing |
|---|---|---|---|---|
{rows}
"""
_LOADER = """
MedMNIST's own loader takes it under the name of its set, once it has been told the number of images:

```python
import medmnist

medmnist.INFO["{flag}"]["n_samples"]["train"] = {accepted}
data = medmnist.{python_class}(split="train", root=".", size={size})  # accepted.npz as {file}.npz
```
"""
# Stands for the scores until the stage `evaluate` fills them in.
SCORES_MARK = "<!-- scores -->"


@dataclass(frozen=True)
class Recipe:
    """What a synthetic set was made with.

    Attributes:
        benchmark, lora: names of the benchmark and the LoRA configuration.
        seed: global seed.
        prompt_set: `plain` or `described`.
        prompts: one per tissue, in the order of labels.
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


def dataset_card(recipe: Recipe, counts: Mapping[str, Any], gate: Mapping[str, Any]) -> str:
    """Fills in the card, all but the scores, for which it has `SCORES_MARK`.

    Args:
        recipe: what the set was made with.
        counts: dict of metrics/generation.json.
        gate: dict of metrics/gate.json.

    Raises:
        DataError: `counts` or `gate` lacks a key.
    """
    dataset, settings = recipe.dataset, recipe.generation
    try:
        return _CARD.format(
            benchmark=recipe.benchmark,
            lora=recipe.lora,
            size=dataset.image_size,
            base=base_name(recipe.base),
            prompts=recipe.prompt_set,
            scheduler=settings.sampler.scheduler,
            steps=settings.sampler.num_inference_steps,
            guidance=settings.sampler.guidance_scale,
            seed=recipe.seed,
            source=data_source(dataset),
            licence=DATA_LICENCES[dataset.source],
            base_licence=base_licence(recipe.base),
            gate=recipe.gate,
            gate_val=gate["val"]["accuracy"],
            gate_test=gate["test"]["accuracy"],
            accepted=counts["accepted"],
            attempted=counts["attempted"],
            rate=counts["acceptance_rate"],
            most=settings.max_attempts,
            unfilled=counts["unfilled"],
            wanted=counts["accepted"] + counts["unfilled"],
            loader=_loader(dataset, counts["accepted"]),
            scores=f"{SCORES_MARK}\nIn `metrics/evaluation.json` and `reports/report.html` of the run that made it.",
            rows=_rows(recipe, counts["per_tissue"]),
        )
    except KeyError as error:
        raise DataError("metrics", f"lack {error.args[0]!r}; run the stages train_classifier and generate_filtered") from error


def _loader(dataset: AnyDataset, accepted: int) -> str:
    """How MedMNIST's loader reads the set; nothing where its labels or size are not of MedMNIST."""
    from medmnist import INFO

    flag, size = dataset.labels, dataset.image_size
    if not isinstance(flag, str) or size not in (28, 64, 128, 224):
        return ""
    file = flag if size == 28 else f"{flag}_{size}"
    return _LOADER.format(flag=flag, accepted=accepted, python_class=INFO[flag]["python_class"], size=size, file=file)


def _rows(recipe: Recipe, per_tissue: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for slug, label, prompt in zip(recipe.dataset.slugs, recipe.dataset.label_names, recipe.prompts, strict=True):
        own = per_tissue[slug]
        cells = (markdown_cell(label), markdown_cell(prompt), str(own["accepted"]), str(own["attempted"]), str(own["unfilled"]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
