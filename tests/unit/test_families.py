"""Declared metrics, as Prometheus's own writer and parser pass them on."""

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from queue_actor.families import Metric, Values, family
from queue_actor.figures import HistogramFigures


def told(name: str, metric: Metric, values: Values) -> tuple[str, str, dict[tuple[str, ...], float]]:
    """Type, help and samples of a metric that has been text; the samples by name and labels, sorted by their names."""

    class One:
        def collect(self) -> list[Family]:
            return [family(name, metric, values)]

    registry = CollectorRegistry()
    registry.register(One())
    (read,) = text_string_to_metric_families(generate_latest(registry).decode())
    samples = {(sample.name, *sample.labels.values()): sample.value for sample in read.samples}
    return read.type, read.documentation, samples


def test_a_gauge_and_a_counter_have_a_value_for_their_labels() -> None:
    values = [(("a", "x"), 3), (('b"\n', "y"), True)]

    for kind, name in (("gauge", "jobs"), ("counter", "jobs_total")):
        assert told(name, Metric(kind, ("queue", "state"), "jobs by state"), values) == (
            kind,
            "jobs by state",
            {(name, "a", "x"): 3, (name, 'b"\n', "y"): 1},
        )


def test_a_histogram_counts_what_is_at_most_each_bound() -> None:
    figures = HistogramFigures(bounds=(0.5, 10.0), counts=(3, 2, 1), sum=31.5)

    assert told("run_seconds", Metric("histogram", ("type",), "how long"), [(("t",), figures)]) == (
        "histogram",
        "how long",
        {
            ("run_seconds_bucket", "0.5", "t"): 3,
            ("run_seconds_bucket", "10.0", "t"): 5,
            ("run_seconds_bucket", "+Inf", "t"): 6,
            ("run_seconds_count", "t"): 6,
            ("run_seconds_sum", "t"): 31.5,
        },
    )
