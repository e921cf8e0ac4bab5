"""`python -m pathsynth score SET`: scores and report of a synthetic set from any generator."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from pathsynth.cli import options
from pathsynth.cli.new_folder import new_folder
from pathsynth.cli.options import FOLDER, run_as_command
from pathsynth.cli.summary import headlines
from pathsynth.core.devices import pick_device
from pathsynth.core.errors import CONTROLS
from pathsynth.core.io import write_json
from pathsynth.core.metric_files import read_details
from pathsynth.core.rows import iter_blocks, select_rows
from pathsynth.core.scratch import temporary_folder
from pathsynth.data.archives import SPLITS
from pathsynth.data.generated import GeneratedSets, LabelledImages
from pathsynth.data.settings import AnyDataset
from pathsynth.evaluation.contact_sheets import write_contact_sheets
from pathsynth.evaluation.scoring import References, open_references, score_sets
from pathsynth.evaluation.tables import write_tables
from pathsynth.evaluation.usefulness import UsefulnessSettings, measure_usefulness, open_real_trainings
from pathsynth.leaderboard.board import SINGLE
from pathsynth.leaderboard.scores import build_scores, describe_references
from pathsynth.report.render import read_report, write_report
from pathsynth.synthesis.sets import read_labelled_set

# Scores of the benchmark's classifiers, which the report shows too.
SHARED = ("gate", "judge", "robustness")
MAX_NAME = 80


def check_name(_: click.Context, __: click.Parameter, name: str | None) -> str | None:
    """Cleans a name that is used as a heading, as a click callback."""
    if name is not None and not 0 < len(name.strip()) <= MAX_NAME:
        raise click.BadParameter(f"has {len(name)} characters; allowed: 1 to {MAX_NAME}")
    return name and CONTROLS.sub(" ", name.strip())


@click.command()
@click.argument("source", metavar="SET", type=click.Path(path_type=Path))
@click.option("--out", type=FOLDER, required=True, help="New or empty folder for scores, tables, contact sheets and report.")
@click.option("--name", callback=check_name, help="Name of the set in the report; default: the file name.")
@click.option("--split", type=click.Choice(SPLITS), help="Split to score; default: train, or the class folders of SET.")
@click.option("--usefulness/--no-usefulness", "useful", default=True, help="Whether to train classifiers on the set.")
@options.params_here
@click.option("--prepared", type=FOLDER, default="data/prepared", show_default=True)
@click.option("--observed", type=FOLDER, default="data/observed", show_default=True)
@click.option("--models", type=FOLDER, default="models", show_default=True, help="Folder with gate and judge.")
@click.option("--metrics", type=FOLDER, default="metrics", show_default=True, help="Folder with the scores of gate and judge.")
@click.option("--anchors", type=FOLDER, default="metrics/anchors", show_default=True, help="Folder of the command `anchors`.")
@options.scratch
@run_as_command
def score(source, out, name, split, useful, params, prepared, observed, models, metrics, anchors, scratch):
    """Scores a synthetic set against the selected benchmark.

    SET is an archive in MedMNIST's format with train_images, uint8 (N, H, H, 3), or (N, H, H) for grey images, and
    train_labels, the index of the intended class of each image. Or it is a folder with one folder of images per class, or a
    folder that `synthesize` wrote. Every image counts as a first attempt, which is accepted if the gate predicts the intended
    class.

    Requires the benchmark's classifiers: run `dvc repro observe_real` or `dvc pull` first.
    """
    with new_folder(out) as part, temporary_folder(scratch) as folder:
        raw = read_labelled_set(source, split, params.section("dataset", AnyDataset), folder)
        references = open_references(params, prepared, observed, models / "gate", models / "judge")
        shared = {role: read_details(metrics / f"{role}.json") for role in SHARED}
        result, sheets = score_sets(_apply_gate(raw, references), params, references, folder)
        if useful:
            settings = params.section("evaluation.usefulness", UsefulnessSettings)
            shared["usefulness"] = measure_usefulness(
                references.prepared,
                raw,
                {split: real.structure for split, real in references.real.items()},
                settings,
                params.seeds.observers,
                pick_device(params.device, params.deterministic),
                params.folder,
                trained_on="raw",
                shared=open_real_trainings(scratch, params, settings, references.prepared),
            )
        for file, scores in (*shared.items(), ("evaluation", result.metrics)):
            write_json(part / "metrics" / f"{file}.json", scores)
        reference = describe_references(references, models / "gate", models / "judge", params.seeds.observers)
        submitted = build_scores(reference, raw, result.tables["raw"], result.metrics["sets"]["raw"])
        write_json(part / SINGLE, submitted)
        plots = part / "plots"
        write_tables(plots / "evaluation", result.tables)
        write_contact_sheets(plots / "evaluation" / "plates", sheets)
        subject = name or CONTROLS.sub(" ", source.absolute().name)
        content = read_report(params, part / "metrics", plots, part / "logs", anchors, subject=subject)
        write_report(part / "report.html", content)
    click.echo(f"{headlines(result.metrics)}\n\nsee {out / 'report.html'}; all scores are in {out / 'metrics'}")
    click.echo(f"{out / SINGLE} is the file for the leaderboard")


def _apply_gate(raw: LabelledImages, references: References) -> GeneratedSets:
    """Builds the generated sets: all images as raw, and those that the gate accepts as accepted."""
    gate = references.observers.gate
    predicted = np.concatenate([gate.probabilities(block).argmax(axis=1) for block in iter_blocks(raw.images)])
    accepted = np.flatnonzero(predicted == raw.labels)
    return GeneratedSets(raw, LabelledImages(select_rows(raw.images, accepted), raw.labels[accepted]))
