"""Draw what scripts/bench has found."""

import itertools
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .show import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS, _OURS_TOO, _OTHERS = "#d55e00", "#edb48c", "#8aa9c4"


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw each proxy's cost as a multiple of HAProxy's on a log axis, a panel for each work."""
    from matplotlib.figure import Figure  # only this needs it

    works = [work for work in found["works"].values() if _ratios(work)]
    if not works:
        sys.exit("bench: there is no ratio to HAProxy to draw")
    titles = {name: title for name, title in found["titles"].items() if any(name in _ratios(work) for work in works)}
    everything = [ratio for work in works for ratio in _ratios(work).values()]
    rows = math.ceil(len(works) / 2)
    size = (10, 0.9 + rows * (0.9 + 0.23 * len(titles)))
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    axes = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False)
    for axis, work in itertools.zip_longest(axes.flat, works):
        if work is None:
            axis.set_visible(False)
        else:
            _lay_out(axis, min(everything) / 1.6, max(everything), list(titles.values()))  # room for its number
            axis.set_title(f"{work['title']}\n", fontsize=12.5, loc="left", fontweight="bold")
            axis.text(0, 1.02, work["unit"], transform=axis.transAxes, fontsize=11, color="#444444")
            for place, name in enumerate(titles):
                _bar(axis, place, name, work["proxies"][name])
    here = found["machine"]
    figure.suptitle(
        "Cost as a multiple of HAProxy's: bars to the left are cheaper (thin line: minimum to maximum)\n"
        f"{here['cpu']}, one core for the proxy, {here['kernel']}, {found['date'][:10]}, {found['rounds']} rounds",
        fontsize=11.5,
    )
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _ratios(work: dict[str, Any]) -> dict[str, float]:
    """Give the ratio of each proxy that has one."""
    return {name: row["ratio"] for name, row in work["proxies"].items() if row.get("ratio")}


def _lay_out(axis: "Axes", least: float, most: float, titles: list[str]) -> None:
    """Make a panel, all with the same axes."""
    from matplotlib.ticker import NullLocator

    least, most = min(least, 0.5) / 1.9, max(most, 2) * 1.9
    ticks = [power for power in range(-10, 11) if least < 2.0**power < most]
    axis.set_xscale("log", base=2)
    axis.set_xlim(least, most)
    axis.set_xticks(
        [2.0**power for power in ticks], [f"{2**power}×" if power >= 0 else f"1/{2**-power}×" for power in ticks]
    )
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_yticks(range(len(titles)), titles)
    axis.set_ylim(len(titles) - 0.4, -0.6)
    axis.tick_params(labelbottom=True, left=False, labelsize=11)
    axis.grid(axis="x", color="#dddddd")
    axis.axvline(1, color="#444444", linewidth=1.2)
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)


def _bar(axis: "Axes", place: int, name: str, row: dict[str, Any]) -> None:
    """Draw a proxy's bar from 1 to its ratio, its spread, and its cost in figures."""
    ratio = row.get("ratio")
    if not ratio:
        axis.text(1.08, place, "–", va="center", fontsize=11, color="#666666")
        return
    cost = row["cost"]
    scale = ratio / cost["median"]
    colour = _OURS if name == "veillink" else _OURS_TOO if name.startswith("veillink") else _OTHERS
    axis.barh(place, ratio - 1, left=1, height=0.7, color=colour)
    axis.plot([cost["min"] * scale, cost["max"] * scale], [place, place], color="#333333", linewidth=1)
    right = ratio >= 1
    axis.annotate(
        number(cost["median"]),
        (max(1, cost["max"] * scale) if right else min(1, cost["min"] * scale), place),
        xytext=(4 if right else -4, 0),
        textcoords="offset points",
        va="center",
        ha="left" if right else "right",
        fontsize=11,
        fontweight="bold" if name == "veillink" else "normal",
    )
