"""What `up` prints and what README says can be pasted: run as it stands there, where tokens are required and where they are not.

`up` runs as a user starts it, by the path of its program, from a directory of its own; what it prints is run from another directory.
"""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyotp
import pytest

from checks.tree import ROOT
from tests.kcat import IS_INSTALLED
from tests.orchestrator import environment

# They start installations one after the other.
pytestmark = [pytest.mark.xdist_group("printed_lines"), pytest.mark.timeout(600)]

_PROGRAM = Path(sys.executable).parent / "orchestrator"
_SETTINGS = {"KAFKA_PARTITIONS": "2", "SESSION_TIMEOUT_MS": "6000"}
_README = (ROOT / "README.md").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Shell:
    """Runs lines as a person pastes them, with nothing set that is not said."""

    directory: Path
    environment: dict[str, str]

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", line], cwd=self.directory, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip

    def done(self, line: str) -> str:
        """The output of a line that must end well."""
        ran = self.run(line)
        assert ran.returncode == 0, f"{line}\n{ran.stdout}{ran.stderr}"
        return ran.stdout


@contextmanager
def _printed_by_up(shell: Shell, program: str) -> Iterator[str]:
    """Runs `up` in the shell's directory; what it printed until it was ready."""
    output = shell.directory / "up.out"
    with output.open("wb") as out, (shell.directory / "up.err").open("wb") as errors:
        up = subprocess.Popen([program, "up", "--workers", "1"], cwd=shell.directory, env=shell.environment, stdout=out, stderr=errors)
    try:
        deadline = time.monotonic() + 240
        while "Ctrl-C stops everything." not in output.read_text() and up.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        assert "Ctrl-C stops everything." in output.read_text(), (shell.directory / "up.err").read_text()
        yield output.read_text()
    except BaseException:
        # Shown where a line fails: whether `up` still ran, and what it said.
        sys.stderr.write(f"up {'runs' if up.poll() is None else f'has ended with {up.returncode}'}; it wrote:\n")
        sys.stderr.write((shell.directory / "up.err").read_text())
        raise
    finally:
        up.terminate()
        try:
            up.wait(90)
        finally:
            up.kill()


def _lines(printed: str) -> list[str]:
    """The indented lines: those to paste."""
    return [line.strip() for line in printed.splitlines() if line.startswith("  ")]


class _Codes:
    """The codes of one second factor, each of a later step than the one before: a code is accepted once, and the next one's already."""

    def __init__(self, shown: str) -> None:
        found = re.search(r"otpauth://\S+", shown)
        assert found is not None, shown
        parsed = pyotp.parse_uri(found[0])
        assert isinstance(parsed, pyotp.TOTP)
        self._factor, self._step = parsed, 0

    def next(self) -> str:
        self._step = max(self._step + 1, int(time.time()) // 30)
        while self._step > int(time.time()) // 30 + 1:
            time.sleep(0.2)
        return self._factor.at(self._step * 30)


def _run_all(lines: list[str], elsewhere: Shell, code: Callable[[], str]) -> list[str]:
    """Runs each line and returns what it printed; those with kcat where it is installed."""
    told = []
    for line in lines:
        if "kcat" in line and not IS_INSTALLED:
            continue
        if line.startswith("echo"):
            # An equal order within two seconds is taken for one that was sent twice.
            time.sleep(2.5)
        # The one that reads answers would wait for more.
        told.append(elsewhere.done(line.replace("CODE", code()) if "CODE" in line else line + " -e" * ("kcat -C" in line)))
    return told


def test_lines_that_up_prints_can_be_pasted_from_any_directory_again_and_again(tmp_path: Path) -> None:
    """In a sandbox: every line ends well as it stands there, and the same order line is a new order the second time."""
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    plain = {name: value for name, value in environment(tmp_path, _SETTINGS).items() if name != "ORCHESTRATOR_DATA_DIR"}
    here = Shell(tmp_path / "here", plain)
    elsewhere = Shell(tmp_path / "elsewhere", {name: value for name, value in plain.items() if not name.startswith("ORCHESTRATOR_")})
    with _printed_by_up(here, str(_PROGRAM)) as printed:
        lines = _lines(printed)
        assert str(_PROGRAM) in lines[0]
        assert '"status":"executed"' in elsewhere.done(lines[0])
        told = "".join(_run_all(lines, elsewhere, lambda: ""))
        assert '"status":"rejected"' not in told
        orders = elsewhere.done(lines[-6])
        assert orders.count("filled") == (3 if IS_INSTALLED else 2)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_operators_quick_start_of_readme_and_what_up_prints_hold_where_tokens_are_required(tmp_path: Path) -> None:
    """README's lines in their order: keys, `up`, second factors, tokens, halt, resume, approval; then what `up` printed, with codes."""
    section = _README.partition("## An operator's first ten minutes")[2].partition("\n## ")[0]
    keys, people, stopping = (block.strip().splitlines() for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL))
    (tmp_path / ".venv").symlink_to(_PROGRAM.parents[1])
    settings = {name: value for name, value in environment(tmp_path, _SETTINGS).items() if name != "ORCHESTRATOR_DATA_DIR"}
    shell = Shell(tmp_path, settings)
    exported = dict(re.findall(r"(ORCHESTRATOR_\w+)=(\S+)", next(line for line in keys if line.startswith("export"))))
    for line in keys[:2]:
        shell.done(line)
    assert keys[-1] == ".venv/bin/orchestrator up"
    with _printed_by_up(Shell(tmp_path, {**settings, **exported}), ".venv/bin/orchestrator") as printed:
        # Another terminal, in which nothing was exported: the installation tells what it needs.
        codes = {line.split()[-1]: _Codes(shell.done(line)) for line in people if "enrol-totp" in line or shell.done(line) is None}
        assert set(codes) == {"alice", "olga"}
        for line in stopping:
            known = line.replace("CODE", codes["olga"].next()) if "CODE" in line else line
            ran = shell.run(known)
            if " approve ID " in line:
                # Nothing waits here; what was asked for was proven and looked for.
                assert (ran.returncode, "There is no withdrawal ID" in ran.stderr) == (1, True), ran.stderr
            else:
                assert ran.returncode == 0, f"{known}\n{ran.stdout}{ran.stderr}"
        lines = _lines(printed)
        assert "tokens issue alice" in lines[1]
        assert str(tmp_path / "issuer.pem") in lines[1]
        # The factor is enrolled already, and again it would take an operator.
        told = "".join(_run_all([line for line in lines if "enrol-totp" not in line], shell, codes["alice"].next))
        assert '"status":"executed"' in told
        assert '"status":"rejected"' not in told
        assert "sandbox" not in shell.done(lines[-1])
