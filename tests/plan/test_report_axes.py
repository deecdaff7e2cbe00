"""Section 7 tells which axis lies on which link and how orders compare; it makes no figure up where there is none."""

from __future__ import annotations

import re

import paradag
from paradag.compiler.driver import load
from paradag.compiler.plan import Bounds, Law, Plan
from paradag.compiler.plan.report import Sensitivity, gather
from paradag.compiler.plan.report._mapping import mapping
from paradag.compiler.spec import LoadedSpec

from .conditions import DENSE, MLA, condition

FEW = Bounds(microbatches=2, trips=2, least_chunk=4096)


def section(loaded: LoadedSpec, plan: Plan) -> str:
    return "\n".join(mapping(gather(plan, loaded, Sensitivity())))


def test_axes_links_and_orders_are_told() -> None:
    loaded = condition(MLA, gpus="2 of 4", work="batch 16 input 200 tokens output 8 tokens")
    one = Law(lambda table: (table.tp == 2) & (table.ep == 4) & (table.etp == 2))
    text = section(loaded, paradag.plan(loaded, bounds=FEW, law=one))
    assert "with scale-up domains of 4 GPUs" in text
    # placement pp tp sp adp: adp on neighbouring GPUs, tp four apart
    assert re.search(r"\| adp = ep \| 4 \| 0-3 \| scale-up \| .*Dispatch .* in .*\|", text)
    assert re.search(r"\| tp = etp \| 2 \| 0, 4 \| scale-out \| .*AllReduce .* in .*\|", text)
    assert "`pp tp sp adp` (chosen)" in text and "| `pp adp sp tp` |" in text
    assert "It has 4 of the 4 GPUs of ep in one domain, that one 2." in text
    assert "Both phases have the same order" in text


def test_where_there_is_nothing_to_order_the_reason_is_told() -> None:
    loaded = condition(DENSE, gpus="1 of 2", work="batch 2 input 48 tokens output 8 tokens")
    text = section(loaded, paradag.plan(loaded, bounds=FEW))
    assert "Order of axes: nothing to choose, since" in text


def test_a_bus_is_told_with_its_fitted_share_and_no_socket() -> None:
    loaded = load(
        f"{DENSE}\ncluster {{ accelerator l40s nodes 1 of 4 }}\nworkload {{ batch 4 input 64 tokens output 4 tokens }}"
    )
    text = section(loaded, paradag.plan(loaded, bounds=FEW))
    assert "Scale-up is PCIe4, a bus that the GPUs of a host share" in text
    assert "NUMA: the cluster description has no figure for sockets" in text
    on_a_switch = load(
        f"{DENSE}\ncluster {{ accelerator h100_sxm nodes 1 of 4  link host {{ bandwidth 64 GB/s }} }}\n"
        "workload { batch 4 input 64 tokens output 4 tokens }"
    )
    text = section(on_a_switch, paradag.plan(on_a_switch, bounds=FEW))
    assert "PCIe" not in text and "Host link (64 GB/s): nothing in these figures uses it" in text
