"""From a spec to the logical graph of a phase."""

from .graph import build_graph
from .items import build_items
from .mesh import mesh_of, phase_degrees, phase_mesh, pools_separate

__all__ = ["build_graph", "build_items", "mesh_of", "phase_degrees", "phase_mesh", "pools_separate"]
