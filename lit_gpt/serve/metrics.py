"""Figures for Prometheus: what the engine does and has done, and how long requests take."""

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lit_gpt.generation.engine import Stats
from lit_gpt.serve.admission import Admission

if TYPE_CHECKING:
    from lit_gpt.serve.flight import Flight

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 180, 600)
_PATHS = frozenset(("/process", "/tokenize", "/decode", "/detokenize", "/v1/completions", "/v1/chat/completions"))
"""Paths that are counted each by itself; a client could make up any number of others."""
_GAUGES = {
    "running": "Texts that the engine is working on",
    "waiting": "Texts that wait for a place in the engine",
    "tokens_kept": "Positions of the KV cache that hold prefixes which no text uses now",
    "tokens_free": "Positions of the KV cache that hold nothing",
}
_COUNTERS = {
    "tokens_reused": "Tokens of prompts that were in the KV cache already",
    "tokens_read": "Tokens of prompts that were computed",
    "tokens_generated": "Tokens that were generated",
    "steps": "Forward passes",
}


class Metrics:
    """The figures of one server, in a registry of their own."""

    def __init__(self, admission: Admission) -> None:
        self.registry = CollectorRegistry()
        self.stats: Callable[[], Stats] | None = None
        """Returns the engine's figures, once there is an engine."""
        self.admission = admission
        self.requests = Counter(
            "lit_gpt_http_requests", "Requests that were answered", ("path", "status"), registry=self.registry
        )
        self.first_token = Histogram(
            "lit_gpt_time_to_first_token_seconds",
            "Seconds until a request's first token",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.whole = Histogram(
            "lit_gpt_request_seconds",
            "Seconds that the engine had a request's texts",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.registry.register(_EngineFigures(self))

    def answered(self, path: str, status: int) -> None:
        """Notes that a request was answered."""
        self.requests.labels(path if path in _PATHS else "other", status).inc()

    def landed(self, flight: "Flight") -> None:
        """Notes the times of a request that the engine is done with."""
        self.whole.observe(time.monotonic() - flight.started)
        if flight.first_at is not None:
            self.first_token.observe(flight.first_at - flight.started)

    def text(self) -> bytes:
        """Returns all figures in the text form of Prometheus."""
        return generate_latest(self.registry)


class _EngineFigures(Collector):
    """The engine's own figures, read when they are asked for."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        admission = self.metrics.admission
        yield GaugeMetricFamily("lit_gpt_admitted", "Texts that are being answered or wait", admission.n)
        yield CounterMetricFamily("lit_gpt_refused", "Requests for which there was no room", admission.n_refused)
        stats = self.metrics.stats() if self.metrics.stats else None
        if stats is None:
            return
        for name, about in _GAUGES.items():
            yield GaugeMetricFamily(f"lit_gpt_{name}", about, getattr(stats, name))
        for name, about in _COUNTERS.items():
            yield CounterMetricFamily(f"lit_gpt_{name}", about, getattr(stats, name))
