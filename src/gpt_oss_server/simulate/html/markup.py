"""HTML and SVG elements that cannot be left unescaped.

Knows: how an element is written. Does not know: which elements there are. Text becomes markup only
here: a `str` is escaped, a `Markup` is taken as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

_VOID = frozenset({"input", "meta"})
# Drawn by the thousand: an end tag would be a tenth of the file.
_EMPTY = frozenset({"path", "line", "rect", "circle", "use", "stop"})


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Child = str | Iterable["Markup"] | None
Value = str | float | bool | None


def element(name: str, /, *children: Child, **attributes: Value) -> Markup:
    """`<name …>children</name>`. A trailing underscore of an attribute's name is dropped, the
    others become hyphens; None and False leave an attribute out, True leaves out its value.
    Numbers are written with at most two decimals."""
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    inside = "".join(map(_child, children))
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    if name in _EMPTY and not inside:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{inside}</{name}>")


def joined(*parts: Child) -> Markup:
    """Several as one."""
    return Markup("".join(map(_child, parts)))


def short(number: float) -> str:
    """With at most two decimals, as coordinates need them."""
    return f"{number:.2f}".rstrip("0").rstrip(".") if number % 1 else f"{number:.0f}"


def _child(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str):
        return escape(child, quote=False)
    return "".join(map(_child, child))


def _attribute(key: str, value: Value) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    text = value if isinstance(value, str) else short(value)
    return f' {name}="{escape(text)}"'
