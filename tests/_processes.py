"""Counts the tests that start a process: most need none, and each costs an import of torch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

MOST = 40
"""Tests of the default tier may start a process; one more fails the session."""

UNCOUNTED = ("git", "hg", "uname")
"""Programs that answer in milliseconds: a run asks git for its revision, pytest-benchmark all."""

_OTHER_TIERS = ("heavy", "browser", "cuda")


class ProcessCount:
    """A plug-in of pytest that counts processes by the test that starts them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._test = ""  # that runs now, if it is of the default tier
        start, fork = subprocess.Popen.__init__, BaseProcess.start

        def started(process: Any, args: Any, *rest: Any, **how: Any) -> None:
            self.started(args)
            start(process, args, *rest, **how)

        def forked(process: Any) -> None:
            self.started(sys.executable)
            fork(process)

        subprocess.Popen.__init__ = started  # type: ignore[method-assign]
        BaseProcess.start = forked  # type: ignore[method-assign]

    def started(self, args: Any) -> None:
        """A process is started with these arguments."""
        program = args if isinstance(args, (str, bytes, os.PathLike)) else args[0]
        if self._test and Path(os.fsdecode(program)).name not in UNCOUNTED:
            self.counts[self._test] += 1

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        other = any(item.get_closest_marker(tier) for tier in _OTHER_TIERS)
        self._test = "" if other else item.nodeid
        try:
            return (yield)
        finally:
            self._test = ""

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """One of xdist's workers ended: take over what it counted."""
        self.counts.update(getattr(node, "workeroutput", {}).get("processes", {}))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["processes"] = dict(self.counts)
        elif len(self.counts) > MOST and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self.counts:
            return
        tests, processes = len(self.counts), sum(self.counts.values())
        words = f"{tests} tests of the default tier started {processes} processes"
        if tests <= MOST:
            terminalreporter.write_line(f"{words}; at most {MOST} tests may.")
        else:
            terminalreporter.section("too many tests start a process", red=True)
            terminalreporter.write_line(
                f"{words}, more than the {MOST} tests that may: let workers of tests/_inline.py "
                "do it, or mark the test heavy."
            )
        if tests <= MOST and terminalreporter.verbosity <= 0:
            return
        for test, number in sorted(self.counts.items()):
            terminalreporter.write_line(f"{number:4} {test}")
