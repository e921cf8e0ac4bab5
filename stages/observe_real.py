"""Stage observe_real: what the classifiers and the feature extractor make of the real images, whole and damaged."""

import click
import numpy as np

from pathsynth.classifiers.model import load_pair
from pathsynth.cli.options import FILE, FOLDER, reports_errors
from pathsynth.core.devices import pick_device
from pathsynth.core.metric_files import write_details
from pathsynth.core.params import PositiveInt, load_params
from pathsynth.core.rows import select_rows
from pathsynth.data.prepared import open_prepared
from pathsynth.data.sampling import subsample_per_class
from pathsynth.data.settings import AnyDataset
from pathsynth.features.extractors import load_extractor
from pathsynth.features.observe import Observers, fit_control, observe_real
from pathsynth.features.robustness import robustness_scores
from pathsynth.features.settings import AnyFeatures, RobustnessSettings


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
    data = open_prepared(prepared, params.benchmark_name, params.section("dataset", AnyDataset).label_names)
    filtering, judging = load_pair(gate, judge, device, data.slugs)
    extractor = load_extractor(params.section("evaluation.features", AnyFeatures), params.folder, device, judging)
    colour = fit_control(data, params.section("evaluation.colour_images_per_tissue", PositiveInt), params.seed)
    observe_real(out, data, Observers(filtering, judging, colour, extractor), (gate, judge))
    labels, robustness = data.labels_of("test"), params.section("evaluation.robustness", RobustnessSettings)
    some = subsample_per_class(labels, np.full(len(data.slugs), robustness.images_per_tissue), params.seed)
    seen = ({"gate": filtering, "judge": judging}, select_rows(data.images("test"), some), labels[some], data.slugs)
    write_details(metrics, robustness_scores(*seen, haematoxylin_eosin=robustness.haematoxylin_eosin))


if __name__ == "__main__":
    main()
