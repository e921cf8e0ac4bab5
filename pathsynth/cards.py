"""The card that lies beside every synthetic set: what it is, where it is from, how it was filtered, what it is not for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pathsynth.errors import DataError
from pathsynth.files import shown_path
from pathsynth.settings import BaseModelSettings, Params

# Of the sets and models that are fetched; of anything else its owner knows.
DATA_LICENCES = {
    "phantom": "drawn by pathsynth, MIT",
    "medmnist": "MedMNIST v2 (Yang et al., Scientific Data 2023), CC BY 4.0 for most of its sets; see the set's own page",
    "medmnist_file": "that of the archive it was read from; PathMNIST is CC BY 4.0 (Kather et al., 2019; Yang et al., 2023)",
}
BASE_LICENCES = {"stable-diffusion-v1-5/stable-diffusion-v1-5": "CreativeML Open RAIL-M"}
BUNDLED = "made by pathsynth, MIT"
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
_LATER = "In `metrics/evaluation.json` and `reports/report.html` of the run that made it."
_SCORES = """\
| macro F1 of prompted against seen class | value | 95 % interval |
|---|---|---|
{rows}

The judge is another architecture that took no part in filtering; on the data set's test images it is right on {judge:.1%}. Of
the accepted images {closer} lie closer to a training image than 99 % of validation images do (1 % is expected), by features.
Fréchet distance to the training images {frechet}, kernel distance {kernel}, coverage {coverage}; validation images have
{real_frechet}, {real_kernel} and {real_coverage}."""


def dataset_card(
    params: Params, counts: Mapping[str, Any], gate: Mapping[str, Any], evaluation: Mapping[str, Any] | None = None
) -> str:
    """Fills the card from the run.

    Args:
        params: what was run.
        counts: dict of metrics/generation.json.
        gate: dict of metrics/gate.json.
        evaluation: dict of metrics/evaluation.json, or None before there is one.

    Raises:
        DataError: for counts or scores that lack a part.
    """
    benchmark, dataset = params.benchmark, params.benchmark.dataset
    settings = benchmark.generation
    try:
        return _CARD.format(
            benchmark=params.benchmark_name,
            lora=params.lora_name,
            size=dataset.image_size,
            base=base_name(benchmark.base),
            prompts=params.lora.prompts,
            scheduler=settings.scheduler,
            steps=settings.num_inference_steps,
            guidance=settings.guidance_scale,
            seed=params.seed,
            source=data_source(params),
            licence=DATA_LICENCES[dataset.source],
            base_licence=base_licence(benchmark.base),
            gate=benchmark.classifiers.gate.architecture,
            gate_val=gate["val"]["accuracy"],
            gate_test=gate["test"]["accuracy"],
            accepted=counts["accepted"],
            attempted=counts["attempted"],
            rate=counts["acceptance_rate"],
            most=settings.max_attempts,
            unfilled=counts["unfilled"],
            wanted=counts["accepted"] + counts["unfilled"],
            loader=_loader(params, counts["accepted"]),
            scores=_scores(evaluation) if evaluation else _LATER,
            rows=_rows(params, counts["per_tissue"]),
        )
    except KeyError as error:
        raise DataError("metrics", f"lack {error.args[0]!r}; run the stages train_classifier and generate_filtered") from error


def _loader(params: Params, accepted: int) -> str:
    """How MedMNIST's loader reads the set; nothing where its labels or size are not of MedMNIST."""
    from medmnist import INFO

    flag, size = params.benchmark.dataset.labels, params.benchmark.dataset.image_size
    if not isinstance(flag, str) or size not in (28, 64, 128, 224):
        return ""
    file = flag if size == 28 else f"{flag}_{size}"
    return _LOADER.format(flag=flag, accepted=accepted, python_class=INFO[flag]["python_class"], size=size, file=file)


def _rows(params: Params, per_tissue: Mapping[str, Mapping[str, Any]]) -> str:
    dataset = params.benchmark.dataset
    prompts = params.benchmark.texts(params.lora.prompts)
    lines = []
    for slug, label, prompt in zip(dataset.slugs, dataset.label_names, prompts, strict=True):
        own = per_tissue[slug]
        cells = (cell(label), cell(prompt), str(own["accepted"]), str(own["attempted"]), str(own["unfilled"]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(text: str) -> str:
    """A text as it may stand in a cell of a Markdown table: without what would end the cell, the line or be markup."""
    return re.sub(r"([\\|`*_\[\]!#~])", r"\\\1", " ".join(text.split()).replace("<", "&lt;").replace(">", "&gt;"))


def _scores(evaluation: Mapping[str, Any]) -> str:
    sets = {
        "raw images by the gate": evaluation,
        "raw images by the judge": evaluation["judge"],
        "accepted images by the judge": evaluation["filtered_judge"],
        "raw images by colour alone": evaluation["colour"],
    }
    rows = [
        f"| {name} | {scores['macro_f1']:.3f} | {scores['macro_f1_low']:.3f} to {scores['macro_f1_high']:.3f} |"
        if scores["n_images"]
        else f"| {name} | no images | |"
        for name, scores in sets.items()
    ]
    accepted, real = evaluation["realism"]["accepted"], evaluation["realism"]["val"]
    copies = evaluation["copying"]["accepted"]["features"]
    return _SCORES.format(
        rows="\n".join(rows),
        judge=evaluation["real_images"]["judge"]["test"],
        closer=f"{copies['share_below']:.1%}" if "share_below" in copies else "an unknown share",
        frechet=_digits(accepted, "frechet_distance"),
        kernel=_digits(accepted, "kernel_distance"),
        coverage=_digits(accepted, "coverage"),
        real_frechet=_digits(real, "frechet_distance"),
        real_kernel=_digits(real, "kernel_distance"),
        real_coverage=_digits(real, "coverage"),
    )


def _digits(scores: Mapping[str, Any], name: str) -> str:
    return f"{scores[name]:.3f}" if name in scores else "not defined"


def base_name(base: BaseModelSettings) -> str:
    """The base as a card names it: without the place of a local folder."""
    name = base.pretrained_model_name_or_path
    # it stands between backticks, where nothing but these is markup
    return f"{name} at {base.revision}" if base.revision else " ".join(shown_path(name).replace("`", "'").split())


def base_licence(base: BaseModelSettings) -> str:
    """The licence of the base's weights, as far as it is known."""
    name = base.pretrained_model_name_or_path
    known = BASE_LICENCES if base.revision else {"base": BUNDLED}
    return known.get(name, "that of its owner")


def data_source(params: Params) -> str:
    """Where the images are from that were learnt from."""
    dataset = params.benchmark.dataset
    match dataset.source:
        case "phantom":
            return "tissue phantoms drawn from the seed, a stand-in and not medical images"
        case "medmnist":
            return f"MedMNIST's {dataset.flag} at {dataset.archive_size} px, train split"
        case _:
            return f"the archive {cell(shown_path(dataset.path))}, train split"
