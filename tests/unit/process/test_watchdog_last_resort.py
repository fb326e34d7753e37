"""The last resort: a process whose event loop has stopped ends, with a message where one can be written, and in any case."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from time import monotonic

LIMIT_SECONDS = 1
# The C timer's margin, see agents/process/last_resort.
RUNTIME_SECONDS = LIMIT_SECONDS + 5
SLACK_SECONDS = 30

PROGRAM = """
import asyncio, re, sys, time
from typing import NoReturn
from agents.process.last_resort import LoopWatch, end_process

def end(seconds: float, stack: list[str]) -> NoReturn:
    end_process(5, "worker_ends", loop_stack=stack)

async def main() -> None:
    watch = LoopWatch({limit}, end)
    watch.start()
    {body}
    watch.stop()

asyncio.run(main())
print("went on")
"""


def program(body: str) -> list[str]:
    source = PROGRAM.format(limit=LIMIT_SECONDS, body=textwrap.dedent(body).strip())
    return [sys.executable, "-c", source]


def run(body: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(program(body), cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=60, check=False)


def test_loop_that_turns_is_left_alone() -> None:
    """A loop that only waits is well."""
    ended = run("await asyncio.sleep(4)")
    assert (ended.returncode, ended.stdout) == (0, "went on\n")


def test_loop_that_is_blocked_ends_the_process_and_shows_where() -> None:
    """The message has the stack of the loop's thread."""
    began_at = monotonic()
    ended = run("time.sleep(60)")
    assert ended.returncode == 5
    # A program given by -c has no source lines to show.
    assert "in main" in ended.stdout + ended.stderr
    assert monotonic() - began_at < LIMIT_SECONDS + SLACK_SECONDS


def test_interpreter_that_is_held_by_a_call_into_c_ends_the_process() -> None:
    """No Python thread can run then, and the C runtime's timer ends the process."""
    began_at = monotonic()
    # Backtracks for longer than the universe, and never lets go of the interpreter's lock.
    ended = run('re.match(r"(a+)+$", "a" * 64 + "b")')
    assert ended.returncode == 1
    assert "in match" in ended.stderr
    assert monotonic() - began_at < RUNTIME_SECONDS + SLACK_SECONDS


def test_message_that_nobody_reads_does_not_keep_the_process() -> None:
    """With standard output full and unread, the process ends all the same."""
    read_end, write_end = os.pipe()
    try:
        filled = 'import os; os.set_blocking(1, False)\nwhile True:\n    try: os.write(1, b"x" * 4096)\n    except BlockingIOError: break\n'
        subprocess.run([sys.executable, "-c", filled + "os.set_blocking(1, True)"], stdout=write_end, timeout=30, check=True)
        worker = subprocess.Popen(program("time.sleep(60)"), cwd=Path(__file__).parents[3], stdout=write_end, stderr=write_end)
        try:
            assert worker.wait(LIMIT_SECONDS + SLACK_SECONDS) == 5
        finally:
            worker.kill()
            worker.wait()
    finally:
        os.close(read_end)
        os.close(write_end)
