"""Stage evaluate: scores, tables, plates and the report of one generated set."""

import click

from pathsynth.classifier import load_classifier
from pathsynth.cli import FILE, FOLDER, reports_errors
from pathsynth.devices import pick_device
from pathsynth.errors import ModelError
from pathsynth.evaluation import evaluate, write_tables
from pathsynth.files import read_json, write_json
from pathsynth.generated import LabelledImages, read_sets
from pathsynth.params import load_params
from pathsynth.plates import draw_plates, write_plates
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
@click.option("--tables", type=FOLDER, required=True, help="Written: confusion and per-tissue tables.")
@click.option("--plates", type=FOLDER, required=True, help="Written: a picture per tissue, and the overview.")
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
    tables,
    plates,
    report,
):
    """Scores the generated images and writes metrics, plots and report."""
    params, device = load_params(params_path), pick_device()
    data = open_prepared(prepared, params.benchmark_name, params.benchmark.dataset.label_names)
    sets = read_sets(generated, untuned / params.lora.prompts, data.slugs)
    counts, gate_scores, judge_scores = (read_json(path) for path in (generation_metrics, gate_metrics, judge_metrics))
    filtering, judging = (load_classifier(folder, device, data.slugs) for folder in (gate, judge))
    if filtering.card.architecture == judging.card.architecture:
        raise ModelError(judge, f"is a {judging.card.architecture} like the gate; the judge must be another architecture")
    resamples = params.benchmark.evaluation.bootstrap_resamples
    result = evaluate(sets, gate=filtering, judge=judging, slugs=data.slugs, seed=params.seed, resamples=resamples)
    real = LabelledImages(data.images("val"), data.labels_of("val"))
    sheets = draw_plates(sets, real, data.labels, data.slugs, caption(params.benchmark_name, data.stand_in))
    write_tables(tables, result)
    write_plates(plates, sheets)
    write_report(report, ReportInput.of(params, data, result, counts, {"gate": gate_scores, "judge": judge_scores}, sheets))
    write_json(metrics, result.metrics)


if __name__ == "__main__":
    main()
