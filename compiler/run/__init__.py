"""Running graphs on virtual ranks: tensors as one numpy shard per rank, each in that rank's own store."""

from .collectives import reshard, run_collective
from .executor import Executor
from .kernels import run_node
from .reference import Reference
from .report import Change, PhaseReport, Traffic, Verification
from .shards import ShardFault, Shards, coordinates, cut, join, local_slices
from .shrink import shrink
from .store import ExecutionFault, Store
from .weights import Checkpoint

__all__ = [
    "Change",
    "Checkpoint",
    "ExecutionFault",
    "Executor",
    "PhaseReport",
    "Reference",
    "ShardFault",
    "Shards",
    "Store",
    "Traffic",
    "Verification",
    "coordinates",
    "cut",
    "join",
    "local_slices",
    "reshard",
    "run_collective",
    "run_node",
    "shrink",
]
