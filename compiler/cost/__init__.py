"""One cost model, over arrays: roofline, collectives, closed forms of the schedule, memory."""

from .closed_form import decode_interval, pipeline_makespan
from .hardware import Hardware, Link, resolve_hardware
from .nodes import BOUNDS, NodeCost, node_cost, node_costs

__all__ = [
    "BOUNDS",
    "Hardware",
    "Link",
    "NodeCost",
    "decode_interval",
    "node_cost",
    "node_costs",
    "pipeline_makespan",
    "resolve_hardware",
]
