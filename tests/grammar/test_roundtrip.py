"""Reading the printed form of a spec gives the same spec."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from paradag.compiler.spec import DTYPES, LoadedSpec, Spec
from paradag.compiler.spec.catalog import accelerator_names
from paradag.compiler.spec.model import MAX_SIZE
from paradag.grammar import load_text, print_spec
from paradag.grammar._tables import grammar

Draw = Any
REQUIREMENTS = ("ttft", "tpot", "throughput", "throughput_per_gpu")

sizes = st.one_of(st.integers(1, 300), st.integers(1, MAX_SIZE))
amounts = st.one_of(
    st.integers(1, 10**6).map(float),
    st.floats(min_value=1e-9, max_value=1e18, exclude_min=True),
    st.sampled_from([1.8e12, 64e9, 64 * 2.0**30, 0.1 + 0.2, 3e-6, 5e-324, 1.7976931348623157e308]),
)
shares = st.one_of(st.integers(1, 100).map(lambda n: n / 100), st.floats(min_value=1e-300, max_value=1))
dtypes = st.sampled_from(sorted(DTYPES))
names = st.one_of(st.text(max_size=20), st.text('"\\\n\t#{}é\u2028\x85\ud800', max_size=8))
options = set(grammar().keys["strategy"])
words = st.one_of(
    st.sampled_from(["dp", "pp", "sp", "ep", "tp", "cp", "hf", "layers", "model", "at", "kind"]),
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}(-[a-z0-9]{1,3})?", fullmatch=True),
)


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


@st.composite
def attentions(draw: Draw, window: bool) -> dict[str, Any]:
    kind = draw(st.sampled_from(["mha", "mqa", "gqa", "mla"]))
    kv_heads = draw(st.integers(1, 16))
    heads = kv_heads * draw(st.integers(1, 16))
    fields: dict[str, Any] = {"kind": kind, "heads": heads, "dtype": draw(maybe(dtypes))}
    if window:
        fields["window"] = draw(maybe(sizes))
    if kind == "mla":
        dims = {key: draw(st.integers(1, 10**6)) for key in ("kv_lora", "nope_dim", "rope_dim", "v_dim")}
        dims["rope_dim"] *= 2  # features turn in pairs
        fields["q_lora"] = draw(maybe(sizes))
        return fields | dims | {"kv_heads": 1, "head_dim": dims["nope_dim"] + dims["rope_dim"]}
    return fields | {
        "kv_heads": {"mha": heads, "mqa": 1, "gqa": kv_heads}[kind],
        "head_dim": 2 * draw(st.integers(1, MAX_SIZE // 2)),
        "qk_norm": draw(st.sampled_from(["none", "head", "full"])),
        "bias": draw(st.sampled_from(["none", "qkv", "all"])),
        "sinks": draw(st.booleans()),
    }


@st.composite
def rotaries(draw: Draw, attention: dict[str, Any]) -> dict[str, Any]:
    factors = st.one_of(st.integers(1, 64), st.floats(1, 1e6))
    weights = st.floats(1e-3, 1e3)
    lengths = {"factor": factors, "original": sizes}
    yarn = {"beta_fast": weights, "beta_slow": weights, "truncate": st.booleans()}
    yarn |= {key: maybe(weights) for key in ("mscale", "mscale_all_dim", "attention_factor")}
    bounds = {"low_freq": st.floats(0.1, 2), "high_freq": st.floats(3, 1e3)}
    fixed = {kind: {"kind": st.just(kind)} for kind in ("yarn", "llama3", "linear")}
    scalings = st.one_of(
        st.fixed_dictionaries(fixed["yarn"] | lengths, optional=yarn),
        st.fixed_dictionaries(fixed["llama3"] | lengths, optional=bounds),
        st.fixed_dictionaries(fixed["linear"] | {"factor": factors}),
    )
    wide = attention["head_dim"] if attention["kind"] != "mla" else 0
    return {
        "theta": draw(st.sampled_from([1e4, 5e5, 1e6]) | st.floats(1.5, 1e9)),
        "style": draw(st.sampled_from(["half", "interleaved"])),
        "dim": draw(maybe(st.integers(1, wide // 2).map(lambda n: 2 * n))) if wide > 1 else None,
        "scaling": draw(maybe(scalings)),
    }


@st.composite
def moes(draw: Draw) -> dict[str, Any]:
    groups = draw(st.integers(1, 8))
    per_group = draw(st.integers(1, 64))
    top_groups = draw(st.integers(1, groups))
    return {
        "experts": groups * per_group,
        "groups": groups,
        "top_groups": top_groups,
        "top_k": draw(st.integers(1, top_groups * per_group)),
        "ffn": draw(sizes),
        "shared": draw(st.integers(0, 4)),
        "router": draw(st.sampled_from(["softmax", "sigmoid", "topk_softmax"])),
        "bias": draw(st.booleans()),
        "renormalize": draw(st.booleans()),
        "scale": draw(amounts),
        "dtype": draw(maybe(dtypes)),
    }


@st.composite
def models(draw: Draw) -> dict[str, Any]:
    count = draw(st.integers(1, 12))
    moe = draw(maybe(moes()))
    layers: dict[str, Any] = {"count": count}
    if moe is not None:
        layers["dense"] = draw(st.integers(0, count))
        layers["dense_at"] = tuple(sorted(draw(st.sets(st.integers(0, count - 1), max_size=3))))
    pattern = draw(st.lists(st.sampled_from(["sliding", "full"]), max_size=count))
    if pattern:
        layers |= {"pattern": tuple(pattern)}
        layers |= {"window": draw(sizes)} if "sliding" in pattern else {}
    attention = draw(attentions(window=not pattern))
    return {
        "name": draw(names),
        "layers": layers,
        "hidden": draw(sizes),
        "vocab": draw(sizes),
        "ffn": draw(sizes),
        "attention": attention,
        "moe": moe,
        "tied": draw(st.booleans()),
        "rotary": draw(rotaries(attention)),
        "norm_eps": draw(shares),
        "max_context": draw(maybe(sizes)),
        "dtype": draw(dtypes),
        "kv_dtype": draw(dtypes),
        "weights": draw(maybe(amounts)),
    }


@st.composite
def accelerators(draw: Draw) -> dict[str, Any]:
    peaks = st.dictionaries(dtypes | st.just("*"), amounts, min_size=1, max_size=3)
    shared = {"compute_efficiency": draw(maybe(shares)), "bandwidth_efficiency": draw(maybe(shares))}
    if draw(st.booleans()):
        name = draw(st.sampled_from(accelerator_names()))
        return shared | {
            "name": name,
            "catalog": name,
            "compute": draw(st.just({}) | peaks),
            "memory": draw(maybe(amounts)),
            "bandwidth": draw(maybe(amounts)),
        }
    return shared | {
        "name": draw(names),
        "compute": draw(peaks),
        "memory": draw(amounts),
        "bandwidth": draw(amounts),
    }


def links(domain: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    latency = maybe(st.just(0.0) | amounts)
    return st.fixed_dictionaries({"bandwidth": maybe(amounts), "latency": latency, "domain": domain})


clusters = st.fixed_dictionaries(
    {
        "accelerator": accelerators(),
        "nodes": maybe(st.integers(1, 10**6)),
        "gpus_per_node": st.integers(1, 10**5),
        "scale_up": links(maybe(sizes)),
        "scale_out": links(st.none()),
        "host": links(st.none()),
    }
)
workloads = st.fixed_dictionaries(
    {
        "batch": maybe(sizes),
        "input": sizes,
        "output": sizes,
        "sequence": maybe(st.lists(sizes, min_size=2, max_size=2).map(sorted).map(tuple)),
        "rate": maybe(amounts),
        "mode": st.sampled_from(["both", "prefill", "decode", "mixed"]),
        "require": st.fixed_dictionaries({key: maybe(amounts) for key in REQUIREMENTS}),
    }
)
with_degree = st.fixed_dictionaries(
    {
        "name": words,
        "degree": st.integers(1, 10**6),
        "kind": maybe(words),
        "layers": st.lists(st.integers(0, 100), max_size=4).map(tuple),
        "etp": maybe(st.integers(1, 64)),
        "redundant": st.integers(0, 64),
    }
)
without_degree = st.fixed_dictionaries({"name": words, "kind": words})
chains = st.lists(with_degree | without_degree, max_size=4).filter(
    # A chain cannot begin with the name of an option, and a lone near miss of one is taken for it.
    lambda terms: not terms or (terms[0]["name"] not in options and (len(terms) > 1 or len(terms[0]["name"]) == 2))
)


def strategies(phase: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "phase": st.just(phase),
            "chain": chains,
            "ranks": maybe(st.integers(1, 10**6)),
            "microbatches": st.integers(1, 10**6),
            "chunk": maybe(sizes),
            "placement": st.permutations(["pp", "adp", "sp", "tp"]).map(tuple) | st.just(()),
            "pools": st.sampled_from(["shared", "separate"]),
        }
    )


@st.composite
def specs(draw: Draw) -> Spec:
    found = [draw(maybe(strategies(phase))) for phase in ("prefill", "decode")]
    return Spec.model_validate(
        {
            "model": draw(models()),
            "cluster": draw(clusters),
            "workload": draw(workloads),
            "strategies": tuple(s for s in found if s is not None),
        }
    )


@settings(max_examples=40)
@given(specs())
def test_printed_spec_reads_back(spec: Spec) -> None:
    text = print_spec(spec)
    loaded: LoadedSpec = load_text(text)
    assert loaded.spec == spec
    assert print_spec(loaded.spec) == text
