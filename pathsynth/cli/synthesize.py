"""`python -m pathsynth synthesize "a sentence" -n 12 --out DIR`: synthesizes images of a tissue, or redraws recorded ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from click.core import ParameterSource
from PIL import Image

from pathsynth.cli.new_folder import new_folder
from pathsynth.cli.options import FILE, FOLDER, run_as_command
from pathsynth.core.errors import QuotaError
from pathsynth.data.provenance import caption
from pathsynth.evaluation.contact_sheets import COLUMNS, Block, draw_contact_sheet
from pathsynth.synthesis.artifacts import load_artifacts
from pathsynth.synthesis.manifest import MANIFEST, MAX_IMAGES, read_manifest, write_manifest
from pathsynth.synthesis.records import (
    CONTACT_SHEET,
    MAX_GUIDANCE_SCALE,
    NOT_CHECKED,
    REJECTED,
    STAND_IN_NOTICE,
    Record,
    read_record,
    write_contact_sheet,
    write_png,
)
from pathsynth.synthesis.synthesizer import SyntheticImages, redraw
from pathsynth.synthesis.synthesizer import synthesize as synthesize_images

BLOCK_SIZE = 5 * COLUMNS
MAX_BLOCKS = 4
TITLE_LENGTH, NOTE_LENGTH = 60, 30
NARROW_CAPTION = "synthetic images, not for diagnosis"
# Options that a record already holds.
RECORDED_OPTIONS = ("n", "seed", "max_attempts", "guidance_scale")


@click.command()
@click.argument("sentence", required=False)
@click.option("-n", "n", type=click.IntRange(1, MAX_IMAGES), default=1, show_default=True, help="Number of images.")
@click.option("--out", type=FOLDER, required=True, help="New or empty folder for images, contact sheet and manifest.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Noise seed; default: that of params.yaml.")
@click.option(
    "--guidance-scale", type=click.FloatRange(1, MAX_GUIDANCE_SCALE), help="Weight of the text; default: that of params.yaml."
)
@click.option("--max-attempts", type=click.IntRange(1, 1000), help="Attempts per image; default: that of params.yaml.")
@click.option("--no-gate", is_flag=True, help="Accept any text and do not filter.")
@click.option("--again", type=FILE, help="Redraw the images of a manifest.csv or of one PNG instead.")
@click.option("--artifacts", type=FOLDER, default=".", show_default=True, help="Folder with params.yaml, models/ and base/.")
@click.option("--params", "params_path", type=FILE, help="Other parameter file; relative paths in it start at its folder.")
@click.option("--lora", type=FOLDER, help="Other folder of the LoRA.")
@click.option("--gate", type=FOLDER, help="Other folder of the gate.")
@run_as_command
def synthesize(sentence, n, out, seed, guidance_scale, max_attempts, no_gate, again, artifacts, params_path, lora, gate):
    """Synthesizes images of the tissue that SENTENCE names, e.g. "a histopathological image of an area with mucus".

    The gate checks every image, and rejected images are sampled again up to a limit. Every PNG records that it is synthetic,
    how it was made, and what the gate predicted.

    Requires base, LoRA and gate: run `make repro` or `dvc pull` first.
    """
    if (sentence is None) == (again is None):
        raise click.UsageError("pass either a sentence or --again")
    source = click.get_current_context().get_parameter_source
    if again and (no_gate or any(source(name) == ParameterSource.COMMANDLINE for name in RECORDED_OPTIONS)):
        raise click.UsageError(
            "--again redraws what is recorded: it takes no -n, --seed, --guidance-scale, --max-attempts or --no-gate"
        )
    loaded = load_artifacts(artifacts, params_path, lora, gate)
    with new_folder(out) as part:
        if again:
            records = [read_record(again)] if again.suffix.lower() == ".png" else read_manifest(again)
            result = redraw(records, artifacts=loaded)
            summary = _compare(records, result.records)
        else:
            options = {"seed": seed, "max_attempts": max_attempts, "guidance_scale": guidance_scale}
            result = synthesize_images(sentence, n, artifacts=loaded, gate=not no_gate, **options)
            if not result.records:
                raise _quota_error(result)
            summary = _summarize(result)
        _write(part, result.images, result.records)
    click.echo(f"{summary}\nsee {out / CONTACT_SHEET}; provenance is in {out / MANIFEST}")
    if len(result.records) < result.requested:
        raise _quota_error(result)


def _quota_error(result: SyntheticImages) -> QuotaError:
    unfilled = result.requested - len(result.records)
    remedy = "try the bare tissue name, a different --seed, more --max-attempts or --no-gate"
    return QuotaError(f"the gate rejected every attempt at {unfilled} of {result.requested} images; {remedy}")


def _compare(records: Sequence[Record], redrawn: Sequence[Record]) -> str:
    same = sum(new.pixels_sha256 == old.pixels_sha256 for new, old in zip(redrawn, records, strict=True))
    reason = "" if same == len(records) else "; the CPU, GPU, package versions, VAE or text encoder may differ"
    return f"{same} of {len(records)} images are bit-identical{reason}"


def _summarize(result: SyntheticImages) -> str:
    first, number = result.records[0], len(result.records)
    if first.checked == NOT_CHECKED:
        return f"{number} images, not checked, sampled with LoRA {first.lora}"
    return f"{first.tissue}: {number} images accepted in {result.attempted} attempts with LoRA {first.lora}"


def _write(folder: Path, images: np.ndarray, records: Sequence[Record]) -> None:
    for image, record in zip(images, records, strict=True):
        write_png(folder / record.file, image, record)
    write_manifest(folder / MANIFEST, records)
    write_contact_sheet(folder / CONTACT_SHEET, _draw_sheet(images, records), records)


def _draw_sheet(images: np.ndarray, records: Sequence[Record]) -> Image.Image:
    """A contact sheet of the first images, with the gate's confidence under each."""
    subjects = list(dict.fromkeys(record.tissue or record.prompt for record in records))
    notes = [_note(record, named=len(subjects) > 1) for record in records]
    blocks = []
    for start in range(0, min(len(records), MAX_BLOCKS * BLOCK_SIZE), BLOCK_SIZE):
        end = min(start + BLOCK_SIZE, len(records))
        blocks.append(Block(f"{start + 1} to {end}", images[start:end], tuple(notes[start:end])))
    title = subjects[0].replace("_", " ") if len(subjects) == 1 else f"{len(subjects)} prompts"
    # a single block is too narrow for the full caption
    foot = caption(records[0].benchmark, records[0].notice == STAND_IN_NOTICE) if len(blocks) > 1 else NARROW_CAPTION
    return draw_contact_sheet(_shorten(title, TITLE_LENGTH), blocks, foot)


def _note(record: Record, named: bool) -> str:
    note = "not checked" if record.confidence is None else f"gate: {record.confidence:.0%}"
    if record.checked == REJECTED:
        note = f"rejected as {_shorten(str(record.predicted), NOTE_LENGTH)}"
    return f"{_shorten(record.tissue or record.prompt, NOTE_LENGTH)} {note}" if named else note


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."
