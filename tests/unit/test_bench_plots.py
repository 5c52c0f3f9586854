"""Tests that the plots of the benchmark pages match the numbers beside them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs/reference"
sys.path.insert(0, str(ROOT / "scripts"))

from bench_lib import plots  # noqa: E402 - after the path is set

SVG = "{http://www.w3.org/2000/svg}"
CASES = json.loads((PAGES / "benchmarks.json").read_text())
ROWS = json.loads((PAGES / "benchmarks-cluster.json").read_text())


def expected():
    return {**plots.plots(CASES), "benchmarks-cluster.svg": plots.goals_plot(ROWS, "benchmarks-cluster.json")}


@pytest.mark.parametrize("name", sorted(expected()))
def test_a_plot_shows_the_numbers_beside_it(name):
    assert (PAGES / name).read_text() == expected()[name]


@pytest.mark.parametrize("name", sorted(expected()))
def test_a_plot_is_complete_and_its_page_shows_it(name):
    drawing = ET.fromstring(expected()[name])
    width, height = (float(text) for text in drawing.attrib["viewBox"].split()[2:])
    for each in drawing.iter(f"{SVG}rect"):
        assert float(each.get("x", 0)) + float(each.attrib["width"]) <= width
        assert float(each.get("y", 0)) + float(each.attrib["height"]) <= height
    page = "benchmarks-cluster.md" if "cluster" in name else "benchmarks.md"
    assert f"]({name})" in (PAGES / page).read_text()


def test_each_contender_has_a_bar_as_long_as_its_value():
    case = {"title": "t", "contenders": {"ours": _values(1.0), "old": _values(4.0)}}
    drawing = ET.fromstring(plots.plots({"raw": case})["benchmarks-wall.svg"])
    bars = {
        each.attrib["class"]: float(each.attrib["width"]) for each in drawing.iter(f"{SVG}rect") if "y" in each.attrib
    }
    assert bars["other"] == pytest.approx(4 * bars["ours"], rel=0.01)


def test_a_goal_that_is_missed_by_far_does_not_hide_the_others():
    rows = [{"case": "c", "goal": "g", "ours": "9 s", "share": share} for share in (0.5, 400.0)]
    drawing = ET.fromstring(plots.goals_plot(rows, "x"))
    kinds = [each.attrib["class"] for each in drawing.iter(f"{SVG}rect") if "y" in each.attrib]
    assert kinds == ["ours", "missed"]
    assert "400.00" in ET.tostring(drawing, "unicode")


def test_nothing_measured_makes_no_plot():
    assert plots.plots({}) == {}


def _values(seconds):
    return {"wall": seconds, "wall_low": seconds, "wall_high": seconds, "cpu": seconds, "memory": 1, "written": 1e9}
