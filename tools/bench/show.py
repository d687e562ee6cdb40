"""Show what scripts/bench has found, as tables."""

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

_HEADINGS = {"busy": "busy %", "p50_ms": "p50 ms", "p99_ms": "p99 ms", "rss": "RSS KiB"}


def number(value: float) -> str:
    """Write a figure with about three digits that mean something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def _cells(work: dict[str, Any], row: dict[str, Any]) -> dict[str, str]:
    """Write a proxy's figures, each under its heading; the other cells are dashes."""
    found = {work["unit"]: "–", "min–max": "–", "÷ HAProxy": "–", work["rate_unit"]: "–"}
    if "cost" in row:
        found[work["unit"]] = number(row["cost"]["median"])
        found["min–max"] = f"{number(row['cost']['min'])}–{number(row['cost']['max'])}"
    if row.get("ratio") is not None:
        found["÷ HAProxy"] = f"{row['ratio']:.2f}"
    if "rate" in row:
        found[work["rate_unit"]] = number(row["rate"]["median"])
    return found | {heading: number(row[key]["median"]) if key in row else "–" for key, heading in _HEADINGS.items()}


def _table(work: dict[str, Any], titles: dict[str, str]) -> Table:
    """Make a work's table, without columns that nobody has a figure for."""
    written = {proxy: _cells(work, row) for proxy, row in work["proxies"].items()}
    headings = next(iter(written.values()))
    used = [heading for heading in headings if any(row[heading] != "–" for row in written.values())]
    table = Table("", box=None, pad_edge=False)
    for heading in used:
        table.add_column(heading, justify="right")
    for proxy, row in written.items():
        line = [row[heading] for heading in used]
        table.add_row(titles[proxy], *line, style="bold" if proxy == "veillink" else None)
    return table


def show(found: dict[str, Any]) -> None:
    """Print a table for each work."""
    out = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    here, titles = found["machine"], found["titles"]
    versions = {name.partition("-")[0]: text for name, text in found["versions"].items()}
    print(found["date"], here["cpu"], f"{here['cores']} CPUs", here["kernel"], f"Python {here['python']}", sep=", ")
    print(", ".join(f"{name} {text}" for name, text in versions.items()))
    print(f"{found['rounds']} rounds, {found['seconds']:g} s a figure; load average before: {here['load']:.1f}")
    for name, work in found["works"].items():
        print(f"\n{name}: {work['title']}" + (f", {found['idle']}" if name == "idle" else ""))
        out.print(_table(work, titles))
        notes = [
            f"{titles[proxy]}: {why}"
            for proxy, row in work["proxies"].items()
            for why in dict.fromkeys(row.get("failures", [row.get("skipped")]))
        ]
        print(*notes, sep="\n", end="\n" if notes else "")
    if tight := found["burst"]:
        print(
            f"VeilLink, {tight['connects']:,.0f} connects in a tight loop: {tight['seconds']:.2f} s, all at the backend"
            f" after {tight['carried_seconds']:.2f} s; ListenOverflows (TcpExt) {tight['overflows_before']:.0f} before,"
            f" {tight['overflows_after']:.0f} after"
        )
