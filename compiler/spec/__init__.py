"""What the user asked for, typed: model, cluster, workload and strategies. Nothing here knows syntax or graphs."""

from .cluster import AcceleratorSpec, ClusterSpec, LinkSpec
from .dtypes import ACTIVATION_DTYPE, DTYPES, DType, dtype
from .model import AttentionSpec, LayersSpec, ModelSpec, MoeSpec
from .pack import Pack
from .rotary import LinearSpec, Llama3Spec, RotarySpec, YarnSpec
from .source import Assumption, LineUse, LoadedSpec, SourceMap
from .spec import Spec
from .strategy import ChainTerm, StrategySpec
from .workload import Requirements, WorkloadSpec

__all__ = [
    "ACTIVATION_DTYPE",
    "DTYPES",
    "AcceleratorSpec",
    "Assumption",
    "AttentionSpec",
    "ChainTerm",
    "ClusterSpec",
    "DType",
    "LayersSpec",
    "LineUse",
    "LinearSpec",
    "LinkSpec",
    "Llama3Spec",
    "LoadedSpec",
    "ModelSpec",
    "MoeSpec",
    "Pack",
    "Requirements",
    "RotarySpec",
    "SourceMap",
    "Spec",
    "StrategySpec",
    "WorkloadSpec",
    "YarnSpec",
    "dtype",
]
