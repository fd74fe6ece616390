"""``pytest --hwbench-suite FILE``: cases of a suite as test items that pytest-benchmark times.

Nothing of hwbench is imported until the option is given. pytest-benchmark calls and times each
case in pytest's own process, so its saving, comparing and failing work as for any benchmark. These
times have the contract ``pytest``: one process, absolute times, no dense beside them. They are
never compared with times of ``hwbench run``.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from hwbench.records import Header, Planned, Result

_MOST_ROUNDS = 1000  # of a case whose untimed part runs before every call


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("hwbench", "weight formats, timed by pytest-benchmark")
    group.addoption(
        "--hwbench-suite",
        metavar="FILE",
        help="Make the timed cases of this suite test items: a TOML file, or a shipped suite.",
    )
    group.addoption(
        "--hwbench-device",
        metavar="DEVICE",
        default="auto",
        help="Where they run: auto (the default), cpu, cuda or cuda:N.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Let the suite be collected, alone unless other paths were named."""
    suite_name = config.getoption("hwbench_suite")
    if suite_name is None:
        return
    if not config.pluginmanager.has_plugin("benchmark"):
        raise pytest.UsageError(
            "--hwbench-suite needs pytest-benchmark; install it with: pip install pytest-benchmark"
        )
    from hwbench import suite
    from hwbench.errors import HwbenchError

    try:
        path = Path(suite.read(suite_name)["source"]).resolve()
    except HwbenchError as error:
        raise pytest.UsageError(str(error)) from error
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = [str(path)]
    elif not any(Path(arg.split("::")[0]).resolve() == path for arg in config.args):
        config.args.append(str(path))
    config.pluginmanager.register(Cases(path, config.getoption("hwbench_device")), "hwbench-cases")


# Each is equal to itself alone, because pytest keeps plug-ins in sets.
@dataclass(eq=False)
class Cases:
    """The cases of the session: collected, prepared in this process, and told to the saved file."""

    path: Path
    device: str
    worker: Any = None
    header: Header | None = None
    planned: dict[str, Planned] = field(default_factory=dict)
    ended: list[Result] = field(default_factory=list)

    def pytest_collect_file(
        self, file_path: Path, parent: pytest.Collector
    ) -> pytest.Collector | None:
        """Collect the suite."""
        if file_path.resolve() != self.path:
            return None
        collector: pytest.Collector = SuiteFile.from_parent(parent, path=file_path)
        return collector

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        """Write what the cases and the machine were into the saved file."""
        if self.header is not None:
            from hwbench.report import pytest_benchmark

            output_json["hwbench"] = pytest_benchmark.about(
                self.header, self.planned.values(), self.ended
            )

    def plan(self) -> list[Planned]:
        """Open the device and plan the timed cases.

        Raises:
            HwbenchError: the suite, a knob or the device is not usable as asked.
        """
        from msgspec.structs import replace

        from hwbench import protocol, suite
        from hwbench.errors import SuiteError
        from hwbench.measure import run as runner
        from hwbench.records import Allocator

        device = runner.resolve_device(self.device)
        built = suite.build(suite.read(str(self.path)), device.partition(":")[0])
        timed = [case for case in built.cases if case.tokens is not None]
        module = importlib.import_module("hwbench.worker")  # by name: what we import knows no torch
        self.worker = module.Worker(module.open_device(device))
        reply = self.worker.plan(protocol.PlanRequest(cases=timed))
        if reply.mistakes:
            raise SuiteError(" ".join(reply.mistakes[:5]))
        # The process is pytest's: its allocator stays as it is.
        plan = replace(built.plan, replicates=1, allocator=Allocator.SYSTEM.value)
        once = replace(built, plan=plan)
        threads = int(reply.settings.get("threads", 1))
        self.header = runner.header_of(once, device, 0, threads, reply, {}, {"timed_by": "pytest"})
        return list(reply.planned)

    def test(self, planned: Planned) -> Callable[..., None]:
        """The test of one case."""

        def measured(benchmark: Any, request: pytest.FixtureRequest) -> None:
            self.planned[planned.case.id] = planned
            seconds = self._ready(planned)
            benchmark.group = planned.case.among
            benchmark.extra_info["hwbench"] = {"case": planned.case.id, "contract": "pytest"}
            before, call = self.worker.calls(planned, 0)
            try:
                if before is None:
                    benchmark(call)
                else:
                    config = request.config
                    rounds = math.ceil(float(config.getoption("benchmark_max_time")) / seconds)
                    fewest = int(config.getoption("benchmark_min_rounds"))
                    benchmark.pedantic(
                        call,
                        setup=lambda: ((before(),), {}),
                        warmup_rounds=1,
                        rounds=max(fewest, min(rounds, _MOST_ROUNDS)),
                    )
            finally:
                self.worker.live.clear()

        return measured

    def _ready(self, planned: Planned) -> float:
        """Check that the case is right and runs; the seconds of one call."""
        from hwbench import protocol
        from hwbench.records import Result, Status

        case = planned.case.id
        if planned.unsupported is not None:
            result = Result(
                case=case, replicate=0, seed=0,
                status=Status.UNSUPPORTED, reason=planned.unsupported,
            )  # fmt: skip
            seconds = 0.0
        else:
            reply = self.worker.solo(protocol.SoloRequest(planned=planned, replicate=1, seed=0))
            result, seconds = reply.result, reply.call_seconds
        if result.status is Status.OK:
            return max(float(seconds), 1e-9)
        self.ended.append(result)
        words = f"{result.status.value.replace('_', ' ')}: {result.reason}"
        if result.status in (Status.UNSUPPORTED, Status.OUT_OF_MEMORY):
            pytest.skip(words)
        pytest.fail(words, pytrace=False)


class SuiteFile(pytest.Module):
    """A suite as a module of tests: fixtures of a module's scope find their node."""

    def _getobj(self) -> ModuleType:
        return ModuleType(self.path.stem)

    def collect(self) -> Iterator[pytest.Item]:
        """One test for each timed case."""
        from hwbench.errors import HwbenchError

        cases: Any = self.config.pluginmanager.get_plugin("hwbench-cases")
        try:
            planned_cases = cases.plan()
        except HwbenchError as error:
            raise self.CollectError(str(error)) from error
        for planned in planned_cases:
            test: pytest.Function = pytest.Function.from_parent(
                self, name=planned.case.id, callobj=cases.test(planned)
            )
            yield test
