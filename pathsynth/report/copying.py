"""Report section on copies and memorisation of training images."""

from __future__ import annotations

from pathsynth.report.accuracy import CHARTED, View
from pathsynth.report.inputs import ReportInput, Scores
from pathsynth.report.pages import decimals, interval, percent, probability, significant, whole
from pathsynth.report.tables import Cell, Row, Table, copies_cell

SIGNIFICANCE = 0.05
SPACES = ("pixels", "structure")


def copying(content: ReportInput) -> View:
    """Shows the share of images that are closer to a training image than real ones are, and the gap of memorisation."""
    sets = content.evaluation["sets"]
    # validation images are what the others are compared with
    shown = {name: sets[key]["copying"] for key, name in CHARTED.items() if key != "val" and sets.get(key, {}).get("n_images")}
    rows = [_copying_row(name, found) for name, found in shown.items()]
    control = content.evaluation["copying_control"]
    found_copies = [(copies_cell(control[space]), "", "", whole(control[space]["n_images"])) for space in SPACES]
    total = ("Control: moved and restained copies", *found_copies[0], *found_copies[1])
    pairs: list[Row] = [
        (
            content.names[row["tissue"]],
            row["space"],
            whole(row["rank"]),
            whole(row["slot"]),
            decimals(row["distance"], 2),
            decimals(row["train_index"], 0),
            content.names[row["train_tissue"]],
        )
        for row in content.tables.get("pairs", [])
    ]
    pair_head = ("Prompted", "Space", "Rank", "Slot", "Distance", "Training image", "Its class")
    left_out = {
        f"{slug.replace('_', ' ')} ({why})"
        for found in shown.values()
        for space in SPACES
        for slug, why in found[space].get("left_out", {}).items()
    }
    groups = [(f"By {space}", 4) for space in SPACES]
    return {
        "table": Table(("Images", *("Close", "Expected", "p", "Count") * len(SPACES)), rows, total, groups),
        "n_val": shown["Raw"]["pixels"]["n_val"],
        "left_out": sorted(left_out),
        "memorisation": _memorisation_table(content.memorisation) if content.memorisation else None,
        "pairs": Table(pair_head, pairs, prose=(1, 6)) if pairs else None,
        "closest": content.contact_sheets.get("pairs"),
    }


def _copying_row(name: str, copies: Scores) -> Row:
    cells: list[Cell | str] = []
    for found in (copies[space] for space in SPACES):
        p = found.get("p_more")
        more = p is not None and p < SIGNIFICANCE
        p_cell = Cell(probability(p), "more than chance" if more else "", alert=more)
        cells += [copies_cell(found), percent(found.get("expected")), p_cell, whole(found["n_images"])]
    return (name, *cells)


def _memorisation_table(found: Scores) -> Table:
    rows: list[Row] = [
        (
            name,
            Cell(decimals(found[key]["auc"]), interval(found[key]["low"], found[key]["high"])),
            *(significant(found[key][loss]) for loss in ("train_loss", "val_loss")),
        )
        for key, name in (("lora", "With the LoRA"), ("base", "Base without it"))
    ]
    return Table(("Model", "AUC", "Loss on training images", "Loss on validation images"), rows)
