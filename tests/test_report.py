"""The report page: whole, escaped, self-contained; its curves and tables say the right numbers."""

import re
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from dasnet_lightning import __version__
from dasnet_lightning.report import (
    Curve,
    KeyFigure,
    Picture,
    Report,
    Table,
    draw_curve,
    format_text_table,
    format_value,
    render,
    write_report,
)

TABLE = Table("Results", ("class", "IoU", "images"), [("cat", 0.71234, 12), ("a <b> & c", None, 1204)], "over the set")
CURVE = Curve("Loss", "step", "loss", {"total": [(0, 2.0), (50, 1.0), (100, 0.5)]})


def make_report() -> Report:
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    return Report(
        title="Run <1>",
        summary="Reached 93 % & more.",
        key_figures=[KeyFigure("mIoU", 0.648, "21 classes")],
        tables=[TABLE],
        curves=[CURVE],
        pictures=[Picture('a "quoted" name', image, "left: <truth>")],
        accounting=Table("Labels read", ("what", "objects"), [("refused", 3)]),
        command="dasnet demo --out 'a b'",
        configuration="seed: 0\n",
    )


class Balance(HTMLParser):
    """Collects tags that are not closed in order, and every attribute that could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        if tag not in ("meta", "img", "path", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("path", "circle")


def test_the_page_is_balanced_and_loads_nothing() -> None:
    page = render(make_report())
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert len(parser.links) == 1
    assert parser.links[0].startswith("data:image/png;base64,")
    assert not re.search(r"https?://|url\(|@import|<script|<link", page)


def test_all_text_is_escaped_and_shown() -> None:
    page = render(make_report())
    for text in (
        "<h1>Run &lt;1&gt;</h1>",
        "Reached 93 % &amp; more.",
        "a &lt;b&gt; &amp; c",
        "left: &lt;truth&gt;",
        "a &quot;quoted&quot; name",
        "dasnet demo --out &#x27;a b&#x27;",
        "seed: 0",
        "Labels read",
        "0.648",
        "0.712",
        "1,204",
        f"dasnet_lightning {__version__}",
    ):
        assert text in page
    assert "<truth>" not in page


def test_pictures_are_kept_pixel_by_pixel() -> None:
    report = make_report()
    found = re.search(r"base64,([A-Za-z0-9+/=]+)", render(report))
    assert found
    with Image.open(BytesIO(b64decode(found[1]))) as picture:
        assert np.array_equal(np.array(picture), report.pictures[0].image)


def test_an_empty_report_has_no_empty_sections() -> None:
    page = render(Report("Title", "Sentence."))
    assert "<section>" not in page
    assert "<dl" not in page


def test_the_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = write_report(tmp_path / "new folder" / "report.html", make_report())
    first = path.read_text(encoding="utf-8")
    assert first == render(make_report())
    broken = replace(make_report(), pictures=[Picture("bad", np.zeros((2, 2, 7), dtype=np.uint8))])
    with pytest.raises((TypeError, ValueError)):
        write_report(path, broken)
    assert path.read_text(encoding="utf-8") == first
    assert [item.name for item in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (float("nan"), "-"), ("as it is", "as it is"), (True, "yes"), (0, "0"), (12345, "12,345"),
        (0.0, "0.000"), (0.71234, "0.712"), (-0.5, "-0.500"), (12.345, "12.3"), (12345.6, "12,346"), (1e-5, "1e-05"),
        (np.int64(1500), "1,500"), (np.float64(0.25), "0.250"),
    ],
)  # fmt: skip
def test_numbers_are_formatted_for_reading(value: str | int | float | None, text: str) -> None:
    assert format_value(value) == text


def test_text_tables_are_aligned() -> None:
    assert format_text_table(TABLE).splitlines() == [
        "Results",
        "class        IoU  images",
        "---------  -----  ------",
        "cat        0.712      12",
        "a <b> & c      -   1,204",
        "over the set",
    ]
    assert format_text_table(Table("", ("a", "b"), [])).splitlines() == ["a  b", "-  -"]


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="table 'x': row 1 has 1 cells, the header has 2"):
        Table("x", ("a", "b"), [("1", 2), ("3",)])


def points_of(svg: str) -> list[list[tuple[float, float]]]:
    """The drawn lines, legend apart."""
    paths = [path.get("d", "") for path in ElementTree.fromstring(svg).iter("path") if path.get("class") == "line"]
    return [
        [(float(x), float(y)) for x, y in (pair.split() for pair in path[1:].split("L"))]
        for path in paths
        if "h" not in path
    ]


def test_a_curve_falls_where_the_values_fall() -> None:
    (line,) = points_of(draw_curve(CURVE))
    assert [x for x, _ in line] == sorted(x for x, _ in line)
    assert line[0][1] < line[1][1] < line[2][1]  # SVG's y axis points down
    assert line[1][0] == pytest.approx((line[0][0] + line[2][0]) / 2, abs=0.2)
    assert line[1][1] - line[0][1] == pytest.approx(2 * (line[2][1] - line[1][1]), abs=0.3)


def test_ticks_are_round_and_enclose_the_values() -> None:
    svg = draw_curve(Curve("t", "step", "y", {"a": [(0, 0.13), (1000, 0.87)]}))
    texts = [element.text for element in ElementTree.fromstring(svg).iter("text")]
    assert {"0.0", "0.2", "1.0", "0", "200", "1,000", "step", "y", "a"} <= set(texts)


def test_gaps_long_lines_and_odd_values_are_drawn() -> None:
    nan = float("nan")
    assert len(points_of(draw_curve(Curve("", "", "", {"a": [(0, 1), (1, nan), (2, 3), (3, float("inf"))]})))) == 2
    assert points_of(draw_curve(Curve("", "", "", {"a": [(5, 7.0)]})))
    assert points_of(draw_curve(Curve("", "", "", {"a": [(0, 0.3), (1, 0.3)]})))
    assert "no values" in draw_curve(Curve("", "", "", {"<a>": []}))
    peak = [(x, 100.0 if x == 7777 else 0.0) for x in range(20000)]
    (line,) = points_of(draw_curve(Curve("", "", "", {"a": peak})))
    assert len(line) <= 1300
    assert min(y for _, y in line) < 60


def test_a_curve_of_single_points_is_a_number() -> None:
    page = render(Report("t", "s", curves=[Curve("AP", "step", "AP50", {"5/class": [(250.0, 0.512)]})]))
    assert "<svg" not in page
    assert all(text in page for text in ("0.512", "AP50, step 250", "5/class"))
    two = Curve("AP", "step", "AP50", {"one": [(250.0, 0.5)], "two": [(0.0, 0.1), (250.0, 0.6)]})
    assert "<svg" in render(Report("t", "s", curves=[two]))


def test_panels_have_titles_in_the_text_of_the_page() -> None:
    image = np.zeros((4, 6, 3), dtype=np.uint8)
    page = render(Report("t", "s", pictures=[Picture("p", image, "c", {"ground <truth>": image}, "boxes")]))
    assert page.count("<img") == 2
    assert "<p>boxes</p>" in page
    assert "<p>ground &lt;truth&gt;</p>" in page
