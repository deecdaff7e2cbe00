"""Figures, ranges and tables as a report writes them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise

from ...spec import ChainTerm, StrategySpec


def seconds(value: float | None) -> str:
    """A time with a fitting unit; a dash where there is none."""
    if value is None:
        return "-"
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if value >= factor:
            return f"{value / factor:.4g} {unit}"
    return f"{value * 1e6:.4g} us"


def size(value: float) -> str:
    """Bytes in decimal units."""
    return _scaled(value, (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)), "B")


def amount(value: float) -> str:
    """A large number of FLOPs or parameters."""
    return _scaled(value, (("P", 1e15), ("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)), "").strip()


def _scaled(value: float, units: Sequence[tuple[str, float]], smallest: str) -> str:
    for unit, factor in units:
        if abs(value) >= factor:
            return f"{value / factor:.4g} {unit}"
    return f"{value:.4g} {smallest}"


def rate(value: float) -> str:
    """A rate or count per second, with four digits and no exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def percent(share: float, *, signed: bool = False) -> str:
    """A share in percent, with one digit after the point."""
    return f"{100 * share:+.1f} %" if signed else f"{100 * share:.1f} %"


def counted(number: int, what: str, plural: str = "s") -> str:
    """A number with its noun in the right form."""
    return f"{number:,} {what}{'' if number == 1 else plural}"


def folded(numbers: Iterable[int]) -> str:
    """Whole numbers as ranges, with a step where neighbours are equally far apart: ``0-7, 16, 18-24 by 2``."""
    left = sorted(set(numbers))
    parts = []
    while left:
        run = _run(left)
        step = left[1] - left[0] if run > 1 else 1
        text = str(left[0]) if run == 1 else f"{left[0]}-{left[run - 1]}"
        parts.append(text + (f" by {step}" if step > 1 else ""))
        left = left[run:]
    return ", ".join(parts) or "none"


def gpus_text(numbers: Collection[int]) -> str:
    """GPU numbers as ranges, with the noun."""
    return f"GPU{'' if len(numbers) == 1 else 's'} {folded(numbers)}"


def _run(numbers: Sequence[int]) -> int:
    """How many numbers from the first on are equally far apart; two alone are a range only if they are neighbours."""
    count = 1
    for low, high in pairwise(numbers):
        if high - low != numbers[1] - numbers[0]:
            break
        count += 1
    return count if count > 2 or (count == 2 and numbers[1] - numbers[0] == 1) else 1


def strategy_text(strategy: StrategySpec) -> str:
    """Chain and options in the language's words, on one line; ``one GPU`` for an empty chain."""
    parts = [" -> ".join(_term(t) for t in strategy.chain) or ("" if strategy.ranks else "one GPU")]
    if strategy.ranks is not None:
        parts.append(f"ranks {strategy.ranks}")
    if strategy.microbatches > 1:
        parts.append(f"microbatches {strategy.microbatches}")
    if strategy.chunk is not None:
        parts.append(f"chunk {strategy.chunk}")
    if strategy.placement:
        parts.append(f"placement {' '.join(strategy.placement)}")
    return ", ".join(p for p in parts if p)


def _term(term: ChainTerm) -> str:
    if term.degree is None:
        return f"{term.name} {term.kind}"
    options = [f"etp {term.etp}"] if term.etp else []
    options += [f"redundant {term.redundant}"] if term.redundant else []
    options += [f"layers {' '.join(map(str, term.layers))}"] if term.layers else []
    text = f"{term.name} {term.degree}" + (f" kind {term.kind}" if term.kind else "")
    return f"{text} {{ {' '.join(options)} }}" if options else text


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[str] = ()) -> list[str]:
    """A Markdown table and an empty line behind it; columns named in ``right`` are aligned to the right."""
    aligned = frozenset(right)
    lines = [_row(columns), _row(["---:" if c in aligned else "---" for c in columns])]
    return [*lines, *(_row(row) for row in rows), ""]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
