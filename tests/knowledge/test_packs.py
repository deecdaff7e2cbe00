"""Knowledge packs bind: every key changes what it says it changes, and what is broken is told, never skipped."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paradag.compiler.cli import main
from paradag.compiler.cost import resolve_hardware
from paradag.compiler.diagnostics import Diagnostic, DiagnosticError, Severity, Span
from paradag.compiler.driver import check, compile, fix, load
from paradag.compiler.knowledge._expression import BadExpression, parse_expression
from paradag.compiler.knowledge.pack import VALUES, load_pack
from paradag.compiler.spec import Pack
from paradag.compiler.spec.catalog import DEFAULTS, accelerator
from paradag.compiler.spec.pack import DEGREES, FACTS
from paradag.compiler.spec.pack_law import broken, degrees_in, facts, values_of
from paradag.compiler.verification import verify
from paradag.passes.validation import check_spec

MOE = """
model "moe" {{ layers 4  hidden 1024  vocab 32000  dtype bf16  kv_dtype bf16
    attention gqa {{ heads 16  kv_heads 8  head_dim 64 }}  moe {{ experts 16  top_k 2  ffn 512 }} }}
cluster {{ accelerator {chip}  nodes {nodes} of 8 }}
workload {{ batch 32  input 512 tokens  output 128 tokens }}
strategy {{ {chain} }}
"""


def strat(chain: str, *, nodes: int = 2, chip: str = "h100_sxm") -> str:
    return MOE.format(chain=chain, nodes=nodes, chip=chip)


@pytest.fixture
def pack(tmp_path: Path) -> Any:
    """Writes and reads a pack."""

    def made(text: str) -> Pack:
        (tmp_path / "pack.toml").write_text(text, encoding="utf-8")
        return load_pack(tmp_path / "pack.toml")

    return made


def told(text: str, code: str, knowledge: Pack) -> Diagnostic:
    """The first finding of that code."""
    return next(d for d in check(text, knowledge=knowledge) if d.code == code)


def errors(text: str, knowledge: Pack | None = None) -> set[str]:
    return {d.code for d in check(text, knowledge=knowledge) if d.is_error}


# --- the law ----------------------------------------------------------------------------------------------------------


def test_one_expert_per_gpu_binds_and_cites_its_line(pack: Any) -> None:
    one = pack("# our fleet\n[law]\nexperts_per_gpu = 1\n")
    assert errors(strat("ep 16")) == errors(strat("ep 16"), one) == set()
    found = told(strat("ep 8 -> tp 2"), "PD045", one)
    assert "pack.toml:3" in found.message and "ep = 8" in found.message
    assert found.help == "use `ep 16`"
    assert found.span is not None and found.span.line == 6
    assert errors(strat("ep 16 { etp 2 }", nodes=4), one) == {"PD045"}, "half an expert is not one"


def test_redundant_experts_count_as_experts(pack: Any) -> None:
    two = pack("[law]\nexperts_per_gpu = 2\n")
    assert "PD045" not in errors(strat("ep 16 { redundant 16 }"), two)
    assert "PD045" in errors(strat("ep 16"), two)


def test_another_gpu_count_law_changes_ranks_and_gpus(pack: Any) -> None:
    product = pack('[law]\ngpus = "ep * tp * pp * dp"\n')
    for chain, ranks in (("ep 8 -> tp 2", 16), ("pp 2 -> ep 4 -> tp 2", 8), ("ep 16", 16), ("dp 2 -> ep 2 -> tp 2", 4)):
        checked, found = check_spec(load(strat(chain), knowledge=product))
        assert [s.ranks for s in checked.spec.strategies] == [ranks, ranks] and not [d for d in found if d.is_error]
    mesh = compile(strat("ep 8 -> tp 2"), knowledge=product).phases["decode"].graph.mesh
    assert (mesh.degree("adp"), mesh.degree("edp"), mesh.degree("etp")) == (8, 2, 1)
    assert compile(strat("ep 8 -> tp 2")).phases["decode"].graph.mesh.gpus == 8


def test_tp_may_multiply_ep_inside_the_experts(pack: Any) -> None:
    inside = pack('[law]\nranks = "ep * tp"\netp = "tp"\n')
    mesh = compile(strat("ep 8 -> tp 2"), knowledge=inside).phases["prefill"].graph.mesh
    assert (mesh.degree("edp"), mesh.degree("ep"), mesh.degree("etp")) == (1, 8, 2)
    assert verify(strat("ep 2 -> tp 2"), knowledge=inside, steps=1).equal


def test_gpus_beyond_the_ranks_are_counted_and_idle(pack: Any) -> None:
    spare = pack('[law]\ngpus = "ceil(dp * pp * ranks / gpus_per_node) * gpus_per_node + 1"\n')
    spec = load(strat("tp 4", nodes=1), knowledge=spare).spec
    assert [degrees_in(spec, s).gpus for s in spec.strategies] == [9, 9]
    found = told(strat("tp 4", nodes=1), "PD207", spare)
    assert "9 GPUs" in found.message and "5 idle" in found.message and "pack.toml:2" in found.message
    assert compile(strat("tp 4"), knowledge=spare).phases["decode"].graph.mesh.gpus == 4


@pytest.mark.parametrize(
    ("law", "message"),
    [
        ('gpus = "max(ep, tp)"\nranks = "ep * tp"', "counts 8 GPUs, the strategy has 16 ranks"),
        ('ranks = "ep * tp + 1"', "17 ranks, no multiple of sp*tp = 2 and ep*etp = 8"),
        ('ranks = "ep / 3"', "gives a stage 2.66667 ranks"),
        ('ranks = "ep - ep"', "gives a stage 0 ranks"),
        ('etp = "tp / 4"', "TP inside an expert is 0.5"),
        ('gpus = "ranks * dp * pp + 0.5"', "counts 8.5 GPUs"),
    ],
)
def test_a_law_that_the_mesh_cannot_follow_is_an_error(pack: Any, law: str, message: str) -> None:
    found = told(strat("ep 8 -> tp 2"), "PD046", pack(f"[law]\n{law}\n"))
    assert message in found.message and "pack.toml:" in found.message
    assert found.is_error and found.expected and found.help


def test_ranks_that_contradict_the_law_are_an_error(pack: Any) -> None:
    product = pack('[law]\nranks = "ep * tp"\n')
    assert "`ranks 8`, and the pack's law gives 16" in told(strat("ep 8 -> tp 2  ranks 8"), "PD045", product).message
    assert "PD045" not in errors(strat("ep 8 -> tp 2  ranks 16"), product)


def test_a_compiled_strategy_means_the_same_without_its_pack(pack: Any, tmp_path: Path) -> None:
    product = pack('[law]\nranks = "ep * tp"\netp = "tp"\n')
    compiled = compile(strat("ep 4 -> tp 2"), knowledge=product)
    strategy = compiled.spec.strategy("decode")
    assert strategy is not None and strategy.ranks == 8 and strategy.term("ep").etp == 2  # type: ignore[union-attr]
    plain = compiled.spec.model_copy(update={"pack": None})
    assert compile(plain).phases["decode"].latency == compiled.phases["decode"].latency


# --- limits and constraints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "breaks", "meets"),
    [
        ("[limits]\ntp = 2\n", "tp 4", "tp 2"),
        ("[limits]\npp = 1\n", "pp 2 -> tp 4", "tp 8"),
        ("[limits]\ngpus = 8\n", "dp 2 -> tp 8", "tp 8"),
        ("[limits]\nmicrobatches = 2\n", "tp 8  microbatches 4", "tp 8  microbatches 2"),
        ('[constraints]\nfast = "tp <= gpus_per_node // 2"\n', "tp 8", "tp 4"),
        ('[constraints.a]\nrequire = "adp == 1 or ep > 1"\nmessage = "no DP"\n', "tp 2  ranks 4", "tp 4"),
        ('[constraints]\nphase = "prefill == 1 or not (pp > 1)"\n', "pp 2 -> tp 4", "tp 4"),
        ('[constraints]\nchain = "1 <= tp <= domain < 9 and layers % pp == 0"\n', "pp 3 -> tp 2", "pp 2 -> tp 2"),
        ('[constraints]\nchosen = "batch // (dp * microbatches) >= (64 if decode == 1 else 16)"\n', "tp 4", ""),
    ],
)
def test_constraints_bind(pack: Any, text: str, breaks: str, meets: str) -> None:
    knowledge = pack(text)
    assert "PD045" in errors(strat(breaks), knowledge)
    assert "PD045" not in errors(strat(breaks))
    if meets:
        assert "PD045" not in errors(strat(meets), knowledge)


def test_a_constraint_says_what_its_author_wrote(pack: Any) -> None:
    knowledge = pack(
        '[constraints.numa]\nrequire = "tp <= 4"\nmessage = "TP stays in one NUMA node"\n'
        'help = "ask the platform team"\nseverity = "warning"\n'
    )
    found = told(strat("tp 8"), "PD045", knowledge)
    assert found.message.startswith("TP stays in one NUMA node (") and found.severity is Severity.WARNING
    assert "pack.toml:2" in found.message and found.help == "ask the platform team"
    assert not errors(strat("tp 8"), knowledge)


def test_repairs_stay_within_the_pack(pack: Any) -> None:
    limited = pack('[constraints]\nodd = "tp != 4"\n')
    uneven = strat("tp 6", nodes=1)
    assert fix(uneven).loaded.spec.strategies[0].degree("tp") == 4
    fixed = fix(uneven, knowledge=limited)
    assert fixed.outcome == "FIXED" and fixed.loaded.spec.strategies[0].degree("tp") not in (4, 6)
    assert fixed.loaded.pack is limited


# --- severities, values, accelerators ---------------------------------------------------------------------------------


def test_severities(pack: Any) -> None:
    text = strat("tp 8")
    assert told(text, "PD208", pack("")).severity is Severity.WARNING
    for word in ("error", "note"):
        assert told(text, "PD208", pack(f'[rules]\nPD208 = "{word}"\n')).severity == word
    assert "PD208" not in {d.code for d in check(text, knowledge=pack('[rules]\nPD208 = "off"\n'))}
    assert compile(text, knowledge=pack('[rules]\nPD208 = "error"\n')).status == "REJECTED"


def test_memory_may_be_a_warning(pack: Any) -> None:
    text = strat("tp 8").replace("batch 32", "batch 4096").replace("512 tokens", "65536 tokens")
    bent = pack('[rules]\nPD301 = "warning"\n')
    assert "PD301" in errors(text)
    compiled = compile(text, knowledge=bent)
    assert compiled.phases and "PD301" in {d.code for d in compiled.diagnostics}


def test_values_stand_in_for_missing_figures(pack: Any) -> None:
    knowledge = pack(
        "[values]\nmemory_reserve = 0.1\nnetwork_efficiency = 0.5\ncompute_efficiency = 0.4\n"
        "bandwidth_efficiency = 0.6\nscale_out_latency_s = 1e-6\n"
    )
    cluster = load(strat("tp 8")).spec.cluster
    plain, _ = resolve_hardware(cluster)
    hardware, assumed = resolve_hardware(cluster, "bf16", pack=knowledge)
    assert hardware.memory == pytest.approx(0.9 * plain.memory)
    assert hardware.scale_out.bandwidth == pytest.approx(plain.scale_out.bandwidth * 0.5 / DEFAULTS.network_efficiency)
    assert (hardware.compute_efficiency, hardware.bandwidth_efficiency) == (0.4, 0.6)
    assert hardware.scale_out.latency == 1e-6
    cited = {a.name: a.why for a in assumed}
    assert "pack.toml:4" in cited["compute efficiency"] and "pack.toml:2" in cited["memory reserve"]


def test_the_files_own_figures_win_over_values(pack: Any) -> None:
    own = strat("tp 8").replace("accelerator h100_sxm", "accelerator h100_sxm { compute at 60% }")
    hardware, _ = resolve_hardware(load(own).spec.cluster, "bf16", pack=pack("[values]\ncompute_efficiency = 0.4\n"))
    assert hardware.compute_efficiency == 0.6


@pytest.mark.parametrize(
    ("value", "code"), [("communication_share = 0.001", "PD310"), ("latency_share = 0.001", "PD311")]
)
def test_thresholds_of_advice(pack: Any, value: str, code: str) -> None:
    text = strat("tp 2").replace("batch 32", "batch 512").replace("512 tokens", "4096 tokens")
    strict = pack(f"[values]\n{value}\n")
    lax = pack(f"[values]\n{value.replace('0.001', '1.0')}\n")
    assert code in {d.code for d in check(text, knowledge=strict)}
    assert code not in {d.code for d in check(text, knowledge=lax)}


CHIP = """[accelerators.npu_64g]
tflops = { bf16 = 400, fp8 = 800 }
memory_gb = 64
memory_gb_per_s = 1800
scale_up = { gb_per_s = 200, domain = 8 }
scale_out_gb_per_s = 25
gpus_per_node = 8
"""


def test_an_accelerator_of_ones_own(pack: Any) -> None:
    own = pack(CHIP)
    text = strat("ep 16", chip="npu_64g")
    assert errors(text) == {"PD016"}
    compiled = compile(text, knowledge=own)
    assert compiled.phases["decode"].hardware.memory == 64e9
    assert "pack.toml:1" in accelerator("npu_64g", own).sources[0]


def test_a_catalogued_accelerator_in_part(pack: Any) -> None:
    less = pack("[accelerators.h100_sxm]\nmemory_gb = 64\nscale_up = { domain = 4 }\n")
    known, changed = accelerator("h100_sxm"), accelerator("h100_sxm", less)
    assert changed.memory == 64e9 and changed.scale_up.domain == 4
    assert changed.peaks == known.peaks and changed.scale_up.bandwidth == known.scale_up.bandwidth
    assert accelerator("h200_sxm", less) == accelerator("h200_sxm")


def test_a_folder_is_a_pack(tmp_path: Path) -> None:
    (tmp_path / "accelerators.toml").write_text(CHIP.replace("[accelerators.", "["), encoding="utf-8")
    assert "npu_64g" in load_pack(tmp_path).accelerators
    (tmp_path / "pack.toml").write_text("[accelerators.h100_sxm]\nmemory_gb = 70\n", encoding="utf-8")
    both = load_pack(tmp_path)
    assert both.accelerators["h100_sxm"].memory == 70e9 and both.accelerators["npu_64g"].memory == 64e9
    assert both.cite("accelerators.npu_64g") == f"{tmp_path / 'accelerators.toml'}:1"


def test_an_empty_pack_changes_nothing(pack: Any) -> None:
    for chain in ("ep 8 -> tp 2", "tp 6", "pp 2 -> sp 2 -> ep 4 -> tp 2"):
        assert check(strat(chain), knowledge=pack("")) == check(strat(chain))


# --- what is broken ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code", "line", "message"),
    [
        ("[limits]\ntp = \n", "PD040", 2, "not TOML"),
        ("[limits]\ntp = 1\ntp = 2\n", "PD040", 3, "not TOML"),
        ("[law]\nexpert_per_gpu = 1\n", "PD041", 2, "unknown key `expert_per_gpu` in `[law]`"),
        ("\n[laws]\n", "PD041", 2, "unknown key `laws`"),
        ("[limits]\nadp = 2\n", "PD041", 2, "unknown key `adp`"),
        ("[values]\nbubbles = 2\n", "PD041", 2, "unknown key `bubbles`"),
        ('[rules]\nPD999 = "off"\n', "PD041", 2, "no rule `PD999`"),
        ('[constraints.a]\nrequire = "tp < 2"\nwhy = "x"\n', "PD041", 3, "unknown key `why`"),
        ("[accelerators.h100_sxm]\nmemory = 3\n", "PD041", 2, "unknown key `memory`"),
        ("[accelerators.h100_sxm]\ntflops = { bf17 = 3 }\n", "PD041", 2, "unknown key `bf17`"),
        ("law = 3\n", "PD042", 1, "`law` is no table"),
        ("[law]\nexperts_per_gpu = 0\n", "PD042", 2, "`experts_per_gpu = 0`"),
        ("[law]\nranks = true\n", "PD042", 2, "`ranks = True`"),
        ('[limits]\ntp = "8"\n', "PD042", 2, "`tp = '8'`"),
        ("[values]\nmemory_reserve = 10\n", "PD042", 2, "`memory_reserve = 10`"),
        ("[values]\ncompute_efficiency = nan\n", "PD042", 2, "`compute_efficiency = nan`"),
        ('[rules]\nPD208 = "fatal"\n', "PD042", 2, "`PD208 = 'fatal'`"),
        ("[constraints]\na = 3\n", "PD042", 2, "`a` is no condition"),
        ('[constraints.a]\nmessage = "x"\n', "PD042", 1, "has no `require`"),
        ("[accelerators.new]\nmemory_gb = 3\n", "PD042", 1, "lacks `tflops`, `memory_gb_per_s`"),
        ('[accelerators.h100_sxm]\nmemory_gb = "much"\n', "PD042", 2, "`memory_gb = 'much'`"),
        ('[law]\ngpus = "dp * pp * rank"\n', "PD043", 2, "unknown name `rank`"),
        ('[law]\nranks = "dp * tp"\n', "PD043", 2, "unknown name `dp`"),
        ('[law]\nranks = "tp <= 8"\n', "PD043", 2, "`tp <= 8` is a condition"),
        ('[constraints]\na = "tp + 1"\n', "PD043", 2, "`tp + 1` is a number"),
        ('[constraints]\na = "tp <="\n', "PD043", 2, "is no expression"),
        ('[rules]\nPD211 = "warning"\n', "PD044", 2, "cannot be `warning`"),
        ('[rules]\nPD401 = "off"\n', "PD044", 2, "cannot be `off`"),
        ('[rules]\nPD306 = "note"\n', "PD044", 2, "cannot be `note`"),
    ],
)
def test_whatever_is_broken_is_told(pack: Any, text: str, code: str, line: int, message: str) -> None:
    with pytest.raises(DiagnosticError) as raised:
        pack(text)
    (found,) = raised.value.diagnostics
    assert (found.code, found.span.line if found.span else None) == (code, line)
    assert message in found.message and found.expected and found.help
    assert list(raised.value.texts.values()) == [text]


def test_all_faults_are_told_at_once_and_carets_stand_under_them(pack: Any) -> None:
    with pytest.raises(DiagnosticError) as raised:
        pack('[limits]\ntq = 1\n[constraints]\na = "tp <= 4 and epp == 1"\n')
    first, second = raised.value.diagnostics
    assert (first.code, second.code) == ("PD041", "PD043")
    assert second.span == Span(second.span.file, 4, 18, 4, 21) if second.span else False
    assert first.help and "`tp`" in first.help


@pytest.mark.parametrize(
    "files", [{}, {"other.toml": ""}, {"pack.toml": CHIP, "accelerators.toml": CHIP.replace("accelerators.", "")}]
)
def test_a_folder_that_is_no_pack(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DiagnosticError) as raised:
        load_pack(tmp_path)
    assert {d.code for d in raised.value.diagnostics} <= {"PD040", "PD041", "PD042"}


def test_a_missing_pack_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DiagnosticError) as raised:
        load_pack(tmp_path / "none.toml")
    assert raised.value.diagnostics[0].code == "PD001"


def test_a_division_by_zero_is_told_where_it_happens(pack: Any) -> None:
    with pytest.raises(DiagnosticError, match=r"PD043: .*divides by zero"):
        compile(strat("tp 8"), knowledge=pack('[constraints]\na = "experts // redundant > 0"\n'))


@pytest.mark.parametrize(
    "text",
    [
        *("__import__('os')", "tp.real", "tp[0]", "(lambda: 1)()", "[1][0]", "'a'", "tp ** 9", "1 if tp else 2"),
        *("tp << 9", "max(tp)", "max(*tp)", "ceil(tp, 2)", "max(tp, ep=1)", "1e300", "tp is ep", "-" * 400 + "1"),
        *("(" * 300 + "1" + ")" * 300, "1 +" * 200 + "1", "", "tp\0", "x := 1", "tp if tp > 1", "True + 1"),
    ],
)
def test_nothing_else_of_python(text: str) -> None:
    with pytest.raises(BadExpression):
        parse_expression(text, frozenset({"tp", "ep"}), "number", Span("p", 1, 1, 1, 1))


# --- numbers and arrays -----------------------------------------------------------------------------------------------

NAMES = ("ep", "tp", "pp")


def numbers() -> st.SearchStrategy[str]:
    leaf = st.one_of(st.sampled_from(NAMES), st.integers(0, 40).map(str), st.sampled_from(["0.5", "2.25"]))

    def more(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        pair = st.tuples(inner, inner)
        return st.one_of(
            st.tuples(inner, st.sampled_from(["+", "-", "*"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
            st.tuples(inner, st.sampled_from(["/", "//", "%"]), st.sampled_from(NAMES)).map(
                lambda t: f"({t[0]} {t[1]} {t[2]})"
            ),
            st.tuples(st.sampled_from(["max", "min"]), pair).map(lambda t: f"{t[0]}({t[1][0]}, {t[1][1]})"),
            st.tuples(st.sampled_from(["ceil", "floor", "-"]), inner).map(lambda t: f"{t[0]}({t[1]})"),
            st.tuples(pair, pair, st.sampled_from(["<", "<=", "==", "!="])).map(
                lambda t: f"({t[0][0]} if {t[1][0]} {t[2]} {t[1][1]} else {t[0][1]})"
            ),
        )

    return st.recursive(leaf, more, max_leaves=8)


@settings(max_examples=60)
@given(numbers(), st.lists(st.tuples(*[st.integers(1, 300)] * 3), min_size=1, max_size=5))
def test_arrays_give_what_numbers_give_and_what_python_gives(text: str, rows: list[tuple[int, ...]]) -> None:
    import math

    expression = parse_expression(text, frozenset(NAMES), "number", Span("p", 1, 1, 1, 1))
    columns = {name: np.array([row[i] for row in rows]) for i, name in enumerate(NAMES)}
    together = np.broadcast_to(expression(columns), len(rows))
    for row, value in zip(rows, together, strict=True):
        values: dict[str, Any] = dict(zip(NAMES, row, strict=True))
        assert expression(values) == value
        python = eval(text, {"max": max, "min": min, "ceil": math.ceil, "floor": math.floor}, values)
        assert value == pytest.approx(python, rel=1e-12)


LAW = """[law]
ranks = "ep * tp"
gpus = "dp * pp * ranks + 2"
experts_per_gpu = 2
[limits]
tp = 4
gpus = 40
[constraints]
layout = "adp >= tp or sp == 1"
deep = "pp <= 2 or microbatches >= pp"
soft = { require = "tp == 1", severity = "note" }
"""


def test_columns_are_judged_as_strategies_are(pack: Any) -> None:
    """What a planner asks of arrays, in two rounds, is what the rules find one by one."""
    knowledge = pack(LAW)
    chains = [
        f"pp {pp} -> ep {ep} -> tp {tp}  ranks {ranks}  microbatches {m}"
        for pp in (1, 4) for ep in (4, 8) for tp in (1, 2, 8) for ranks in (8, 16) for m in (1, 4)
    ]  # fmt: skip
    rows, wanted = [], []
    for chain in chains:
        loaded = load(strat(chain, nodes=16), knowledge=knowledge)
        strategy = loaded.spec.strategy("decode")
        assert strategy is not None
        degrees = degrees_in(loaded.spec, strategy)
        if not degrees.fits():
            continue
        rows.append(values_of(loaded.spec, strategy, degrees))
        found = [d for d in check_spec(loaded, advised=False)[1] if d.is_error]
        wanted.append(bool({"PD045", "PD046"} & {d.code for d in found}))
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    known = facts(load(strat("tp 1"), knowledge=knowledge).spec, "decode")
    stage = {n: columns[n] for n in ("sp", "tp", "ep", "etp", "adp", "edp", "ranks")} | known
    first = broken(knowledge, stage)
    second = broken(knowledge, columns, judged=stage)
    assert not first.keys() & second.keys()
    refused = np.any([*first.values(), *second.values()], axis=0)
    assert refused.tolist() == wanted
    assert 0 < refused.sum() < len(refused)
    assert all(Path(cite.rsplit(":", 1)[0]).name == "pack.toml" for cite in (*first, *second))


# --- the command line, and what is written down -----------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as raised:
        main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return int(raised.value.code or 0), captured.out, captured.err


def test_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, knowledge = tmp_path / "m.strat", tmp_path / "pack.toml"
    file.write_text(strat("ep 8 -> tp 2"), encoding="utf-8")
    knowledge.write_text("[law]\nexperts_per_gpu = 1\n", encoding="utf-8")
    for command in (["check", file], ["compile", file, "-o", tmp_path], ["fix", file], ["verify", file]):
        code, out, err = run(capsys, *command, "--knowledge", knowledge)
        assert code == 1 and "PD045" in err + out, command
    code, out, _ = run(capsys, "check", file, "--knowledge", knowledge, "--format", "json")
    found = next(d for d in json.loads(out)["diagnostics"] if d["code"] == "PD045")
    assert f"{knowledge}:2" in found["message"] and found["line"] == 6
    knowledge.write_text("[lew]\n", encoding="utf-8")
    for command in (["check", file], ["compile", file, "-o", tmp_path], ["fix", file], ["verify", file]):
        code, out, err = run(capsys, *command, "--knowledge", knowledge)
        assert code == 1 and "PD041" in err + out, command
        assert "1 | [lew]" in err
    assert run(capsys, "check", file, "--knowledge", tmp_path / "none")[0] == 2


def test_a_pack_travels_between_processes(pack: Any) -> None:
    knowledge = pack(LAW + CHIP)
    loaded = load(strat("pp 4 -> ep 8 -> tp 8", chip="npu_64g"), knowledge=knowledge)
    again = pickle.loads(pickle.dumps(loaded))
    assert again.pack is not knowledge and check_spec(again)[1] == check_spec(loaded)[1]
    assert {"PD045"} <= {d.code for d in check_spec(again)[1]}
    assert again.pack.accelerators == knowledge.accelerators


def test_the_result_cites_the_pack(pack: Any) -> None:
    compiled = compile(strat("ep 8"), knowledge=pack('[law]\ngpus = "ranks * dp * pp"\nexperts_per_gpu = 2\n'))
    told_of = {a.name: a.why for a in compiled.assumptions}
    assert "pack.toml:2" in told_of["law of gpus"] and "pack.toml:3" in told_of["2 whole experts per GPU"]


def test_the_documentation_names_every_key() -> None:
    text = (Path(__file__).parents[2] / "docs" / "packs.md").read_text(encoding="utf-8")
    names = {*DEGREES, *FACTS, *VALUES, *(f for f in DEFAULTS.__dataclass_fields__)}
    assert not [n for n in sorted(names) if f"`{n}`" not in text]
