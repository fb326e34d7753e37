"""The figures of all rounds as one table and as JSON: minimum, median and maximum of each.

The JSON's form is a contract: `rows` with `name, requests_per_second, p50_ms, p99_ms, cpu_s_per_1000, rss_mb`, each figure an object of
`min, median, max`; `ratios` by name, medians of the ratios of each round; `machine`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

import orjson

from bench.load import Latencies

# The name of a ratio, what is divided, and by what.
_RATIOS: Final = (
    ("orchestrator/faust_at_least_once", "orchestrator", "faust_at_least_once"),
    ("orchestrator_2_workers/faust_at_least_once", "orchestrator_2_workers", "faust_at_least_once"),
    ("orchestrator/faust_at_least_once, 20 ms away", "orchestrator_20_ms_away", "faust_at_least_once_20_ms_away"),
    ("orchestrator_2_workers/orchestrator", "orchestrator_2_workers", "orchestrator"),
    ("aiokafka_copy/orchestrator", "aiokafka_copy", "orchestrator"),
)


@dataclass(frozen=True, slots=True)
class Figures:
    """One run of one row. `paced` has the latencies by pace in requests a second, the common pace first."""

    name: str
    requests: int
    requests_per_second: float
    cpu_s_per_1000: float
    rss_mb: float
    paced: Mapping[int, Latencies]

    def line(self) -> str:
        paces = ", ".join(f"at {pace}/s p50 {taken.p50_ms:.0f} p99 {taken.p99_ms:.0f} ms" for pace, taken in self.paced.items())
        return f"{self.name}: {self.requests_per_second:.0f}/s, {self.cpu_s_per_1000:.2f} CPU s/1000, {self.rss_mb:.0f} MB, {paces}"


@dataclass(frozen=True, slots=True)
class Spread:
    """Of all rounds."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(round(min(values), 3), round(median(values), 3), round(max(values), 3))

    def text(self, places: int = 0) -> str:
        return f"{self.min:,.{places}f} / {self.median:,.{places}f} / {self.max:,.{places}f}"


def _row(runs: Sequence[Figures]) -> dict[str, Spread | str | int | dict[str, dict[str, Spread]]]:
    common = next(iter(runs[0].paced))
    return {
        "name": runs[0].name,
        "requests": runs[0].requests,
        "requests_per_second": Spread.of([run.requests_per_second for run in runs]),
        "p50_ms": Spread.of([run.paced[common].p50_ms for run in runs]),
        "p99_ms": Spread.of([run.paced[common].p99_ms for run in runs]),
        "cpu_s_per_1000": Spread.of([run.cpu_s_per_1000 for run in runs]),
        "rss_mb": Spread.of([run.rss_mb for run in runs]),
        "paced": {str(pace): _latencies(runs, pace) for pace in _paces(runs)},
    }


def _paces(runs: Sequence[Figures]) -> list[int]:
    """The paces that every run of a row held."""
    return [pace for pace in runs[0].paced if all(pace in run.paced for run in runs)]


def _latencies(runs: Sequence[Figures], pace: int) -> dict[str, Spread]:
    return {
        "p50_ms": Spread.of([run.paced[pace].p50_ms for run in runs]),
        "p99_ms": Spread.of([run.paced[pace].p99_ms for run in runs]),
    }


def _by_row(rounds: Sequence[Sequence[Figures]]) -> list[list[Figures]]:
    return [list(runs) for runs in zip(*rounds, strict=True)]


def ratios(rounds: Sequence[Sequence[Figures]]) -> dict[str, Spread]:
    """Requests a second of one row over another's, within each round."""
    found: dict[str, list[float]] = {}
    for figures in rounds:
        rates = {one.name: one.requests_per_second for one in figures}
        for name, above, below in _RATIOS:
            if above in rates and below in rates:
                found.setdefault(name, []).append(rates[above] / rates[below])
    return {name: Spread.of(values) for name, values in found.items()}


def as_json(rounds: Sequence[Sequence[Figures]], machine: Mapping[str, str | int | float]) -> bytes:
    """See the module."""
    found = ratios(rounds)
    report = {
        "rows": [_row(runs) for runs in _by_row(rounds)],
        "ratios": {name: spread.median for name, spread in found.items()},
        "ratio_spreads": found,
        "rounds": len(rounds),
        "machine": machine,
    }
    return orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def as_table(rounds: Sequence[Sequence[Figures]], machine: Mapping[str, str | int | float]) -> str:
    """Markdown, so that it can be quoted as it is."""
    lines = ["| row | requests/s | CPU s per 1,000 | MB | latency ms |", "|---|---|---|---|---|"]
    for runs in _by_row(rounds):
        latencies = [
            f"{pace}/s: p50 {spreads['p50_ms'].text()}, p99 {spreads['p99_ms'].text()}"
            for pace in _paces(runs)
            for spreads in [_latencies(runs, pace)]
        ]
        figures = (
            runs[0].name,
            Spread.of([run.requests_per_second for run in runs]).text(),
            Spread.of([run.cpu_s_per_1000 for run in runs]).text(2),
            Spread.of([run.rss_mb for run in runs]).text(),
            "<br>".join(latencies),
        )
        lines.append(f"| {' | '.join(figures)} |")
    lines += ["", f"Minimum / median / maximum of {len(rounds)} interleaved rounds. {_about(machine)}"]
    lines += [f"- {name}: {spread.text(1)}" for name, spread in ratios(rounds).items()]
    return "\n".join(lines)


def _about(machine: Mapping[str, str | int | float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in machine.items()) + "."
