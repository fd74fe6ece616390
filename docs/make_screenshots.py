"""Photograph the first screen of four pages, and the answer of a run as a notebook draws it.

A page is photographed light and dark, on a desk and on a telephone. Run it as
``.venv/bin/python docs/make_screenshots.py`` after the page was changed, and look at the pictures.
It needs Chromium. Nothing is measured; the run of a GPU is a simulated one of the tests.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import replace
from PIL import Image

from hwbench.report import html, notebook, versus
from hwbench.store import Run, read_run

HERE = Path(__file__).parent
OUT = HERE / "screenshots"
REPORTS = HERE.parent / "reports"
SIZES = {"desk": (1400, 900), "telephone": (390, 844)}
THEMES = ("light", "dark")
NOTEBOOK = (1300, 1160)
NEWEST = "2026-11-29-xeon-2core"
CELL = """<style>
body { font: 14px/1.4 sans-serif; margin: 16px }
table { border-collapse: collapse; font-size: 12px }
th, td { padding: 0.4em 0.8em; text-align: right; max-width: 32em }
tbody tr:nth-child(odd) { background: #f5f5f5 }
</style>"""
"""The style that Jupyter gives to the tables of its cells, in short."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")


def main() -> None:
    """Write every picture into docs/screenshots.

    Raises:
        SystemExit: there is no Chromium.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"The pictures need Chromium: none of {', '.join(BROWSERS)} is on PATH.")
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        for page, text in pages():
            for theme in THEMES:
                for size, (width, height) in SIZES.items():
                    path = framed(text, theme, Path(name), width, height)
                    photograph(browser, path, OUT / f"{page}-{size}-{theme}.png", width, height)
        path = Path(name) / "notebook.html"
        with contextlib.chdir(HERE.parent):  # the path that the picture shows is that of a checkout
            answer = notebook.answer(f"reports/{NEWEST}/linear.jsonl")._repr_html_()
        path.write_text(f"<!doctype html><meta charset=utf-8>{CELL}{answer}", encoding="utf-8")
        photograph(browser, path, OUT / "notebook.png", *NOTEBOOK)


def pages() -> Iterator[tuple[str, str]]:
    """The name and the text of each page."""
    here = REPORTS / "2026-11-28-epyc-2core"
    yield "linear", html.render([read_run(REPORTS / NEWEST / "linear.jsonl")])
    yield "compress_lm", html.render([read_run(here / "compress_lm.jsonl")])
    machines = ("2026-11-21-epyc-2core", "2026-11-21-xeon-2core")
    runs = [read_run(REPORTS / machine / "linear.jsonl") for machine in machines]
    yield "compare", versus.page(runs, versus.compare(runs))
    yield "simulated_cuda", html.render([_simulated()])


def _simulated() -> Run:
    """A run as a GPU would leave it, of the tests; its page says that nothing was measured."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from _cuda_run import cuda_run

    run = cuda_run()
    device = {**run.header.environment.fingerprint["device"], "name": "a simulated GPU"}
    run.header.environment.fingerprint["device"] = device
    run.header = replace(run.header, about="Made up to show the page: nothing was measured")
    return run


def framed(text: str, theme: str, folder: Path, width: int, height: int) -> Path:
    """A page that shows another one in a theme and a frame: a window may not be that narrow."""
    inner, outer = folder / "inner.html", folder / "outer.html"
    themed = text.replace('<html lang="en">', f'<html lang="en" data-theme="{theme}">', 1)
    inner.write_text(themed, encoding="utf-8")
    style = f"border:0;display:block;width:{width}px;height:{height}px"
    frame = f'<iframe style="{style}" scrolling="no" src="{inner.name}"></iframe>'
    outer.write_text(f"<!doctype html><style>body{{margin:0}}</style>{frame}", encoding="utf-8")
    return outer


def photograph(browser: str, page: Path, out: Path, width: int, height: int) -> None:
    """Write what the browser shows of a page as a PNG with a palette."""
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *("--virtual-time-budget=9000", f"--user-data-dir={profile}"),
                *(f"--window-size={max(width, 500)},{height}", f"--screenshot={out}"),
                page.as_uri(),
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )
    picture = Image.open(out).convert("RGB").crop((0, 0, width, height))
    # Of the ways to choose a palette, this one keeps the colours of a few small marks.
    few = picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(out, optimize=True)


if __name__ == "__main__":
    main()
