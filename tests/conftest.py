"""What all tests share: workers in this process, a golden run, one thread, quiet property tests."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from _browser import _page, chromium, opened, shown
from _inline import Workers
from _processes import ProcessCount

__all__ = ["_page", "chromium", "opened", "shown"]  # fixtures of the tests marked browser

pytest.register_assert_rewrite("_formats")

collect_ignore: list[str] = []

try:
    from hypothesis import settings
except ImportError:  # the tests of a GPU run in interpreters that have torch and pytest only
    files = Path(__file__).parent.glob("test_*.py")
    collect_ignore += [file.name for file in files if "\nfrom hypothesis" in file.read_text()]
else:
    # A shared runner stalls for longer than any deadline; every run tries the same examples.
    for tier, examples in (("default", 20), ("heavy", 150)):
        settings.register_profile(tier, max_examples=examples, deadline=None, derandomize=True)


os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch may be imported late, see _one_thread

_HAS_RAY = importlib.util.find_spec("ray") is not None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(ProcessCount(), "processes that tests start")
    if not hasattr(config, "workerinput"):  # xdist's workers take over what is set here
        folder = tempfile.TemporaryDirectory(prefix="hwbench-tests-")
        config.add_cleanup(folder.cleanup)
        os.environ["XDG_CACHE_HOME"] = folder.name
    if "hypothesis" in sys.modules:
        heavy = "not heavy" not in config.getoption("markexpr")
        settings.load_profile("heavy" if heavy else "default")


def pytest_report_header() -> list[str]:
    lines = []
    if not entry_points(group="hwbench.devices", name="fake"):
        lines.append("the device fake is not installed: `make venv` installs it")
    if collect_ignore:
        lines.append(f"left out without hypothesis: {', '.join(collect_ignore)}")
    if not _HAS_RAY:
        lines.append("left out without ray: the tests marked ray")
    return lines


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that draw inputs, which the second tier repeats with more of them.

    The tests of a Ray cluster are left out by name where there is no Ray.
    """
    for item in items:
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker("drawn")
    if _HAS_RAY:
        return
    left_out = [item for item in items if item.get_closest_marker("ray")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True, scope="session")
def _cache_of_our_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's own cache folder is neither read nor written, from where tests are collected on.

    What a compiler made is shared by all workers of xdist, and built while tests are collected.
    """
    compiled, own = (
        Path(os.environ["XDG_CACHE_HOME"], "hwbench/cpp"),
        tmp_path_factory.mktemp("cache"),
    )
    compiled.mkdir(parents=True, exist_ok=True)
    (own / "hwbench").mkdir()
    (own / "hwbench/cpp").symlink_to(compiled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(own))
        yield


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small matrices gain nothing from threads, and lose much where tests share the cores.

    A module that imports torch has done so by now; where a test does, OMP_NUM_THREADS speaks.
    """
    if (torch := sys.modules.get("torch")) is None:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def _malloc_as_it_is() -> Iterator[None]:
    """What a worker of this process tells glibc holds for all tests after it, and is not told."""
    from hwbench.devices import _allocator

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_allocator, "_set", lambda settings: None)
        patch.setattr(_allocator, "trim", lambda: None)
        yield


@pytest.fixture(scope="module", autouse=True)
def _imports_stay() -> None:
    """What was imported is no garbage: every measurement collects, and passes it over."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _real_workers() -> Iterator[type]:
    """Fixtures that serve several tests start workers in this process too."""
    from hwbench.measure.transports import local

    real = local.LocalWorker
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "LocalWorker", Workers())
        yield real


@pytest.fixture(autouse=True)
def workers(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, _real_workers: type
) -> Workers | None:
    """Workers in this process, and what may happen to them; none where a test needs real ones."""
    inline = None if request.node.get_closest_marker("processes") else Workers()
    monkeypatch.setattr("hwbench.measure.transports.local.LocalWorker", inline or _real_workers)
    return inline


_MACHINES = itertools.count(1)


@pytest.fixture(autouse=True)
def _a_machine_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test knows what dense took in another; on a real processor a run makes its plan alone.

    How many further replicates a real machine needs depends on its neighbours.
    """
    from hwbench.measure import references, schedule

    slowed = schedule.slowed_cases

    def simulated(state: schedule.State) -> set[str]:
        return slowed(state) if state.header.device.startswith("fake") else set()

    monkeypatch.setattr(references, "METHOD", -next(_MACHINES))
    monkeypatch.setattr(schedule, "slowed_cases", simulated)
    # How many replicates contested cases get follows from the time that is left.
    monkeypatch.setattr(schedule, "contested_cases", lambda state: set())


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of ``hwbench run --suite smoke --device fake``; who changes it takes a copy."""
    from hwbench.measure import run as runner

    folder = tmp_path_factory.mktemp("golden")
    return runner.run("smoke", device="fake", out=folder, threads=1)


@pytest.fixture
def unwritten_is_nan() -> Iterator[None]:
    """New memory holds NaN, so that a kernel which reads what nobody wrote is seen."""
    import torch

    torch.use_deterministic_algorithms(mode=True, warn_only=True)  # what turns the filling on
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(mode=False)


@pytest.fixture
def hwbench(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process; returns its exit code, output and errors.

    It runs in a folder of its own, and its workers find the package of this checkout.
    """
    from hwbench import cli
    from hwbench.studies import doctor

    monkeypatch.chdir(tmp_path)
    # Other tests keep the cores busy, now and then.
    monkeypatch.setattr(doctor, "busy_now", lambda: None)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hwbench", *arguments])
        code = cli._code()
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(autouse=True)
def _needs_cuda(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("cuda"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("this machine has no CUDA device that torch can use")
