"""Draws curves as self-contained SVG: lines, axes, and the values under the pointer."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 28, 12, 40
MOST_POINTS = 600
"""Largest number of points of a line; more are averaged in groups."""


@dataclass(frozen=True)
class Line:
    """A curve of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False
    """Whether to mark each point, for lines with few of them."""


def chart(title: str, lines: Sequence[Line], unit: str, from_zero: bool = True, digits: int = 3) -> str:
    """Returns an HTML figure with the curves; a script on the page shows the values at the pointer.

    Args:
        unit: the unit of the vertical axis.
        from_zero: whether the vertical axis begins at 0.
        digits: number of decimals of the values at the pointer.
    """
    lines = [Line(line.name, thinned(_finite(line.points)), line.dots) for line in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(0.0 if from_zero else min(ys), max(ys))
    x_span = (min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1)
    y_span = (min(y_ticks[0], 0.0 if from_zero else min(ys)), max(y_ticks[-1], max(ys)))
    axes = _Axes(x_span, y_span)
    body = [_grid(axes, [t for t in x_ticks if x_span[0] <= t <= x_span[1]], y_ticks)]
    body += [_polyline(line, axes, number) for number, line in enumerate(lines, 1)]
    data = {"lines": [[[round(axes.x(x), 1), round(axes.y(y), 1), x, y] for x, y in line.points] for line in lines]}
    data |= {"names": [line.name for line in lines], "digits": digits}
    legend = "".join(
        f'<span><i class="c{number}"></i>{escape(line.name)}</span>' for number, line in enumerate(lines, 1)
    )
    return (
        f'<figure data-curve="{escape(json.dumps(data, separators=(",", ":")))}">'
        f"<figcaption><b>{escape(title)}</b> <small>{escape(unit)}</small>"
        f'<span class="legend">{legend}</span></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(body)}'
        f'<line class="at" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" visibility="hidden"/></svg>'
        "<output></output></figure>"
    )


@dataclass(frozen=True)
class _Axes:
    """The mapping of values to positions on the picture."""

    x_span: tuple[float, float]
    y_span: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_span
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self.y_span
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - low) / ((high - low) or 1)


def _polyline(line: Line, axes: _Axes, number: int) -> str:
    points = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in line.points)
    path = f'<polyline class="l{number}" points="{points}"/>'
    if line.dots or len(line.points) == 1:
        path += "".join(
            f'<circle class="d{number}" cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="3.5"/>' for x, y in line.points
        )
    return path


def _grid(axes: _Axes, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> str:
    parts = []
    for t in y_ticks:
        y = axes.y(t)
        parts.append(f'<line class="g" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{shown(t)}</text>')
    for t in x_ticks:
        x = axes.x(t)
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{shown(t)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    return "".join(parts) + f'<text x="{middle}" y="{_HEIGHT - 3}" text-anchor="middle">optimizer step</text>'


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Returns about `about` evenly spaced round numbers that span from `low` to `high`."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def shown(value: float) -> str:
    """Returns the label of a tick."""
    if value and abs(value) < 1e-3:
        return f"{value:.2e}".replace(".00e", "e").replace("0e", "e").replace("e-0", "e-")
    return f"{value / 1e3:,.10g}k" if abs(value) >= 1e4 else f"{value:,.10g}"


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns at most MOST_POINTS points, each the mean of a group of neighboring ones."""
    size = -(-len(points) // MOST_POINTS)
    if size <= 1:
        return list(points)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]
