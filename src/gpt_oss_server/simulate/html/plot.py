"""One picture: a frame with two axes, and what is drawn in it by value.

Knows: pixels, axes, SVG elements. Does not know: what the values are. Colours and type come from
classes (`report.css`), so that light, dark and paper need no second picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpt_oss_server.simulate.html.markup import Child, Markup, element, short
from gpt_oss_server.simulate.html.scales import Scale

Point = tuple[float, float]
_CHARACTER = 6.1
"""About how wide a character of 11 pixels is; exact widths depend on the reader's fonts."""


def text_width(text: str) -> float:
    """Pixels, at 11 pixels a line."""
    return _CHARACTER * len(text)


@dataclass(frozen=True)
class Margins:
    """Pixels around the frame."""

    left: float = 44.0
    right: float = 14.0
    top: float = 24.0
    bottom: float = 36.0


class Plot:
    """Elements in the order in which they were drawn, within `width` × `height` pixels."""

    def __init__(
        self,
        width: float,
        height: float,
        x: Scale,
        y: Scale,
        margins: Margins | None = None,
    ) -> None:
        self.width, self.height = width, height
        self.x, self.y = x, y
        self.margins = margins or Margins()
        self.left, self.top = self.margins.left, self.margins.top
        self.right = width - self.margins.right
        self.bottom = height - self.margins.bottom
        self._parts: list[Markup] = []

    def at(self, x: float, y: float) -> Point:
        """Pixels of two values."""
        return self.at_x(x), self.at_y(y)

    def at_x(self, value: float) -> float:
        return self.left + (self.right - self.left) * self.x.place(value)

    def at_y(self, value: float) -> float:
        return self.bottom - (self.bottom - self.top) * self.y.place(value)

    def add(self, *parts: Markup) -> None:
        self._parts += parts

    def axes(self, x_label: str, y_label: str = "") -> None:
        """Grid, marks and the two labels, units included."""
        for value, text in self.y.marks:
            y = self.at_y(value)
            self.add(
                element(
                    "path", d=f"M{short(self.left)} {short(y)}H{short(self.right)}", class_="grid"
                )
            )
            self.text(self.left - 6, y + 3.8, text, anchor="end", class_="tick")
        edge = self.left
        for value, text in self.x.marks:
            x = self.at_x(value)
            if x - text_width(text) / 2 < edge - text_width(text) / 2 - 1:
                continue
            edge = x + text_width(text) + 6
            self.add(
                element("path", d=f"M{short(x)} {short(self.bottom)}v4", class_="axis"),
            )
            anchor = "end" if x + text_width(text) / 2 > self.width else "middle"
            self.text(x, self.bottom + 16, text, anchor=anchor, class_="tick")
        self.add(
            element(
                "path",
                d=f"M{short(self.left)} {short(self.bottom)}H{short(self.right)}",
                class_="axis",
            )
        )
        if x_label:
            middle = (self.left + self.right) / 2
            self.text(middle, self.height - 4, x_label, anchor="middle")
        if y_label:
            self.text(2, self.top - 13, y_label)

    def line(self, points: Sequence[Point], class_: str) -> None:
        """Through values, in order."""
        if len(points) > 1:
            self.add(element("path", d=self.path(points), class_=class_))

    def area(self, tops: Sequence[Point], floors: Sequence[Point], class_: str) -> None:
        """Between two lines through values, both from left to right."""
        whole = [*tops, *reversed(floors)]
        self.add(element("path", d=self.path(whole) + "Z", class_=class_))

    def dot(self, x: float, y: float, class_: str, title: str, radius: float = 3.2) -> None:
        """A value, with what a pointer that rests on it is told."""
        cx, cy = self.at(x, y)
        self.add(element("circle", element("title", title), cx=cx, cy=cy, r=radius, class_=class_))

    def rule_x(self, value: float, text: str, class_: str = "bound", *, y: float = 0.0) -> None:
        """A vertical line at a value, with what it is beside it, on the side with more room; `y`
        pixels below the top."""
        x = self.at_x(value)
        self.add(
            element("path", d=f"M{short(x)} {short(self.top)}V{short(self.bottom)}", class_=class_)
        )
        right = x + text_width(text) + 8 <= self.right
        self.text(
            x + (5 if right else -5),
            self.top + 10 + y,
            text,
            anchor="start" if right else "end",
            class_=f"{class_}-text",
        )

    def rule_y(self, value: float, class_: str = "bound") -> None:
        y = self.at_y(value)
        self.add(
            element("path", d=f"M{short(self.left)} {short(y)}H{short(self.right)}", class_=class_)
        )

    def text(
        self, x: float, y: float, content: str, *, anchor: str = "start", class_: str = "label"
    ) -> None:
        """`y` is the baseline, in pixels like `x`."""
        self.add(
            element(
                "text",
                content,
                x=x,
                y=y,
                text_anchor=None if anchor == "start" else anchor,
                class_=class_,
            )
        )

    def path(self, points: Sequence[Point]) -> str:
        """Through values, without points that one cannot tell from the one before."""
        found: list[str] = []
        for x, y in points:
            place = "{} {}".format(*(f"{pixel:.1f}".removesuffix(".0") for pixel in self.at(x, y)))
            if not found or found[-1] != place:
                found.append(place)
        return "M" + "L".join(found)

    def svg(self, title: str, described: Child = None) -> Markup:
        """The picture. `title` is what it shows, for those who cannot see it."""
        return element(
            "svg",
            element("title", title),
            element("desc", described) if described else None,
            self._parts,
            viewBox=f"0 0 {short(self.width)} {short(self.height)}",
            class_="plot",
            role="img",
            aria_label=title,
        )
