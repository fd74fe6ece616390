"""All that a few minutes on a GPU can tell, on a machine that has little more than PyTorch.

``make gpu-visit PYTHON=python3 OUT=visit SECONDS=480``; ``DEVICE=cpu`` rehearses it. Steps come in
the order of their value, each in a process of its own with a limit of its own: SIGINT when that is
reached, which hwbench and pytest answer by writing down what they have, SIGKILL ten seconds later.
A step does not begin where less time is left than it needs. Every result is on disk as it comes,
and ``OUT`` holds at most eight files in the end; the last thing printed is a table of all of them.

hwbench runs from the checkout. What the interpreter lacks (msgspec, most likely) is taken from
wheels in ``wheels/`` in the checkout or beside it. Nothing is written outside ``OUT`` and
``.gpu-visit``, a folder of caches in the checkout. The standard library is all that is needed here.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
CACHE = CHECKOUT / ".gpu-visit"
NEEDED = ("torch", "numpy", "scipy", "msgspec", "typer", "rich")
"""The packages that the verbs of a visit import; reports and exports need more, and wait."""

GRACE_SECONDS = 10.0  # from SIGINT to SIGKILL
TABLE_SECONDS = 8.0  # kept for the table, beside the grace of the last step
SHORT_SECONDS = 300.0  # a visit of less has the steps of the second one
FILE_BYTES = 15 * 2**20  # the most that a file of OUT may hold
_UNFINISHED = "-unfinished"  # ends the name of the folder of a step while it is taken
_LOG_ENDS = 2 * 2**20  # bytes of each end that an overlong log keeps
_BUDGET_SHARE = 0.8  # of what a run may take is its --time-budget: its processes start and end too


@dataclass(frozen=True)
class Step:
    """One process of a visit.

    ``needs``, ``expects`` and ``limit`` are seconds: with less left than the first it does not
    begin; an ``elastic`` one may exceed its limit by what no later step is expected to use.
    ``{runs}``, ``{out}``, ``{junit}`` and ``{budget}`` in the command are a folder whose run file
    is kept, ``OUT``, a results file that is kept, and the seconds of a time budget.
    """

    name: str
    command: Sequence[str]
    needs: float
    expects: float
    limit: float
    elastic: bool = False
    said: bool = False  # its standard output is JSON and belongs to the facts
    packages: Sequence[str] = ()  # beside NEEDED
    wants: Sequence[str] = ()  # files of OUT without which it tells nothing
    skip: str = ""  # why it cannot tell anything


@dataclass
class Visit:
    """The steps of one visit as they are taken, within ``seconds`` in all."""

    out: Path
    seconds: float
    variables: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    grace: float = GRACE_SECONDS
    reserve: float = GRACE_SECONDS + TABLE_SECONDS
    cache: Path = CACHE
    tell: Callable[[str], None] = print
    begun: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds that steps may still take."""
        return self.seconds - self.reserve - (time.monotonic() - self.begun)

    def take(self, steps: Sequence[Step]) -> bool:
        """Take every step for which there is time; whether each one ended by itself and well."""
        well = True
        for number, step in enumerate(steps):
            later = sum(each.expects for each in steps[number + 1 :] if not each.skip)
            reason = self._reason_to_skip(step)
            if reason:
                self._note(step, f"skipped: {reason}")
            else:
                well &= self._run(step, self.allowed(step, later))
        return well

    def allowed(self, step: Step, later: float) -> float:
        """Seconds that a step gets, where the later ones are expected to take so many."""
        limit = max(step.limit, self.left - later) if step.elastic else step.limit
        return max(0.0, min(limit, self.left))

    def _reason_to_skip(self, step: Step) -> str:
        if step.skip:
            return step.skip
        if self.left < step.needs:
            return f"{max(0.0, self.left):.0f} s are left, and it needs {step.needs:g}"
        lacking = [name for name in step.packages if not importlib.util.find_spec(name)]
        if lacking:
            return f"this Python lacks {', '.join(lacking)}"
        absent = [name for name in step.wants if not (self.out / name).exists()]
        return f"there is no {' and no '.join(absent)}" if absent else ""

    def _run(self, step: Step, allowed: float) -> bool:
        folder = self.out / f"{step.name}{_UNFINISHED}"
        places = {
            "{out}": str(self.out),
            "{runs}": str(folder),
            "{junit}": str(folder / "results.xml"),
            "{budget}": f"{max(1, int(_BUDGET_SHARE * allowed))}s",
        }
        command = [_filled(part, places) for part in step.command]
        folder.mkdir(parents=True, exist_ok=True)
        output = folder / "said.json"
        begun = time.monotonic()
        with (self.out / "visit.log").open("ab") as log:
            log.write(f"\n== {step.name}: {' '.join(command)}\n".encode())
            log.flush()
            with output.open("wb") as spoken:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=spoken if step.said else log,
                    stderr=log, env=dict(self.variables), cwd=CHECKOUT, start_new_session=True,
                )  # fmt: skip
                try:
                    ended = _ended(process, allowed, self.grace)
                finally:
                    _kill(process)
        self._keep(step.name, folder)
        seconds = time.monotonic() - begun
        self._note(step, f"{ended} after {seconds:.1f} s of {allowed:.0f}", output)
        shutil.rmtree(folder)
        return ended == "exit 0"

    def _keep(self, step: str, folder: Path) -> None:
        """Move the run file and the results of tests to where they stay."""
        for run in folder.glob("[!.]*.jsonl"):  # a hidden one was never begun
            run.replace(self.out / f"{step}.jsonl")
        results = folder / "results.xml"
        if results.exists():
            join_results(self.out / "tests.xml", results)

    def _note(self, step: Step, words: str, output: Path | None = None) -> None:
        """One line of the log and of the facts; what the step said on its standard output."""
        facts: dict[str, object] = {"step": step.name, "ended": words}
        text = output.read_text(encoding="utf-8", errors="replace") if output and step.said else ""
        if text:
            try:
                facts["said"] = json.loads(text)
            except ValueError:
                facts["said"] = text[-2000:]
        with (self.out / "facts.jsonl").open("a", encoding="utf-8") as file:
            print(json.dumps(facts), file=file)
        with (self.out / "visit.log").open("a", encoding="utf-8") as log:
            print(f"STEP {step.name}: {words}", file=log)
        self.tell(f"{step.name}: {words}")

    def finish(self, table: Sequence[str]) -> None:
        """Bring every file below its limit, and end with the table of ``table``, a command."""
        for file in sorted(self.out.iterdir()):
            if file.is_dir():  # of a step that was interrupted
                self._keep(file.name.removesuffix(_UNFINISHED), file)
                shutil.rmtree(file)
        for file in sorted(self.out.iterdir()):
            shrink(file)
        limit = max(TABLE_SECONDS, self.seconds - (time.monotonic() - self.begun))
        try:
            process = subprocess.run(
                table, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                env=dict(self.variables), cwd=CHECKOUT, timeout=limit, check=False,
            )  # fmt: skip
            text = process.stdout.decode(errors="replace")
        except subprocess.TimeoutExpired:
            text = (
                f"The table took longer than {limit:.0f} s; python {' '.join(table[1:])} prints it."
            )
        with (self.out / "visit.log").open("a", encoding="utf-8") as log:
            log.write(f"\n{text}")
        self.tell(text.rstrip())


def _filled(part: str, places: Mapping[str, str]) -> str:
    for name, value in places.items():
        part = part.replace(name, value)
    return part


def _ended(process: subprocess.Popen[bytes], allowed: float, grace: float) -> str:
    """Wait for a process, interrupt it at its limit, and kill it where that does not help."""
    for seconds, words in ((allowed, "exit {}"), (grace, "stopped, exit {},")):
        with contextlib.suppress(subprocess.TimeoutExpired):
            return words.format(process.wait(timeout=seconds))
        if words.startswith("exit"):
            with contextlib.suppress(ProcessLookupError):  # it ended just now
                os.killpg(process.pid, signal.SIGINT)
    return "killed"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a step's process group, and what it started in sessions of their own, such as workers."""
    others = descendants(process.pid) if process.poll() is None else []
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for pid in others:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that they started, in whatever session."""
    children: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # that process has ended
            # The name before the last bracket may hold anything; the parent is two fields after.
            parent = int(file.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(file.parent.name))
    processes, pending = [], [pid]
    while pending:
        more = children.get(pending.pop(), [])
        processes += more
        pending += more
    return processes


def join_results(whole: Path, more: Path) -> None:
    """Add the suites of one JUnit file to another, which need not exist yet."""
    if not whole.exists():
        more.replace(whole)
        return
    tree = ET.parse(whole)  # noqa: S314 (pytest has just written it)
    tree.getroot().extend(ET.parse(more).getroot())  # noqa: S314
    tree.write(whole, encoding="utf-8", xml_declaration=True)


def shrink(file: Path) -> None:
    """Bring a file below ``FILE_BYTES``: a log loses its middle, anything else is compressed."""
    if file.stat().st_size < FILE_BYTES:
        return
    data = file.read_bytes()
    if file.suffix == ".log":
        cut = len(data) - 2 * _LOG_ENDS
        middle = f"\n… {cut} bytes are left out here …\n".encode()
        file.write_bytes(data[:_LOG_ENDS] + middle + data[-_LOG_ENDS:])
        return
    file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(data))
    file.unlink()


# --- what is asked ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """The settings that the steps of a visit depend on."""

    device: str
    python: str = sys.executable
    before: Path | None = None  # what an earlier visit left, whose failed tests are taken again

    def hwbench(self, *words: str) -> tuple[str, ...]:
        """A verb of hwbench on the device."""
        return (self.python, "-m", "hwbench", *words, "--device", self.device)

    def contract(self, checks: str, name: str = "contract.jsonl") -> tuple[str, ...]:
        """Some checks of gpu_contract.py."""
        script = str(CHECKOUT / "evidence" / "gpu_contract.py")
        place = ("--out", f"{{out}}/{name}", "--device", self.device)
        return (self.python, script, *place, *(("--only", checks) if checks else ()))

    def run(self, *words: str) -> tuple[str, ...]:
        """A run of timings alone: what layers lose in accuracy needs no GPU."""
        return self.hwbench("run", "--no-scores", "--out", "{runs}", *words)

    def pytest(self, *words: str) -> tuple[str, ...]:
        """Tests that need a GPU.

        They were made with another PyTorch than the one there, whose warnings are no failures.
        """
        limit = ("--timeout", "60") if importlib.util.find_spec("pytest_timeout") else ()
        usual = ("-v", "-m", "cuda", "-W", "default", "-p", "no:cacheprovider")
        return (self.python, "-m", "pytest", *usual, *limit, "--junit-xml", "{junit}", *words)


def steps(command: Asked, seconds: float) -> list[Step]:
    """The steps of a visit of so many seconds, the most telling first."""
    return second_visit(command) if seconds < SHORT_SECONDS else first_visit(command)


def first_visit(command: Asked) -> list[Step]:
    """The steps of a first visit: whether the numbers hold, and what they are; 480 seconds."""
    layers = ("--suite", "linear", "--format", "low_rank,monarch,semi_structured")
    same = (*layers, "--tokens", "16,4096", "--density", "0.5", "--filter", "direction=forward")
    fused = ("--suite", "llm", "--format", "two_four_training,monarch,btt,blast")
    wide = ("--shape", "4096x4096", "--dtype", "bfloat16", "--tokens", "16,8192")
    wide = (*wide, "--density", "0.5")
    budget = ("--time-budget", "{budget}")
    verdict = ("--baseline", "{out}/same-1.jsonl", "--json")
    checked = (command.python, "-m", "hwbench", "check", "{out}/same-2.jsonl", *verdict)
    alone, together = cuda_tests()
    return [
        Step("facts", command.contract("facts", "facts.jsonl"), 2, 8, 30),
        Step("doctor", command.hwbench("doctor", "--json"), 5, 20, 60, said=True),
        Step("contract", command.contract(""), 10, 70, 90),
        Step("ceilings", command.hwbench("ceilings", "--json"), 10, 30, 50, said=True),
        Step(
            "linear", command.run("--suite", "linear", "--replicates", "3", *budget), 20, 110, 130,
            elastic=True,
        ),
        Step(
            "tests", command.pytest(*_workers(), *together), 10, 50, 80, packages=("pytest",),
            skip="" if together else "no test is marked cuda",
        ),
        Step("tests-alone", command.pytest(*alone), 8, 20, 40, packages=("pytest",)),
        Step("same-1", command.run(*same, "--replicates", "3", *budget), 12, 28, 35),
        Step(
            "same-2", command.run(*same, "--replicates", "3", *budget), 12, 28, 35,
            wants=("same-1.jsonl",),
        ),
        Step("check", checked, 3, 5, 15, said=True, wants=("same-1.jsonl", "same-2.jsonl")),
        Step(
            "llm", command.run(*fused, *wide, "--replicates", "2", *budget), 15, 60, 70,
            elastic=True,
        ),
    ]  # fmt: skip


def second_visit(command: Asked) -> list[Step]:
    """The steps of a short, second visit: what failed before, and what the first left out."""
    failed = failed_tests(command.before / "tests.xml") if command.before else []
    claimed = ("semi_structured",) if command.device.startswith("cuda") else ("monarch",)
    layer = ("--density", "0.5", "--dtype", "bfloat16", "--shape", "4096x4096", "--tokens", "4096")
    trace = ("--trace", "{out}/trace.json", "--json")
    formats = ("--format", "low_rank,monarch,semi_structured", "--density", "0.5")
    forward = ("--filter", "direction=forward")
    energy = ("--suite", "linear", *formats, *forward, "--energy")
    crossing = ("--suite", "crossover", *forward, "--quick", "--time-budget", "{budget}")
    return [
        Step("facts", command.contract("facts", "facts.jsonl"), 2, 5, 25),
        Step("doctor", command.hwbench("doctor", "--json"), 5, 12, 25, said=True),
        Step(
            "tests", command.pytest(*failed), 8, 15, 30, packages=("pytest",),
            skip="" if failed else _nothing_failed(command.before),
        ),
        Step("contract", command.contract("gaps,prefill,graph,two_four"), 8, 25, 35),
        Step("crossover", command.run(*crossing), 10, 30, 35, elastic=True),
        Step("energy", command.run(*energy, "--tokens", "4096", "--replicates", "1"), 12, 25, 30),
        Step("profile", command.hwbench("profile", "--format", *claimed, *layer, *trace), 5, 12, 20,
             said=True),
    ]  # fmt: skip


def cuda_tests() -> tuple[list[str], list[str]]:
    """Files with tests that need a GPU, those first that must have it for themselves.

    They are the ones of its memory and its clock.
    """
    files = sorted((CHECKOUT / "tests").glob("test_*.py"))
    marked = [file for file in files if "mark.cuda" in file.read_text(encoding="utf-8")]
    names = [str(file.relative_to(CHECKOUT)) for file in marked]
    alone = [name for name in names if "devices" in name]
    return alone, [name for name in names if name not in alone]


def _workers() -> tuple[str, ...]:
    if not importlib.util.find_spec("xdist"):
        return ()
    return ("-n", str(max(1, min(10, len(os.sched_getaffinity(0)) - 1))), "--dist", "worksteal")


def _nothing_failed(before: Path | None) -> str:
    """Why there is no test to repeat."""
    if before is None:
        return "no earlier visit was named"
    results = before / "tests.xml"
    return f"{results} has no failed test" if results.exists() else f"there is no {results}"


def failed_tests(results: Path) -> list[str]:
    """The tests that failed, as pytest takes them; none where there is no such file."""
    if not results.exists():
        return []
    names = []
    for case in ET.parse(results).getroot().iter("testcase"):  # noqa: S314 (a file of our own)
        if case.find("failure") is not None or case.find("error") is not None:
            file = case.get("classname", "").replace(".", "/") + ".py"
            if (CHECKOUT / file).exists():
                names.append(f"{file}::{case.get('name')}")
    return names


# --- before the first step --------------------------------------------------------------------


def prepare(cache: Path, folders: Iterable[Path]) -> dict[str, str]:
    """The environment of the steps: hwbench from the checkout, wheels unpacked, caches of its own.

    Raises:
        SystemExit: a package that is needed is neither installed nor among the wheels.
    """
    site = cache / "site"
    lacking = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    for wheel in sorted(file for folder in folders for file in folder.glob("*.whl")):
        if fits(wheel.name) and wheel.name.split("-")[0] in lacking:
            with zipfile.ZipFile(wheel) as packed:
                packed.extractall(site)
            lacking.remove(wheel.name.split("-")[0])
    if lacking:
        raise SystemExit(
            f"{sys.executable} lacks {', '.join(lacking)}: install it there, or put its wheel for "
            f"Python {sys.version_info.major}.{sys.version_info.minor} into {CHECKOUT / 'wheels'}."
        )
    for name in ("tmp", "pyc"):
        (cache / name).mkdir(parents=True, exist_ok=True)
    paths = [str(CHECKOUT), str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "COLUMNS": "150",
        "CUDA_CACHE_PATH": str(cache / "cuda"),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONPYCACHEPREFIX": str(cache / "pyc"),
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(cache / "tmp"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "XDG_CACHE_HOME": str(cache / "xdg"),
    }


def wheel_folders() -> list[Path]:
    """Where wheels may lie: in the checkout, or beside it."""
    return [place / name for place in (CHECKOUT, CHECKOUT.parent) for name in ("wheels", ".whl")]


def fits(wheel: str) -> bool:
    """Whether a wheel is for this interpreter and this machine, by its name."""
    _, python, abi, where = wheel.removesuffix(".whl").rsplit("-", 3)
    own = f"cp{sys.version_info.major}{sys.version_info.minor}"
    if where == "any":
        return "py3" in python.split(".")
    return platform.machine() in where and own in python.split(".") and abi == own


def main() -> None:
    """Take the steps, bring what they left in order, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a new or empty folder")
    parser.add_argument("--seconds", type=float, default=480.0, help="in all")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu for a rehearsal")
    parser.add_argument("--before", type=Path, help="OUT of an earlier visit")
    parser.add_argument("--only", help="these steps, such as facts,contract")
    options = parser.parse_args()
    if options.before is not None and not options.before.is_dir():
        raise SystemExit(f"There is no folder {options.before}: name an earlier visit's OUT.")
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise SystemExit(f"{out} is not empty: name a new folder with OUT=….")
    variables = prepare(CACHE, wheel_folders())
    # A shell that runs this in the background has it ignore SIGINT, and its children with it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    visit = Visit(out, options.seconds, variables)
    command = Asked(options.device, before=options.before and options.before.resolve())
    planned = steps(command, options.seconds)
    if options.only:
        planned = [step for step in planned if step.name in options.only.split(",")]
    well = False
    try:
        well = visit.take(planned)
    except KeyboardInterrupt:
        print("interrupted")
    finally:
        table = str(CHECKOUT / "evidence" / "gpu_table.py")
        visit.finish((command.python, table, str(out)))
    raise SystemExit(not well)


if __name__ == "__main__":
    main()
