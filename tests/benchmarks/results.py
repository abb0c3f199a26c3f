"""How results are told, the same by each benchmark: tables in Markdown, plots in SVG, all rounds in JSON.

A figure is a median over the rounds with the least and the most beside it. Rounds go by turns, so that what comes and
goes on the machine meets everybody alike; what is left of it shows in the spread.
"""

import argparse
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).parent.parent.parent
OWN = ROOT / ".cache" / "benchmarks"
"""Where plots go, unless they are to be kept."""

PLOT_BYTES_MAX = 60 * 1024
"""A plot is kept in the repository, so it has to be small."""

PLOT_INCHES = (7.2, 3.6)

LOGARITHMIC_FROM = 20
"""Bars of which one is so many times as long as another are drawn on a logarithmic scale."""

STYLE = {
    "svg.fonttype": "none",  # letters as letters: a quarter of the bytes
    "svg.hashsalt": "queue-actor",  # or each run would name its parts otherwise
    "font.size": 9,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}


class Spread(NamedTuple):
    """The median of some rounds, the least and the most."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """As it stands in a table."""
        if show(self.low) == show(self.high):
            return show(self.median)
        return f"{show(self.median)} ({show(self.low)} to {show(self.high)})"


def spread(values: Iterable[float]) -> Spread:
    """What some rounds came to."""
    seen = sorted(values)
    return Spread(median(seen), seen[0], seen[-1])


def show(value: float) -> str:
    """A figure with the digits that mean something: three."""
    if value == 0:
        return "0"
    digits = max(0, 2 - int(f"{abs(value):e}".partition("e")[2]))
    return f"{value:,.{digits}f}"


def quantile(ordered: Sequence[float], share: float) -> float:
    """The least of ordered values that such a share of them does not exceed."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def machine() -> dict[str, str]:
    """What the figures depend on besides the code, and which code it was."""
    commit = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--", "*.py")
    model = [line.partition(": ")[2] for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "commit": (commit or "unknown") + (" with changes" if changed else ""),
        "day": f"{datetime.now(UTC):%Y-%m-%d}",
        "cores": f"{os.cpu_count()} x {model[0] if model else platform.machine()}",
        "memory": f"{sum(memory) / 2**20:.0f} GiB",
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "trio": version("trio"),
        "load": " ".join(f"{load:.1f}" for load in os.getloadavg()),
    }


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except FileNotFoundError:
        return []


def described(facts: dict[str, str], *, quick: bool) -> str:
    """The machine and the code in one line."""
    return (
        f"{'Quick run' if quick else 'Run'} of {facts['day']} at commit {facts['commit']}: {facts['cores']}, "
        f"{facts['memory']}, {facts['system']}, Python {facts['python']}, Trio {facts['trio']}; load average when it "
        f"began {facts['load']}."
    )


class Results:
    """What a benchmark has to tell. Prints as it goes, and writes the rest when it is asked to."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        logging.getLogger().addHandler(logging.NullHandler())  # slow batches are what some of them are about
        self._name = name
        self._json: Path | None = arguments.json
        self._plots: Path = arguments.plots or OWN
        self._facts = machine()
        self._quick = bool(arguments.quick)
        self._tables: dict[str, str] = {}
        self._rounds: dict[str, Any] = {}
        self._skipped: list[str] = []
        print(f"{described(self._facts, quick=self._quick)}\n", flush=True)

    def table(self, title: str, head: Sequence[str], rows: Iterable[Sequence[object]], *, about: str = "") -> None:
        """Print a table; columns are numbers but for those whose head ends with a colon, which is left out."""
        lines = [f"| {' | '.join(name.rstrip(':') for name in head)} |"]
        lines.append(f"|{'|'.join('---' if name.endswith(':') else '---:' for name in head)}|")
        for row in rows:
            cells = [show(cell) if isinstance(cell, float) else str(cell) for cell in row]
            lines.append(f"| {' | '.join(cells)} |")
        text = "\n".join([*([about, ""] if about else []), *lines])
        self._tables[title] = text
        print(f"{title}\n\n{text}\n", flush=True)

    def rounds(self, title: str, rounds: object) -> None:
        """Keep every round of something for the JSON."""
        self._rounds[title] = rounds

    def skip(self, what: str) -> None:
        """Say what is left out, and why."""
        self._skipped.append(what)
        print(f"skipped: {what}", flush=True)

    @contextmanager
    def plot(
        self, name: str, title: str, x: str, y: str, *, inches: tuple[float, float] = PLOT_INCHES
    ) -> Iterator["Axes"]:
        """Axes to draw on, written as an SVG file afterwards."""
        # Here, for the processes that serve or load have no use for it, and it takes half a second.
        import matplotlib as mpl
        import matplotlib.pyplot as plt

        mpl.use("svg")
        with mpl.rc_context(STYLE):  # type: ignore[arg-type] # it knows its keys as literals
            figure, axes = plt.subplots(figsize=inches, layout="constrained")
            axes.set_title(title, loc="left", fontsize=10)
            axes.set_xlabel(x)
            axes.set_ylabel(y)
            yield axes
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize=8)
            self._plots.mkdir(parents=True, exist_ok=True)
            path = self._plots / f"{name}.svg"
            figure.savefig(path, metadata={"Date": None})
            plt.close(figure)
        if path.stat().st_size > PLOT_BYTES_MAX:
            raise RuntimeError(f"{path} has more than {PLOT_BYTES_MAX} bytes")

    def bars(
        self, name: str, title: str, x: str, series: Mapping[str, Mapping[str, float]], *, limit: float | None = None
    ) -> None:
        """Draw bars, those of one thing beside each other, and a line at what is wanted."""
        whats = list(dict.fromkeys(what for values in series.values() for what in values))[::-1]
        high = 0.8 / len(series)
        with self.plot(name, title, x, "", inches=(PLOT_INCHES[0], 1.4 + 0.18 * len(whats) * len(series))) as axes:
            for n, (label, values) in enumerate(series.items()):
                places = [whats.index(what) + 0.4 - high * (n + 0.5) for what in values]
                axes.barh(places, list(values.values()), height=high * 0.95, label=label)
            shown = [value for values in series.values() for value in values.values()]
            if max(shown) > LOGARITHMIC_FROM * min(shown):
                plain(axes)
                axes.set_yscale("linear")
            axes.set_yticks(range(len(whats)), whats, fontsize=8)
            if limit is not None:
                axes.axvline(limit, linestyle=":", color="gray", label=f"{limit:g}")

    def end(self) -> None:
        """Write all of it, if that was asked for."""
        if self._json is None:
            return
        told = {
            "name": self._name,
            "quick": self._quick,
            "machine": self._facts,
            "tables": self._tables,
            "skipped": self._skipped,
            "rounds": self._rounds,
        }
        self._json.write_text(json.dumps(told, indent=1))


def plain(axes: "Axes", *, x: Sequence[float] | None = None) -> None:
    """Logarithmic axes whose ticks are written as people write numbers."""
    from matplotlib.ticker import FuncFormatter  # see `Results.plot`

    figures = FuncFormatter(lambda value, _: f"{value:,.10g}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(figures)
    if x is not None:
        axes.set_xticks(list(x))
        axes.minorticks_off()


def parser(about: str | None) -> argparse.ArgumentParser:
    """The arguments that every benchmark takes."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    made.add_argument("--smoke", action="store_true", help="just so much that everything is done once")
    made.add_argument("--json", type=Path, help="where to write every round")
    made.add_argument("--plots", type=Path, help="where to write plots; .cache/benchmarks unless it is given")
    return made


def tell(what: str) -> None:
    """Say on standard error what is being done; a run takes minutes."""
    print(f"[{what}]", file=sys.stderr, flush=True)
