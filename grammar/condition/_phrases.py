"""What a line of a Markdown condition file means: a table from the words of its key to fields of the spec."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ...compiler.spec.catalog import accelerator_names
from ._values import (
    bandwidth,
    catalogued,
    compute,
    count,
    dtype_of,
    first_number,
    no_bound,
    seconds,
    share,
    size,
    throughput,
    token_range,
)

__all__ = ["NotUnderstood", "meaning"]

Values = dict[str, Any]

CHIP = "cluster.accelerator"


class NotUnderstood(Exception):
    """A value of a known key that is not written as such a value is."""

    def __init__(self, text: str, expected: str) -> None:
        self.expected = expected
        super().__init__(text)


def meaning(section: str, key: str, value: str) -> Values | str | None:
    """Fields that a line states.

    Args:
        section: Heading above it, in lower case.
        key: Words before the colon.
        value: Words behind it.

    Returns:
        Values by dotted path; a string that says why the line sets nothing; None where the key is unknown.

    Raises:
        NotUnderstood: the key is known and the value is none.
    """
    words = " ".join(key.lower().split())
    tables = (_STRATEGY, _KEYS) if re.search(r"parallel|strateg", section) else (_KEYS,)
    for table in tables:
        for pattern, read in table:
            if re.search(pattern, words):
                return read(value)
    return None


# --- readers of values ------------------------------------------------------------------------------------------------


def _figure(path: str, read: Callable[[str], float | None], expected: str) -> Callable[[str], Values | str]:
    def reader(value: str) -> Values | str:
        if no_bound(value):
            return "no value given"
        found = read(value)
        if found is None:
            raise NotUnderstood(f"no such figure in `{value[:60]}`", expected)
        return {path: found}

    return reader


def _whole(path: str, expected: str = "a whole number") -> Callable[[str], Values | str]:
    def read(value: str) -> float | None:
        number = count(value)
        return int(number) if number is not None and 1 <= number < 2**31 and number == int(number) else None

    return _figure(path, read, expected)


def _gpus(value: str) -> Values | str:
    """``Ample GPU resources``, ``16 nodes of 8``, ``2 x H100``, ``128``, and the chip's name if the line has it."""
    values: Values = {}
    if chip := catalogued(value, accelerator_names()):
        values[f"{CHIP}.catalog"] = chip
    nodes = re.search(
        r"(?i)([0-9]{1,7})\s*(?:nodes?|servers?|machines?)(?:\s*(?:of|x|\u00d7|with)\s*([0-9]{1,6}))?", value
    )
    total = re.search(r"(?i)(?<![\w.])([0-9]{1,7})\s*(?:x|\u00d7|\*|gpus?|npus?|cards?|devices?|$|\.)", value.strip())
    if re.search(r"(?i)ample|unlimited|no limit|sufficient|abundant|as many", value):
        values["cluster.nodes"] = None
    elif nodes:
        values["cluster.nodes"] = int(nodes[1])
        if nodes[2]:
            values["cluster.gpus_per_node"] = int(nodes[2])
    elif total:
        values["gpus.available"] = int(total[1])
    if not values:
        if no_bound(value):
            return "no value given"
        raise NotUnderstood(f"no count in `{value[:60]}`", "`Ample`, `128`, or `16 nodes of 8`")
    return values


def _layers(value: str) -> Values:
    """``94-layer, Each layer includes GQA + MOE, each layer has 128 experts.``."""
    values: Values = {}
    bare = re.fullmatch(r"\s*([0-9]{1,6})\.?\s*", value)
    if number := re.search(r"(?i)([0-9]{1,6})\s*-?\s*layers?\b", value) or bare:
        values["model.layers.count"] = int(number[1])
    if dense := re.search(r"(?i)first\s+([0-9]{1,5})\s+(?:layers?\s+)?(?:are\s+)?dense", value):
        values["model.layers.dense"] = int(dense[1])
    values |= _attention_kind(value)
    if experts := re.search(r"(?i)([0-9]{1,6})\s+(?:routed\s+)?experts", value):
        values["model.moe.experts"] = int(experts[1])
    if not values:
        raise NotUnderstood(f"no layers in `{value[:60]}`", "such as `94-layer, GQA + MoE, 128 experts each`")
    return values


def _attention_kind(value: str) -> Values:
    kinds = (
        ("mla", r"\bMLA\b|latent attention"),
        ("gqa", r"\bGQA\b|grouped[- ]query"),
        ("mqa", r"\bMQA\b|multi[- ]query"),
        ("mha", r"\bMHA\b|multi[- ]head"),
    )
    kind = next((k for k, pattern in kinds if re.search(rf"(?i){pattern}", value)), None)
    return {"model.attention.kind": kind} if kind else {}


def _dimensions(value: str) -> Values:
    """``The number of heads is 64 and the dimension of each heads is 128``."""
    values: Values = {}
    if heads := re.search(r"(?i)heads?\D{0,12}?([0-9]{1,6})|([0-9]{1,6})\s+heads", value):
        values["model.attention.heads"] = int(heads[1] or heads[2])
    if each := re.search(r"(?i)dim(?:ension)?s?\b\D{0,40}?([0-9]{1,6})", value):
        values["model.attention.head_dim"] = int(each[1])
    if not values:
        raise NotUnderstood(f"no heads in `{value[:60]}`", "such as `heads 64, dimension of each head 128`")
    return values


def _lengths(value: str) -> Values:
    pair = token_range(value)
    if pair:
        return {"workload.sequence": pair}
    number = count(value)
    if number is None or number < 1:
        raise NotUnderstood(f"no length in `{value[:60]}`", "`1024 tokens`, or a range such as `128 ~ 10240`")
    return {"workload.input": int(number)}


def _precision(path: str) -> Callable[[str], Values]:
    def reader(value: str) -> Values:
        found = dtype_of(value)
        if found is None:
            raise NotUnderstood(f"no number format in `{value[:60]}`", "fp32 fp16 bf16 fp8 int8 int4 nvfp4 mxfp4")
        return {path: found}

    return reader


def _throughput(value: str) -> Values | str:
    return _figure("workload.require.throughput", throughput, "such as `20000 tokens/s`")(value)


def _per_gpu(value: str) -> Values | str:
    return _figure("workload.require.throughput_per_gpu", throughput, "such as `100 tokens/ms`")(value)


def _whole_model(value: str) -> Values | str:
    """``16-layer Mixture-of-Experts (MoE), Each layer has 64 experts``, or just a name."""
    try:
        return _layers(value)
    except NotUnderstood:
        return {"model.name": value.strip(" .")} if value.strip(" .") else "no value given"


def _name(value: str) -> Values | str:
    return {"model.name": value.strip()} if value.strip() else "no value given"


def _chip(value: str) -> Values:
    known = catalogued(value, accelerator_names())
    return {f"{CHIP}.catalog": known} if known else {f"{CHIP}.name": value.strip(" .")[:80]}


def _link(name: str) -> Callable[[str], Values]:
    def reader(value: str) -> Values:
        values: Values = {}
        if (rate := bandwidth(value)) is not None:
            values[f"cluster.{name}.bandwidth"] = rate
        latency = seconds(value)
        if latency is not None and (rate is None or "latency" in value.lower()):
            values[f"cluster.{name}.latency"] = latency
        if not values:
            raise NotUnderstood(f"no bandwidth in `{value[:60]}`", "such as `200 GB/s` per GPU and direction")
        return values

    return reader


def _degree(path: str) -> Callable[[str], Values]:
    def reader(value: str) -> Values:
        number = first_number(value)
        if number is None or number != int(number) or not 1 <= number <= 1_000_000:
            raise NotUnderstood(f"no degree in `{value[:60]}`", "a whole number, such as `8` or `8-way`")
        values: Values = {f"degrees.{path}": int(number)}
        if path == "ep" and re.search(r"(?i)each expert.{0,30}(?:separate|own|one|different)", value):
            values["degrees.one_expert_per_gpu"] = True
        return values

    return reader


def _stated_total(value: str) -> Values | str:
    """``128``, or ``EP x TP x PP x DP = 64 x 8 x 2 x 2 = 2048``: what stands behind the last sign of equality."""
    last = value.rpartition("=")[2]
    number = first_number(last)
    if number is None or number != int(number) or not 1 <= number < 2**31:
        return "no total given"
    return {"gpus.stated": int(number)}


Table = tuple[tuple[str, Callable[[str], Values | str]], ...]

_STRATEGY: Table = (
    (r"total (?:gpus?|npus?|cards?|devices?)|^(?:number of )?(?:gpus?|npus?|cards?|devices?)", _stated_total),
    (r"tensor|\btp\b", _degree("tp")),
    (r"pipeline|\bpp\b", _degree("pp")),
    (r"expert|\bep\b", _degree("ep")),
    (r"sequence|context|\b[sc]p\b", _degree("sp")),
    (r"data|\bdp\b", _degree("dp")),
)
"""Keys of a section on parallelism, before all others."""

_KEYS: Table = (
    # requirements first: their keys hold words of others ("time per output token")
    (r"\bttft\b|first token", _figure("workload.require.ttft", seconds, "a time such as `30s`")),
    (r"\btpot\b|\bitl\b|per output token", _figure("workload.require.tpot", seconds, "a time such as `50 ms`")),
    (r"throughput.{0,20}per (?:gpu|npu|card)|per[- ](?:gpu|npu|card) throughput", _per_gpu),
    (r"throughput", _throughput),
    (r"request rate|\bqps\b|\brps\b|arrival", _figure("workload.rate", count, "requests per second")),
    # the chip
    (r"mfu|compute (?:utilization|efficiency)", _figure(f"{CHIP}.compute_efficiency", share, "a share such as `60%`")),
    (r"bandwidth (?:utilization|efficiency)|mbu", _figure(f"{CHIP}.bandwidth_efficiency", share, "such as `80%`")),
    (r"comput\w* (?:power|performance|capability)|flops", _figure(f"{CHIP}.compute.*", compute, "400 TFLOPS")),
    (r"nvlink|scale[- ]?up|intra[- ]?node|hccs|inside (?:a|the) node", _link("scale_up")),
    (r"scale[- ]?out|inter[- ]?node|infiniband|rdma|roce|between nodes|network bandwidth", _link("scale_out")),
    (r"pcie|host (?:link|bandwidth)", _link("host")),
    (r"(?:vram|hbm|memory|dram) bandwidth|^bandwidth$", _figure(f"{CHIP}.bandwidth", bandwidth, "such as `1.8 TB/s`")),
    (r"memory|vram|hbm", _figure(f"{CHIP}.memory", size, "a size such as `64 GB`")),
    (r"(?:gpus?|npus?|cards?) per (?:node|server)", _whole("cluster.gpus_per_node")),
    (r"^(?:number of )?(?:nodes?|servers?)$", _whole("cluster.nodes")),
    (r"accelerator|chip|(?:gpu|npu|card) (?:type|model|name)", _chip),
    (r"^(?:number of )?(?:gpus?|npus?|cards?|devices?)\b", _gpus),
    # the model
    (r"^(?:model )?name$", _name),
    (r"^model$", _whole_model),
    (r"weights?|parameters", _figure("model.weights", count, "a count such as `235B`")),
    (r"kv[- ]?cache (?:precision|dtype|format)|kv dtype", _precision("model.kv_dtype")),
    (r"precision|dtype|quantiz|data type", _precision("model.dtype")),
    (r"kv heads?|key[- /]?value heads", _whole("model.attention.kv_heads")),
    (r"dimension of (?:mha|attention|gqa|mqa|heads)|attention dimension", _dimensions),
    (r"head dim|dimension of each head", _whole("model.attention.head_dim")),
    (r"(?:number of |query |attention )heads|^heads$", _whole("model.attention.heads")),
    (r"vocab", _whole("model.vocab")),
    (r"top[- ]?k", _whole("model.moe.top_k")),
    (r"shared experts?", _whole("model.moe.shared")),
    (r"hidden size of moe|moe (?:hidden|intermediate|ffn)|expert (?:hidden|ffn|width)", _whole("model.moe.ffn")),
    (r"(?:number of |routed )?experts", _whole("model.moe.experts")),
    (r"token dimension|^hidden|model dimension|embedding dimension", _whole("model.hidden")),
    (r"ffn|intermediate size|mlp", _whole("model.ffn")),
    (r"(?:max(?:imum)? )context|context window", _whole("model.max_context")),
    (r"sliding window|^window", _whole("model.attention.window")),
    (r"^attention", lambda v: _attention_kind(v) or "no kind of attention"),
    (r"layers?", _layers),
    # the work
    (r"batch", _whole("workload.batch")),
    (r"sequence in|^input|prompt", _whole("workload.input")),
    (r"sequence out|^output|generat|decode length", _whole("workload.output")),
    (r"sequence", _lengths),
)
