"""Analyses: they read a lowered graph and return typed results; nothing here changes a graph."""

from .communication import Traffic, analyse_communication, bytes_by_kind
from .critical_path import CriticalPath, critical_path
from .flatten import expanded_axes, flatten
from .memory import Memory, MemoryReport, analyse_memory
from .phase import PhaseAnalysis, analyse_phase, time_by_bound
from .transfer import Route, TransferPlan, plan_transfer
from .unroll import unroll
from .utilization import RankTime, StageWork, Utilization, analyse_utilization

__all__ = [
    "CriticalPath",
    "Memory",
    "MemoryReport",
    "PhaseAnalysis",
    "RankTime",
    "Route",
    "StageWork",
    "Traffic",
    "TransferPlan",
    "Utilization",
    "analyse_communication",
    "analyse_memory",
    "analyse_phase",
    "analyse_utilization",
    "bytes_by_kind",
    "critical_path",
    "expanded_axes",
    "flatten",
    "plan_transfer",
    "time_by_bound",
    "unroll",
]
