"""Fetches a set of Java archives: `python -m embedded.jar_fetch NAME CACHE_DIRECTORY`, started by `jars`.

A process of its own, so that it can be ended at any moment: the download library blocks, and waits for minutes when a server asks it to.
"""

import fcntl
import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

import jgo.env
import jgo.maven
import requests

from embedded.data_dir import says_disk_full
from embedded.jar_digests import DIGESTS
from embedded.jars import BROKER_JARS, FETCH_DISK_FULL, FETCH_OFFLINE, FETCH_WRONG_FILES, TOOLS_JARS, JarSet

_REQUEST_SECONDS_MAX = 20
_REASON_LENGTH_MAX = 400


class WrongFilesError(Exception):
    """What was delivered differs from `jar_digests`."""


def fetch(jars: JarSet, cache: Path) -> None:
    """Resolve, verify and put in place, unless another process has done so meanwhile.

    Blocks. Raises what the network (requests), the disk (OSError) and the resolver (RuntimeError) raise, and WrongFilesError.
    """
    with (cache / f"{jars.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (cache / jars.name).is_dir():
            return
        # Left by fetches that were killed; with the lock held they belong to nobody.
        for leftover in cache.glob(f".{jars.name}-*"):
            shutil.rmtree(leftover)
        with tempfile.TemporaryDirectory(prefix=f".{jars.name}-", dir=cache) as scratch_name:
            complete = _resolve(jars, Path(scratch_name))
            _verify(jars, complete)
            complete.rename(cache / jars.name)


def _resolve(jars: JarSet, scratch: Path) -> Path:
    complete = scratch / "complete"
    complete.mkdir()
    context = jgo.maven.MavenContext(repo_cache=scratch / "repository", timeout=_REQUEST_SECONDS_MAX)
    builder = jgo.env.EnvironmentBuilder(context=context, cache_dir=scratch / "resolved", link_strategy=jgo.env.LinkStrategy.AUTO)
    for endpoint in jars.endpoints:
        for jar in sorted(Path(builder.from_endpoint(endpoint).path).rglob("*.jar")):
            target = complete / jar.name
            if not target.exists():
                shutil.move(jar, target)
    return complete


def digests_of(directory: Path) -> dict[str, str]:
    """SHA-256 by file name; what `jar_digests` is made from when a version changes."""
    digests = {}
    for jar in sorted(directory.glob("*.jar")):
        with jar.open("rb") as file:
            digests[jar.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _verify(jars: JarSet, directory: Path) -> None:
    expected, found = DIGESTS[jars.name], digests_of(directory)
    names = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if names:
        raise WrongFilesError(f"differing, missing or unexpected: {', '.join(names)}")


def main(arguments: list[str]) -> int:
    """Fetch the named set into a cache directory; the last line of the output says why it failed."""
    name, cache = arguments
    try:
        fetch({jars.name: jars for jars in (BROKER_JARS, TOOLS_JARS)}[name], Path(cache))
    except WrongFilesError as error:
        return _failed(error, FETCH_WRONG_FILES)
    except requests.RequestException as error:
        return _failed(error, FETCH_OFFLINE)
    except OSError as error:
        return _failed(error, FETCH_DISK_FULL if says_disk_full(str(error)) else 1)
    except RuntimeError as error:
        # The resolver's own word for "in none of the repositories" and for a checksum that does not match.
        return _failed(error, FETCH_OFFLINE)
    return 0


def _failed(error: Exception, code: int) -> int:
    sys.stderr.write(f"{str(error)[:_REASON_LENGTH_MAX]}\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
