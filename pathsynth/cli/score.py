"""`python -m pathsynth score SET.npz`: the scores and the report of any synthetic set, whatever has made it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

from pathsynth.cli.new_folder import new_folder
from pathsynth.cli.options import FILE, FOLDER, reports_errors
from pathsynth.cli.summary import headlines
from pathsynth.core.devices import pick_device
from pathsynth.core.errors import CONTROLS, DataError
from pathsynth.core.io import write_json
from pathsynth.core.metric_files import read_details
from pathsynth.core.params import Params, load_params
from pathsynth.core.rows import select_rows
from pathsynth.core.scratch import temporary_folder
from pathsynth.data.archives import SPLITS, read_generated
from pathsynth.data.generated import GeneratedSets, LabelledImages, check_labels
from pathsynth.data.settings import AnyDataset
from pathsynth.evaluation.contact_sheets import write_plates
from pathsynth.evaluation.evaluate import write_tables
from pathsynth.evaluation.scoring import References, open_references, score_sets
from pathsynth.evaluation.usefulness import UsefulnessSettings, usefulness
from pathsynth.report.render import read_report, write_report

# Of the benchmark, not of the set; the report shows them.
SHARED = ("gate", "judge", "robustness")
LONGEST_NAME = 80


class Name(click.ParamType):
    """A name that fits into a heading."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Returns the text, or fails for one that is empty or too long."""
        if not 0 < len(value.strip()) <= LONGEST_NAME:
            self.fail(f"has {len(value)} characters; allowed: 1 to {LONGEST_NAME}", param, ctx)
        return CONTROLS.sub(" ", value.strip())


@click.command()
@click.argument("archive", metavar="SET.npz", type=FILE)
@click.option("--out", type=FOLDER, required=True, help="Folder for scores, tables, pictures and report; new or empty.")
@click.option("--name", type=Name(), help="What the report calls the set; by default the file's name.")
@click.option("--split", type=click.Choice(SPLITS), default="train", show_default=True, help="Which images are scored.")
@click.option("--usefulness/--no-usefulness", "useful", default=True, help="Whether classifiers are trained on the set.")
@click.option("--params", "params_path", type=FILE, default="params.yaml", show_default=True)
@click.option("--prepared", type=FOLDER, default="data/prepared", show_default=True)
@click.option("--observed", type=FOLDER, default="data/observed", show_default=True)
@click.option("--models", type=FOLDER, default="models", show_default=True, help="Folder with gate and judge.")
@click.option("--metrics", type=FOLDER, default="metrics", show_default=True, help="Folder with the scores of gate and judge.")
@click.option("--scratch", type=FOLDER, default="scratch", show_default=True, help="Folder for what is needed meanwhile.")
@reports_errors
def score(archive, out, name, split, useful, params_path, prepared, observed, models, metrics, scratch):
    """Scores a synthetic set in MedMNIST's format against the selected benchmark.

    SET.npz holds train_images, uint8 (N, H, H, 3), or (N, H, H) for grey ones, and train_labels, the class that each image was
    to show, by its number in the benchmark. Every image counts as a first attempt; those in which the gate sees the class as
    accepted.

    The benchmark's classifiers must be there: `dvc repro observe_real` or `dvc pull`.
    """
    params = load_params(params_path)
    with new_folder(out) as part, temporary_folder(scratch) as folder:
        raw = _read(archive, split, params, folder)
        bench = open_references(params, prepared, observed, models / "gate", models / "judge")
        shared = {role: read_details(metrics / f"{role}.json") for role in SHARED}
        result, sheets = score_sets(_as_sets(raw, bench), params, bench, folder)
        if useful:
            settings = params.section("evaluation.usefulness", UsefulnessSettings)
            given = (bench.prepared, raw, settings, params.seed, pick_device(params.deterministic), params.folder)
            shared["usefulness"] = usefulness(*given, trained_on="raw")
        _write(part, params, name or CONTROLS.sub(" ", archive.name), result, sheets, shared)
    click.echo(f"{headlines(result.metrics)}\n\nlook at {out / 'report.html'}; all scores are in {out / 'metrics'}")


def _read(archive: Path, split: str, params: Params, folder: Path) -> LabelledImages:
    dataset = params.section("dataset", AnyDataset)
    images, labels = read_generated(archive, folder, split, dataset.image_size)
    if not len(labels):
        raise DataError(archive, f"{split}_images: none, expected at least one image")
    check_labels(archive, labels, dataset.slugs)
    return LabelledImages(images, labels)


def _as_sets(raw: LabelledImages, bench: References) -> GeneratedSets:
    """The set as raw images, and those of them that the gate lets through."""
    kept = np.flatnonzero(bench.observers.gate.probabilities(np.asarray(raw.images)).argmax(axis=1) == raw.labels)
    nothing = LabelledImages(raw.images[:0], raw.labels[:0])
    return GeneratedSets(raw=raw, accepted=LabelledImages(select_rows(raw.images, kept), raw.labels[kept]), untuned=nothing)


def _write(out: Path, params: Params, name: str, result, sheets, shared: dict[str, dict]) -> None:
    metrics, plots = out / "metrics", out / "plots"
    for file, scores in (*shared.items(), ("evaluation", result.metrics)):
        write_json(metrics / f"{file}.json", scores)
    write_tables(plots / "evaluation", result)
    write_plates(plots / "evaluation" / "plates", sheets)
    write_report(out / "report.html", read_report(params, metrics, plots, out / "logs", subject=name))
