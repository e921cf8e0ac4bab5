"""`python -m pathsynth score SET.npz`: the scores and the report of any synthetic set, whatever has made it."""

from __future__ import annotations

import shutil
from pathlib import Path

import click
import numpy as np

from pathsynth.archives import SPLITS, read_generated
from pathsynth.cli import FILE, FOLDER, reports_errors
from pathsynth.devices import pick_device
from pathsynth.errors import DataError, PathsynthError
from pathsynth.evaluation import write_tables
from pathsynth.files import read_json, write_json
from pathsynth.generated import GeneratedSets, LabelledImages, check_labels
from pathsynth.params import load_params
from pathsynth.plates import write_plates
from pathsynth.processes import temporary_folder
from pathsynth.report import read_report, write_report
from pathsynth.rows import chosen
from pathsynth.scoring import Bench, open_bench, score_sets
from pathsynth.settings import Params
from pathsynth.summary import headlines
from pathsynth.usefulness import usefulness

# Of the benchmark, not of the set; the report shows them.
SHARED = ("gate", "judge", "robustness")


@click.command()
@click.argument("archive", metavar="SET.npz", type=FILE)
@click.option("--out", type=FOLDER, required=True, help="Folder for scores, tables, pictures and report; new or empty.")
@click.option("--name", help="What the report calls the set; by default the file's name.")
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
    _check_new(out)
    bench = open_bench(params, params_path.parent, prepared, observed, models / "gate", models / "judge")
    shared = {role: read_json(metrics / f"{role}.json") for role in SHARED}
    with temporary_folder(scratch) as folder:
        sets = _as_sets(archive, split, bench, folder)
        result, sheets = score_sets(sets, params, bench, folder)
        if useful:
            settings = params.benchmark.evaluation.usefulness
            given = (bench.prepared, sets.raw, settings, params.seed, pick_device(), params_path.parent)
            shared["usefulness"] = usefulness(*given, trained_on="raw")
    try:
        _write(out, params, name or archive.name, result, sheets, shared)
    except PathsynthError:
        # half a result would be taken for a whole one, and a second try would be refused
        shutil.rmtree(out, ignore_errors=True)
        raise
    click.echo(f"{headlines(result.metrics)}\n\nlook at {out / 'report.html'}; all scores are in {out / 'metrics'}")


def _check_new(out: Path) -> None:
    try:
        if out.exists() and any(out.iterdir()):
            raise DataError(out, "is not empty; name a new folder")
    except OSError as error:
        raise DataError(out, f"cannot be used: {error.strerror}") from error


def _as_sets(archive: Path, split: str, bench: Bench, folder: Path) -> GeneratedSets:
    """The set as raw images, and those of them that the gate lets through."""
    data, gate = bench.prepared, bench.observers.gate
    images, labels = read_generated(archive, folder, split, data.image_size)
    if not len(labels):
        raise DataError(archive, f"{split}_images: none, expected at least one image")
    check_labels(archive, labels, data.slugs)
    kept = np.flatnonzero(gate.probabilities(images).argmax(axis=1) == labels)
    nothing = LabelledImages(images[:0], labels[:0])
    return GeneratedSets(
        raw=LabelledImages(images, labels), accepted=LabelledImages(chosen(images, kept), labels[kept]), untuned=nothing
    )


def _write(out: Path, params: Params, name: str, result, sheets, shared: dict[str, dict]) -> None:
    metrics, plots = out / "metrics", out / "plots"
    for file, scores in (*shared.items(), ("evaluation", result.metrics)):
        write_json(metrics / f"{file}.json", scores)
    write_tables(plots / "evaluation", result)
    write_plates(plots / "evaluation" / "plates", sheets)
    write_report(out / "report.html", read_report(params, metrics, plots, out / "logs", subject=name))
