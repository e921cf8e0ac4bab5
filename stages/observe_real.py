"""Stage observe_real: what the classifiers and the feature extractor make of the real images, whole and damaged."""

import click

from pathsynth.classifier import load_classifier
from pathsynth.cli import FILE, FOLDER, reports_errors
from pathsynth.devices import pick_device
from pathsynth.extractors import load_extractor
from pathsynth.files import write_json
from pathsynth.observed import observe_real
from pathsynth.params import load_params
from pathsynth.prepared import open_prepared
from pathsynth.robustness import robustness_scores


@click.command()
@click.option("--params", "params_path", type=FILE, required=True, help="params.yaml")
@click.option("--prepared", type=FOLDER, required=True, help="Folder of the prepare stage.")
@click.option("--gate", type=FOLDER, required=True, help="Folder of the classifier that filters.")
@click.option("--judge", type=FOLDER, required=True, help="Folder of the classifier that does not.")
@click.option("--out", type=FOLDER, required=True, help="Folder for what was seen.")
@click.option("--metrics", type=FILE, required=True, help="JSON file for the scores on damaged images.")
@reports_errors
def main(params_path, prepared, gate, judge, out, metrics):
    """Looks at all real images once, so that every generated set can be compared with them."""
    params, device = load_params(params_path), pick_device()
    settings = params.benchmark.evaluation
    data = open_prepared(prepared, params.benchmark_name, params.benchmark.dataset.label_names)
    filtering, judging = (load_classifier(folder, device, data.slugs) for folder in (gate, judge))
    extractor = load_extractor(settings.realism.features, params_path.parent, device, judging)
    observe_real(out, data, filtering, judging, extractor, settings.realism.reference_per_tissue)
    classifiers = {"gate": filtering, "judge": judging}
    labels, most = data.labels_of("test"), settings.robustness_per_tissue
    write_json(metrics, robustness_scores(classifiers, data.images("test"), labels, data.slugs, most))


if __name__ == "__main__":
    main()
