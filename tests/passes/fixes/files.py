"""Random strategy files, most of them illegal, in all sorts of formatting."""

from __future__ import annotations

from hypothesis import strategies as st

from paradag.tests.passes.validation.cases import DENSE, MOE

FP8 = DENSE.replace("hidden 1024", "hidden 1024 dtype fp8").replace("head_dim 64", "head_dim 128")
ODD = DENSE.replace("heads 16 kv_heads 4", "heads 24 kv_heads 6").replace("ffn 2048", "ffn 1000")

_DEGREES = st.sampled_from((1, 2, 2, 3, 4, 4, 6, 8, 12, 16, 48))
_GAPS = ("  ", "\n    ", "   # why\n    ", "\t")


@st.composite
def files(draw: st.DrawFn) -> str:
    """The text of a file that the grammar takes; its strategies are whatever comes."""
    model = draw(st.sampled_from((DENSE, MOE, FP8, ODD)))
    name = model.split()[1]
    nodes = draw(st.sampled_from(("any of 8", "1 of 8", "2 of 8", "4 of 4")))
    batch, tokens = draw(st.sampled_from((1, 3, 16, 64))), draw(st.sampled_from((1, 5, 512)))
    head = model.replace(f"model {name}", f'model "{name}"', 1)
    cluster = f"cluster {{ accelerator h100_sxm  nodes {nodes} }}  # the machines"
    work = f"workload {{ batch {batch}  input {tokens} tokens output 8 tokens }}"
    shared = draw(st.booleans())
    heads = (
        ("strategy",)
        if shared
        else draw(
            st.sampled_from((("strategy prefill", "strategy decode"), ("strategy prefill",), ("strategy decode",)))
        )
    )
    blocks = [f"{h} {{{draw(_bodies())}}}" for h in heads]
    return "\n".join([head, cluster, work, *blocks]) + draw(st.sampled_from(("\n", "", "\n# the end")))


@st.composite
def _bodies(draw: st.DrawFn) -> str:
    gap = st.sampled_from(_GAPS)
    names = draw(st.lists(st.sampled_from(("dp", "pp", "sp", "ep", "tp")), max_size=4, unique=draw(st.booleans())))
    if draw(st.integers(0, 2)):
        names.sort(key=("dp", "pp", "sp", "ep", "tp").index)
    terms = [draw(_terms(n)) for n in names]
    chain = terms[0] if terms else ""
    for term in terms[1:]:
        chain += f"{draw(gap)}->{draw(gap)}{term}"
    options = draw(
        st.lists(
            st.sampled_from(
                (
                    "ranks 8",
                    "ranks 6",
                    "microbatches 3",
                    "microbatches 70",
                    "chunk 2 tokens",
                    "chunk 512",
                    "pools separate",
                    "placement tp pp",
                    "placement pp adp sp tp",
                    "placement tp warp",
                )
            ),
            max_size=2,
            unique_by=lambda o: o.split()[0],
        )
    )
    # a list of axes would go on into a chain that follows it, so placement stands behind
    before = draw(st.booleans()) and not any(o.startswith("placement") for o in options)
    parts = [*options, chain] if before else [chain, *options]
    return "".join(draw(gap) + p for p in parts if p) + draw(st.sampled_from((" ", "\n", "  # last\n")))


@st.composite
def _terms(draw: st.DrawFn, name: str) -> str:
    spelt = draw(st.sampled_from((name,) * 12 + (name.upper(), name[0] + name, "warp")))
    if name == "sp" and not draw(st.integers(0, 4)):
        return "sp tp"
    text = f"{spelt} {draw(_DEGREES)}"
    if name == "sp":
        text += draw(st.sampled_from(("", "", " kind allgather", " kind ring", " kind ulysses", " kind spiral")))
    options = {
        "pp": ("", "", "", " { layers 4 4 }", " { layers 3 3 2  # uneven\n }", "{layers 1 2 3}"),
        "ep": ("", "", " { redundant 32 }", " { etp 2 }", " { etp 3  redundant 1 }"),
        "tp": ("", "", "", "", " { layers 4 4 }"),
    }
    return text + draw(st.sampled_from(options.get(name, ("",))))
