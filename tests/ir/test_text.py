"""The textual IR: what is printed is read back, and what cannot be read gets a diagnostic."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paradag.compiler.diagnostics import DiagnosticError
from paradag.compiler.ir.graph import Block, Graph, Item, Node, Param, Value
from paradag.compiler.ir.mesh import Axis, Mesh
from paradag.compiler.ir.parse import MAX_CHARACTERS, parse_graph
from paradag.compiler.ir.text import KEYWORDS, print_block, print_graph, print_node, print_type
from paradag.compiler.ir.types import BATCH, CONTEXT, NEW, PAST, Dim, Extent, Placement, TensorType, tensor
from paradag.tests.strategies import lowered_levels, small_specs

REFERENCE = Path(__file__).parents[2] / "docs" / "ir.md"

SMALL = """\
graph "small" prefill level tp
mesh [adp:2 stride 4, tp:4 stride 1]
views adp{adp} sp{} tp{tp}
stages 2
items {
  microbatch 0: [batch 4, new 16]
}
stream bf16[batch{adp}, seq, hidden:64]

layer block over 0..1 {
  arg %x : bf16[batch{adp}, seq, hidden:64] from layer
  %norm = norm %x [weight: bf16[hidden:64]] : bf16[batch{adp}, seq, hidden:64]  @ffn
  down: %y = linear %norm [w: bf16[hidden:64{tp}, out:64]] : bf16[batch{adp}, seq, out:64] partial(tp: sum)
  return %y
}
"""


def roundtrip(graph: Graph) -> None:
    text = print_graph(graph)
    again = parse_graph(text)
    assert again == graph
    assert print_graph(again) == text, "equality takes 1, 1.0 and true for the same; the text does not"


@settings(max_examples=8)
@given(small_specs(), st.sampled_from(("prefill", "decode")), st.integers(1, 3))
def test_every_level_is_read_back(spec, phase, steps):
    for graph in lowered_levels(spec, phase, steps):
        roundtrip(graph)


names = (
    st.text(min_size=1, max_size=8)
    | st.sampled_from(sorted(KEYWORDS))
    | st.sampled_from(("a.b", "0", "pp", "Ω", "\ud800"))
)
plain = st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none() | names
literals = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(names, inner, max_size=3)
    ),
    max_leaves=6,
)


@given(names, st.dictionaries(names, literals, max_size=3), names)
@example("return", {"x": -0.0, "y": 1e22, "z": float("-inf"), "w": 5e-324}, "true")
def test_names_and_attributes_of_any_kind_are_read_back(name, attrs, module):
    value = Value(name, tensor("bf16", (name, 3)))
    param = Param(name, tensor("fp32", ("batch", PAST), ("seq", 7)), const=True)
    node = Node(f"{name}'", "norm", (), (value,), (param,), attrs, module, constraints={name: ()}, origin=name)
    end = Node("chunk_end", "chunk_end", (name,), items="early", steps="later", view="expert")
    block = Block(name, "layer", (0,), nodes=(node, end), result=name)
    mesh = Mesh((Axis(name, 2, 3),), {name: (name,)}, pp=2, pp_stride=1, dp=3, first_rank=5)
    stream = TensorType("bf16", (Dim(name, Extent("window", 4)),), Placement(((name,),)), 1 / 3)
    roundtrip(Graph(name, "decode", "sp", mesh, (), 4, (1,), (block,), stream, attrs))


items = st.builds(Item, *[st.integers(0, 3)] * 5, st.booleans(), st.booleans())


@given(st.lists(items, max_size=12).map(tuple))
def test_items_in_any_order_are_read_back(some):
    roundtrip(replace(parse_graph(SMALL), items=some))


@given(st.lists(st.integers(0, 30), max_size=12))
def test_layer_sets_in_any_order_are_read_back(layers):
    graph = parse_graph(SMALL)
    roundtrip(replace(graph, stages=(31,), blocks=(replace(graph.blocks[0], layers=tuple(layers)),)))


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        (range(94), "0..93"),
        (range(0, 36, 2), "0..34 by 2"),
        ([0, 1, 2, 10], "0..2, 10"),
        ([3], "3"),
        ([0, 5], "0, 5"),
        ([4, 3], "4, 3"),
    ],
)
def test_layer_sets_are_ranges(layers, text):
    assert print_block(Block("b", "layer", tuple(layers))) == f"layer b over {text} {{\n}}"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (tensor("bf16", ("batch", BATCH), ("seq", NEW), ("hidden", 64)), "bf16[batch, seq, hidden:64]"),
        (tensor("int8", ("context", CONTEXT)), "int8[context]"),
        (tensor("int8", ("context", PAST)), "int8[context:past]"),
        (tensor("int8", ("context", Extent("window", 128))), "int8[context:window(128)]"),
        (tensor("int32"), "int32[]"),
        (
            TensorType("bf16", (Dim("slot", 8),), Placement((("ep", "tp"),), (("a", "lse"), ("b", "sum")))),
            "bf16[slot:8{ep,tp}] partial(a: lse, b: sum)",
        ),
        (
            tensor("bf16", ("rows", Extent("rows", batch_axes=("adp",))), density=8 / 144),
            "bf16[rows:(batch{adp} * new)] density 1/18",
        ),
        (tensor("bf16", ("x", 1), density=0.1234567891), "bf16[x:1] density 0.1234567891"),
    ],
)
def test_types_are_short(kind, text):
    assert print_type(kind) == text


def test_a_node_that_fits_stands_on_one_line():
    out = TensorType("bf16", (Dim("batch", BATCH), Dim("hidden", 64)), Placement((("adp",), ()), (("tp", "sum"),)))
    node = Node("o", "linear", ("attn",), (Value("o_out", out),), (Param("wo", tensor("fp8", ("hidden", 64))),),
                module="attention", constraints={"batch": ()}, items="last", origin="tp")  # fmt: skip
    assert print_node(node) == (
        "o: %o_out = linear %attn [wo: fp8[hidden:64]] : bf16[batch{adp}, hidden:64] partial(tp: sum)"
        "  where batch{} @attention items last by tp"
    )


def test_micro_batches_with_equal_chunks_share_a_line():
    chunks = [Item(m, c, 2, 8, 8 * c, c == 0, c == 1) for m in range(3) for c in range(2)]
    text = print_graph(replace(parse_graph(SMALL), items=tuple(chunks)))
    assert "  microbatch 0..2: [batch 2, new 8], [batch 2, new 8, past 8]\n" in text


def test_attributes_must_be_plain():
    node = Node("n", "norm", attrs={"bad": object()})
    with pytest.raises(TypeError, match="type object"):
        print_node(node)


def test_the_reference_shows_ir_that_is_read_back():
    blocks = re.findall(r"```ir\n(.*?)```", REFERENCE.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for text in blocks:
        assert print_graph(parse_graph(text)) == text


# (what to replace in SMALL, by what, part of the message, the text under the caret)
FAULTS = [
    ("= norm", "= norn", "unknown operator `norn`", "norn"),
    ("norm %x", "norm %z", "unknown value `%z`", "%z"),
    ("norm %x", "norm %y", "value `%y` is used before it is defined", "%y"),
    ("return %y", "return %q", "unknown value `%q`", "%q"),
    ("down: %y", "down: %norm", "value `%norm` is given twice", "%norm"),
    ("down: ", "norm: ", "node `norm` is given twice", "norm"),
    ("hidden:64{tp}", "hidden:64{np}", "unknown mesh axis `np`", "np"),
    ("partial(tp: sum)", "partial(cp: sum)", "unknown mesh axis `cp`", "cp"),
    ("partial(tp: sum)", "partial(tp: mean)", "unknown reduction `mean`", "mean"),
    ("partial(tp: sum)", "partial(adp: sum)", "axis `adp` is used twice in one placement", "adp"),
    ("hidden:64{tp}", "hidden:64{tp,tp}", "axis `tp` is used twice in one placement", "tp"),
    ("tp:4 stride 1", "adp:4 stride 1", "mesh axis `adp` is given twice", "adp"),
    ("tp:4 stride 1", "tp:0 stride 1", "`0` is no number that fits here", "0"),
    ("tp:4 stride 1", "tp:1.5 stride 1", "`1.5` is no number that fits here", "1.5"),
    ("tp{tp}", "tp{ep}", "unknown mesh axis `ep`", "ep"),
    ("sp{}", "adp{}", "view `adp` is given twice", "adp"),
    ("level tp", "level cp", "unknown level `cp`", "cp"),
    ("prefill", "refill", "unknown phase `refill`", "refill"),
    ("layer block", "layers block", "unknown role `layers`", "layers"),
    ("from layer", "from version(%nil)", "unknown value `%nil`", "%nil"),
    ("from layer", "from above", "unknown carry `above`", "above"),
    ("from layer", "from layer init %nil", "unknown value `%nil`", "%nil"),
    ("over 0..1", "over 0..2", "layer 2 lies in no stage", "0"),
    ("over 0..1", "over 1..0", "the range ends at 0, before it begins", "0"),
    ("over 0..1", "over 0..1 by 0", "`0` is no number that fits here", "0"),
    ("over 0..1", "over 0..1000000000", "`1000000000` is no number that fits here", "1000000000"),
    ("stages 2", "stages 1000000000", "`1000000000` is no number that fits here", "1000000000"),
    ("microbatch 0:", "microbatch 0..999999999:", "`999999999` is no number that fits here", "999999999"),
    ("microbatch 0:", "microbatch 0..1000000:", "too many pipeline items", "0"),
    ("batch 4, ", "", "the item has no `batch`", "new"),
    ("batch 4", "bulk 4", "unknown key `bulk`", "bulk"),
    ("new 16", "batch 16", "key `batch` is given twice", "batch"),
    ("new 16", "new 16, last maybe", "unknown truth value `maybe`", "maybe"),
    ("bf16[hidden:64{tp}", "bf17[hidden:64{tp}", "unknown dtype `bf17`", "bf17"),
    ("bf16[hidden:64{tp}", "bf16[hidden{tp}", "dimension `hidden` has no size", "hidden"),
    ("bf16[hidden:64{tp}", "bf16[hidden:future{tp}", "unknown extent `future`", "future"),
    ("bf16[hidden:64{tp}", "bf16[hidden:9999999999999999999{tp}", "is no number that fits", "9999999999999999999"),
    (" partial(tp: sum)", " density 3", "a density of 3.0 is no share", "3"),
    (" partial(tp: sum)", ", bf16[]", "1 results, but 2 types", "linear"),
    ("@ffn", "@ffn @moe", "`@` is given twice", "norm"),
    ("@ffn", "view sideways", "unknown view `sideways`", "sideways"),
    ("@ffn", "items some", "unknown items `some`", "some"),
    ("@ffn", "where seq{}, seq{}", "dimension `seq` is given twice", "seq"),
    ("norm %x", "norm %x [w: bf16[], w: bf16[]] {a = 1, a = 2}", "unexpected `[`", "["),
    ("[w: bf16", "[w: bf16[], w: bf16", "parameter `w` is given twice", "w"),
    ("out:64]] :", "out:64]] {a = 1, a = 2} :", "key `a` is given twice", "a"),
    ("out:64]] :", "out:64]] {a = {b = 1, b = 2}} :", "key `b` is given twice", "b"),
    ("stages 2", "stages", "unexpected `items`", "items"),
    ("return %y\n}", "return %y", "unexpected end of the text", None),
    ("norm %x", "norm ?x", "unexpected character '?'", "?"),
    ('"small"', '"\\x"', "unexpected character", None),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message", "caret"), FAULTS)
def test_a_fault_is_named_and_placed(old, new, message, caret):
    assert SMALL.count(old) >= 1
    text = SMALL.replace(old, new, 1)
    with pytest.raises(DiagnosticError) as caught:
        parse_graph(text, "case.ir")
    found = caught.value.diagnostics[0]
    assert found.code == "PD418" and message in found.message
    assert found.expected
    assert found.span is not None and found.span.file == "case.ir"
    if caret is not None:
        line = text.split("\n")[found.span.line - 1]
        assert line[found.span.column - 1 : found.span.end_column - 1] == caret


def test_all_faults_of_a_text_are_reported_together():
    text = SMALL.replace("= norm", "= norn").replace("return %y", "return %q").replace("partial(tp", "partial(cp")
    with pytest.raises(DiagnosticError) as caught:
        parse_graph(text)
    assert [d.message for d in caught.value.diagnostics] == [
        "unknown operator `norn`", "unknown mesh axis `cp`", "unknown value `%q`"
    ]  # fmt: skip
    assert caught.value.diagnostics[0].help == "write `norm`"


@pytest.mark.parametrize("depth", [40, 20_000])
@pytest.mark.parametrize("brackets", ["()", "[]"])
def test_deep_nesting_is_refused(depth, brackets):
    nested = brackets[0] * depth + brackets[1] * depth
    text = SMALL.replace(" : bf16[batch{adp}, seq, out", f" {{a = {nested}}} : bf16[out")
    with pytest.raises(DiagnosticError, match=f"`a` nests {depth} deep"):
        parse_graph(text)


def test_a_text_too_long_is_refused_unread():
    with pytest.raises(DiagnosticError, match="PD002"):
        parse_graph("#" * (MAX_CHARACTERS + 1))


def test_reports_stop_at_twenty_faults():
    line = "  %a = norm %nil : bf16[hidden:64{np}]\n"
    with pytest.raises(DiagnosticError) as caught:
        parse_graph(SMALL.replace("  return", line * 1000 + "  return"))
    assert len(caught.value.diagnostics) == 20


@given(st.integers(0, len(SMALL)), st.integers(0, 30), st.text('%{}[]():,=@. \n"#abp019', max_size=6))
def test_a_damaged_text_is_read_or_refused_but_never_crashes(start, length, insert):
    text = SMALL[:start] + insert + SMALL[start + length :]
    try:
        graph = parse_graph(text)
    except DiagnosticError as error:
        assert error.diagnostics
    else:
        roundtrip(graph)
