"""Show what scripts/loadtest has found, as a table."""

import sys
from typing import Any

from rich.console import Console
from rich.table import Table


def _cell(value: Any) -> str:
    """Write a figure with about three digits that mean something, or failures by name."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items())
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def show(found: dict[str, Any]) -> None:
    """Print the table."""
    out = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    machine, lanes = found["machine"], found["lanes"]
    print(found["date"], f"{machine['cpus']} CPUs", machine["kernel"], f"Python {machine['python']}", sep=", ")
    print(f"{found['seconds']:g} s a figure, messages of {found['size']} bytes")
    table = Table(box=None, pad_edge=False)
    columns = [*lanes, "ratio"] if len(lanes) > 1 else lanes
    for heading in ("measure", "figure", *columns):
        table.add_column(heading, justify="right" if heading in columns else "left")
    for name, rows in found["measures"].items():
        title = f"{name} × {rows['connections']}"
        if rows["connections"] < rows["asked"]:
            title += f" (of {rows['asked']}; fd limit {machine['fd_limit']})"
        for key in dict.fromkeys(key for lane in lanes for key in rows[lane]):
            cells = [_cell(rows[column][key]) if key in rows[column] else "" for column in columns]
            if key != "errors" or any(cells):
                table.add_row(title, key.replace("_", " "), *cells)
                title = ""
    out.print(table)
