"""The Java archives of the broker and of its console tools: fetched once with Maven coordinates, shared by all data directories.

1. A directory of jars is complete or absent: it is made aside and renamed. A fetch that was killed leaves nothing that counts.
2. Two processes never fetch the same archives at once (a lock per set).
3. The set is exactly the one in `jar_digests`, by name and SHA-256: nothing else is ever put on a class path.

The fetch itself is `jar_fetch`, a process of its own.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from embedded.data_dir import absolute, says_disk_full
from embedded.errors import FixHostError, FreeDiskSpaceError, RetryLaterError, ServicesError
from embedded.guarded import Command, log_tail, run_to_end

# Not newer: from 4.2.0 to 4.4.0, the newest there is, a partition without a leader counts as deleted, so a coordinator that completes a
# transaction in that moment leaves out its marker, and what was committed stays invisible for ever (KAFKA-20734). It is what happens when a
# broker is killed between a commit and its marker and started again.
KAFKA_VERSION = "4.1.2"
# The broker's own dependencies hold log4j, but not the piece that connects it; without it a broker that fails says nothing.
_LOGGING = "org.apache.logging.log4j:log4j-slf4j-impl:2.25.5"

# The largest set at 75 kB/s.
_FETCH_SECONDS_MAX = 600.0

# Exit codes of `jar_fetch`.
FETCH_OFFLINE, FETCH_WRONG_FILES, FETCH_DISK_FULL = 10, 11, 12

_ADVICE = (
    "The embedded broker cannot start without these files; no order was accepted and no data was changed. Check the network and, if there "
    "is one, the proxy (HTTPS_PROXY), then start again; or copy ORCHESTRATOR_CACHE_DIR from a machine that has it; or use a broker of your "
    "own: ORCHESTRATOR_KAFKA_BOOTSTRAP_SERVERS=host:9092"
)


@dataclass(frozen=True)
class JarSet:
    """A named set of archives and the coordinates that it is resolved from, each one by itself, in order of precedence.

    Not resolved together: the resolver would then let the logging library's version table override Kafka's own clients.
    """

    name: str
    endpoints: tuple[str, ...]
    megabytes: int


BROKER_JARS = JarSet(f"kafka-{KAFKA_VERSION}", (f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}", _LOGGING), 45)
TOOLS_JARS = JarSet(f"kafka-tools-{KAFKA_VERSION}", (f"org.apache.kafka:kafka-tools:{KAFKA_VERSION}", _LOGGING), 45)


async def jars_directory(jars: JarSet, cache_dir: Path, *, progress: Callable[[str], None]) -> Path:
    """The directory with exactly the jars of a set, fetched into `cache_dir` if it is not there yet.

    Raises RetryLaterError when they cannot be downloaded now, FreeDiskSpaceError, or FixHostError when the cache cannot be
    written or what was delivered is not what was expected.
    """
    cache = absolute(cache_dir)
    directory = cache / jars.name
    if directory.is_dir():
        return directory
    progress(f"Downloading {jars.name} ({jars.megabytes} MB, once for all data directories)…")
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FixHostError(f"The cache directory {cache} cannot be made: {error.strerror}. {_ADVICE}") from error
    log = cache / f"{jars.name}.log"
    root = str(Path(__file__).parents[2])
    search_path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = Command(
        (sys.executable, "-W", "ignore", "-m", "embedded.jar_fetch", jars.name, str(cache)),
        log,
        grace_seconds=2,
        environment={"PYTHONPATH": search_path},
    )
    try:
        code = await run_to_end(command, _FETCH_SECONDS_MAX)
    except TimeoutError:
        raise RetryLaterError(f"Downloading {jars.name} took longer than {_FETCH_SECONDS_MAX:.0f} s. {_ADVICE}") from None
    if code != 0:
        raise _failure(code, jars, cache, log_tail(log, 4))
    return directory


def _failure(code: int, jars: JarSet, cache: Path, output: str) -> ServicesError:
    if code == FETCH_DISK_FULL or says_disk_full(output):
        return FreeDiskSpaceError(
            f"The disk is full where the cache directory {cache} lies; {jars.name} needs {2 * jars.megabytes} MB while it is unpacked. "
            "No order was accepted and no data was changed. Free some space, or choose another place: ORCHESTRATOR_CACHE_DIR"
        )
    if code == FETCH_WRONG_FILES:
        return FixHostError(
            f"The files delivered for {jars.name} are not the expected ones, so they were thrown away and nothing was started: {output} "
            "A proxy or mirror on the way changes them; use another network, or a broker of your own: ORCHESTRATOR_KAFKA_BOOTSTRAP_SERVERS"
        )
    return RetryLaterError(f"{jars.name} could not be downloaded: {output} {_ADVICE}")
