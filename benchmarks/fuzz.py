"""Damage the files that StackBERT reads, thousands of times, and see what it makes of them.

    python benchmarks/fuzz.py --cases 10000
    python benchmarks/fuzz.py --reader recipe --cases 200
    python benchmarks/fuzz.py --reader recipe --only 17 --keep kept

A case damages one valid file: single bits and bytes, cut and doubled pieces, control characters,
encodings that are none, numbers too large, nesting too deep; and in what has a structure, values of
another type, fields too many or too few, paths that leave their folder. The reader must then either
refuse it in a sentence that names the file, or give what the file says, which is checked against a
second way to read it. Everything else is a failure: another exception, a hang, memory, a program
started, a connection, a pickle, the end of the process. So is a message that nobody can read.

A case is decided by --seed, the reader's name and its number. Cases run in a process for each
reader, which is started again where one ends it. Files that made a reader fail are kept.

Exit code 0 if nothing failed, else 1.
"""

import argparse
import faulthandler
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fuzz_checkpoints
import fuzz_data
import fuzz_results
import fuzz_runs
import fuzz_text
from fuzz_cases import SECONDS, Fuzzer, Outcome, Reader
from reporting import RESULTS, Report, Table, machine

READERS: dict[str, type[Reader]] = {
    reader.name: reader
    for reader in (
        fuzz_text.Text,
        fuzz_text.JsonLines,
        fuzz_text.Compressed,
        fuzz_text.Parquet,
        fuzz_text.Build,
        fuzz_text.TokenizerFile,
        fuzz_runs.CorpusFolder,
        fuzz_runs.RecipeFile,
        fuzz_runs.Overrides,
        fuzz_runs.Run,
        fuzz_runs.LedgerFile,
        fuzz_checkpoints.State,
        fuzz_checkpoints.Weights,
        fuzz_checkpoints.OptimizerState,
        fuzz_checkpoints.Foreign,
        fuzz_results.Comparison,
        fuzz_results.Attention,
        fuzz_results.Study,
        fuzz_data.Glue,
        fuzz_data.Squad,
        fuzz_data.Table,
    )
}
_ADDRESSES = 6 << 30
"""Bytes that a process may map beyond what it has mapped when the cases begin."""
_MOST_DEATHS = 20
"""Ends of a reader's process after which the rest of its cases is left out, and said."""


def work(reader: str, first: int, cases: int, seed: int, journal: Path) -> None:
    """Run cases in this process; a line before and one behind each.

    Args:
        reader: its name.
        first: number of the first case.
        cases: how many.
        seed: of them all.
        journal: where the lines go.
    """
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name, journal.open("a") as file:
        fuzzer = Fuzzer(READERS[reader](), Path(name) / "files", seed)
        _bound_memory()
        for number in range(first, first + cases):
            print(json.dumps({"begun": number}), file=file, flush=True)
            # For what never comes back to Python, whose own alarm then cannot ring.
            faulthandler.dump_traceback_later(3 * SECONDS, exit=True)
            outcome = fuzzer.run(number)
            faulthandler.cancel_dump_traceback_later()
            print(json.dumps(asdict(outcome)), file=file, flush=True)


def _bound_memory() -> None:
    statm = Path("/proc/self/statm")
    if statm.is_file():
        mapped = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + _ADDRESSES, mapped + _ADDRESSES))


def fuzz(reader: str, cases: int, seed: int, folder: Path) -> list[Outcome]:
    """All cases of a reader, in processes of their own; what ends one counts as a failure."""
    journal = folder / f"{reader}.jsonl"
    outcomes: list[Outcome] = []
    deaths = 0
    while len(outcomes) < cases and deaths <= _MOST_DEATHS:
        first = len(outcomes)
        journal.unlink(missing_ok=True)
        command = [sys.executable, __file__, "--reader", reader, "--cases", str(cases - first)]
        command += ["--seed", str(seed), "--first", str(first), "--journal", str(journal)]
        log = folder / f"{reader}.log"
        with log.open("wb") as output:
            code = subprocess.run(command, stdout=output, stderr=output, check=False).returncode
        lines = journal.read_text().splitlines() if journal.exists() else []
        rows = [json.loads(line) for line in lines]
        outcomes += [Outcome(**row) for row in rows if "kind" in row]
        if code == 0:
            continue
        said = log.read_text(errors="replace")
        if not rows or rows[-1].get("begun") != len(outcomes):
            sys.exit(f"The fuzzer itself failed:\n{said}")
        deaths += 1
        what = f"the process ended with code {code}\n{said[-4000:]}"
        outcomes.append(Outcome(len(outcomes), "", "failed", what, 0.0))
    return outcomes


def keep(reader: str, numbers: list[int], seed: int, folder: Path) -> None:
    """Write the damaged files of some cases."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        fuzzer = Fuzzer(READERS[reader](), Path(name) / "files", seed)
        for number in numbers:
            file, content = fuzzer.damaged(number)
            path = folder / f"{reader}-{number}" / Path(file).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def report(
    outcomes: dict[str, list[Outcome]], seconds: dict[str, float], settings: dict[str, Any]
) -> Report:
    """The counts, and every kind of failure with the first case of it."""
    rows, results, failures = [], [], []
    for reader, found in outcomes.items():
        count = Counter(outcome.kind for outcome in found)
        slowest = max(outcome.seconds for outcome in found)
        numbers = (len(found), count["refused"], count["read"], count["failed"])
        rows.append(
            (
                f"{reader}: {READERS[reader].reads}",
                *(f"{number:,}" for number in numbers),
                f"{1000 * seconds[reader] / len(found):.1f}",
                f"{slowest:.2f}",
            )
        )
        kinds = Counter(o.signature for o in found if o.kind == "failed")
        for signature, times in kinds.most_common():
            first = next(o for o in found if o.kind == "failed" and o.signature == signature)
            failures.append((reader, str(times), str(first.number), signature[:120]))
        results.append(
            {
                "reader": reader,
                "cases": len(found),
                **{kind: count[kind] for kind in ("refused", "read", "failed")},
                "seconds": round(seconds[reader], 1),
                "slowest_seconds": round(slowest, 3),
                "failures": [asdict(o) for o in found if o.kind == "failed"],
            }
        )
    columns = ("reader", "cases", "clear errors", "correct", "failed", "ms a case", "slowest, s")
    tables = [Table("Cases", columns, tuple(rows))]
    if failures:
        tables.append(Table("Failures", ("reader", "times", "first", "what"), tuple(failures)))
    return Report(
        benchmark="fuzz",
        title="Damaged files",
        tables=tuple(tables),
        results=results,
        settings=settings,
        machine=machine(),
        seconds=sum(seconds.values()),
    )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=1000, help="of each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="readers at a time; 1")
    parser.add_argument("--reader", action="append", choices=sorted(READERS), help="by default all")
    parser.add_argument("--only", type=int, metavar="N", help="run case N here, with its traceback")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="failing files")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the report")
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--journal", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run it all; see the module's text."""
    given = arguments()
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    readers = given.reader or list(READERS)
    if given.journal is not None:
        work(readers[0], given.first, given.cases, given.seed, given.journal)
        return
    if given.only is not None:
        keep(readers[0], [given.only], given.seed, given.keep)
        with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
            print(Fuzzer(READERS[readers[0]](), Path(name) / "files", given.seed).run(given.only))
        return
    outcomes: dict[str, list[Outcome]] = {}
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:

        def all_cases(reader: str) -> None:
            begun = time.perf_counter()
            outcomes[reader] = fuzz(reader, given.cases, given.seed, Path(name))
            seconds[reader] = time.perf_counter() - begun
            failed = [o.number for o in outcomes[reader] if o.kind == "failed"]
            print(
                f"{reader:12} {len(outcomes[reader]):>6,} cases, {len(failed):>5,} failed, "
                f"{seconds[reader]:6.1f} s",
                flush=True,
            )
            if failed:
                keep(reader, failed, given.seed, given.keep)

        with ThreadPoolExecutor(given.jobs) as pool:
            list(pool.map(all_cases, readers))
    outcomes = {reader: outcomes[reader] for reader in readers}
    settings = {
        "cases": given.cases,
        "seed": given.seed,
        "jobs": given.jobs,
        "readers": readers,
    }
    made = report(outcomes, seconds, settings)
    print(f"\n{made.markdown()}\n{made.write(given.out)}")
    if any(o.kind == "failed" for found in outcomes.values() for o in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
