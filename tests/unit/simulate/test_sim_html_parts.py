"""What the page is drawn with: elements, scales, plots."""

from __future__ import annotations

import itertools
import math
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_oss_server.simulate.html.markup import Markup, element, joined, short
from gpt_oss_server.simulate.html.plot import Margins, Plot
from gpt_oss_server.simulate.html.scales import (
    Linear,
    Stretched,
    from_zero,
    logarithmic,
    number,
    round_marks,
    whole,
)


class Reader(HTMLParser):
    """Collects what a browser would see: tags with attributes, and text."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_an_element() -> None:
    """Attributes by name, without what is not there; numbers short; children in order."""
    made = element("td", "a", element("b", "c"), class_="x", data_value=1.5, open=True, id=None)
    assert made == '<td class="x" data-value="1.5" open>a<b>c</b></td>'
    assert element("path", d="M0 0") == '<path d="M0 0"/>'
    assert element("meta", name="viewport", content="x") == '<meta name="viewport" content="x">'
    assert joined("a<", None, [element("i"), element("i")]) == "a&lt;<i></i><i></i>"
    assert (short(2.0), short(2.004), short(-0.126)) == ("2", "2", "-0.13")


@given(st.text(), st.text())
def test_text_stays_text(text: str, attribute: str) -> None:
    """Whatever the text, it comes back as text, and no other element or attribute is there."""
    read = Reader(element("p", text, title=attribute))
    # A browser reads line ends, and what is no character, its own way.
    expected = text.replace("\r\n", "\n")
    assert len(read.tags) == 1
    assert set(read.tags[0][1]) == {"title"}
    if text.isprintable():
        assert read.text == expected
    if attribute.isprintable():
        assert read.tags[0][1]["title"] == attribute
    assert isinstance(element("p", text), Markup)


@given(st.floats(1e-6, 1e9), st.integers(2, 12))
def test_round_marks(top: float, count: int) -> None:
    """Evenly from 0 to the first that is at least the top; about as many as were asked for."""
    marks = round_marks(top, count)
    assert marks[0] == 0.0
    assert marks[-2] < top * 1.0001
    assert top <= marks[-1] * 1.0001
    assert count / 2.6 <= len(marks) - 1 <= count + 1


@given(st.floats(1e-5, 1e5), st.floats(1.0, 1e6))
def test_logarithmic_marks(low: float, ratio: float) -> None:
    """Within the axis, rising, and few; the ends of the values lie on the axis."""
    scale = logarithmic(low, low * ratio)
    values = [value for value, _ in scale.marks]
    assert values == sorted(set(values))
    assert len(values) <= 6
    assert all(scale.low <= value <= scale.high for value in values)
    assert 0.0 < scale.place(low) <= scale.place(low * ratio) < 1.0
    assert (scale.place(0.0), scale.place(math.inf)) == (0.0, 1.0)


def test_places_on_axes() -> None:
    """Linear, logarithmic, and shares whose upper end is drawn wider."""
    assert [Linear(10, 20, []).place(value) for value in (5, 10, 15, 25)] == [0, 0, 0.5, 1]
    assert from_zero(9.0).high == 10.0
    assert whole(9.0, 4).high == 9.0
    assert [value for value, _ in whole(9.0, 4).marks] == [0.0, 2.5, 5.0, 7.5]
    shares = Stretched([])
    assert [shares.place(share) for share in (0.0, 0.75, 1.0)] == [0.0, 0.5, 1.0]
    assert shares.place(0.99) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.05, "0.05"), (20, "20"), (1500, "1,500"), (20_000, "20k"), (3e6, "3M"), (0, "0")],
)
def test_numbers_of_marks(value: float, text: str) -> None:
    """Short, with thousands set apart."""
    assert number(value) == text


def plot() -> Plot:
    """A hundred pixels for ten in both directions, from (10, 10)."""
    margins = Margins(left=10, right=10, top=10, bottom=10)
    ten = Linear(0.0, 10.0, [(0.0, "0"), (10.0, "10")])
    return Plot(120, 120, ten, ten, margins)


def test_values_become_pixels() -> None:
    """The origin is at the lower left; what lies beyond is at the edge."""
    assert plot().at(0, 0) == (10, 110)
    assert plot().at(5, 2.5) == (60, 85)
    assert plot().at(50, -3) == (110, 110)
    assert plot().path([(0, 0), (0.001, 0), (10, 10)]) == "M10 110L110 10"


def test_a_picture_says_what_it_is() -> None:
    """Title and description for those who do not see it; labels with units for those who do."""
    drawn = plot()
    drawn.axes("minutes", "share of requests")
    drawn.dot(5, 5, "mark", "p95 3 s")
    read = Reader(drawn.svg("Shares <over> time", "rising"))
    assert read.tags[0][1]["role"] == "img"
    assert read.tags[0][1]["aria-label"] == "Shares <over> time"
    for said in ("Shares <over> time", "rising", "minutes", "share of requests", "p95 3 s"):
        assert said in read.text


def test_marks_do_not_overlap() -> None:
    """Of marks that stand too close only some are written."""
    close = Linear(0.0, 10.0, [(value / 2, f"{value / 2:.1f}00") for value in range(21)])
    drawn = Plot(120, 120, close, close, Margins(10, 10, 10, 10))
    drawn.axes("x")
    middles = [float(x) for x in re.findall(r'<text x="([\d.]+)" y="126"', drawn.svg("t"))]
    assert len(middles) >= 3
    assert all(after - before >= 30 for before, after in itertools.pairwise(middles))


def test_a_bound_is_named_where_there_is_room() -> None:
    """Right of the line, or left of it near the right edge."""
    drawn = plot()
    drawn.rule_x(1.0, "bound")
    drawn.rule_x(9.0, "bound")
    read = Reader(drawn.svg("t"))
    texts = [attributes for tag, attributes in read.tags if tag == "text"]
    assert [(one["x"], one.get("text-anchor")) for one in texts] == [("25", None), ("95", "end")]
