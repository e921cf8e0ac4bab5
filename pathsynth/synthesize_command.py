"""`python -m pathsynth synthesize "a sentence" -n 12 --out DIR`: images of the tissue that it names, or recorded ones again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from pathsynth.cli import FILE, FOLDER, reports_errors
from pathsynth.errors import QuotaError
from pathsynth.files import write_whole
from pathsynth.manifest import NAME, read_manifest, write_manifest
from pathsynth.new_folder import new_folder
from pathsynth.pictures import NOT_CHECKED, Record, read_record, write_picture
from pathsynth.plates import COLUMNS, Block, caption, draw_plate
from pathsynth.settings import Params
from pathsynth.synthesis import MOST_IMAGES, Artifacts, Synthesizer, Synthetic, find_artifacts, pixels_sha256

SHEET = "sheet.png"
SHEET_ROWS, SHEET_BLOCKS = 5, 4
SHEET_TITLE = 60


@click.command()
@click.argument("sentence", required=False)
@click.option("-n", "n", type=click.IntRange(1, MOST_IMAGES), default=1, show_default=True, help="How many images.")
@click.option("--out", type=FOLDER, required=True, help="Folder for images, contact sheet and manifest; new or empty.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Of the noise; by default that in params.yaml.")
@click.option("--max-attempts", type=click.IntRange(1, 1000), help="Tries for each image; by default as in params.yaml.")
@click.option("--no-gate", is_flag=True, help="Draw any text, and check nothing.")
@click.option("--again", type=FILE, help="Draw the images of a manifest.csv, or of one PNG, once more, instead of a sentence.")
@click.option("--artifacts", type=FOLDER, default=".", show_default=True, help="Folder with params.yaml, models/ and base/.")
@click.option("--params", "params_path", type=FILE, help="Parameter file elsewhere.")
@click.option("--lora", type=FOLDER, help="Folder of a LoRA elsewhere.")
@click.option("--gate", type=FOLDER, help="Folder of a gate elsewhere.")
@reports_errors
def synthesize(sentence, n, out, seed, max_attempts, no_gate, again, artifacts, params_path, lora, gate):
    """Draws images of the tissue that SENTENCE names, such as "a histopathological image of an area with mucus".

    The gate checks each image, and one in which it sees another tissue is drawn anew, up to a limit. Every PNG says in its
    metadata that it is synthetic, what drew it, and what the gate saw.

    Base, LoRA and gate must be there: `make repro` or `dvc pull`.
    """
    if (sentence is None) == (again is None):
        raise click.UsageError("give a sentence, or --again with a manifest")
    found = find_artifacts(artifacts, params_path, lora, gate)
    with new_folder(out) as part:
        if again:
            said = _draw_again(part, found, again)
        else:
            made = Synthesizer(found).synthesize(sentence, n, seed=seed, gate=not no_gate, max_attempts=max_attempts)
            _write(part, made.images, made.records, found.params)
            said = _summary(made)
    click.echo(f"{said}\nlook at {out / SHEET}; {out / NAME} says how each was drawn")
    if not again and len(made.records) < made.wanted:
        missing = made.wanted - len(made.records)
        raise QuotaError(
            f"{missing} of {made.wanted} images were refused by the gate {made.limit} times over and are missing; "
            "try another --seed, more --max-attempts or --no-gate"
        )


def _draw_again(folder: Path, artifacts: Artifacts, again: Path) -> str:
    records = [read_record(again)] if again.suffix.lower() == ".png" else read_manifest(again)
    images = Synthesizer(artifacts).again(records)
    drawn = [pixels_sha256(image) for image in images]
    same = sum(new == record.pixels_sha256 for new, record in zip(drawn, records, strict=True))
    now = [record.model_copy(update={"pixels_sha256": new}) for new, record in zip(drawn, records, strict=True)]
    _write(folder, images, now, artifacts.params)
    others = "" if same == len(records) else "; other processors and versions round in another way"
    return f"{same} of {len(records)} images are the same to the last bit{others}"


def _write(folder: Path, images: np.ndarray, records: Sequence[Record], params: Params) -> None:
    for image, record in zip(images, records, strict=True):
        write_picture(folder / record.file, image, record)
    write_manifest(folder / NAME, records)
    if records:
        stand_in = params.benchmark.dataset.source == "phantom"
        _write_sheet(folder / SHEET, images, records, caption(params.benchmark_name, stand_in))


def _write_sheet(path: Path, images: np.ndarray, records: Sequence[Record], foot: str) -> None:
    """A contact sheet of the first images, with what the gate saw under each."""
    notes = ["not checked" if one.checked == NOT_CHECKED else f"gate: {one.confidence:.0%}" for one in records]
    pieces = range(0, min(len(records), SHEET_BLOCKS * SHEET_ROWS * COLUMNS), SHEET_ROWS * COLUMNS)
    blocks = []
    for start in pieces:
        end = min(start + SHEET_ROWS * COLUMNS, len(records))
        blocks.append(Block(f"{start + 1} to {end}", images[start:end], tuple(notes[start:end])))
    first = records[0]
    title = first.tissue.replace("_", " ") if first.tissue else first.prompt
    sheet = draw_plate(_short(title), blocks, foot)
    with write_whole(path) as part:
        sheet.save(part, format="PNG", optimize=True)


def _short(text: str) -> str:
    return text if len(text) <= SHEET_TITLE else f"{text[: SHEET_TITLE - 3]}..."


def _summary(made: Synthetic) -> str:
    if made.records and made.records[0].checked == NOT_CHECKED:
        return f"{len(made.records)} images, not checked"
    tissue = made.records[0].tissue if made.records else "no image"
    return f"{tissue}: {len(made.records)} images passed the gate, of {made.attempts} that were drawn"
