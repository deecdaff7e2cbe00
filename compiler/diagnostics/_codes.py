"""Every diagnostic code, with its title and default severity.

Ranges: PD0xx input and syntax, PD1xx meaning of a spec, PD2xx parallelism legality, PD3xx resources and objectives,
PD4xx the lowered graph (verifier), PD5xx passes and plugins, PD6xx outputs, PD7xx drawings and
strategy files from elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CodeInfo:
    """Title (the fault, never the cure) and default severity of a code."""

    title: str
    severity: str = "error"


CODES: dict[str, CodeInfo] = {
    # input and syntax
    "PD001": CodeInfo("file not found or not readable"),
    "PD002": CodeInfo("file too large"),
    "PD003": CodeInfo("file is not text"),
    "PD004": CodeInfo("file is empty"),
    "PD010": CodeInfo("unexpected input"),
    "PD011": CodeInfo("unknown key"),
    "PD012": CodeInfo("given twice"),
    "PD013": CodeInfo("missing block or key"),
    "PD014": CodeInfo("wrong unit"),
    "PD015": CodeInfo("value out of range"),
    "PD016": CodeInfo("unknown name"),
    "PD017": CodeInfo("too many errors"),
    "PD020": CodeInfo("unsupported model type"),
    "PD021": CodeInfo("malformed Hugging Face config"),
    "PD022": CodeInfo("path outside the file's folder"),
    # meaning of a spec
    "PD101": CodeInfo("model dimensions contradict one another"),
    "PD102": CodeInfo("parameter claim contradicts the dimensions", "warning"),
    "PD103": CodeInfo("assumption made", "note"),
    "PD104": CodeInfo("phase has no strategy", "note"),
    "PD105": CodeInfo("workload incomplete"),
    "PD106": CodeInfo("context longer than the model's maximum", "warning"),
    # parallelism legality
    "PD201": CodeInfo("unknown parallel dimension"),
    "PD202": CodeInfo("inverted nesting"),
    "PD203": CodeInfo("dimension given twice"),
    "PD204": CodeInfo("sequence parallelism in decode", "note"),
    "PD205": CodeInfo("no whole number of rank groups"),
    "PD206": CodeInfo("rank axes do not nest"),
    "PD207": CodeInfo("GPUs not matching the cluster"),
    "PD208": CodeInfo("GPUs left unused", "warning"),
    "PD209": CodeInfo("dimension where it has nothing to split"),
    "PD211": CodeInfo("heads not divisible"),
    "PD212": CodeInfo("KV heads neither split nor replicated"),
    "PD213": CodeInfo("FFN width not divisible"),
    "PD214": CodeInfo("quantization block cut"),
    "PD215": CodeInfo("experts not divisible"),
    "PD216": CodeInfo("layers and stages do not match"),
    "PD217": CodeInfo("more shards than tokens"),
    "PD218": CodeInfo("more micro-batches than sequences"),
    "PD219": CodeInfo("attention-DP groups without requests", "warning"),
    "PD220": CodeInfo("chunk smaller than the micro-batch"),
    "PD221": CodeInfo("unbalanced stages", "warning"),
    "PD222": CodeInfo("dense model with attention DP", "note"),
    "PD223": CodeInfo("unknown option value"),
    "PD224": CodeInfo("kind of parallelism not supported yet"),
    # resources and objectives
    "PD301": CodeInfo("over memory"),
    "PD302": CodeInfo("TTFT requirement missed", "warning"),
    "PD303": CodeInfo("TPOT requirement missed", "warning"),
    "PD304": CodeInfo("throughput requirement missed", "warning"),
    "PD305": CodeInfo("group spans the slow link", "warning"),
    "PD306": CodeInfo("graph too large"),
    # the lowered graph
    "PD401": CodeInfo("cycle"),
    "PD402": CodeInfo("value used before it is defined"),
    "PD403": CodeInfo("operand shapes disagree"),
    "PD404": CodeInfo("placement not accepted"),
    "PD405": CodeInfo("missing collective"),
    "PD406": CodeInfo("redundant collective"),
    "PD407": CodeInfo("wrong collective for its placements"),
    "PD408": CodeInfo("stage crossed without a send"),
    "PD409": CodeInfo("send without receive"),
    "PD410": CodeInfo("KV cache leaves its owners"),
    "PD411": CodeInfo("KV read before write"),
    "PD412": CodeInfo("layer missing or twice"),
    "PD413": CodeInfo("dispatch without combine"),
    "PD414": CodeInfo("lowered graph differs from the logical one"),
    "PD415": CodeInfo("dangling node"),
    "PD416": CodeInfo("group not a set of mesh axes"),
    "PD417": CodeInfo("operator not allowed at this level"),
    "PD418": CodeInfo("malformed textual IR"),
    "PD419": CodeInfo("tokens cut inconsistently"),
    "PD420": CodeInfo("name defined twice"),
    "PD421": CodeInfo("weight not cut as its level demands"),
    # passes and plugins
    "PD501": CodeInfo("pass not found"),
    "PD502": CodeInfo("pass failed"),
    "PD503": CodeInfo("pass specification malformed"),
    # outputs
    "PD601": CodeInfo("output not writable"),
    "PD602": CodeInfo("Graphviz not installed", "warning"),
    "PD603": CodeInfo("drawing too large", "warning"),
    "PD604": CodeInfo("drawing not laid out", "warning"),
    # drawings and strategy files from elsewhere
    "PD701": CodeInfo("malformed DOT text"),
    "PD702": CodeInfo("text around the drawing"),
    "PD703": CodeInfo("drawing cut off"),
    "PD704": CodeInfo("program instead of a drawing"),
    "PD705": CodeInfo("several drawings in one file", "note"),
    "PD706": CodeInfo("drawing too large to read"),
    "PD707": CodeInfo("no drawing in the file"),
    "PD708": CodeInfo("drawing without directions"),
    "PD710": CodeInfo("cycle in a drawing"),
    "PD711": CodeInfo("dangling node in a drawing"),
    "PD712": CodeInfo("isolated node in a drawing"),
    "PD713": CodeInfo("edge to an undeclared node", "warning"),
    "PD714": CodeInfo("node drawn twice with different labels"),
    "PD720": CodeInfo("node without a device", "warning"),
    "PD721": CodeInfo("vague device", "warning"),
    "PD722": CodeInfo("GPU number beyond the stated count"),
    "PD723": CodeInfo("collective with one participant"),
    "PD724": CodeInfo("communication without a source or a target"),
    "PD725": CodeInfo("GPU boundary crossed without communication"),
    "PD730": CodeInfo("gap in the layer numbers", "warning"),
    "PD731": CodeInfo("fewer layers drawn than stated", "warning"),
    "PD740": CodeInfo("compute node without dimensions", "warning"),
    "PD741": CodeInfo("output and input dimensions disagree"),
    "PD742": CodeInfo("experts without dispatch"),
    "PD743": CodeInfo("experts without combine"),
    "PD744": CodeInfo("router without a dashed route edge", "warning"),
    "PD745": CodeInfo("phases not separated"),
    "PD746": CodeInfo("decode without a KV cache"),
    "PD747": CodeInfo("shape against the convention", "note"),
    "PD750": CodeInfo("malformed JSON"),
    "PD751": CodeInfo("no strategy understood"),
    "PD752": CodeInfo("GPU count is the product of all degrees"),
    "PD753": CodeInfo("stated GPUs contradict the degrees"),
    "PD754": CodeInfo("statements contradict one another"),
    "PD755": CodeInfo("phase not named", "warning"),
    "PD756": CodeInfo("keys understood", "note"),
    "PD757": CodeInfo("weights missing from the memory figure"),
    "PD758": CodeInfo("training option in an inference strategy", "note"),
}
