"""Line charts are well-formed SVG, with every point at the place of its values."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

import pytest

from nptool.cli.line_chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, svg

NAMESPACE = "{http://www.w3.org/2000/svg}"


def lines(root: ElementTree.Element) -> list[list[tuple[float, float]]]:
    """Points of every line, in pixels."""
    found = []
    for line in root.iter(f"{NAMESPACE}polyline"):
        found.append([(float(x), float(y)) for x, y in (pair.split(",") for pair in line.attrib["points"].split())])
    return found


def texts(root: ElementTree.Element) -> list[str]:
    return ["".join(text.itertext()) for text in root.iter(f"{NAMESPACE}text")]


def test_points_are_at_the_place_of_their_values() -> None:
    chart = Chart("t", "tokens", "speed", {"a": [(10, 0), (15, 2.5), (20, 5)], "b": [(20, 1)]})
    root = ElementTree.fromstring(svg(chart))
    second, first = lines(root)
    middle = ((LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2)
    assert first == [(LEFT, HEIGHT - BOTTOM), middle, (WIDTH - RIGHT, TOP)]
    assert second == [(WIDTH - RIGHT, pytest.approx(HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) / 5))]
    assert texts(root) == [
        "t",
        *("0", "1", "2", "3", "4", "5"),
        *("10", "12", "14", "16", "18", "20"),
        "tokens",
        "speed",
        "● b",
        "● a",
    ]


def test_every_doubling_has_the_same_length() -> None:
    chart = Chart("t", "width", "ratio", {"cost": [(width, 1) for width in (1, 2, 4, 8, 16)]}, doubling=True)
    root = ElementTree.fromstring(svg(chart))
    (points,) = lines(root)
    steps = {round(right[0] - left[0], 1) for left, right in pairwise(points)}
    assert steps == {(WIDTH - RIGHT - LEFT) / 4}
    # A single line needs no legend.
    assert texts(root) == ["t", "0", "0.2", "0.4", "0.6", "0.8", "1", "1", "2", "4", "8", "16", "width", "ratio"]


def test_charts_are_stacked_and_names_are_escaped() -> None:
    charts = [Chart(f"<{name}> & co", "x", "y", {"one": [(0, -1), (0, -1)]}) for name in "ab"]
    root = ElementTree.fromstring(svg(*charts))
    assert root.attrib["height"] == str(2 * HEIGHT)
    assert [group.attrib["transform"] for group in root.iter(f"{NAMESPACE}g")] == [
        "translate(0 0)",
        f"translate(0 {HEIGHT})",
    ]
    assert [text for text in texts(root) if "co" in text] == ["<a> & co", "<b> & co"]
    for points in lines(root):
        assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM for x, y in points)


@pytest.mark.parametrize("values", [(0.0, 0.0), (1e-6, 3e-6), (-5.0, 12000.0), (7.0, 7.0), (0.1, 0.7)])
def test_any_values_have_a_few_ticks_and_fit(values: tuple[float, float]) -> None:
    root = ElementTree.fromstring(svg(Chart("t", "x", "y", {"one": [(values[0], values[1]), (values[1], values[0])]})))
    (points,) = lines(root)
    assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM for x, y in points)
    assert 1 <= sum(1 for _ in root.iter(f"{NAMESPACE}line")) <= 9


def test_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="t: there is no point to draw"):
        svg(Chart("t", "x", "y", {"one": []}))
