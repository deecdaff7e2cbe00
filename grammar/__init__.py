"""Text to spec: the strategy language, Hugging Face configs, and the printer that goes the other way."""

from ._format import format_text
from ._load import load_file, load_text
from ._print import print_spec
from ._source import INPUT_CODES, MAX_BYTES, read_source
from .hf_config import SUPPORTED_MODEL_TYPES, read_hf_config

__all__ = [
    "INPUT_CODES",
    "MAX_BYTES",
    "SUPPORTED_MODEL_TYPES",
    "format_text",
    "load_file",
    "load_text",
    "print_spec",
    "read_hf_config",
    "read_source",
]
