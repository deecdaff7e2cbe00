"""Running nodes on virtual ranks: tensors as one numpy shard per rank."""

from .collectives import reshard, run_collective
from .kernels import run_node
from .shards import ShardFault, Shards, coordinates, cut, join, local_slices

__all__ = [
    "ShardFault",
    "Shards",
    "coordinates",
    "cut",
    "join",
    "local_slices",
    "reshard",
    "run_collective",
    "run_node",
]
