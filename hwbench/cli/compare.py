"""``hwbench compare``: machines or versions side by side; never a gate."""

from __future__ import annotations

from pathlib import Path

import typer

from hwbench import files
from hwbench.cli import _options, _shared
from hwbench.errors import UsageError


def compare(
    runs: list[Path] = typer.Argument(..., help="Run files; the first is the base."),
    out: Path | None = typer.Option(None, "--out", "-o", help="Write a page with all runs too."),
    price: list[str] | None = typer.Option(
        None, "--price", help="NAME=PRICE of an hour, NAME being part of a machine's name."
    ),
    as_json: _options.PrintJson = False,
) -> None:
    """Set machines or versions side by side: ratios, what explains them, where the winner flips.

    hwbench compare a100.jsonl rtx4090.jsonl --price a100=1.8 --price 4090=0.4 --out compare.html
    """
    from hwbench.report import versus
    from hwbench.store import read_run

    paths = _shared.run_files(runs)
    files.refuse_inputs([out], paths)
    if out is not None:
        files.check_replaceable(out, "the report ")
    aside = _shared.is_stream(out)
    read = [read_run(path) for path in paths]
    comparison = versus.compare(read, _prices(price))
    if out is not None:
        files.write_text(out, versus.page(read, comparison), "the report ")
    if as_json:
        _shared.say_json(versus.plain(comparison), indent=1, ensure_ascii=False)
    else:
        console = _shared.console(error=aside)
        for part in versus.table(comparison):
            console.print(part)
    if out is not None:
        _shared.say(f"The report is in {out}.", error=as_json or aside)


def _prices(entries: list[str] | None) -> dict[str, float]:
    prices: dict[str, float] = {}
    for text in entries or []:
        name, _, value = text.rpartition("=")
        try:
            prices[name] = float(value)
        except ValueError:
            prices[name] = 0.0
        if not name or not 0 < prices[name] < float("inf"):
            raise UsageError(f"--price is NAME=PRICE, such as a100=1.8, not {text!r}.")
    return prices
