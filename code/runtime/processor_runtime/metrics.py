"""What operators scrape: counters of the runtime in Prometheus' text format."""

from collections.abc import Iterator
from typing import Any

from processor_runtime import __version__
from processor_runtime.executions import Executions
from processor_runtime.pool import Pool


def render(executions: Executions, pool: Pool, ref: str) -> bytes:
    """The whole page. The library is imported at the first call: most processors are never scraped."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(executions, pool, ref))
    return generate_latest(registry)


class _Collector:
    def __init__(self, executions: Executions, pool: Pool, ref: str) -> None:
        self._executions, self._pool, self._ref = executions, pool, ref

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        info = GaugeMetricFamily("processor_info", "The processor that runs here.", labels=["ref", "version"])
        info.add_metric([self._ref, __version__], 1)
        yield info
        yield GaugeMetricFamily("processor_executions_running", "Executions running now.", self._executions.running)
        yield GaugeMetricFamily("processor_executions_waiting", "Executions waiting now.", self._executions.waiting)
        ended = CounterMetricFamily(
            "processor_executions", "Executions ended, by mode and error code (ok).", labels=["mode", "code"]
        )
        for (mode, code), count in self._executions.ended_by_code.items():
            ended.add_metric([mode, code or "ok"], count)
        yield ended
        workers = GaugeMetricFamily("processor_workers", "Worker processes.", labels=["mode", "state"])
        for (mode, state), count in self._pool.counts().items():
            workers.add_metric([mode, state], count)
        yield workers
        yield CounterMetricFamily("processor_worker_deaths", "Workers that ended by themselves.", self._pool.deaths)
