"""What a server tells Prometheus; one registry per server, so that tests and embedders may have several."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from agent.host import Host
from duplex.events import AgentBackchannel, Backchannel, Event, ResponseEnded, ResponseStarted

LATENCY_BUCKETS_S = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)


class _HostFigures:
    """What the host counts already, read when it is asked for."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def collect(self) -> Iterable[Metric]:
        host = self._host
        yield GaugeMetricFamily("duologue_sessions", "Conversations that are open", value=host.places_taken)
        yield GaugeMetricFamily("duologue_sessions_limit", "Conversations that may be open", value=host.max_sessions)
        yield CounterMetricFamily(
            "duologue_deadline_misses",
            "Frames in which a voice ran dry, and moments of a late event loop",
            value=host.deadline_misses,
        )
        jobs = CounterMetricFamily("duologue_model_jobs", "Jobs of the model worker", labels=["lane"])
        busy = CounterMetricFamily("duologue_model_busy_seconds", "Seconds that models ran", labels=["lane"])
        for lane, stats in sorted(host.worker.stats.items()):
            jobs.add_metric([lane], stats.jobs)
            busy.add_metric([lane], stats.busy_s)
        yield jobs
        yield busy


class Metrics:
    """A server's figures."""

    def __init__(self, host: Host) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_HostFigures(host))
        self.ended = self._counter("duologue_sessions", "Conversations that are over", "end")
        self.refused = self._counter("duologue_refused", "Connections that were refused", "reason")
        self.responses = self._counter("duologue_responses", "Responses that are over", "reason")
        self.errors = self._counter("duologue_client_errors", "Events that were answered by an error", "code")
        self.agent_backchannels = Counter(
            "duologue_agent_backchannels", "Short sounds of the agent while the user paused", registry=self.registry
        )
        self.backchannels = Counter("duologue_backchannels", "Sounds that did not take the floor", registry=self.registry)
        self.response_latency = self._histogram("duologue_response_latency_seconds", "End of the user's speech to the first sound")
        self.stop_latency = self._histogram("duologue_stop_latency_seconds", "Onset of an interruption to silence")

    def take(self, event: Event) -> None:
        """Every event of every conversation."""
        match event:
            case ResponseStarted(latency_s=float(latency)):
                self.response_latency.observe(max(latency, 0.0))
            case ResponseEnded():
                self.responses.labels(event.reason).inc()
                if event.stop_latency_s is not None:
                    self.stop_latency.observe(max(event.stop_latency_s, 0.0))
            case Backchannel():
                self.backchannels.inc()
            case AgentBackchannel():
                self.agent_backchannels.inc()

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return bytes(generate_latest(self.registry))

    def _counter(self, name: str, about: str, label: str) -> Counter:
        return Counter(name, about, [label], registry=self.registry)

    def _histogram(self, name: str, about: str) -> Histogram:
        return Histogram(name, about, buckets=LATENCY_BUCKETS_S, registry=self.registry)
