"""What a compiled phase is written as: JSON documents, numpy columns, drawings."""

from ._files import replacing
from .columns import load_columns, write_columns
from .document import document_schema
from .dot import check_drawing, render_dot
from .json_rows import write_json
from .load import load_json
from .loaded import LoadedGraph
from .svg import render_svg, write_dot

__all__ = [
    "LoadedGraph",
    "check_drawing",
    "document_schema",
    "load_columns",
    "load_json",
    "render_dot",
    "render_svg",
    "replacing",
    "write_columns",
    "write_dot",
    "write_json",
]
