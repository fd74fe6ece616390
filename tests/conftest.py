"""What all tests share: quiet property tests, and tests of a GPU that skip where there is none."""

from __future__ import annotations

import contextlib

import pytest

pytest.register_assert_rewrite("_formats")

with contextlib.suppress(ImportError):  # the tests of a GPU run without it
    from hypothesis import settings

    # A shared runner stalls for longer than any deadline; every run tries the same examples.
    settings.register_profile("hwbench", deadline=None, derandomize=True)
    settings.load_profile("hwbench")


@pytest.fixture(autouse=True)
def _needs_cuda(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("cuda"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("this machine has no CUDA device that torch can use")
