"""A long fuzz run of the readers, guided by coverage.

    python -m paradag.benchmarks.fuzz [--reader NAME]... [--seconds 900] [--json FILE] [--write docs/reliability.md]

Needs `atheris` (libFuzzer for Python, not a dependency of paradag). Each reader runs in a process of its own, two at a
time, under a limit of memory and of time per input. A crash, a hang or an excess of memory ends its run and is printed
with the input that caused it; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from paradag.benchmarks.mutations import write_between
from paradag.tests.fuzzing import READERS

BEGIN, END = "<!-- fuzz: begin -->", "<!-- fuzz: end -->"
TIMEOUT_S = 20
MEMORY_MB = 2048


@dataclass(frozen=True)
class Run:
    """What one reader's run gave.

    Attributes:
        reader: Name.
        seconds: Wall-clock time.
        executions: Inputs read.
        coverage: Control-flow edges of the instrumented packages that were reached.
        corpus: Inputs kept because each reached something new.
        outcome: ``clean``, or the fault and its input.
    """

    reader: str
    seconds: int
    executions: int
    coverage: int
    corpus: int
    outcome: str


def main() -> int:
    """Run the readers and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", action="append", choices=list(READERS), help="only these readers")
    parser.add_argument("--seconds", type=int, default=900, help="seconds per reader")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between the marks of this file")
    parser.add_argument("--inside", choices=list(READERS), help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        return _inside(arguments.inside, arguments.rest)
    names = arguments.reader or list(READERS)
    with ThreadPoolExecutor(max_workers=2) as pool:
        runs = list(pool.map(lambda name: _run(name, arguments.seconds), names))
    text = table(runs)
    print(text)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(r) for r in runs], indent=2) + "\n", encoding="utf-8")
    if arguments.write:
        write_between(arguments.write, BEGIN, END, text)
    return int(any(r.outcome != "clean" for r in runs))


def _inside(name: str, flags: list[str]) -> int:
    """The fuzzer's own process: instrument, then hand over to libFuzzer, which does not return."""
    import atheris

    with atheris.instrument_imports(include=["paradag.grammar", "paradag.compiler.emit", "paradag.passes.validation"]):
        for module in [m for m in sys.modules if m.startswith("paradag.") and not m.startswith("paradag.benchmarks")]:
            del sys.modules[module]
        from paradag.tests.fuzzing import READERS as instrumented

        # import whatever a reader imports late, under instrumentation
        for seed in instrumented[name].seeds():
            instrumented[name].read(seed)
    atheris.Setup([sys.argv[0], *flags], instrumented[name].read)
    atheris.Fuzz()
    return 0


def _run(name: str, seconds: int) -> Run:
    reader = READERS[name]
    with tempfile.TemporaryDirectory() as folder:
        corpus, words = Path(folder) / "corpus", Path(folder) / "words"
        corpus.mkdir()
        for number, seed in enumerate(reader.seeds()):
            (corpus / f"seed-{number}").write_bytes(seed[: reader.longest])
        quoted = (w.replace("\\", "\\\\").replace('"', '\\"') for w in reader.words())
        words.write_text("".join(f'"{w}"\n' for w in quoted), encoding="utf-8")
        command = [
            *(sys.executable, "-m", "paradag.benchmarks.fuzz", "--inside", name, "--", str(corpus)),
            *(f"-max_total_time={seconds}", f"-timeout={TIMEOUT_S}", f"-rss_limit_mb={MEMORY_MB}"),
            *(f"-max_len={reader.longest}", f"-dict={words}", f"-artifact_prefix={folder}/fault-"),
            *("-len_control=0", "-print_final_stats=1", "-verbosity=1"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        faults = sorted(Path(folder).glob("fault-*"))
        outcome = "clean" if done.returncode == 0 else _fault(done.stderr, faults)
    return Run(name, seconds, *_figures(done.stderr), outcome)


def _figures(log: str) -> tuple[int, int, int]:
    """Executions, coverage and corpus, as libFuzzer last told them."""
    status = re.findall(r"^#(\d+)\s.*?cov: (\d+).*?corp: (\d+)", log, re.MULTILINE)
    executions, coverage, corpus = (int(x) for x in status[-1]) if status else (0, 0, 0)
    final = re.search(r"stat::number_of_executed_units:\s*(\d+)", log)
    return int(final[1]) if final else executions, coverage, corpus


def _fault(log: str, inputs: list[Path]) -> str:
    told = re.findall(r"^(?:==\d+== ?ERROR.*|\w*Error:.*)$", log, re.MULTILINE)
    shown = inputs[0].read_bytes() if inputs else b""
    print(log[max(0, log.find("=== Uncaught")) :][:6000], file=sys.stderr)
    return f"{'; '.join(told) or 'ended early'}; input {shown!r}"


def table(runs: list[Run]) -> str:
    """A Markdown table of the runs."""
    rows = [
        f"| {r.reader} | {r.seconds / 60:.0f} min | {r.executions:,} | {r.coverage:,} | {r.corpus:,} | {r.outcome} |"
        for r in runs
    ]
    head = (
        f"Run on {date.today().isoformat()}, two readers at a time, {TIMEOUT_S} s and {MEMORY_MB} MB per input at most."
    )
    lines = ["| reader | time | executions | edges reached | inputs kept | outcome |", "|---|---:|---:|---:|---:|---|"]
    return "\n".join([head, "", *lines, *rows])


if __name__ == "__main__":
    sys.exit(main())
