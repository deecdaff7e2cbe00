"""The intermediate representation: mesh, types, operators, graphs, resharding, and the flat graph."""

from .graph import Arg, Block, Graph, Item, Node, Param, Value
from .mesh import AxesDoNotNest, Axis, Mesh, build_mesh
from .types import Dim, Extent, Placement, TensorType, tensor

__all__ = [
    "Arg",
    "AxesDoNotNest",
    "Axis",
    "Block",
    "Dim",
    "Extent",
    "Graph",
    "Item",
    "Mesh",
    "Node",
    "Param",
    "Placement",
    "TensorType",
    "Value",
    "build_mesh",
    "tensor",
]
