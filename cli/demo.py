"""`orchestrator demo`: the whole system on this machine, under load, and every promise checked afterwards.

Invariants:
1. Nothing of a configured installation is touched: broker, database and exchange are the demo's own.
2. What is printed is counted afterwards from the topics, the database and the exchange's log, never from counters of a worker.
3. Whatever happens, all that was started is stopped.

Start with `run_demo`.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """`requests` and `workers` are counts. `worker_argv` is how a worker is started: tests replace it by one with a broken mechanism.

    `worker_environment` is added to what every worker gets.
    """

    requests: int = 2000
    workers: int = 2
    kill: bool = False
    as_json: bool = False
    seed: int = 1
    worker_argv: tuple[str, ...] = (sys.executable, "-m", "agents")
    worker_environment: Mapping[str, str] = field(default_factory=dict)


async def run_demo(options: DemoOptions) -> int:
    """Runs the demo; returns the exit code: 0, 1 when a promise is broken, 3 when a service did not start."""
    raise NotImplementedError(options)
