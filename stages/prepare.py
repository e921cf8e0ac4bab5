"""Stage prepare: writes the selected data set as memory-mapped .npy files, one per split."""

import click

from pathsynth.cli import options
from pathsynth.cli.options import FOLDER, run_as_command
from pathsynth.core.gpu import check_device
from pathsynth.core.progress import progress_bar
from pathsynth.data.duplicates import describe_duplicates
from pathsynth.data.prepared import write_prepared
from pathsynth.data.settings import AnyDataset
from pathsynth.sources.duplicates import count_duplicates
from pathsynth.sources.load import count_images, describe_source, load_source


@click.command()
@options.params
@click.option("--out", type=FOLDER, required=True, help="Folder for the prepared data set.")
@run_as_command
def main(params, out):
    """Draws, downloads or reads the selected data set, and writes it in the prepared layout."""
    # this stage needs no GPU, but it comes before all others and may download for hours
    check_device(params.device)
    dataset = params.section("dataset", AnyDataset)
    splits = load_source(
        dataset, params.seeds.data, lambda images: progress_bar(images, "drawing images"), folder=params.folder
    )
    arguments = params.benchmark_name, dataset.label_names, splits, describe_source(dataset), dataset.image_size
    duplicates = write_prepared(out, *arguments, dataset.channels, count_duplicates)
    counts = ", ".join(f"{split} {count_images(images)}" for split, (images, _) in splits.items())
    click.echo(f"{params.benchmark_name}: {counts} images of {dataset.image_size} px in {out}")
    warnings = describe_duplicates(duplicates)
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    if not warnings:
        click.echo("no exact or near copies of images within or between the splits")


if __name__ == "__main__":
    main()
