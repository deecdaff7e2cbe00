"""One cost model, over arrays: a calibrated roofline per operator class, collectives, closed forms of the schedule.

``resolve_hardware(cluster, dtype, engine=None)`` turns a cluster into a :class:`Hardware` that carries datasheet peaks,
links and the fitted parameter sets of every operator class (``hardware.calibration``); ``node_costs(graph, hardware,
extents)`` gives FLOPs, bytes, time, bound and efficiency of every node. The class functions (``gemm_time``,
``prefill_attention_time``, ``decode_attention_time``, ``experts_time``, ``streaming_time``, ``collective_time``,
``exchange_time``, ``transfer_time``) are pure, broadcast over arrays and return :class:`Terms`. docs/costs.md has the
formulas.
"""

from ._terms import Terms
from .attention import decode_attention_time, prefill_attention_time
from .closed_form import decode_interval, pipeline_makespan
from .experts import Load, even_load, experts_time, skewed_load, uniform_load
from .gemm import gemm_time
from .hardware import Hardware, Link, resolve_hardware
from .network import collective_time, exchange_time, transfer_time
from .nodes import BOUNDS, NodeCost, graph_extents, node_cost, node_costs, node_terms, node_times
from .records import load_calibration
from .streaming import streaming_time

__all__ = [
    "BOUNDS",
    "Hardware",
    "Link",
    "Load",
    "NodeCost",
    "Terms",
    "collective_time",
    "decode_attention_time",
    "decode_interval",
    "even_load",
    "exchange_time",
    "experts_time",
    "gemm_time",
    "graph_extents",
    "load_calibration",
    "node_cost",
    "node_costs",
    "node_terms",
    "node_times",
    "pipeline_makespan",
    "prefill_attention_time",
    "resolve_hardware",
    "skewed_load",
    "streaming_time",
    "transfer_time",
    "uniform_load",
]
