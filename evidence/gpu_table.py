"""What a visit to a GPU found, in at most sixty lines: ``python evidence/gpu_table.py OUT``."""

from __future__ import annotations

import argparse
import json
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

from hwbench import units
from hwbench.analysis.frames import summary_rows
from hwbench.errors import HwbenchError
from hwbench.store import list_runs, read_run

MOST_LINES, MOST_COLUMNS = 60, 150
_DROPPED = ("check", "case", "took", "kernels", "searched_kernels", "reads")
_TESTS = 5  # failed tests that are named
_CASES = 2  # the quickest cases that are named of each run, beside the slowest
_UNSUPPORTED = "_unsupported"  # ends the key of a fused kernel that a case could not have


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; a line that was cut off ends it."""
    rows: list[dict[str, Any]] = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def steps(out: Path) -> list[str]:
    """How each step ended: a line for those that ended well, and one for each that did not."""
    ended = [(row["step"], row["ended"]) for row in rows_of(out / "facts.jsonl") if "step" in row]
    well = [f"{name} {words.split()[3]} s" for name, words in ended if words.startswith("exit 0 ")]
    others = [f"{name:12s} {words}" for name, words in ended if not words.startswith("exit 0 ")]
    return [f"ended well   {', '.join(well) or 'none'}", *others]


def doctor(out: Path) -> list[str]:
    """The doubts of ``hwbench doctor`` about the machine, and the ceilings."""
    lines = []
    for row in rows_of(out / "facts.jsonl"):
        reply = row.get("said")
        if row.get("step") == "doctor" and isinstance(reply, list):
            lines += [
                f"{check['key']:12s} {check['verdict']}: {check['says']}"
                for check in reply
                if check["verdict"] == "doubt" or check["key"] in ("device", "two_four")
            ]
        if row.get("step") == "ceilings" and isinstance(reply, dict):
            rates = [
                f"{dtype} {units.flops_per_second(entry['flops_per_second'])}"
                for dtype, entry in reply["matmul"].items()
            ]
            copy = units.si(reply["copy"]["bytes_per_second"], "B/s")
            lines.append(f"ceilings     {', '.join(rates)}; copy {copy}")
    return lines


def contract(out: Path) -> list[str]:
    """A line a case, or a format; those that say nothing but that they cannot be asked count."""
    lines, unasked = [], Counter[str]()
    fused: dict[str, list[str]] = {}
    for row in rows_of(out / "contract.jsonl"):
        facts = {key: value for key, value in row.items() if key not in _DROPPED}
        if row["check"] == "gaps" and "failed" in row and "ran" in row:
            lines += [f"gaps         {row['case']} {c}: {w}" for c, w in row["failed"].items()]
            if not row["ran"]:
                lines.append(f"gaps         {row['case']}: nothing ran{_refusals(row)}")
        elif row["check"] == "fused" and "dense_seconds" in row:
            name, _, tokens = row["case"].rpartition(", ")
            if words := _fused(row):
                fused.setdefault(name, []).append(f"{tokens} {', '.join(words)}")
            for key in row:
                if key.endswith(_UNSUPPORTED):
                    kernel = key.removesuffix(_UNSUPPORTED)
                    unasked[f"fused        {name} {kernel}: unsupported, {row[key]}"] += 1
        elif len(facts) > 1:
            lines.append(f"{row['check']:12s} {row['case']}: {_words(facts)}")
        else:
            unasked[f"{row['check']:12s} {_words(facts)}"] += 1
    lines += [f"fused        {name}: {'; '.join(sentences)}" for name, sentences in fused.items()]
    return lines + [f"{words} ({count} cases)" for words, count in unasked.items()]


def _refusals(row: dict[str, Any]) -> str:
    """How many calls of a format were refused in words; the first of the words."""
    if not row.get("unsupported"):
        return ""
    return f", {row['unsupported']} calls unsupported: {row.get('reason', 'no reason is kept')}"


def _fused(row: dict[str, Any]) -> list[str]:
    """The time of each fused kernel over the usual one's and over dense; its error where large.

    A dash stands where the usual one was not timed. In bfloat16 any of the kernels errs by less
    than a hundredth.
    """
    words = []
    for kernel in [key.removesuffix("_error") for key in row if key.endswith("_error")]:
        if kernel == "bmm":
            continue
        own, others = row[f"{kernel}_seconds"], (row.get(f"{o}_seconds") for o in ("bmm", "dense"))
        ratios = "/".join(units.significant(own / o, 2) if o else "–" for o in others)
        wrong = row[f"{kernel}_error"]
        words.append(ratios if wrong < 0.01 else f"{ratios} WRONG by {wrong:.2g}")
    return words


def _words(facts: dict[str, Any]) -> str:
    return ", ".join(f"{key.removesuffix('_seconds')} {_word(key, facts[key])}" for key in facts)


def _word(key: str, value: Any) -> str:
    if isinstance(value, float):
        return units.seconds(value) if key.endswith("_seconds") else units.significant(value)
    return str(value)


def tests(out: Path) -> list[str]:
    """How many tests ran, and the first that failed."""
    file = out / "tests.xml"
    if not file.exists():
        return []
    suites = list(ET.parse(file).getroot().iter("testsuite"))  # noqa: S314 (pytest wrote it)
    names = ("tests", "failures", "errors", "skipped")
    sums = {name: sum(int(suite.get(name, 0)) for suite in suites) for name in names}
    lines = [f"tests        {', '.join(f'{count} {name}' for name, count in sums.items())}"]
    bad = [
        f"  {case.get('name')}: {(reason.get('message') or '').splitlines()[:1]}"
        for suite in suites
        for case in suite.iter("testcase")
        for reason in (*case.findall("failure"), *case.findall("error"))
    ]
    return lines + bad[:_TESTS] + _more(len(bad) - _TESTS, "failed tests")


def runs(out: Path) -> list[str]:
    """Each run: its cases by status, its flags, and what is the furthest from dense either way."""
    lines = []
    for file in list_runs(out):
        if file.name in ("facts.jsonl", "contract.jsonl"):
            continue
        try:
            run = read_run(file)
        except HwbenchError as error:
            lines.append(f"{file.stem}: {error}")
            continue
        rows = summary_rows(run)
        statuses = Counter(row["status"] for row in rows)
        flags = Counter(flag for row in rows for flag in row["flags"].split(",") if flag)
        counts_words = ", ".join(f"{count} {name}" for name, count in statuses.items())
        flagged = ", ".join(f"{count} {name}" for name, count in flags.items()) or "none"
        whole = "complete" if run.complete else "cut off"
        lines.append(f"{file.stem}: {whole}, {counts_words}; flags: {flagged}")
        quick = sorted(
            (row for row in rows if row["relative_time"] > 0), key=lambda row: row["relative_time"]
        )
        shown = [("", row) for row in quick[:_CASES]]
        shown += [("slowest, ", row) for row in quick[_CASES:][-1:]]
        lines += [
            f"  {how}{row['case']}: {row['relative_time']:.3f} of dense" for how, row in shown
        ]
        failed = Counter(
            row["reason"] for row in rows if row["status"] in ("crashed", "wrong", "timed_out")
        )
        lines += [f"  {count} failed: {reason}" for reason, count in failed.most_common(2)]
    return lines


def _more(count: int, what: str) -> list[str]:
    return [f"  … and {count} more {what}"] if count > 0 else []


def table(out: Path) -> list[str]:
    """All of it; where that is too long, the contract is what gives way."""
    parts = [steps(out), doctor(out), contract(out), tests(out), runs(out)]
    over = sum(map(len, parts)) - MOST_LINES
    if over > 0:
        lines_kept = max(0, len(parts[2]) - over - 1)
        left = len(parts[2]) - lines_kept
        parts[2] = parts[2][:lines_kept] + _more(left, "lines of contract.jsonl")
    lines = [line if len(line) <= MOST_COLUMNS else f"{line[: MOST_COLUMNS - 1]}…" for part in parts
             for line in part]  # fmt: skip
    return lines[-MOST_LINES:]


def main() -> None:
    """Print the table of one folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    for line in table(parser.parse_args().out):
        print(line)


if __name__ == "__main__":
    main()
