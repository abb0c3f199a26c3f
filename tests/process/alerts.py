"""Alerts, tried: samples of a real server, Prometheus's own evaluation of the rules, and the page for operators.

`promtool test rules` is given real samples at minutes that are made up, so nothing waits for a `for: 5m`.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from http.client import HTTPConnection
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.process.server import ANSWER_SECONDS, ROOT, Server

RULES = ROOT / "scripts/deploy/alert-rules.yaml"
PAGE = ROOT / "scripts/deploy/README.md"

TARGET = {"job": "queue-actor", "instance": "127.0.0.1:8080"}
"""What Prometheus adds to the labels of every sample."""

MINUTES = (21, 20, 100)
"""How long each of the three phases lasts: before the trouble, during it, and after the commands."""

ASKED_AT_MINUTES = (20, 30, 140)
"""When it is asked whether the alert fires: within the trouble soon enough for a window of 15 minutes to see it."""

Samples = dict[str, float]
"""A scrape: series as they are written, and their values."""


class Rule(NamedTuple):
    """An alert rule."""

    name: str
    expression: str
    annotations: dict[str, str]
    labels: dict[str, str]


def read_rules() -> list[Rule]:
    """All rules of the file."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    rules = chain.from_iterable(group["rules"] for group in groups)
    return [Rule(rule["alert"], rule["expr"], rule["annotations"], rule["labels"]) for rule in rules]


def read_commands() -> dict[str, list[str]]:
    """The commands of the page for operators, by the name of their alert."""
    sections = re.findall(r"^### (\w+)\n(.*?)(?=^### |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return {
        name: [line for block in re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
               for line in block.splitlines()]
        for name, text in sections
    }  # fmt: skip


def need(program: str) -> None:
    """Skip the test where a program is not installed; where everything has to be tried, fail."""
    if shutil.which(program) is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{program} is not installed, and without it no alert is tried")
        # Who changes something else need not install it for the tests.
        pytest.skip(f"{program} is not installed: Debian has promtool in its package prometheus, lsof in its own")


def scrape(server: Server) -> Samples:
    """What Prometheus would store of one scrape."""
    connection = HTTPConnection(server.host, server.port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        text = answer.read().decode()
    except OSError:
        return {series("up", {}): 0}
    finally:
        connection.close()
    assert answer.status == 200
    found = {series("up", {}): 1.0}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[series(sample.name, sample.labels)] = sample.value
    return found


def series(name: str, labels: dict[str, str]) -> str:
    """A series as it is written."""
    pairs = ",".join(f"{label}={json.dumps(value)}" for label, value in sorted({**labels, **TARGET}.items()))
    return f"{name}{{{pairs}}}"


def value_of(samples: Samples, name: str, **labels: str) -> float:
    """One value of a scrape."""
    return samples[series(name, labels)]


def names_in(expression: str) -> set[str]:
    """The metrics that an expression is about."""
    return set(re.findall(r"\b(?:queue_actor|process|python)_\w+|\bup\b", re.sub(r'"[^"]*"', "", expression)))


def fires(rule: Rule, phases: Sequence[Sequence[Samples]], directory: Path) -> list[bool]:
    """Whether the alert fires in each of the phases, by Prometheus.

    The scrapes of a phase lie a minute apart, and the last one holds to its end.
    """
    need("promtool")
    minutes: list[Samples] = []
    for scrapes, length in zip(phases, MINUTES, strict=True):
        minutes += [*scrapes, *[scrapes[-1]] * (length - len(scrapes))]
    wanted = names_in(rule.expression)
    all_series = dict.fromkeys(name for samples in minutes for name in samples if name.partition("{")[0] in wanted)
    assert {name.partition("{")[0] for name in all_series} == wanted, "the server does not tell what the rule is about"
    expression = f'count(ALERTS{{alertname="{rule.name}",alertstate="firing"}}) > bool 0 or vector(0)'
    verdicts = []
    for at in ASKED_AT_MINUTES:
        test: dict[str, Any] = {
            "rule_files": [str(RULES)],
            "evaluation_interval": "1m",
            "tests": [
                {
                    "interval": "1m",
                    "input_series": [{"series": name, "values": _values(name, minutes)} for name in all_series],
                    "promql_expr_test": [
                        {"expr": expression, "eval_time": f"{at}m", "exp_samples": [{"labels": "{}", "value": 1}]}
                    ],
                }
            ],
        }
        file = directory / f"{rule.name}-{at}.yaml"
        file.write_text(json.dumps(test))
        run = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, check=False)
        told = run.stdout + run.stderr
        assert run.returncode == 0 or "got: {} 0E+00" in told, told
        verdicts.append(run.returncode == 0)
    return verdicts


def _values(name: str, minutes: Sequence[Samples]) -> str:
    """The values of a series, minute by minute. One that is there no more is marked so, as Prometheus does."""
    written, there = [], False
    for samples in minutes:
        if name in samples:
            written.append(f"{samples[name]:.17g}".replace("inf", "Inf").replace("nan", "NaN"))
        else:
            written.append("stale" if there else "_")
        there = name in samples
    return " ".join(written)
