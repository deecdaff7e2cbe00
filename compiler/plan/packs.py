"""The knowledge pack of a spec over columns: what its law and constraints refuse, and the GPUs that it counts.

A search asks three times: for layouts, for schedules, for replicas. Each time only what could not be asked before is
judged, so that whatever is refused is refused by one place in the pack, ``pack.toml:7``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..spec import Spec
from ..spec.pack import LAYOUT
from ..spec.pack_law import broken, facts
from ..spec.strategy import Phase
from .layouts import Layouts

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def refused_layouts(spec: Spec, phase: Phase, layouts: Layouts) -> dict[str, Bools]:
    """Layouts that the pack refuses, by its places; empty without a pack.

    Raises:
        DiagnosticError: PD043, a formula of the pack divides by zero; as in all functions here.
    """
    return {} if spec.pack is None else broken(spec.pack, _stage(spec, phase, layouts))


def refused_schedules(
    spec: Spec, phase: Phase, layouts: Layouts, *, pp: Ints, microbatches: Ints, chunk: Ints
) -> dict[str, Bools]:
    """Strategies of one replica that the pack refuses, of those whose layouts it does not.

    Args:
        spec: Model, cluster and pack.
        phase: prefill or decode.
        layouts: Layout of each strategy.
        pp: Stages.
        microbatches: Micro-batches.
        chunk: Most new tokens per step; 0 for none.
    """
    if spec.pack is None:
        return {}
    stage = _stage(spec, phase, layouts)
    return broken(spec.pack, {**stage, "pp": pp, "microbatches": microbatches, "chunk": chunk}, judged=stage)


def refused_replicas(
    spec: Spec, phase: Phase, layouts: Layouts, *, pp: Ints, microbatches: Ints, chunk: Ints, dp: Ints, batch: Ints
) -> dict[str, Bools]:
    """Whole strategies that the pack refuses, of those that it has not refused yet.

    Args:
        spec: Model, cluster and pack.
        phase: prefill or decode.
        layouts: Layout of each strategy.
        pp: Stages.
        microbatches: Micro-batches of a replica.
        chunk: Most new tokens per step; 0 for none.
        dp: Replicas.
        batch: Sequences in flight over all replicas, of each.
    """
    if spec.pack is None:
        return {}
    before = {**_stage(spec, phase, layouts), "pp": pp, "microbatches": microbatches, "chunk": chunk}
    gpus = counted_gpus(spec, phase, layouts, pp=pp, dp=dp)
    return broken(spec.pack, {**before, "dp": dp, "gpus": gpus, "batch": batch}, judged=before)


def counted_gpus(spec: Spec, phase: Phase, layouts: Layouts, *, pp: Ints, dp: Ints) -> Ints:
    """GPUs of a phase by the pack's law, idle ones among them; ``dp * pp * ranks`` without one."""
    if spec.pack is None or spec.pack.law.gpus is None:
        return dp * pp * layouts.ranks
    gpus = spec.pack.law.phase_gpus({**_stage(spec, phase, layouts), "pp": pp, "dp": dp})
    return np.asarray(np.ceil(np.broadcast_to(gpus, np.shape(pp))), dtype=np.int64)


def _stage(spec: Spec, phase: Phase, layouts: Layouts) -> dict[str, Any]:
    return {**facts(spec, phase), **{name: getattr(layouts, name) for name in LAYOUT}}
