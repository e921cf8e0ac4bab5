"""Tables of the results of a page of preferences, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pathsynth.readers.tables import estimate_cell, format_interval, kappa_cell, short_percent, signed_or_dash, to_words
from pathsynth.report.pages import MISSING, seconds, whole
from pathsynth.report.tables import Cell, Row, Table

Results = Mapping[str, Any]


def format_wins(wins: float) -> str:
    """Formats a number of wins, of which a tie is a half."""
    return f"{wins:g}"


def build_ranking_table(ranking: Results) -> Table:
    """Builds the table of configurations, best first."""
    rows = [
        (
            one["name"],
            Cell(signed_or_dash(one["strength"]), format_interval(one, signed_or_dash, "strength_")),
            Cell(short_percent(one["win_chance"]), format_interval(one, short_percent, "win_chance_")),
            Cell(f"{one['rank']:.0f}", _rank_interval(one)),
            f"{format_wins(one['wins'])} of {whole(one['n_answers'])}",
        )
        for one in ranking["configurations"]
    ]
    return Table(("Configuration", "Strength", "Preferred to another", "Rank", "Wins"), rows)


def _rank_interval(one: Results) -> str:
    low, high = one["rank_low"], one["rank_high"]
    return "" if low is None else f"{low:.0f} to {high:.0f}"


def build_contest_table(ranking: Results) -> Table:
    """Builds the table of pairs of configurations: how often the first is preferred."""
    rows = [
        (
            f"{one['first']}, {one['second']}",
            f"{format_wins(one['wins'])} of {whole(one['n_answers'])}" if one["n_answers"] else "not compared",
            Cell(short_percent(one["chance"]), format_interval(one, short_percent, "chance_")),
            _describe_contest(one),
        )
        for one in ranking["pairs"]
    ]
    return Table(("Pair", "Wins of the first", "Chance that the first is preferred", "Conclusion"), rows, prose=(3,))


def _describe_contest(one: Results) -> str:
    low, high = one["chance_low"], one["chance_high"]
    if low is None:
        return "no interval"
    if low <= 0.5 <= high:
        return "no difference shown"
    return f"{one['first' if low > 0.5 else 'second']} is preferred"


def build_win_matrix(ranking: Results) -> Table:
    """Builds the table of wins of the row over the column, of the number of comparisons."""
    names = [one["name"] for one in ranking["configurations"]]
    wins = {(one["first"], one["second"]): one for one in ranking["pairs"]}

    def cell(row: str, column: str) -> str:
        if row == column:
            return ""
        one = wins.get((row, column)) or wins[column, row]
        if not one["n_answers"]:
            return MISSING
        won = one["wins"] if (row, column) in wins else one["n_answers"] - one["wins"]
        return f"{format_wins(won)} of {whole(one['n_answers'])}"

    return Table(("Wins of row over column", *names), [(row, *(cell(row, column) for column in names)) for row in names])


def build_preference_tissue_table(results: Results) -> Table:
    """Builds the table of the chance to be preferred to another configuration, by tissue."""
    names = list(results["configurations"])
    rows: list[Row] = [_chance_row(to_words(slug), found, names) for slug, found in results["per_tissue"].items()]
    return Table(("Tissue", *names), rows, _chance_row("all", results["ranking"], names))


def _chance_row(name: str, ranking: Results, names: list[str]) -> Row:
    if "undefined" in ranking:
        return (name, Cell(MISSING, ranking["undefined"]), *[MISSING] * (len(names) - 1))
    found = {one["name"]: one for one in ranking["configurations"]}
    label = Cell(name, "half a win added") if ranking["regularised"] else name
    chances = [
        Cell(short_percent(found[one]["win_chance"]), format_interval(found[one], short_percent, "win_chance_"))
        for one in names
    ]
    return (label, *chances)


def build_choice_table(results: Results) -> Table:
    """Builds the table of ties, of choices of the left image, of agreement and of time."""
    choices = results["choices"]
    rows: list[Row] = [
        ("Ties", estimate_cell(choices["ties"])),
        ("Left image among the other choices (50 %: no bias of position)", estimate_cell(choices["left"])),
        ("Agreement of readers (Fleiss' kappa)", kappa_cell(choices["fleiss"])),
        ("Median time per pair", seconds(results["seconds"])),
    ]
    return Table(("Measure", "Value"), rows)
