"""The policies of a document: their order, and the class by which each is drawn everywhere.

Knows: names and places. Does not know: colours (`report.css` has them by class).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from gpt_oss_server.simulate.html.markup import Markup, element, joined

OURS = "earliest_completion"
STYLES = 10
"""Lines that can be told apart by colour and dashes."""


class Drawn(NamedTuple):
    """One policy: its name, the classes of its elements, its part of the document."""

    name: str
    class_: str
    figures: Mapping[str, Any]

    @property
    def style(self) -> str:
        """The number of its class."""
        return self.class_.rpartition("p")[2]


def drawn(document: Mapping[str, Any]) -> list[Drawn]:
    """All of a document, in its order."""
    policies = document["policies"]
    # Ours looks the same on every page.
    others = [name for name in policies if name != OURS]
    styles = {name: place for place, name in enumerate(others, OURS in policies)} | {OURS: 0}
    return [
        Drawn(name, f"p p{styles[name] % STYLES}", figures) for name, figures in policies.items()
    ]


def key(policy: Drawn) -> Markup:
    """Its line as a small picture, and its name: a table's row head that is the legend, too."""
    line = element("path", d="M0 5H22", class_="curve")
    swatch = element("svg", line, viewBox="0 0 22 10", class_="swatch", aria_hidden="true")
    return joined(swatch, policy.name)


def chooser(policies: list[Drawn]) -> Markup | None:
    """Boxes that hide and show policies; nothing for a single one."""
    if len(policies) < 2:
        return None
    boxes = [
        element(
            "label",
            element("input", type="checkbox", id=f"show-{policy.style}", checked=True),
            key(policy),
            class_=policy.class_,
        )
        for policy in policies[:STYLES]
    ]
    return element("fieldset", element("legend", "Policies shown"), boxes, class_="chooser")
