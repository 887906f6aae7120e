"""SVG, element by element.

Knows: the markup. Does not know: charts. Coordinates are pixels with one decimal.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

from tools.dashboards.preview.colors import TEXT

FONT = "Inter, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
_CHARACTER = 0.56
Point = tuple[float, float]


def width_of(text: str, size: float) -> float:
    """About how wide a text is; exact widths depend on the viewer's fonts."""
    return _CHARACTER * size * len(text)


class Drawing:
    """Elements in the order in which they were drawn."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def rect(
        self,
        x: float,
        y: float,
        w: float,
        h: float,
        fill: str,
        *,
        edge: str = "",
        radius: float = 0,
    ) -> None:
        more = (f' stroke="{edge}"' if edge else "") + (f' rx="{radius:g}"' if radius else "")
        self._parts.append(
            f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(w)}" height="{_n(h)}" fill="{fill}"{more}/>'
        )

    def line(
        self, points: Sequence[Point], color: str, *, width: float = 1, dash: str = ""
    ) -> None:
        if len(points) < 2:
            return
        more = f' stroke-dasharray="{dash}"' if dash else ""
        self._parts.append(
            f'<path d="{_path(points)}" fill="none" stroke="{color}" stroke-width="{width:g}" '
            f'stroke-linejoin="round"{more}/>'
        )

    def area(self, points: Sequence[Point], color: str, opacity: float) -> None:
        self._parts.append(
            f'<path d="{_path(points)}Z" fill="{color}" fill-opacity="{opacity:g}"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        content: str,
        *,
        size: float = 11,
        color: str = TEXT,
        anchor: str = "start",
        bold: bool = False,
    ) -> None:
        """`y` is the baseline; `anchor` is start, middle or end."""
        more = "" if anchor == "start" else f' text-anchor="{anchor}"'
        more += ' font-weight="600"' if bold else ""
        self._parts.append(
            f'<text x="{_n(x)}" y="{_n(y)}" font-size="{size:g}" fill="{color}"{more}>'
            f"{escape(content)}</text>"
        )

    def document(self, width: float, height: float, title: str, background: str) -> str:
        """The whole file, ending in a newline."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
            f'width="{width:g}" height="{height:g}" font-family={quoteattr(FONT)} '
            f'role="img" aria-label={quoteattr(title)}>'
        )
        page = f'<rect width="{width:g}" height="{height:g}" fill="{background}"/>'
        return "\n".join([head, f"<title>{escape(title)}</title>", page, *self._parts, "</svg>\n"])


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
