"""Passes and the manager that runs, times, verifies and prints them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

from ..compiler.diagnostics import Diagnostic, DiagnosticError, Fix, InternalError, Severity
from ..compiler.ir.graph import LEVELS, Block, Graph, Node
from ..compiler.ir.text import print_graph
from .compiled import PassRecord
from .lowering import resolve
from .validation import repair, verify


@runtime_checkable
class GraphPass(Protocol):
    """Anything with a name that turns a graph into a graph."""

    name: ClassVar[str]

    def run(self, graph: Graph) -> Graph:
        """The graph after the pass; the input is immutable."""
        ...


class Pass(ABC):
    """Base class for passes; ``name`` and ``run`` are all that is needed.

    Set ``keeps_meaning = False`` where the pass changes what the model computes, so that the graph is no longer
    compared with the logical one.
    """

    name: ClassVar[str] = ""
    keeps_meaning: ClassVar[bool] = True

    @abstractmethod
    def run(self, graph: Graph) -> Graph:
        """The graph after the pass; the input is immutable."""


class RewritePattern(Pass):
    """A pass that rewrites single nodes: ``match`` picks them, ``rewrite`` gives their replacement.

    After the rewrite placements are resolved anew, so a replacement need not care for collectives.
    """

    @abstractmethod
    def match(self, node: Node, block: Block) -> bool:
        """Whether the node is to be rewritten."""

    @abstractmethod
    def rewrite(self, node: Node, block: Block) -> Sequence[Node]:
        """The nodes that take its place; they must give the values that later nodes use."""

    def run(self, graph: Graph) -> Graph:
        """The graph with every match rewritten; the same object where nothing matched."""
        if not any(self.match(node, block) for block, node in graph.nodes()):
            return graph

        def rewritten(block: Block) -> Block:
            parts = [self.rewrite(n, block) if self.match(n, block) else (n,) for n in block.nodes]
            return replace(block, nodes=tuple(n for part in parts for n in part))

        return resolve(graph.map_blocks(rewritten), self.name)


@dataclass(frozen=True)
class Scheduled:
    """A pass and its place: it runs right after the pass called ``after`` (or after ``build``)."""

    graph_pass: GraphPass
    after: str = LEVELS[-1]


@dataclass(frozen=True)
class PassRun:
    """What a run gave: the graph, the records, the printed IR of the passes asked for, and what was repaired."""

    graph: Graph
    records: tuple[PassRecord, ...]
    dumps: dict[str, str]
    fixes: tuple[Fix, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()


class PassManager:
    """Runs passes in order; after each it verifies the graph.

    Args:
        passes: Passes in their order.
        print_after: Names of passes after which the IR is printed; ``build`` prints the logical graph.
        repairs: Whether an illegal graph that a user's pass leaves is repaired where that is safe.
        verifier: Gives the findings on a graph; default :func:`paradag.passes.validation.verify`.
    """

    def __init__(
        self,
        passes: Iterable[GraphPass],
        *,
        print_after: Iterable[str] = (),
        repairs: bool = False,
        verifier: Callable[[Graph, Graph | None], list[Diagnostic]] = verify,
    ) -> None:
        self.passes = tuple(passes)
        self.print_after = frozenset(print_after)
        self.repairs = repairs
        self.verifier = verifier

    def run(self, graph: Graph) -> PassRun:
        """All passes on ``graph``.

        Raises:
            InternalError: one of paradag's own passes left an illegal graph, before any user's pass.
            DiagnosticError: a user's pass failed or left an illegal graph (PD502 and the verifier's findings).
        """
        reference: Graph | None = graph
        dumps = {"build": print_graph(graph)} if "build" in self.print_after else {}
        records: list[PassRecord] = []
        fixes: list[Fix] = []
        findings: list[Diagnostic] = []
        own = True
        done: list[str] = ["build"]
        self._check(graph, None, "build", done, own=True)
        for graph_pass in self.passes:
            began = time.perf_counter()
            # What a user's pass leaves may also break a later pass of ours.
            own = own and type(graph_pass).__module__.startswith("paradag.")
            graph = graph_pass.run(graph) if own else _run_foreign(graph_pass, graph)
            if not getattr(graph_pass, "keeps_meaning", True):
                reference = None
            if self.repairs and not own:
                graph, made = repair(graph, reference)
                fixes += made
                findings += _as_repaired(graph_pass.name, made)
            self._check(graph, reference, graph_pass.name, done, own=own)
            records.append(PassRecord(graph.phase, graph_pass.name, time.perf_counter() - began))
            done.append(graph_pass.name)
            if graph_pass.name in self.print_after:
                dumps[graph_pass.name] = print_graph(graph)
        return PassRun(graph, tuple(records), dumps, tuple(fixes), tuple(findings))

    def _check(self, graph: Graph, reference: Graph | None, name: str, done: Sequence[str], *, own: bool) -> None:
        found = [d for d in self.verifier(graph, reference) if d.is_error]
        if not found:
            return
        where = f"after pass {name!r} (run so far: {', '.join(done)})"
        if own:
            raise InternalError(
                f"the graph is illegal {where}: " + "; ".join(f"{d.code} {d.message}" for d in found[:5])
            )
        summary = Diagnostic(
            "PD502",
            f"pass {name!r} left an illegal graph: {len(found)} finding{'s' * (len(found) > 1)} follow",
            expected="a graph that passes the verifier",
            help="call paradag.passes.lowering.resolve after changing placements, or set keeps_meaning = False",
        )
        raise DiagnosticError([summary, *found])


def _as_repaired(name: str, fixes: Sequence[Fix]) -> list[Diagnostic]:
    """A warning where the graph that a user's pass left was repaired."""
    if not fixes:
        return []
    done = ", ".join(dict.fromkeys(f.after or f"without {f.before}" for f in fixes))
    message = f"pass {name!r} left an illegal graph, which was repaired"
    return [Diagnostic("PD502", message, help=f"repaired: {done}", severity=Severity.WARNING)]


def _run_foreign(graph_pass: GraphPass, graph: Graph) -> Graph:
    """Run a user's pass; whatever it raises becomes a diagnostic that names it."""
    try:
        result: Any = graph_pass.run(graph)
    except DiagnosticError:
        raise
    except Exception as error:
        message = f"pass {graph_pass.name!r} raised {type(error).__name__}: {error}"
        raise DiagnosticError([Diagnostic("PD502", message, help=_place_of(error))]) from error
    if not isinstance(result, Graph):
        message = f"pass {graph_pass.name!r} returned {type(result).__name__}"
        raise DiagnosticError([Diagnostic("PD502", message, expected="run(graph) to return a Graph")])
    return result


def _place_of(error: Exception) -> str:
    """Where the exception was raised, as a help text."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        raise InternalError("an exception without a traceback")
    return f"raised at {traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"


def arrange(lowering: Sequence[GraphPass], extra: Sequence[Scheduled]) -> list[GraphPass]:
    """The lowering passes with the user's passes in their places, each group in the order given.

    Raises:
        DiagnosticError: a place that is no pass (PD501).
    """
    names = ["build", *(p.name for p in lowering)]
    unknown = [s for s in extra if s.after not in names]
    if unknown:
        raise DiagnosticError(
            [
                Diagnostic(
                    "PD501", f"no pass {s.after!r} to run {s.graph_pass.name!r} after", expected=" | ".join(names)
                )
                for s in unknown
            ]
        )
    result: list[GraphPass] = [s.graph_pass for s in extra if s.after == "build"]
    for own in lowering:
        result.append(own)
        result += [s.graph_pass for s in extra if s.after == own.name]
    return result
