"""One policy over time: steps, batches and KV as heat maps, waiting requests, what became of whom.

Knows: a document's samples, ends and failures. Does not know: times to tokens. All pictures share
the time axis, which begins at the first request and ends with the policy that took longest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from gpt_oss_server.simulate.html.markup import Markup, element, joined, short
from gpt_oss_server.simulate.html.plot import Margins, Plot
from gpt_oss_server.simulate.html.policies import Drawn
from gpt_oss_server.simulate.html.scales import Linear, from_zero, whole
from gpt_oss_server.simulate.results import number_text as text
from gpt_oss_server.simulate.results.figures import AS_PROMISED, TOO_LATE

WIDTH = 1140.0
LEFT = 118.0
LEVELS = 10
_END_WORDS = {AS_PROMISED: "served as promised", TOO_LATE: "served too late"}
_MARGINS = Margins(left=LEFT, right=14.0, top=8.0, bottom=22.0)
_LAST = Margins(left=LEFT, right=14.0, top=8.0, bottom=38.0)


class Heat(NamedTuple):
    """One kind of heat map: its samples' name, what it shows, the value of the darkest colour and
    how that is written."""

    name: str
    title: str
    said: str
    top: float
    top_text: str


class Axes(NamedTuple):
    """What the pictures of all policies share: seconds from left to right, and the most sequences
    that decoded at once."""

    length_s: float
    most_decoding: float


def axes(policies: Sequence[Drawn]) -> Axes:
    """As the longest run and the largest batch need them."""
    sampled = [policy.figures["samples"] for policy in policies if policy.figures["samples"]]
    batches = [value for samples in sampled for row in samples["decoding"] for value in row]
    return Axes(max([1e-3, *map(_length_s, policies)]), max([1.0, *batches]))


def pictures(policy: Drawn, shared: Axes, failures: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """Five figures, of which those that need samples are left out where there are none."""
    clock = Clock(shared.length_s)
    found: list[Markup] = []
    if policy.figures["samples"] is not None:
        most = shared.most_decoding
        heats = (
            Heat("utilization", "Utilisation", "time with a step running", 1.0, "100 %"),
            Heat("decoding", "Batch", "sequences decoding", most, text.plain(round(most))),
            Heat("kv_share", "KV cache", "tokens in use", 1.0, "100 %"),
        )
        found += [_heat(policy, clock, heat, failures) for heat in heats]
        found.append(_waiting(policy, clock))
    found.append(_ends(policy, clock))
    return found


class Clock:
    """The axis of time: seconds, minutes or hours, whichever gives short numbers."""

    def __init__(self, length_s: float) -> None:
        self.unit_s, self.unit = next(
            (size_s, unit)
            for size_s, unit in ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
            if length_s >= 4 * size_s or size_s == 1.0
        )
        self.length_s = length_s
        self.label = f"{self.unit} since the first request"

    def scale(self) -> Linear:
        return whole(self.length_s / self.unit_s, 12)

    def at(self, moment_s: float) -> float:
        return moment_s / self.unit_s


def _length_s(policy: Drawn) -> float:
    figures = policy.figures
    samples = figures["samples"]
    sampled = samples["bin_s"] * len(samples["waiting_most"]) if samples else 0.0
    counts = figures["ends"]["counts"]
    ended = figures["ends"]["bin_s"] * max((len(one) for one in counts.values()), default=0)
    return float(max(sampled, ended))


def _heat(policy: Drawn, axis: Clock, heat: Heat, failures: Sequence[Mapping[str, Any]]) -> Markup:
    samples = policy.figures["samples"]
    values = samples[heat.name]
    rows = samples["rows"]
    each = min(18.0, max(5.0, 200.0 / len(rows)))
    bands = _bands(rows)
    gaps = len(bands) - 1
    height = _MARGINS.top + each * len(rows) + 4.0 * gaps + _MARGINS.bottom
    plot = Plot(WIDTH, height, axis.scale(), Linear(0, 1, []), _MARGINS)
    tops: list[float] = []
    for place, (pool, members) in enumerate(bands):
        top = plot.top + each * len(tops) + 4.0 * place
        tops += [top + each * n for n in range(len(members))]
        _band_names(plot, pool, members, top, each)
    shares = [[value / heat.top for value in row] for row in values]
    plot.add(_cells(plot, shares, tops, each, axis.at(samples["bin_s"]), heat.name))
    _down(plot, samples, tops, each, axis, failures)
    plot.axes("")
    caption = element(
        "figcaption",
        element("b", heat.title),
        f" {heat.said}; one column is {text.duration(samples['bin_s'])}",
        _ramp(heat),
    )
    return element(
        "figure", caption, plot.svg(f"{heat.title} under {policy.name}", _means(samples, heat))
    )


def _means(samples: Mapping[str, Any], heat: Heat) -> str:
    """What one would see, in words."""
    write = text.percent if heat.top_text.endswith("%") else text.plain
    means = (sum(row) / len(row) for row in samples[heat.name])
    rows = zip(samples["rows"], means, strict=True)
    return "; ".join(f"{row} {write(mean)} on average" for row, mean in rows)


def _bands(rows: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Rows by pool: (pool, what is left of its rows' names)."""
    split = [name.rpartition("/")[::2] for name in rows]
    return [
        (pool, [member for _, member in members])
        for pool, members in groupby(split, key=lambda pair: pair[0])
    ]


def _band_names(plot: Plot, pool: str, members: Sequence[str], top: float, each: float) -> None:
    middle = top + each * len(members) / 2
    plot.text(2, middle + 4, pool, class_="name")
    every = max(1, -(-11 // round(each)))
    for place, member in enumerate(members):
        if place % every == 0:
            said = member.lstrip("0") or "0"
            y = top + each * (place + 0.5) + 3.6
            plot.text(plot.left - 6, y, said, anchor="end", class_="tick")


def _cells(
    plot: Plot,
    values: Sequence[Sequence[float]],
    tops: Sequence[float],
    each: float,
    bin_: float,
    name: str,
) -> Markup:
    """One path per level: a stroke as high as a row for each run of cells of that level."""
    paths: dict[int, list[str]] = {}
    columns = max(len(row) for row in values)
    unit = plot.at_x(bin_) - plot.at_x(0.0)
    for row, top in zip(values, tops, strict=True):
        # Where nothing at all happened the paper shows.
        levels = [min(LEVELS - 1, int(value * LEVELS)) if value else None for value in row]
        start = 0
        for level, run in groupby(levels):
            count = len(list(run))
            if level is not None:
                paths.setdefault(level, []).append(f"M{start} {short(top + each / 2)}h{count}")
            start += count
    strokes = [
        element("path", d="".join(runs), class_=f"{name} level{level}")
        for level, runs in sorted(paths.items())
    ]
    moved = f"translate({short(plot.left)} 0) scale({unit:.5g} 1)"
    frame = "".join(f"M0 {short(top + each / 2)}h{columns}" for top in tops)
    back = element("path", d=frame, class_="cell-back")
    return element(
        "g",
        back,
        strokes,
        transform=moved,
        stroke_width=each - (1.0 if each > 6 else 0.3),
        class_="cells",
    )


def _down(
    plot: Plot,
    samples: Mapping[str, Any],
    tops: Sequence[float],
    each: float,
    axis: Clock,
    failures: Sequence[Mapping[str, Any]],
) -> None:
    """Where a replica was dead, if rows are single replicas."""
    if any(count != 1 for count in samples["replicas"]):
        return
    for failure in failures:
        top = tops[failure["replica"]]
        left = plot.at_x(axis.at(failure["at_s"]))
        lasts_s = failure["for_s"]
        until_s = axis.length_s if lasts_s is None else failure["at_s"] + lasts_s
        right = plot.at_x(axis.at(until_s))
        if right > left:
            plot.add(
                element(
                    "rect",
                    element("title", "down"),
                    x=left,
                    y=top + 0.5,
                    width=right - left,
                    height=each - 1.0,
                    class_="down",
                )
            )
            if right - left > 40:
                plot.text((left + right) / 2, top + each / 2 + 3.6, "down", anchor="middle")


def _ramp(heat: Heat) -> Markup:
    """What the colours mean."""
    boxes = [
        element(
            "rect",
            x=12.0 * level,
            y=1.0,
            width=12.2,
            height=9.0,
            class_=f"{heat.name} level{level}",
        )
        for level in range(LEVELS)
    ]
    drawing = element(
        "svg", boxes, viewBox=f"0 0 {12 * LEVELS} 11", class_="ramp", aria_hidden="true"
    )
    return element("span", "0 ", drawing, f" {heat.top_text}", class_="ramp-text")


def _waiting(policy: Drawn, axis: Clock) -> Markup:
    samples = policy.figures["samples"]
    most = samples["waiting_most"]
    mean = [sum(column) for column in zip(*samples["waiting"], strict=True)]
    bin_ = axis.at(samples["bin_s"])
    plot = Plot(WIDTH, 110.0, axis.scale(), from_zero(max([*most, 1.0]), 3), _MARGINS)
    plot.axes("")
    plot.text(2, (plot.top + plot.bottom) / 2, "requests")
    floor = [(0.0, 0.0), (len(mean) * bin_, 0.0)]
    plot.area(_steps(most, bin_), floor, "waiting-most")
    plot.area(_steps(mean, bin_), floor, "waiting-mean")
    caption = element(
        "figcaption",
        element("b", "Waiting"),
        " requests queued in all engines: ",
        element("span", "mean", class_="word waiting-mean"),
        ", ",
        element("span", "peak", class_="word waiting-most"),
        f" of each {text.duration(samples['bin_s'])}",
    )
    described = f"At most {text.count(max(most))} requests waited at once."
    return element("figure", caption, plot.svg(f"Waiting requests under {policy.name}", described))


def _ends(policy: Drawn, axis: Clock) -> Markup:
    ends = policy.figures["ends"]
    bin_s = ends["bin_s"]
    counts: Mapping[str, Sequence[int]] = ends["counts"]
    columns = max((len(one) for one in counts.values()), default=1)
    floor = [0.0] * columns
    stacked = [sum(column) / bin_s for column in zip(*counts.values(), strict=True)] or floor
    plot = Plot(WIDTH, 150.0, axis.scale(), from_zero(max([*stacked, 1e-3]), 3), _LAST)
    plot.axes(axis.label)
    plot.text(2, (plot.top + plot.bottom) / 2, "requests/s")
    bin_ = axis.at(bin_s)
    words: list[Markup] = []
    for kind, values in counts.items():
        top = [low + value / bin_s for low, value in zip(floor, values, strict=True)]
        plot.area(_steps(top, bin_), _steps(floor, bin_), f"end-{kind}")
        floor = top
        said = f"{text.count(sum(values))} {_END_WORDS.get(kind, kind)}"
        words.append(element("span", said, class_=f"word end-{kind}"))
    caption = element(
        "figcaption",
        element("b", "Ends"),
        " requests per second by when they came: ",
        [joined(", " if place else "", word) for place, word in enumerate(words)],
    )
    return element("figure", caption, plot.svg(f"How requests ended under {policy.name}"))


def _steps(values: Sequence[float], bin_: float) -> list[tuple[float, float]]:
    """A line that is level over each bin."""
    points: list[tuple[float, float]] = []
    for place, value in enumerate(values):
        points += [(place * bin_, value), ((place + 1) * bin_, value)]
    return points
