"""Ranks as real processes on ``torch.distributed``. Importing this does not import torch; the processes do."""

from .engine import MAX_PROCESSES, TorchEngine, TorchExecutor
from .pool import Pool

__all__ = ["MAX_PROCESSES", "Pool", "TorchEngine", "TorchExecutor"]
