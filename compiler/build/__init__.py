"""From a spec to the logical graph of a phase."""

from .graph import build_graph, graph_on, needs_transfer
from .items import build_items, cache_tokens, decode_context
from .mesh import mesh_of, phase_degrees, phase_mesh, pools_separate, two_layouts

__all__ = [
    "build_graph",
    "build_items",
    "cache_tokens",
    "decode_context",
    "graph_on",
    "mesh_of",
    "needs_transfer",
    "phase_degrees",
    "phase_mesh",
    "pools_separate",
    "two_layouts",
]
