"""Checks a compose file without an engine: `python -m checks.compose FILE`, exit code 1 with one line per problem.

It knows the part of the Compose Specification (github.com/compose-spec/compose-spec, 05-services) that the project's file uses; a key or a
form that it does not know is a problem, so the file cannot grow past what is checked. Beyond the specification it asks for what this stack
needs: pinned images, health checks for what others wait for, published ports on the loopback address only, no password written out.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from infra.settings import Settings

_DURATION: Final = re.compile(r"(?:\d+h)?(?:\d+m)?(?:\d+s)?(?:\d+ms)?")
_BYTES: Final = re.compile(r"\d+(?:b|k|kb|m|mb|g|gb)?")
_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_IMAGE: Final = re.compile(r"(?P<name>[a-z0-9][a-z0-9._/-]*(?::\d+/[a-z0-9._/-]+)?)(?::(?P<tag>\w[\w.-]{0,127}))?(?:@sha256:[0-9a-f]{64})?")
_PORT: Final = re.compile(r"(?:(?P<host>\d{1,3}(?:\.\d{1,3}){3}|\[[0-9a-f:]+\]):)?(?P<published>\d+):(?P<target>\d+)(?:/(?:tcp|udp))?")
_VOLUME: Final = re.compile(r"(?P<source>[^:]+):(?P<target>/[^:]*)(?::(?:ro|rw|z|Z))?")
_SUBSTITUTION: Final = re.compile(
    r"\$(?:\$|\{(?P<name>[A-Za-z_]\w*)(?:(?P<operator>:?[-?+])(?P<word>[^}]*))?\}|(?P<bare>[A-Za-z_]\w*)|(?P<wrong>.|$))"
)
_SECRET_NAME: Final = re.compile(r"(?i)(?:PASSWORD|SECRET|TOKEN|MASTER_KEY|API_KEY)$")
_PASSWORD_IN_ADDRESS: Final = re.compile(r"://[^/:@\s]+:(?P<password>[^@]+)@")
_RESTART: Final = re.compile(r"no|always|unless-stopped|on-failure(?::\d+)?")
_CONDITIONS: Final = frozenset({"service_started", "service_healthy", "service_completed_successfully"})
_TOP: Final = frozenset({"name", "services", "volumes", "networks", "secrets"})
_OURS: Final = "ORCHESTRATOR_"


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key that is given twice, as engines do."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_text(item) for item in value)


def _matches(pattern: re.Pattern[str]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and bool(value) and pattern.fullmatch(value) is not None


def _is_command(value: object) -> bool:
    return _is_text(value) or _texts(value)


def _is_build(value: object) -> bool:
    return _is_text(value) or (isinstance(value, dict) and set(value) <= {"context", "dockerfile", "target", "args"} and "context" in value)


def _is_environment(value: object) -> bool:
    # Only text: YAML's own `no`, `1` and `1.0` reach a container as somebody else's idea of text.
    return isinstance(value, dict) and all(_is_text(name) and isinstance(text, str) for name, text in value.items())


def _is_health_check(value: object) -> bool:
    if not isinstance(value, dict) or not set(value) <= {"test", "interval", "timeout", "retries", "start_period", "start_interval"}:
        return False
    test = value.get("test")
    words = isinstance(test, list) and _texts(test) and test[0] in {"CMD", "CMD-SHELL"} and len(test) > 1
    times = all(_matches(_DURATION)(value.get(name)) for name in ("interval", "timeout"))
    return words and times and all(_matches(_DURATION)(value.get(name, "1s")) for name in ("start_period", "start_interval")) and (
        isinstance(value.get("retries"), int)
    )


def _is_dependency(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(how, dict) and set(how) <= {"condition", "restart", "required"} and how.get("condition") in _CONDITIONS
        for how in value.values()
    )


# Every key that a service may have here, and what its value must look like.
_SERVICE: Final[dict[str, Callable[[object], bool]]] = {
    "image": _matches(_IMAGE),
    "build": _is_build,
    "init": lambda value: isinstance(value, bool),
    "environment": _is_environment,
    "command": _is_command,
    "entrypoint": _is_command,
    "restart": _matches(_RESTART),
    "depends_on": _is_dependency,
    "healthcheck": _is_health_check,
    "volumes": lambda value: isinstance(value, list) and all(_matches(_VOLUME)(item) for item in value),
    "ports": lambda value: isinstance(value, list) and all(_matches(_PORT)(item) for item in value),
    "profiles": _texts,
    "stop_grace_period": _matches(_DURATION),
    "shm_size": _matches(_BYTES),
    "user": _is_text,
    "working_dir": _is_text,
}


def problems(text: str, directory: Path) -> list[str]:
    """What is wrong with a compose file. `directory` is where it lies: a build's files must be there."""
    try:
        document = yaml.load(text, Loader=_Loader)  # noqa: S506 — a SafeLoader
    except yaml.YAMLError as error:
        return [f"is no YAML: {' '.join(str(error).split())}"]
    if not isinstance(document, dict):
        return ["is not a mapping"]
    found = [f"{key}: is no top-level element" for key in document if not (key in _TOP or str(key).startswith("x-"))]
    services = document.get("services")
    if not isinstance(services, dict) or not services:
        return [*found, "services: there are none"]
    for name, service in services.items():
        found += [f"services.{name}: {problem}" for problem in _service_problems(str(name), service, directory)]
    well_formed = {name: service for name, service in services.items() if isinstance(service, dict)}
    found += _reference_problems(well_formed, document.get("volumes") or {})
    found += _port_problems(well_formed)
    found += [f"{place}: {problem}" for place, value in _strings(document, "") for problem in _text_problems(value)]
    return list(dict.fromkeys(found))


def _service_problems(name: str, service: object, directory: Path) -> Iterator[str]:
    if not _NAME.fullmatch(name):
        yield "is no name for a service"
    if not isinstance(service, dict):
        yield "is not a mapping"
        return
    for key, value in service.items():
        if key not in _SERVICE:
            yield f"{key} is no key that a service may have here"
        elif not _SERVICE[key](value):
            yield f"{key} has a value of the wrong form: {value!r:.120}"
    if "restart" not in service:
        yield "says nothing about restart"
    yield from _image_problems(service, directory)
    environment = service.get("environment")
    if isinstance(environment, dict):
        yield from _environment_problems(environment)


def _image_problems(service: Mapping[str, Any], directory: Path) -> Iterator[str]:
    build = service.get("build")
    if build is None:
        image = _IMAGE.fullmatch(str(service.get("image", "")))
        if "image" not in service:
            yield "has neither image nor build"
        elif image is not None and image["tag"] in {None, "latest"} and "@sha256:" not in image[0]:
            yield f"image {image[0]} is not pinned to a version"
        return
    options = build if isinstance(build, dict) else {"context": build}
    dockerfile = directory / str(options.get("context", "")) / str(options.get("dockerfile", "Dockerfile"))
    if not dockerfile.is_file():
        yield f"build: {dockerfile.name} is missing"


def _environment_problems(environment: Mapping[Any, Any]) -> Iterator[str]:
    for variable, value in environment.items():
        if _SECRET_NAME.search(str(variable)) and not str(value).startswith(("${", "/run/secrets/")):
            yield f"environment.{variable}: a secret is written out; take it from the environment or a file"
        if str(variable).startswith(_OURS) and str(variable).removeprefix(_OURS).lower() not in {*Settings.model_fields, "config"}:
            yield f"environment.{variable}: there is no such setting"


def _reference_problems(services: Mapping[str, dict[str, Any]], volumes: object) -> Iterator[str]:
    declared = set(volumes) if isinstance(volumes, dict) else set()
    used = set()
    for name, service in services.items():
        for target, how in (service.get("depends_on") or {}).items() if isinstance(service.get("depends_on"), dict) else ():
            if target not in services:
                yield f"services.{name}: depends on {target}, which is not there"
            elif isinstance(how, dict) and how.get("condition") == "service_healthy" and "healthcheck" not in services[target]:
                yield f"services.{name}: waits for {target} to be healthy, which has no healthcheck"
        for volume in service.get("volumes") or ():
            match = _VOLUME.fullmatch(str(volume))
            if match and not match["source"].startswith((".", "/", "~")):
                used.add(match["source"])
    yield from (f"volumes: {name} is used but not declared" for name in sorted(used - declared))
    yield from (f"volumes: {name} is declared but not used" for name in sorted(declared - used))
    yield from _circles({name: list(service.get("depends_on") or ()) for name, service in services.items()})


def _circles(edges: Mapping[str, list[str]]) -> Iterator[str]:
    done: set[str] = set()

    def circle_from(name: str, path: tuple[str, ...]) -> tuple[str, ...] | None:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return None
        found = next((circle for target in edges.get(name, ()) if (circle := circle_from(target, (*path, name)))), None)
        done.add(name)
        return found

    for name in edges:
        if circle := circle_from(name, ()):
            yield f"services: {' → '.join(circle)} wait for each other in a circle"


def _port_problems(services: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    published: dict[str, str] = {}
    for name, service in services.items():
        for port in service.get("ports") or ():
            match = _PORT.fullmatch(str(port))
            if match is None:
                continue
            if match["host"] not in {"127.0.0.1", "[::1]"}:
                yield f"services.{name}: port {port} is open to other machines"
            if other := published.get(match["published"]):
                yield f"services.{name}: port {match['published']} is published by {other} already"
            published[match["published"]] = name
            if not (0 < int(match["published"]) < 65536 and 0 < int(match["target"]) < 65536):
                yield f"services.{name}: port {port} is out of range"


def _strings(value: object, place: str) -> Iterator[tuple[str, str]]:
    """Every text of a document with its place."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _strings(item, f"{place}[{number}]")
    elif isinstance(value, str):
        yield place, value


def _text_problems(text: str) -> Iterator[str]:
    for match in _SUBSTITUTION.finditer(text):
        if match["wrong"] is not None or match["bare"] is not None:
            yield f"`{match[0]}` is no substitution: write ${{NAME}}, or $$ for a dollar sign"
        if match["operator"] in {"-", ":-"} and match["word"] and _SECRET_NAME.search(match["name"]):
            yield f"{match['name']} has a default that everybody knows"
    password = _PASSWORD_IN_ADDRESS.search(text)
    if password is not None and not password["password"].startswith("${"):
        yield "a password is written out in an address"


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m checks.compose FILE\n")
        return 2
    path = Path(arguments[0])
    found = problems(path.read_text(encoding="utf-8"), path.resolve().parent)
    for line in found:
        sys.stderr.write(f"{path}: {line}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
