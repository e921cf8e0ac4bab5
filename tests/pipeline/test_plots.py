"""DVC plots: every template exists, has the anchors that DVC fills, and uses only columns of its table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest
from conftest import ROOT, graph_stages
from dvc_render.vega import OPTIONAL_ANCHORS
from dvc_render.vega_templates import TEMPLATES, Template

FOLDER = ROOT / ".dvc" / "plots"
OWN = sorted(path.stem for path in FOLDER.glob("*.json"))
PLOTS = [
    (path, annotations)
    for stage in graph_stages().values()
    for plot in stage.get("plots", [])
    for path, annotations in (plot.items() if isinstance(plot, dict) else [(plot, {})])
]
TABLES = [(path, annotations) for path, annotations in PLOTS if "template" in annotations]
# column of the diagonal, a table inside its template
INLINE = {"ends"}


def nodes(spec: Any) -> Iterator[dict[str, Any]]:
    """Yields all objects in a specification."""
    if isinstance(spec, dict):
        yield spec
    for child in spec.values() if isinstance(spec, dict) else spec if isinstance(spec, list) else ():
        yield from nodes(child)


def names(spec: Any, *keys: str) -> set[str]:
    """Collects the strings under any of the keys."""
    found: set[str] = set()
    for node in nodes(spec):
        for key in keys:
            value = node.get(key)
            found |= {one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)}
    return found


def unknown_fields(content: dict[str, Any], columns: set[str]) -> set[str]:
    """Returns the fields that a template uses and neither its table nor a transform has."""
    spec = {key: value for key, value in content.items() if key != "data"}
    fields = names(spec, "field", "groupby", "flatten", "impute", "key")
    for expression in names(spec, "calculate", "filter", "test"):
        fields |= {one or other for one, other in re.findall(r"datum\.(\w+)|datum\['([^']+)'\]", expression)}
    return {field.replace("\\", "") for field in fields} - columns - names(spec, "as") - INLINE


@pytest.mark.parametrize("name", OWN)
def test_template_is_used_and_has_known_anchors_only(name):
    template = Template(json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")), name)
    assert name in [annotations["template"] for _, annotations in TABLES]
    for anchor in ("data", "title", "x_label", "y_label"):
        assert template.has_anchor(anchor), anchor
    known = {Template.anchor(anchor) for anchor in (*OPTIONAL_ANCHORS, "data", "title", "x", "y", "x_label", "y_label")}
    text = json.dumps(template.content)
    for anchor in known:
        text = text.replace(anchor, "")
    assert "<DVC" not in text


@pytest.mark.parametrize(("path", "annotations"), TABLES)
def test_plot_uses_columns_of_its_table(path, annotations):
    assert annotations["template"] in {*OWN, *(template.DEFAULT_NAME for template in TEMPLATES)}
    columns = set(pd.read_csv(ROOT / path, nrows=1).columns)
    assert {annotations["x"], annotations["y"]} <= columns
    if annotations["template"] in OWN:
        text = (FOLDER / f"{annotations['template']}.json").read_text(encoding="utf-8")
        for axis in "xy":
            text = text.replace(Template.anchor(axis), annotations[axis])
        assert not unknown_fields(json.loads(text), columns | {"rev"})
