"""`python -m pathsynth synthesize "a sentence" -n 12 --out DIR`: images of the tissue that it names, or recorded ones again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from click.core import ParameterSource
from PIL import Image

from pathsynth.cli.new_folder import new_folder
from pathsynth.cli.options import FILE, FOLDER, reports_errors
from pathsynth.core.errors import QuotaError
from pathsynth.data.provenance import caption
from pathsynth.evaluation.contact_sheets import COLUMNS, Block, draw_plate
from pathsynth.synthesis.manifest import MOST_IMAGES, NAME, read_manifest, write_manifest
from pathsynth.synthesis.records import NOT_CHECKED, SHEET, STAND_IN_NOTICE, Record, read_record, write_picture, write_sheet
from pathsynth.synthesis.synthesizer import Synthesizer, Synthetic, find_artifacts

SHEET_ROWS, SHEET_BLOCKS = 5, 4
SHEET_TITLE, SHEET_NOTE = 60, 30
NARROW_CAPTION = "synthetic images, not for diagnosis"
# What a record says itself.
OF_SENTENCES = ("n", "seed", "max_attempts")
GIVEN = ParameterSource.COMMANDLINE


@click.command()
@click.argument("sentence", required=False)
@click.option("-n", "n", type=click.IntRange(1, MOST_IMAGES), default=1, show_default=True, help="How many images.")
@click.option("--out", type=FOLDER, required=True, help="Folder for images, contact sheet and manifest; new or empty.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Of the noise; by default that in params.yaml.")
@click.option("--max-attempts", type=click.IntRange(1, 1000), help="Tries for each image; by default as in params.yaml.")
@click.option("--no-gate", is_flag=True, help="Draw any text, and check nothing.")
@click.option("--again", type=FILE, help="Draw the images of a manifest.csv, or of one PNG, once more, instead of a sentence.")
@click.option("--artifacts", type=FOLDER, default=".", show_default=True, help="Folder with params.yaml, models/ and base/.")
@click.option(
    "--params", "params_path", type=FILE, help="Parameter file elsewhere; its relative paths, as of the base, start there."
)
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
        raise click.UsageError("give a sentence, or --again with a manifest, and not both")
    if again and (no_gate or any(click.get_current_context().get_parameter_source(name) == GIVEN for name in OF_SENTENCES)):
        raise click.UsageError("--again draws what is recorded: it takes no -n, --seed, --max-attempts or --no-gate")
    found = find_artifacts(artifacts, params_path, lora, gate)
    with new_folder(out) as part:
        if again:
            records = [read_record(again)] if again.suffix.lower() == ".png" else read_manifest(again)
            made = Synthesizer(found).again(records)
            said = _same(records, made.records)
        else:
            made = Synthesizer(found).synthesize(sentence, n, seed=seed, gate=not no_gate, max_attempts=max_attempts)
            if not made.records:
                raise _too_few(made)
            said = _summary(made)
        _write(part, made.images, made.records)
    click.echo(f"{said}\nlook at {out / SHEET}; {out / NAME} says how each was drawn")
    if len(made.records) < made.wanted:
        raise _too_few(made)


def _too_few(made: Synthetic) -> QuotaError:
    missing = made.wanted - len(made.records)
    return QuotaError(
        f"{missing} of {made.wanted} images were refused by the gate {made.limit} times over and are missing; "
        "try the tissue's name alone, another --seed, more --max-attempts or --no-gate"
    )


def _same(records: Sequence[Record], drawn: Sequence[Record]) -> str:
    same = sum(new.pixels_sha256 == old.pixels_sha256 for new, old in zip(drawn, records, strict=True))
    others = "; a GPU, another processor and other versions round in another way, and VAE and text encoder may be others"
    return f"{same} of {len(records)} images are the same to the last bit{others if same < len(records) else ''}"


def _write(folder: Path, images: np.ndarray, records: Sequence[Record]) -> None:
    for image, record in zip(images, records, strict=True):
        write_picture(folder / record.file, image, record)
    write_manifest(folder / NAME, records)
    write_sheet(folder / SHEET, _sheet(images, records), records)


def _sheet(images: np.ndarray, records: Sequence[Record]) -> Image.Image:
    """A contact sheet of the first images, with what the gate saw under each."""
    shown = list(dict.fromkeys(record.tissue or record.prompt for record in records))
    notes = [_note(record, named=len(shown) > 1) for record in records]
    blocks = []
    for start in range(0, min(len(records), SHEET_BLOCKS * SHEET_ROWS * COLUMNS), SHEET_ROWS * COLUMNS):
        end = min(start + SHEET_ROWS * COLUMNS, len(records))
        blocks.append(Block(f"{start + 1} to {end}", images[start:end], tuple(notes[start:end])))
    title = shown[0].replace("_", " ") if len(shown) == 1 else f"{len(shown)} prompts"
    # a single block is too narrow for the other caption
    foot = caption(records[0].benchmark, records[0].notice == STAND_IN_NOTICE) if len(blocks) > 1 else NARROW_CAPTION
    return draw_plate(_short(title, SHEET_TITLE), blocks, foot)


def _note(record: Record, named: bool) -> str:
    """What the gate saw, behind the tissue or text where a sheet has several."""
    seen = "not checked" if record.confidence is None else f"gate: {record.confidence:.0%}"
    return f"{_short(record.tissue or record.prompt, SHEET_NOTE)} {seen}" if named else seen


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _summary(made: Synthetic) -> str:
    first, number = made.records[0], len(made.records)
    if first.checked == NOT_CHECKED:
        return f"{number} images, not checked, drawn with LoRA {first.lora}"
    return f"{first.tissue}: {number} images passed the gate, of {made.attempts} that were drawn with LoRA {first.lora}"
