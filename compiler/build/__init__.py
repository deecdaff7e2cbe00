"""From a spec to the logical graph of a phase."""

from .graph import build_graph, expert_half, graph_on, needs_transfer
from .items import batch_items, build_items, cache_tokens, cached_sequences, decode_context
from .mesh import mesh_of, phase_degrees, phase_mesh, pools_separate, two_layouts

__all__ = [
    "batch_items",
    "build_graph",
    "build_items",
    "cache_tokens",
    "cached_sequences",
    "decode_context",
    "expert_half",
    "graph_on",
    "mesh_of",
    "needs_transfer",
    "phase_degrees",
    "phase_mesh",
    "pools_separate",
    "two_layouts",
]
