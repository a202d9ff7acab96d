"""Draws what the benchmarks have recorded (`--json PATH`) as curves, one SVG each.

    python benchmarks/plots.py RESULTS [DIRECTORY]

A plot of which nothing was recorded is left as it is. Both axes are logarithmic. Colours are those of Okabe and Ito,
which everybody can tell apart, and each curve has a dash pattern of its own; the file follows the reader's choice of
light or dark.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
Row = dict[str, Any]

WIDTH, HEIGHT = 780, 400
LEFT, RIGHT, TOP, BOTTOM = 104, 580, 44, 346
"""The area of the curves; the legend stands right of it."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
DASHES = ("none", "7 4", "2 3", "9 3 2 3", "12 4")
STYLE = """
  svg { color-scheme: light dark; font: 13px system-ui, sans-serif }
  .ground { fill: #ffffff } text { fill: #1f2328 } .grid { stroke: #d8dee4 } .axis { stroke: #59636e; fill: none }
  .title { font-size: 15px; font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #0d1117 } text { fill: #e6edf3 } .grid { stroke: #2b323b } .axis { stroke: #8b949e }
  }
"""


@dataclass(frozen=True)
class Curve:
    """A name and its points, by rising x; nan where nothing could be measured."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Plot:
    """What is drawn: of which benchmark, and which curves its rows make."""

    file: str
    benchmark: str
    title: str
    x_label: str
    y_label: str
    curves: Callable[[list[Row]], list[Curve]]


class Scale:
    """A logarithmic axis between two places, from one power of ten to another."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self.first = math.floor(math.log10(min(values)) + 1e-9)
        self.last = max(math.ceil(math.log10(max(values)) - 1e-9), self.first + 1)
        self.start, self.end = start, end

    def place(self, value: float) -> float:
        share = (math.log10(value) - self.first) / (self.last - self.first)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        return [10.0**power for power in range(self.first, self.last + 1)]


def columns(x: str, **names: str) -> Callable[[list[Row]], list[Curve]]:
    """A curve for each of these columns."""
    return lambda rows: [
        Curve(shown, [(row[x], row[name]) for row in rows if name in row]) for name, shown in names.items()
    ]


def memory(rows: list[Row]) -> list[Curve]:
    """Megabytes of all subscriptions, one curve for each kind."""
    return [
        Curve(kind, [(r["subscriptions"], r["subscriptions"] * r["bytes"] / 1e6) for r in rows if r["kind"] == kind])
        for kind in dict.fromkeys(row["kind"] for row in rows)
    ]


PLOTS = (
    Plot(
        "fanout.svg",
        "fanout",
        "Deliveries a second, one core",
        "subscribers",
        "deliveries/s",
        columns(
            "subscribers",
            bare="bare loop",
            broadcaster="broadcaster",
            aiohttp="aiohttp",
            httpx="httpx",
            lonelypss="lonelypss",
        ),
    ),
    Plot(
        "matching.svg",
        "matching",
        "Finding what matches one topic",
        "globs",
        "microseconds",
        columns("globs", index="index", sqlite="SQLite GLOB", regex="loop over regexes", fnmatch="loop over fnmatch"),
    ),
    Plot("memory.svg", "scale", "Memory of the subscriptions", "subscriptions", "megabytes", memory),
)


def drawn(plot: Plot, curves: list[Curve]) -> str:
    """The SVG."""
    points = [point for curve in curves for point in curve.points if math.isfinite(point[1])]
    x, y = Scale([p[0] for p in points], LEFT, RIGHT), Scale([p[1] for p in points], BOTTOM, TOP)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(plot.title)}</title><style>{STYLE}</style>",
        f'<rect class="ground" width="{WIDTH}" height="{HEIGHT}" rx="6"/>',
        text(LEFT, 24, plot.title, "start", "title"),
        text((LEFT + RIGHT) / 2, HEIGHT - 14, plot.x_label, "middle"),
        f'<g transform="translate(18 {(TOP + BOTTOM) / 2}) rotate(-90)">{text(0, 0, plot.y_label, "middle")}</g>',
    ]
    for tick in x.ticks():
        lines.append(f'<path class="grid" d="M{x.place(tick)} {TOP}V{BOTTOM}"/>')
        lines.append(text(x.place(tick), BOTTOM + 20, f"{tick:,g}", "middle"))
    for tick in y.ticks():
        lines.append(f'<path class="grid" d="M{LEFT} {y.place(tick)}H{RIGHT}"/>')
        lines.append(text(LEFT - 8, y.place(tick) + 4, f"{tick:,.10g}", "end"))
    lines.append(f'<path class="axis" d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}"/>')
    for number, curve in enumerate(curves):
        lines += with_legend(curve, number, x, y)
    return "\n".join([*lines, "</svg>", ""])


def with_legend(curve: Curve, number: int, x: Scale, y: Scale) -> list[str]:
    """A curve, its points, and its line in the legend."""
    colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
    places = [(x.place(a), y.place(b)) for a, b in curve.points if math.isfinite(b)]
    line = f'fill="none" stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dash}"'
    row = TOP + 14 + 24 * number
    return [
        f'<polyline {line} points="{" ".join(f"{a},{b}" for a, b in places)}"/>',
        *(f'<circle cx="{a}" cy="{b}" r="3.5" fill="{colour}"/>' for a, b in places),
        f'<path {line} d="M{RIGHT + 16} {row}h30"/>',
        text(RIGHT + 54, row + 4, curve.name, "start"),
    ]


def text(x: float, y: float, words: str, anchor: str, kind: str = "") -> str:
    of_kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{of_kind}>{escape(words)}</text>'


def main() -> None:
    directory = Path(sys.argv[2]) if len(sys.argv) > 2 else HERE.parent / "docs" / "plots"
    directory.mkdir(parents=True, exist_ok=True)
    recorded = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    for plot in PLOTS:
        rows = [row for row in recorded if row["benchmark"] == plot.benchmark]
        if rows:
            (directory / plot.file).write_text(drawn(plot, plot.curves(rows)))
            print(f"drawn: {directory / plot.file}")


if __name__ == "__main__":
    main()
