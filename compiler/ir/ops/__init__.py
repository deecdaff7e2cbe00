"""All operators. Importing this package fills the registry; adding an operator touches one of these files."""

from . import attention, communication, elementwise, linear, moe, ring, tokens
from ._base import OPERATORS, CostClass, Inference, Kind, Operator, Shard, Work, operator, register
from .attention import causal_pairs
from .communication import Resharding
from .moe import GROUP, routed_type
from .ring import ATTENTION_OPS, fold_rings
from .tokens import is_phase_node

__all__ = [
    "ATTENTION_OPS",
    "GROUP",
    "OPERATORS",
    "CostClass",
    "Inference",
    "Kind",
    "Operator",
    "Resharding",
    "Shard",
    "Work",
    "attention",
    "causal_pairs",
    "communication",
    "elementwise",
    "fold_rings",
    "is_phase_node",
    "linear",
    "moe",
    "operator",
    "register",
    "ring",
    "routed_type",
    "tokens",
]
