"""Report section on cost: attempts, time, memory and size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pathsynth.report import charts
from pathsynth.report.accuracy import View
from pathsynth.report.charts import Axis, Series
from pathsynth.report.inputs import ReportInput, Rows, Scores
from pathsynth.report.pages import Chart, decimals, seconds, size, whole
from pathsynth.report.tables import Cell, Row, Table

MAX_SLOWEST = 5


def cost(content: ReportInput) -> View | None:
    """Shows attempts, time, memory and size."""
    found = content.evaluation.get("cost")
    if found is None and content.lora is None and not content.logs:
        return None
    return {
        "facts": list(_list_facts(content, found or {})),
        "table": _cost_table(content, found) if found else None,
        "chart": _filled_chart(content),
    }


def _cost_table(content: ReportInput, found: Scores) -> Table:
    per_attempt = _seconds_per(content, "attempted")

    def row(name: str, scores: Scores, spent: float | None) -> Row:
        attempts, shortfall = scores.get("attempts_per_accepted"), scores["shortfall"]
        return (
            name,
            "none accepted" if attempts is None else decimals(attempts, 2),
            "not measured" if per_attempt is None else seconds(spent),
            Cell(whole(shortfall), alert=bool(shortfall)),
        )

    def spent(scores: Scores) -> float | None:
        attempts = scores.get("attempts_per_accepted")
        return None if attempts is None or per_attempt is None else attempts * per_attempt

    rows = [row(label, found["per_tissue"][slug], spent(found["per_tissue"][slug])) for slug, label in content.names.items()]
    head = (content.class_noun.capitalize(), "Attempts", "Time", "Unfilled")
    return Table(head, rows, total=row("all", found, _seconds_per(content, "accepted")))


def _seconds_per(content: ReportInput, count: str) -> float | None:
    """Returns the seconds of generation per attempted or accepted image."""
    spent = content.logs.get("generate_filtered", {}).get("seconds")
    images = (content.generation or {}).get(count)
    return spent / images if spent is not None and images else None


def _list_facts(content: ReportInput, found: Scores) -> Iterator[View]:
    """Yields single numbers, each with its name and a note."""
    if found:
        attempts, why = found.get("attempts_per_accepted"), found.get("undefined", {})
        note = "; ".join(map(str, why.values())) if isinstance(why, Mapping) else str(why)
        yield _fact("Attempts per accepted image", "none accepted" if attempts is None else decimals(attempts, 2), note)
        yield _fact("Images that were never accepted", whole(found["shortfall"]))
    if content.lora is not None:
        yield _fact("Trainable parameters", whole(content.lora["trainable_parameters"]))
        yield _fact("Adapter file", size(content.lora.get("adapter_bytes")))
    if not content.of_lora:
        return
    trained, generated = content.logs.get("train_lora"), content.logs.get("generate_filtered")
    yield _measured_fact("LoRA training", trained, seconds((trained or {}).get("seconds")))
    for log, words in ((trained, "training"), (generated, "generation")):
        first = ", first process" if (log or {}).get("processes", 1) != 1 else ""
        yield _measured_fact(f"Peak memory, {words}{first}", log, _format_memory(log or {}))
    yield _measured_fact("Time per accepted image", generated, seconds(_seconds_per(content, "accepted")))


def _fact(name: str, value: str, note: str = "") -> View:
    return {"name": name, "value": value, "note": note}


def _measured_fact(name: str, log: Scores | None, value: str) -> View:
    if log is None:
        return _fact(name, "not measured")
    processes = log.get("processes", 1)
    return _fact(name, value, f"on {log['device']}" + (f", {processes} processes" if processes != 1 else ""))


def _format_memory(log: Scores) -> str:
    parts = ((log.get("peak_memory_mb"), ""), (log.get("peak_gpu_memory_mb"), " on the GPU"))
    return ", ".join(f"{value:,.0f} MB{where}" for value, where in parts if value is not None) or "unknown"


def _filled_chart(content: ReportInput) -> Chart | None:
    """Draws the share of filled slots after each attempt, of all classes together and of the slowest ones."""
    by_class: dict[str, Rows] = {}
    for row in content.tables.get("filled", []):
        by_class.setdefault(row["tissue"], []).append(row)
    if not by_class:
        return None
    pace = {slug: sum(row["filled"] for row in rows) / len(rows) for slug, rows in by_class.items() if slug in content.names}
    slowest = [slug for slug in sorted(pace, key=lambda slug: pace[slug]) if pace[slug] < 1][:MAX_SLOWEST]
    series = [
        Series(name, [row["filled"] for row in by_class[key]], x=[row["attempt"] for row in by_class[key]])
        for key, name in (("all", "all"), *((slug, content.names[slug]) for slug in slowest))
        if key in by_class
    ]
    x, y = Axis("attempts", (None, None)), Axis("requested images accepted", (None, 1.02), percent=True)
    svg = charts.lines("filled", series, x, y, "Share of requested images accepted by attempt")
    note = "" if len(slowest) < MAX_SLOWEST else f" Shown: all {content.classes_noun} together, and the {MAX_SLOWEST} slowest."
    return Chart(svg, f"Share of the requested images that are accepted after each attempt.{note}")
