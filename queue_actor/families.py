"""Metrics as they are declared, and how their values are told to Prometheus: what server and worker have in common."""

from collections.abc import Iterable
from itertools import accumulate
from typing import Any, NamedTuple

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.utils import floatToGoString

from queue_actor.figures import HistogramFigures

Values = Iterable[tuple[tuple[str, ...], Any]]
"""The values of a metric: those of its labels, and a number or a histogram."""


class Metric(NamedTuple):
    """A metric as it is declared."""

    kind: str
    labels: tuple[str, ...]
    help: str


def family(name: str, metric: Metric, values: Values) -> Family:
    """A metric with its values, as the library has it."""
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(name, metric.help, labels=metric.labels)
        for labels, figures in values:
            histogram.add_metric(labels, _buckets(figures), figures.sum)
        return histogram
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    made = kind(name, metric.help, labels=metric.labels)
    for labels, value in values:
        made.add_metric(labels, value)
    return made


def _buckets(figures: HistogramFigures) -> list[tuple[str, float]]:
    """How many values were at most each bound, as Prometheus counts."""
    bounds = [*map(floatToGoString, figures.bounds), "+Inf"]
    return list(zip(bounds, accumulate(figures.counts), strict=True))
