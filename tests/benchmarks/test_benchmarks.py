"""Each benchmark does what it does, once and briefly: figures are never asserted."""

import importlib
import json
import re
from pathlib import Path

import pytest

from tests.benchmarks import suite
from tests.benchmarks.results import PLOT_BYTES_MAX, show, spread

pytestmark = pytest.mark.process


QUICK = {"pong", "recovery", "scale", "store", "wakeup"}
"""The others start more servers, or wait for more."""

NAMES = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in suite.names()
    if suite.tells_results(name)
]


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_tells_its_tables(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = tmp_path / "told.json"

    importlib.import_module(f"tests.benchmarks.{name}").main(["--smoke", "--json", str(told), "--plots", str(tmp_path)])

    tables = json.loads(told.read_text())["tables"]
    printed = capsys.readouterr().out
    assert tables
    for table in tables.values():
        assert table in printed
        assert re.search(r"^\|.*\d.*\|$", table, re.MULTILINE)


def test_every_place_for_figures_in_a_document_names_a_benchmark() -> None:
    named = {match[1] for path in suite.DOCUMENTS for match in suite.FIGURES.findall(path.read_text())}

    assert named
    assert named <= set(suite.names())


def test_every_plot_that_is_kept_is_small_and_shown() -> None:
    shown = "".join(path.read_text() for path in suite.DOCUMENTS)

    for path in suite.PLOTS.iterdir():
        assert path.stat().st_size <= PLOT_BYTES_MAX
        assert f"plots/{path.name}" in shown


def test_a_figure_has_three_digits() -> None:
    assert [show(value) for value in (0.0, 0.01234, 1.234, 12.34, 123.4, 12345.6)] == [
        *("0", "0.0123", "1.23", "12.3", "123", "12,346"),
    ]


def test_a_spread_is_shown_where_there_is_one() -> None:
    assert str(spread([3.0, 1.0, 2.0])) == "2.00 (1.00 to 3.00)"
    assert str(spread([2.0, 2.0])) == "2.00"
