"""All benchmarks, one after the other, and their tables and plots into the documents.

`scripts/bench.sh` runs this. A benchmark is a module of this folder with a `main`. Each is run as a process of its own,
so none finds the memory or the threads of another. Their tables go where a document has

    <!-- figures: NAME TABLE -->
    <!-- end of figures -->

and only with `--publish`, after each of them. `--publish --read FILE` runs nothing, and puts there what an earlier run
wrote with `--json FILE`.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.benchmarks.results import ROOT, described

FOLDER = Path(__file__).parent
PLOTS = FOLDER / "plots"
DOCUMENTS = (FOLDER / "README.md", ROOT / "README.md")
FIRST = ("peers", "engines", "mutex", "durable", "stalls", "stalls_http", "scale", "http", "wakeup", "recovery")
"""The order of those whose order matters to a reader; the others follow by name."""

FIGURES = re.compile(r"(<!-- figures: (\w+) (.+?) -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def names() -> list[str]:
    """All benchmarks."""
    found = {
        path.stem: path.read_text() for path in sorted(FOLDER.glob("[a-z]*.py")) if path.stem != Path(__file__).stem
    }
    all_ = [name for name, text in found.items() if re.search(r"^def main\(", text, re.MULTILINE)]
    return sorted(all_, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))


def about(name: str) -> str:
    """The first sentence that a benchmark tells of itself."""
    return (FOLDER / f"{name}.py").read_text().partition("\n")[0].strip('"')


def tells_results(name: str) -> bool:
    """Whether a benchmark tells its results as `results.py` has it, and draws plots."""
    return "tests.benchmarks.results import" in (FOLDER / f"{name}.py").read_text()


def run(name: str, arguments: Sequence[str], told: Path, plots: Path | None) -> tuple[list[str], int]:
    """Runs one, passes on what it prints as it comes, and returns that and its exit code."""
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", *arguments, "--json", str(told)]
    if plots is not None and tells_results(name):
        command += ["--plots", str(plots)]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            print(line, end="", flush=True)
    return lines, process.returncode


def publish(told: dict[str, Any]) -> None:
    """Puts the tables of a benchmark where the documents have a place for them."""
    placed: set[str] = set()

    def filled(match: re.Match[str]) -> str:
        begin, name, title, end = match.groups()
        if name != told["name"]:
            return match.group(0)
        if title not in told["tables"]:
            raise SystemExit(f"{name} has no table {title!r}: it has {', '.join(told['tables'])}")
        placed.add(title)
        return f"{begin}{described(told['machine'], quick=told['quick'])}\n\n{told['tables'][title]}\n{end}"

    for document in DOCUMENTS:
        text = document.read_text()
        document.write_text(FIGURES.sub(filled, text))
    for title in told["tables"].keys() - placed:
        print(f"no document has a place for: {told['name']} {title}")


def main_of_all(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Runs what is asked for."""
    if arguments.read is not None:
        for told in json.loads(arguments.read.read_text()).values():
            if told is not None and "tables" in told:
                publish(told)
        return
    wanted = names() if arguments.name in {"all", None} else [arguments.name]
    if rest and len(wanted) > 1:
        raise SystemExit(f"{' '.join(rest)}: only a benchmark that is named takes arguments of its own")
    rest += ["--quick"] * arguments.quick
    results: dict[str, Any] = {}
    skipped: list[str] = []
    failed: list[str] = []
    took: dict[str, float] = {}
    with TemporaryDirectory() as folder:
        for name in wanted:
            print(f"## {name}\n\n{about(name)}\n", flush=True)
            began = time.monotonic()
            path = Path(folder) / f"{name}.json"
            brief = ["--smoke"] * (arguments.smoke and tells_results(name))
            lines, code = run(name, rest + brief, path, PLOTS if arguments.publish else None)
            skipped += [f"{name}: {line.removeprefix('skipped: ')}" for line in lines if line.startswith("skipped: ")]
            took[name] = time.monotonic() - began
            if code:
                # The others may still be of use, after a run that takes so long.
                failed.append(f"{name}: exit code {code}")
                continue
            results[name] = json.loads(path.read_text()) if path.exists() else None
            if arguments.json is not None:
                arguments.json.write_text(json.dumps(results, indent=1))
            if arguments.publish and tells_results(name):
                publish(results[name])
    if len(wanted) > 1:
        print(f"\n{sum(took.values()):.0f} s: {', '.join(f'{name} {seconds:.0f}' for name, seconds in took.items())}")
    for line in skipped or ["nothing"]:
        print(f"skipped: {line}")
    if failed:
        raise SystemExit("\n".join(f"failed: {line}" for line in failed))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="scripts/bench.sh", formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.description = "Runs all benchmarks, or one:\n\n" + "\n".join(f"  {name}: {about(name)}" for name in names())
    parser.add_argument("name", nargs="?", choices=["all", *names()], metavar="NAME", help="`all` unless it is given")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds; all in less than 15 minutes")
    parser.add_argument("--smoke", action="store_true", help="just so much that everything is done once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write every round")
    parser.add_argument("--publish", action="store_true", help="put tables and plots into the documents")
    parser.add_argument("--read", type=Path, metavar="FILE", help="with --publish: what an earlier run has written")
    main_of_all(*parser.parse_known_args())
