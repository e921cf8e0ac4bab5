"""Stage evaluate: scores, tables, plates and the report of one generated set."""

from __future__ import annotations

from pathlib import Path

import click

from pathsynth.archives import read_generated
from pathsynth.classifier import load_classifier
from pathsynth.cli import FILE, FOLDER, reports_errors
from pathsynth.devices import pick_device
from pathsynth.evaluation import LabelledImages, draw_plates, evaluate, read_attempts, refused_first_attempts, write_plots
from pathsynth.files import read_json, write_json
from pathsynth.params import load_params
from pathsynth.prepared import open_prepared
from pathsynth.report import ReportInput, caption, write_report


@click.command()
@click.option("--params", "params_path", type=FILE, required=True, help="params.yaml")
@click.option("--prepared", type=FOLDER, required=True)
@click.option("--generated", type=FOLDER, required=True)
@click.option("--untuned", type=FOLDER, required=True, help="Folder with one set per prompt set, `plain` and `described`.")
@click.option("--gate", type=FOLDER, required=True)
@click.option("--judge", type=FOLDER, required=True)
@click.option("--generation-metrics", type=FILE, required=True)
@click.option("--gate-metrics", type=FILE, required=True)
@click.option("--judge-metrics", type=FILE, required=True)
@click.option("--metrics", type=FILE, required=True, help="Written: scores of all sets.")
@click.option("--plots", type=FOLDER, required=True, help="Written: tables and plates.")
@click.option("--report", type=FILE, required=True, help="Written: the HTML report.")
@reports_errors
def main(
    params_path,
    prepared,
    generated,
    untuned,
    gate,
    judge,
    generation_metrics,
    gate_metrics,
    judge_metrics,
    metrics,
    plots,
    report,
):
    """Scores the generated images and writes metrics, plots and report."""
    settings, data, device = load_params(Path(params_path)), open_prepared(prepared), pick_device()
    raw, accepted, bare = (
        LabelledImages(*read_generated(Path(folder) / name))
        for folder, name in (
            (generated, "raw.npz"),
            (generated, "accepted.npz"),
            (Path(untuned) / settings.lora.prompts, "raw.npz"),
        )
    )
    refused = refused_first_attempts(read_attempts(Path(generated) / "attempts.csv"), raw, data.slugs)
    result = evaluate(
        raw=raw,
        accepted=accepted,
        untuned=bare,
        gate=load_classifier(Path(gate), device),
        judge=load_classifier(Path(judge), device),
        slugs=data.slugs,
        seed=settings.seed,
        resamples=settings.benchmark.evaluation.bootstrap_resamples,
    )
    plates = draw_plates(
        labels=data.labels,
        slugs=data.slugs,
        real=LabelledImages(data.images("val"), data.labels_of("val")),
        raw=raw,
        accepted=accepted,
        refused=refused,
        caption=caption(settings.benchmark_name, data.stand_in),
    )
    content = ReportInput(
        benchmark=settings.benchmark_name,
        lora=settings.lora_name,
        labels=data.labels,
        slugs=data.slugs,
        stand_in=data.stand_in,
        evaluation=result.metrics,
        confusion={name: result.confusion_counts(name) for name in ("gate", "judge")},
        generation=read_json(generation_metrics),
        classifiers={"gate": read_json(gate_metrics), "judge": read_json(judge_metrics)},
        plates=plates,
        parameters=settings.model_dump(),
    )
    write_plots(Path(plots), result, plates)
    write_report(Path(report), content)
    write_json(metrics, result.metrics)


if __name__ == "__main__":
    main()
