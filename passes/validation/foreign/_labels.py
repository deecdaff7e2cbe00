"""What a label of a foreign drawing says: operator, devices, layers, dimensions. Silent where it is not understood."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache

from ....grammar.dot_reader import DotEdge, DotGraph, DotNode

__all__ = ["Devices", "Facts", "Kind", "Shape", "devices_of", "facts_of", "is_communication", "layers_of"]

_MAX_TEXT = 2_000
_MAX_RANGE = 100_000


class Kind(StrEnum):
    """What a node does."""

    COMPUTE = "compute"
    EXPERT = "expert"
    ROUTER = "router"
    COLLECTIVE = "collective"
    TRANSFER = "transfer"
    MOVE = "move"
    """Split, concatenation, aggregation: on one GPU or across, as the label may mean."""
    CACHE = "cache"
    PHASE = "phase"
    ENDPOINT = "endpoint"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Devices:
    """The devices that a text names. ``numbers`` is None where it names some that are not understood."""

    numbers: frozenset[int] | None = None
    vague: str | None = None
    """The wording, where it names no device in particular."""
    stated: bool = False


Shape = tuple[int, ...]


@dataclass
class Facts:
    """What is known of one node."""

    node: DotNode
    title: str
    kind: Kind
    devices: Devices
    layers: frozenset[int]
    folded: bool
    """Whether the node stands for more layers than it names."""
    mentions_communication: bool
    has_dims: bool
    inputs: list[Shape] = field(default_factory=list)
    """Input dimensions, where all are numbers."""
    outputs: list[Shape] = field(default_factory=list)


_COLLECTIVE = re.compile(
    r"all[-_ ]?reduce|all[-_ ]?gather|reduce[-_ ]?scatter|all[-_ ]?(?:to|2)[-_ ]?all|\ba2a\b|broadcast|"
    r"\bdispatch|\bcombine\b|all[-_ ]?sum",
    re.I,
)
_TRANSFER = re.compile(
    r"\bsend\b|\brecv\b|\breceive|\btransfer|communicat|\bcomm\b|\bp2p\b|\bscatter|\bgather\b|\bexchange|"
    r"token (?:routing|shuffle|distribut|redistribut)|"
    r"\broute (?:to|tokens?)|\bsync\b|synchroni[sz]|\bring[- ](?:pass|comm|send|step|shift)|pipeline (?:link|"
    r"hop)|\bbarrier\b",
    re.I,
)
_MOVE = re.compile(
    r"\bsplit|\bconcat|aggregat|\bmerge\b|\bpartition|\bshard tokens|\bdistribut|\bcollect\b|\breshape|"
    r"\bslice\b|weighted sum|\bcombin|\bselect(?:ion|or)?\b",
    re.I,
)
_ROUTER = re.compile(
    r"\brouter\b|\bgating\b|\bgate (?:network|layer|router)|\b(?:moe|expert) gate\b|\bgate\b(?! ?(?:proj|mul|"
    r"up|linear|fc))|top[-_ ]?\d?k?\d? ?(?:routing|selection)|\brouting\b",
    re.I,
)
_EXPERT = re.compile(r"\bexperts?\b[-_ ]?\d*", re.I)
_CACHE = re.compile(
    r"\bkv[-_ ]?(?:cache|store|write|read)|\bcache (?:read|write|store|update|append)|past[-_ ]key", re.I
)
_COMPUTE = re.compile(
    r"attention|\battn\b|\bm[hlq]a\b|\bgqa\b|\bqkv\b|\b[qkvo][-_ ]?(?:proj|linear)|\bproj(?:ection)?\b|"
    r"linear|\bml?p\b|\bffn\b|feed[-_ ]?forward|norm\b|\bln\d*\b|embed|rotary|\brope\b|"
    r"softmax|\bgelu\b|\bsilu\b|swi(?:glu|sh)|activation|\bscores?\b|matmul|\bgemm\b|lm[-_ ]?head|residual|"
    r"\badd\b|dropout|\bmlp\b|\bmoe\b|\bfc\d?\b|\bmultiply\b",
    re.I,
)
_PHASE = re.compile(r"(?:prefill|decode)[-_ ]*(?:step)?[-_ ]*(?:begin|end|start|done|complete|finish)", re.I)
_ENDPOINT = re.compile(
    r"^(?:\W*(?:model|total|final|overall|system|network|raw|user|dp\d*|replica|batch|token|layer|stage|"
    r"micro[- ]?batch)?[-_ ]*\d*[-_ ]*)?(?:inputs?|outputs?|tokens?|token ids|prompts?|requests?|responses?|"
    r"results?|logits|start|end|begin|sink|source|sampl\w*|predictions?)\b(?! ?(?:proj|linear|agg|split|"
    r"embed|rout|scatter|gather|comm|norm))",
    re.I,
)
_FOLD = re.compile(
    r"[x\u00d7*]\s?\d+ ?(?:layers?|more|times|blocks?)?\b|same (?:structure|pattern|as)|repeat|similar|"
    r"identical|\.\.\.|…|layers? \d+ ?(?:-|\u2013|to) ?\d+|remaining|continue",
    re.I,
)

# blanks, but no line end: the next line speaks of something else
_NUMBERS = r"\d+(?:[^\S\n]*(?:-|\u2013|\.\.\.?|to(?=[^\S\n]*\d)|:)[^\S\n]*\d+)?"
_VALUE = rf"[\[({{]?[^\S\n]*({_NUMBERS}(?:[^\S\n]*[,&+][^\S\n]*{_NUMBERS})*)(?![\w.%/@])"
_WORD = r"(?:GPUs?|NPUs?|XPUs?|Devices?)"
_FIELD = re.compile(
    rf"(?<![\w/]){_WORD}[^\S\n]*(?:IDs?|range|group|assignment)?[^\S\n]*[:=][^\S\n]*([^\n|;]{{0,120}})", re.I
)
_INLINE = re.compile(rf"(?<![\w/])(?<!per )(?<!each )(?:{_WORD}[ \t_#]*|gpu_?|dev_?){_VALUE}", re.I)
_IN_NAME = re.compile(r"(?:^|_)(?:gpu|device|dev|npu)_?(\d{1,6})(?=_|$)", re.I)
_PREFIX = re.compile(
    r"^[\s\[({]*(?:(?:all|shared|gpus?|npus?|devices?|across|on|ids?|over|broadcast to)[\s:_(]*)*", re.I
)
_VAGUE = re.compile(
    r"\b(?:all|every|each|any|various|multiple|several|shared|distributed|respective|target|tbd|"
    r"unspecified)\b|\d\s*-?\s*\.\.(?!\s*\d)|\?",
    re.I,
)
_ALL = re.compile(
    rf"\b(?:all|every|each|various|multiple|shared across|across)\s+(?:\d+\s+)?{_WORD}\b(?!\s*[\[(]?\s*\d)", re.I
)

_LAYER = re.compile(
    r"(?<![A-Za-z])(?<!linear )(?<!hidden )(?<!expert )(?<!mlp )(?<!ffn )(?<!dense )(?<!fc )"
    r"layers?[\s_#:]*(\d{1,5})(?:\s*(?:-|"
    r"\u2013|to)\s*(\d{1,5}))?(?![\d.])|(?<![A-Za-z0-9])L(\d{1,4})(?![\w.])",
    re.I,
)
_LAYER_NAME = re.compile(r"(?:^|_)(?:layer|l)_?(\d{1,5})(?=_|$)", re.I)

_BRACKET = re.compile(r"\[([^\[\]]{0,300})\]\s*([x\u00d7*]\s*\d+)?|(\d+\s*[x\u00d7*]\s*)\[[^\[\]]{0,300}\]")
_LOOSE_DIMS = re.compile(r"\b(?:batch|seq|hidden|dim)\w*\s*=\s*\w|\d+\s*(?:→|->|x|\u00d7)\s*\d+")
_IO = re.compile(r"\b(in|input|out|output)s?\s?\d*\s*(?:dims?|shape)?\s*:", re.I)


def _clean(text: str) -> str:
    return text[:_MAX_TEXT].replace("\r", "")


@lru_cache(maxsize=8192)
def devices_of(text: str) -> Devices:
    """The devices in a text: numbers, or a vague wording, or a field that is not understood."""
    found: set[int] = set()
    stated, vague = False, None
    for match in _FIELD.finditer(text):
        stated = True
        numbers, wording = _field(match[1])
        if numbers is not None:
            return Devices(numbers, None, True)
        vague = vague or wording
    if stated:
        return Devices(None, vague, True)
    for match in _INLINE.finditer(text):
        inline = _numbers(match[1])
        if inline is None:
            return Devices(None, None, True)
        found |= inline
    if found:
        return Devices(frozenset(found), None, True)
    general = _ALL.search(text)
    return Devices(None, general.group() if general else None, general is not None)


def _field(value: str) -> tuple[frozenset[int] | None, str | None]:
    """What follows `GPU:`."""
    rest = value.split("(TP", 1)[0]
    prefix = _PREFIX.match(rest)
    rest = rest[prefix.end() :] if prefix else rest
    numbers: set[int] = set()
    for part in re.split(r"→|↔|->|<->|\bto\s+gpus?\b", rest.split(" (")[0]):
        match = re.match(rf"\s*(?:{_WORD})?\s*{_VALUE}", part, re.I)
        counted = match is not None and re.match(r"\s*(?:gpus?|devices?)\b", part[match.end() :], re.I)
        got = _numbers(match[1]) if match is not None and not counted else None
        if got is None:
            numbers.clear()
            break
        numbers |= got
    lone = re.fullmatch(r"\s*(\d+)\s*(?:gpus?)?\W*", rest, re.I)
    if numbers and not (lone and re.match(r"\s*all\b", value, re.I)):
        return frozenset(numbers), None
    inner = re.search(rf"[\[(]\s*({_NUMBERS})\s*[\])]", value)
    if inner is not None and "-" in inner[1] and (got := _numbers(inner[1])) is not None:
        return frozenset(got), None
    return (None, value.strip()[:60]) if _VAGUE.search(value) else (None, None)


def _numbers(text: str) -> set[int] | None:
    found: set[int] = set()
    for first, last in re.findall(r"(\d{1,7})(?:\s*(?:-|\u2013|\.\.\.?|to|:)\s*(\d{1,7}))?", text):
        begin, end = int(first), int(last or first)
        if end < begin or end - begin > _MAX_RANGE:
            return None
        found.update(range(begin, end + 1))
    return found or None


@lru_cache(maxsize=8192)
def layers_of(text: str) -> frozenset[int]:
    """Layer numbers in a text, ranges spread out."""
    found: set[int] = set()
    for first, last, short in _LAYER.findall(text):
        begin = int(first or short)
        end = int(last) if last else begin
        if begin <= end <= begin + 1_000:
            found.update(range(begin, end + 1))
    return frozenset(found)


def is_communication(text: str) -> bool:
    """Whether a text speaks of communication."""
    return (
        _COLLECTIVE.search(text) is not None
        or _TRANSFER.search(text) is not None
        or re.search(r"\broute[ds]?\b|\btp sync|\bnvlink|\binfiniband", text, re.I) is not None
    )


def facts_of(graph: DotGraph, node: DotNode) -> Facts:
    """Everything that the node's label, name and clusters say."""
    label = _clean(node.label)
    title = _title(label) or node.name
    words = title.replace("_", " ")
    kind = _kind(words)
    if kind is Kind.UNKNOWN:
        kind = _kind(node.name.replace("_", " "))
    devices = devices_of(label)
    for cluster in () if devices.stated or node.cluster is None else node.cluster.outward():
        around = devices_of(_clean(cluster.label))
        if around.stated:
            devices = around
            break
    if not devices.stated and (named := _IN_NAME.search(node.name)):
        devices = Devices(frozenset({int(named[1])}), None, True)
    layers = layers_of(label.split("\n[")[0]) or frozenset(int(n) for n in _LAYER_NAME.findall(node.name))
    for cluster in () if layers or node.cluster is None else node.cluster.outward():
        if found := layers_of(_clean(cluster.label)):
            layers = found
            break
    inputs, outputs, has_dims = _dims(label)
    return Facts(
        node,
        title,
        kind,
        devices,
        layers,
        _FOLD.search(_without_dims(label)) is not None,
        is_communication(label),
        has_dims,
        inputs,
        outputs,
    )


def _without_dims(label: str) -> str:
    return re.sub(r"\[[^\]]*\][^\n]*", "", "\n".join(line for line in label.split("\n") if not _IO.match(line.strip())))


def _title(label: str) -> str:
    """The first line that is neither a device nor dimensions."""
    for line in label.split("\n"):
        text = line.strip()
        if (
            text
            and not _IO.match(text)
            and not text.startswith(("[", "("))
            and not re.fullmatch(rf"{_WORD}\s*[:_ ]?\s*[\d,\- ]+|layers?[ _]?\d+", text, re.I)
        ):
            return text
    return label.strip().split("\n")[0]


def _kind(words: str) -> Kind:
    if _PHASE.search(words):
        return Kind.PHASE
    if _CACHE.search(words):
        return Kind.CACHE
    if re.search(r"\b(?:send|recv|receive)\b", words, re.I):
        return Kind.TRANSFER
    if _COLLECTIVE.search(words):
        return Kind.COLLECTIVE
    expert_unit = re.search(r"\bexpert[-_ ]?\d+", words, re.I) is not None
    if _TRANSFER.search(words):
        return Kind.TRANSFER
    if _ENDPOINT.search(words):
        return Kind.ENDPOINT
    if expert_unit and not re.search(r"aggregat|combin|gather|select|layers", words, re.I):
        return Kind.EXPERT
    if _MOVE.search(words) and not re.search(r"attention\b", words, re.I):
        return Kind.MOVE
    if _ROUTER.search(words) and not re.search(
        r"\b(?:ffn|mlp|attn|swiglu|glu)", re.sub(r"moe|expert", " ", words), re.I
    ):
        return Kind.ROUTER
    if _EXPERT.search(words) and not re.search(r"output|parallel|layer|block|group|cluster", words, re.I):
        return Kind.EXPERT
    return Kind.COMPUTE if _COMPUTE.search(words) else Kind.UNKNOWN


def _dims(label: str) -> tuple[list[Shape], list[Shape], bool]:
    """Input and output dimensions, and whether there are dimensions at all."""
    sides: dict[str, list[Shape]] = {"in": [], "out": []}
    unclear: set[str] = set()
    found = False
    for line in label.split("\n"):
        heads = list(_IO.finditer(line))
        for head, after in zip(heads, [*heads[1:], None], strict=False):
            side = "in" if head[1].lower().startswith("in") else "out"
            part = line[head.end() : after.start() if after else None]
            for bracket in _BRACKET.finditer(part):
                found = True
                shape = None if bracket[2] or bracket[1] is None else _shape(bracket[1])
                if shape is None:
                    unclear.add(side)
                else:
                    sides[side].append(shape)
        if not heads and _BRACKET.search(line):
            found = True
    found = found or _LOOSE_DIMS.search(label) is not None
    return [] if "in" in unclear else sides["in"], [] if "out" in unclear else sides["out"], found


def _shape(inside: str) -> Shape | None:
    """The numbers between brackets; None where a dimension is no number."""
    numbers: list[int] = []
    for part in inside.split(","):
        value = part.rpartition("=")[2].strip()
        if not value.isascii() or not value.isdigit() or len(value) > 12:
            return None
        numbers.append(int(value))
    return tuple(numbers)


def edge_communicates(edge: DotEdge) -> bool:
    """Whether the edge's own label says that data moves between GPUs."""
    return bool(edge.label) and (is_communication(edge.label) or re.search(r"gpu", edge.label, re.I) is not None)
