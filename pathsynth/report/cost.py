"""The report's section on what the images cost: attempts, time, memory and size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pathsynth.report import charts
from pathsynth.report.charts import Axis, Series
from pathsynth.report.inputs import ReportInput, Table
from pathsynth.report.pages import Chart, decimals, seconds, size, whole
from pathsynth.report.wording import View, class_noun, spoken_ends

SLOWEST = 5


def cost(content: ReportInput) -> View | None:
    """Attempts, time, memory and size."""
    found = content.evaluation.get("cost")
    if found is None and content.lora is None and not content.logs:
        return None
    found, per_attempt = found or {}, _seconds_per_attempt(content)
    rows = []
    for label, slug in zip(content.labels, content.slugs, strict=True):
        one = found.get("per_tissue", {}).get(slug, {})
        attempts = one.get("attempts_per_accepted")
        spent = None if attempts is None or per_attempt is None else attempts * per_attempt
        rows.append({"label": label, "attempts": attempts, "shortfall": one.get("shortfall"), "seconds": spent})
    return {
        "rows": rows if found else [],
        "all": {"attempts": found.get("attempts_per_accepted"), "shortfall": found.get("shortfall")},
        "all_seconds": _seconds_per_accepted(content),
        "facts": list(_facts(content, found)),
        "chart": _filled_chart(content),
        "timed": per_attempt is not None,
    }


def _seconds_per_attempt(content: ReportInput) -> float | None:
    spent = content.logs.get("generate_filtered", {}).get("seconds")
    attempted = (content.generation or {}).get("attempted")
    return spent / attempted if spent is not None and attempted else None


def _seconds_per_accepted(content: ReportInput) -> float | None:
    spent = content.logs.get("generate_filtered", {}).get("seconds")
    accepted = (content.generation or {}).get("accepted")
    return spent / accepted if spent is not None and accepted else None


def _facts(content: ReportInput, found: Mapping[str, Any]) -> Iterator[View]:
    """What it took, as names, values and notes."""
    attempts = found.get("attempts_per_accepted")
    if found:
        why = found.get("undefined", "")
        why = "; ".join(str(reason) for reason in why.values()) if isinstance(why, Mapping) else why
        yield _fact("Attempts per accepted image", decimals(attempts, 2) if attempts is not None else "none accepted", why)
        yield _fact("Wanted images that were never reached", whole(found.get("shortfall")))
    if content.lora is not None:
        yield _fact("Trainable parameters", whole(content.lora.get("trainable_parameters")))
        stored = content.lora.get("adapter_bytes")
        yield _fact("Size of the adapter's file", "not known" if stored is None else size(stored))
    if not content.of_lora:
        return
    trained, generated = content.logs.get("train_lora"), content.logs.get("generate_filtered")
    yield _fact("Training of the LoRA", *_measured(trained, seconds((trained or {}).get("seconds"))))
    for log, words in ((trained, "training"), (generated, "generation")):
        first = " (first process)" if (log or {}).get("processes", 1) != 1 else ""
        yield _fact(f"Most memory, {words}{first}", *_measured(log, _memory(log or {})))
    yield _fact("Time per accepted image", *_measured(generated, seconds(_seconds_per_accepted(content))))


def _fact(name: str, value: str, note: str = "") -> View:
    return {"name": name, "value": value, "note": note}


def _measured(log: Mapping[str, Any] | None, value: str) -> tuple[str, str]:
    if log is None:
        return "not measured here", ""
    processes = log.get("processes", 1)
    beside = f", {processes} processes" if processes != 1 else ""
    return value, f"on {log.get('device', 'a device that is not known')}{beside}"


def _memory(log: Mapping[str, Any]) -> str:
    parts = ((log.get("peak_memory_mb"), ""), (log.get("peak_gpu_memory_mb"), " on the GPU"))
    return ", ".join(f"{value:,.0f} MB{where}" for value, where in parts if value is not None) or "not known"


def _filled_chart(content: ReportInput) -> Chart | None:
    """Shares of filled slots after each attempt, of all tissues together and of those that take longest."""
    by_tissue: dict[str, Table] = {}
    for row in content.tables.get("filled", []):
        by_tissue.setdefault(row["tissue"], []).append(row)
    if not by_tissue:
        return None
    names = dict(zip(content.slugs, content.labels, strict=True))
    pace = {slug: sum(row["filled"] or 0 for row in rows) / len(rows) for slug, rows in by_tissue.items() if slug in names}
    slow = [slug for slug in sorted(pace, key=lambda slug: pace[slug]) if pace[slug] < 1][:SLOWEST]
    shown = [("all", "all"), *((slug, names[slug]) for slug in slow)]
    series = [
        Series(words, [row["filled"] for row in by_tissue[key]], x=[row["attempt"] for row in by_tissue[key]])
        for key, words in shown
        if key in by_tissue
    ]
    x, y = Axis("attempts", (None, None)), Axis("wanted images filled", (None, 1.02), percent=True)
    drawn = charts.lines("filled", series, x, y, spoken_ends("Share of wanted images filled", series))
    others = "" if len(slow) < SLOWEST else f" By {class_noun(content)}, the {SLOWEST} that take longest are shown."
    return Chart(drawn, f"How many wanted images are there after how many attempts.{others}")
