"""The Pareto plot: tokens per second and GPU against latency, as one SVG that needs nothing else.

A scatter plot is written here rather than with a plotting library: the base install then needs none, and the bytes are
the same whatever versions are installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from xml.etree import ElementTree

from ..result import Deployment, Plan
from ._format import rate, seconds, strategy_text

_WIDTH, _HEIGHT = 960, 600
_LEFT, _RIGHT, _TOP, _BOTTOM = 90, 930, 60, 500
"""Edges of the plot area, pixels."""

_SMALLEST, _LARGEST = 5.0, 14.0
"""Radii of the shortest and the longest TTFT, pixels."""

_SHARED, _SEPARATE, _CHOICE, _INK, _GUIDE = "#3572b0", "#2f8f5b", "#c63d2f", "#222222", "#dddddd"


@dataclass(frozen=True)
class Scale:
    """An axis: values from ``low`` to ``high``, both multiples of ``step``, to pixels from ``start`` to ``end``."""

    low: float
    high: float
    step: float
    start: float
    end: float

    @classmethod
    def of(cls, values: Sequence[float], start: float, end: float) -> Scale:
        """The scale with five to ten round steps that holds all values, with room beside them."""
        low, high = min(values, default=0.0), max(values, default=1.0)
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        low, high = max(0.0, low - margin), high + margin
        raw = (high - low) / 5
        power = 10.0 ** floor(log10(raw))
        step = power * max(m for m in (1, 2, 5) if m * power <= raw * (1 + 1e-9))
        return cls(floor(low / step) * step, ceil(high / step) * step, step, start, end)

    @property
    def ticks(self) -> list[float]:
        return [self.low + i * self.step for i in range(round((self.high - self.low) / self.step) + 1)]

    def at(self, value: float) -> str:
        """The pixel of a value, with one digit after the point."""
        share = (value - self.low) / (self.high - self.low)
        return f"{self.start + share * (self.end - self.start):.1f}"


def pareto_svg(plan: Plan) -> bytes:
    """Tokens per second and GPU over TPOT (TTFT where only prefill is planned); the larger a dot, the longer the TTFT.

    The frontier and the best deployments are drawn, of an infeasible plan the closest ones; the choice stands out.
    """
    drawn = _distinct((*plan.pareto, *plan.top))
    decode = not drawn or any(d.numbers.tpot_s is not None for d in drawn)
    x = Scale.of([_latency(d) * 1e3 for d in drawn], _LEFT, _RIGHT)
    y = Scale.of([d.numbers.tokens_per_s_per_gpu for d in drawn], _BOTTOM, _TOP)
    size = {"width": str(_WIDTH), "height": str(_HEIGHT), "viewBox": f"0 0 {_WIDTH} {_HEIGHT}"}
    root = ElementTree.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "font-family": "sans-serif", **size})
    ElementTree.SubElement(root, "rect", {"width": "100%", "height": "100%", "fill": "#ffffff"})
    _text(root, f"{plan.spec.model.name}: throughput against latency", _WIDTH / 2, 30, size="17", anchor="middle")
    _axes(root, x, y, f"{'TPOT' if decode else 'TTFT'}, ms")
    if not drawn:
        _text(root, "nothing fits into memory", _WIDTH / 2, _HEIGHT / 2, anchor="middle")
    waits = [d.numbers.ttft_s for d in drawn if d.numbers.ttft_s is not None]
    # large dots first, and the choice last, so that none hides another
    order = sorted(drawn, key=lambda d: (d == plan.chosen, -(d.numbers.ttft_s or 0.0)))
    for deployment in order:
        _dot(root, deployment, x, y, _radius(deployment, waits), chosen=deployment == plan.chosen)
    both = decode and len(waits) > 0
    _legend(root, feasible=plan.feasible, both=both)
    ElementTree.indent(root, " ")
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'.encode()


def _distinct(deployments: Sequence[Deployment]) -> list[Deployment]:
    found: list[Deployment] = []
    for deployment in deployments:
        if deployment not in found:
            found.append(deployment)
    return found


def _latency(deployment: Deployment) -> float:
    """Seconds of TPOT, or of TTFT where there is no decode."""
    numbers = deployment.numbers
    return numbers.tpot_s if numbers.tpot_s is not None else numbers.ttft_s or 0.0


def _radius(deployment: Deployment, waits: Sequence[float]) -> float:
    wait = deployment.numbers.ttft_s
    if wait is None or deployment.numbers.tpot_s is None or max(waits) == min(waits):
        return _SMALLEST
    return _SMALLEST + (wait - min(waits)) / (max(waits) - min(waits)) * (_LARGEST - _SMALLEST)


def _axes(root: ElementTree.Element, x: Scale, y: Scale, x_title: str) -> None:
    for value in x.ticks:
        _line(root, x.at(value), _TOP, x.at(value), _BOTTOM)
        _text(root, f"{value:.6g}", x.at(value), _BOTTOM + 18, anchor="middle", size="12")
    for value in y.ticks:
        _line(root, _LEFT, y.at(value), _RIGHT, y.at(value))
        _text(root, f"{value:,.6g}", _LEFT - 8, float(y.at(value)) + 4, anchor="end", size="12")
    _text(root, x_title, (_LEFT + _RIGHT) / 2, _BOTTOM + 42, anchor="middle")
    title = _text(root, "tokens/s per GPU", 0, 0, anchor="middle")
    title.set("transform", f"translate(24 {(_TOP + _BOTTOM) / 2:g}) rotate(-90)")


def _dot(root: ElementTree.Element, deployment: Deployment, x: Scale, y: Scale, radius: float, *, chosen: bool) -> None:
    n = deployment.numbers
    fill = _CHOICE if chosen else _SEPARATE if deployment.separate else _SHARED
    place = {"cx": x.at(_latency(deployment) * 1e3), "cy": y.at(n.tokens_per_s_per_gpu), "r": f"{radius:.1f}"}
    style = {"fill": fill, "fill-opacity": "1" if chosen else "0.75", "stroke": _INK if chosen else "#ffffff"}
    dot = ElementTree.SubElement(root, "circle", {"class": "deployment", **place, **style})
    chains = "; ".join(f"{s.phase} {strategy_text(s)}" for s in deployment.strategies)
    figures = f"TTFT {seconds(n.ttft_s)}, TPOT {seconds(n.tpot_s)}, {rate(n.tokens_per_s_per_gpu)} tokens/s per GPU"
    ElementTree.SubElement(dot, "title").text = f"{chains}; batch {n.batch}, {n.gpus} GPUs: {figures}"


def _legend(root: ElementTree.Element, *, feasible: bool, both: bool) -> None:
    closest = "" if feasible else "closest, "
    entries = [(_SHARED, f"{closest}shared GPUs"), (_SEPARATE, f"{closest}separate pools")]
    entries += [(_CHOICE, "the choice")] if feasible else []
    for number, (colour, name) in enumerate(entries):
        left = _LEFT + 200 * number
        mark = {"x": str(left), "y": "568", "width": "12", "height": "12", "fill": colour}
        ElementTree.SubElement(root, "rect", mark)
        _text(root, name, left + 18, 579)
    if both:
        _text(root, "larger dots: longer TTFT", _RIGHT, 579, anchor="end")


def _line(root: ElementTree.Element, x1: object, y1: object, x2: object, y2: object) -> None:
    ends = {"x1": str(x1), "y1": str(y1), "x2": str(x2), "y2": str(y2)}
    ElementTree.SubElement(root, "line", {**ends, "stroke": _GUIDE})


def _text(
    root: ElementTree.Element, text: str, x: object, y: object, *, anchor: str = "start", size: str = "14"
) -> ElementTree.Element:
    place = {"x": str(x), "y": str(y), "text-anchor": anchor, "font-size": size, "fill": _INK}
    element = ElementTree.SubElement(root, "text", place)
    element.text = text
    return element
