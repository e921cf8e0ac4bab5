"""Stage observe_real: what the classifiers and the feature extractor make of the real images, whole and damaged."""

import click
import numpy as np

from pathsynth.classifier import load_pair
from pathsynth.cli import FILE, FOLDER, reports_errors
from pathsynth.devices import pick_device
from pathsynth.extractors import load_extractor
from pathsynth.metric_files import write_details
from pathsynth.observed import Observers, fit_control, observe_real
from pathsynth.params import load_params
from pathsynth.prepared import open_prepared
from pathsynth.robustness import robustness_scores
from pathsynth.rows import chosen
from pathsynth.sampling import drawn


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
    params = load_params(params_path)
    device = pick_device(params.deterministic)
    settings = params.benchmark.evaluation
    data = open_prepared(prepared, params.benchmark_name, params.benchmark.dataset.label_names)
    filtering, judging = load_pair(gate, judge, device, data.slugs)
    extractor = load_extractor(settings.realism.features, params_path.parent, device, judging)
    colour = fit_control(data, settings.colour_images_per_tissue, params.seed)
    observe_real(out, data, Observers(filtering, judging, colour, extractor), (gate, judge))
    labels, robustness = data.labels_of("test"), settings.robustness
    some = drawn(labels, np.full(len(data.slugs), robustness.images_per_tissue), params.seed)
    seen = ({"gate": filtering, "judge": judging}, chosen(data.images("test"), some), labels[some], data.slugs)
    write_details(metrics, robustness_scores(*seen, haematoxylin_eosin=robustness.haematoxylin_eosin))


if __name__ == "__main__":
    main()
