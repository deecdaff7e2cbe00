"""Words in drawings: GPU numbers, layer numbers, sizes, dimensions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from ..ir.mesh import Mesh
from ..ir.types import Number, TensorType

DIM_NAMES = {
    "batch": "batch_size",
    "seq": "seq_len",
    "context": "kv_len",
    "prompt": "prompt_len",
    "head_dim": "d_k",
    "v_dim": "d_v",
    "nope_dim": "d_nope",
    "kv_features": "d_kv",
    "latent": "d_latent",
    "vocab": "vocab_size",
    "slot": "experts",
    "rows": "tokens",
    "pair": "index_weight",
}
"""Dimension names of the IR to those that reviewers use; others keep theirs."""

_GROUP = "group."
_SHOWN_GROUPS = 4
"""Groups of a list that are written out before it is shortened."""

_PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def number_ranges(numbers: Iterable[int]) -> str:
    """Sorted numbers in few words: ``0-7``, ``3``, ``0, 4``, ``0, 2, 4, ... 34``, ``0-3, 8-11``."""
    ordered = sorted(set(numbers))
    if not ordered:
        return "none"
    starts = [ordered[0], *(b for a, b in pairwise(ordered) if b != a + 1)]
    ends = [*(a for a, b in pairwise(ordered) if b != a + 1), ordered[-1]]
    runs = [str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True)]
    return shortened(runs)


def shortened(words: Sequence[str]) -> str:
    """All words of a short list; of a long one the first three and the last."""
    if len(words) <= _SHOWN_GROUPS:
        return ", ".join(words)
    return f"{', '.join(words[:3])}, ... {words[-1]}"


def gpus_text(ranks: Sequence[int]) -> str:
    """``GPU 3`` or ``GPUs 0-7``."""
    return f"GPU{'' if len(set(ranks)) == 1 else 's'} {number_ranges(ranks)}"


def groups_text(groups: Sequence[Sequence[int]]) -> str:
    """Device groups on which a node is repeated: ``80 groups of 4: GPUs 0-3, 4-7, 8-11, ... 316-319``."""
    size = len(groups[0])
    if len(groups) == 1:
        return gpus_text(groups[0])
    if size == 1:
        return f"each of {gpus_text([g[0] for g in groups])}"
    words = [number_ranges(g) for g in groups]
    if any("," in w for w in words):
        words = [f"{{{w}}}" for w in words]
    return f"{len(groups)} groups of {size}: GPUs {shortened(words)}"


def quantity(value: float, unit: str) -> str:
    """A decimal quantity with three figures: ``33.6 MB``, ``1.2 TFLOP``."""
    size, index = float(value), 0
    while size >= 999.5 and index < len(_PREFIXES) - 1:
        size /= 1000
        index += 1
    text = f"{size:.0f}" if index == 0 or size >= 100 else f"{size:.3g}"
    return f"{text} {_PREFIXES[index]}{unit}"


def duration(seconds: float) -> str:
    """``0``, ``412 us``, ``1.25 ms`` or ``2.5 s``."""
    if seconds <= 0:
        return "0"
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= 0.9995 * scale:
            return f"{seconds / scale:.3g} {unit}" if seconds < 999.5 * scale else f"{seconds / scale:.0f} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def share(part: float) -> str:
    """A share of the critical path: ``31 %``, ``0.4 %``."""
    percent = 100 * part
    return f"{percent:.0f} %" if percent >= 9.95 else f"{percent:.1f} %" if percent >= 0.05 else "< 0.1 %"


def dims_text(t: TensorType, extents: Mapping[str, Number], mesh: Mesh) -> str:
    """Sizes on the fullest rank: ``[batch_size=4, seq_len=2048, heads=16, d_k=64]``.

    The routing groups, one dimension per mesh axis in the IR, are written as their product.
    """
    words: list[str] = []
    groups = 1
    local = t.local_dims(extents, mesh)
    for name, size in local.items():
        if name.startswith(_GROUP):
            groups *= int(size)
        else:
            words.append(f"{DIM_NAMES.get(name, name)}={int(size)}")
    if any(name.startswith(_GROUP) for name in local):
        words.insert(0, f"groups={groups}")
    return f"[{', '.join(words)}]"


def shapes_lines(title: str, shapes: Sequence[str]) -> list[str]:
    """``Input: [..]``, one line per distinct shape, equal ones counted."""
    counts = {shape: shapes.count(shape) for shape in shapes}
    return [f"{title}: {shape}" + (f" (x {count})" if count > 1 else "") for shape, count in counts.items()]
