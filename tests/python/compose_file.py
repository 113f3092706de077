"""Reads docker-compose.yml, and refuses what it must not be and what its test would not understand."""

import os
import re
import sys

from engine import Wrong

try:
    import yaml
except ImportError:
    sys.exit("PyYAML is missing: python3 -m pip install pyyaml")

# What this test understands. A key that it would ignore is a key that it would not test.
TOP_KEYS = {"services", "networks", "volumes"}
SERVICE_KEYS = {
    "build", "cap_drop", "command", "depends_on", "entrypoint", "environment", "healthcheck", "image", "network_mode", "networks", "ports",
    "pull_policy", "read_only", "restart", "security_opt", "stop_grace_period", "stop_signal", "sysctls", "tmpfs", "user", "volumes",
}  # fmt: skip
HEALTH_KEYS = {"test", "interval", "timeout", "retries", "start_period"}
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}


def interpolated(value):
    """`${NAME:-default}` and `$$`, as compose reads them."""
    if isinstance(value, dict):
        return {key: interpolated(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [interpolated(inner) for inner in value]
    if not isinstance(value, str):
        return value

    def replace(match):
        if match[0] == "$$":
            return "$"
        if match[1] is None:
            raise Wrong(f"`{value}` has a `$` that is neither `$$` nor `${{NAME:-default}}`")
        return os.environ.get(match[1]) or match[2]

    return re.sub(r"\$(?:\$|\{(\w+):-([^}]*)\}|)", replace, value)


def read(path):
    file = interpolated(yaml.safe_load(path.read_text()))
    unknown = {key for key in file if not key.startswith("x-")} - TOP_KEYS
    for name, service in file["services"].items():
        unknown |= {f"{name}.{key}" for key in set(service) - SERVICE_KEYS}
        unknown |= {f"{name}.healthcheck.{key}" for key in set(service.get("healthcheck") or {}) - HEALTH_KEYS}
    if unknown:
        raise Wrong(f"this test does not know {sorted(unknown)}; teach it what they do")
    for name, service in file["services"].items():
        check(name, service, file)
    return file


def check(name, service, file):
    """What every service must be, whatever it does."""

    def must(so, what):
        if not so:
            raise Wrong(f"service {name}: {what}")

    must(re.fullmatch(r"[1-9]\d*:[1-9]\d*", str(service.get("user"))), f"user must be UID:GID, not root and not a name: {service.get('user')}")
    must(service.get("read_only") is True, "its root must be read_only")
    must(service.get("cap_drop") == ["ALL"], "cap_drop must be [ALL]")
    must("no-new-privileges:true" in (service.get("security_opt") or []), "security_opt must have no-new-privileges:true")
    must(service.get("networks") or service.get("network_mode") == "none", "must name its networks, or have network_mode none")
    for key in ("command", "entrypoint"):
        must(isinstance(service.get(key, []), list), f"{key} must be a list; a string would be split by a shell's rules")
    for network in service.get("networks") or []:
        must(network in (file.get("networks") or {}), f"network {network} is not declared")
    for entry in service.get("volumes") or []:
        source = entry.split(":")[0]
        must(source.startswith("./") or source in (file.get("volumes") or {}), f"volume {source} is not declared")
    for other, dependency in (service.get("depends_on") or {}).items():
        must(other in file["services"], f"depends on {other}, which is no service")
        must(dependency.get("condition") in CONDITIONS, f"the condition on {other} must be one of {sorted(CONDITIONS)}")
        one_shot = dependency["condition"] == "service_completed_successfully"
        must(one_shot == is_one_shot(file["services"][other]), f"the condition on {other} is not one that it can meet")
    must(is_one_shot(service) or service.get("healthcheck"), "is long-running and has no health check")
    # `docker compose up --wait` takes the end of a service for a failure, unless another waits for just that.
    waited = any(name in (other.get("depends_on") or {}) for other in file["services"].values())
    must(waited or not is_one_shot(service), "ends by itself (it has no restart), and no service waits for its end")


def is_one_shot(service):
    return "restart" not in service


def ordered(services):
    """The services, each after those that it depends on."""
    order, waiting = [], dict(services)
    while waiting:
        ready = [name for name, service in waiting.items() if all(other in order for other in service.get("depends_on") or {})]
        if not ready:
            raise Wrong(f"these services depend on each other in a circle: {sorted(waiting)}")
        order.extend(ready)
        for name in ready:
            del waiting[name]
    return order


def seconds(text):
    match = re.fullmatch(r"(\d+)s", str(text))
    if not match:
        raise Wrong(f"`{text}` is not a time in whole seconds, such as 5s")
    return int(match[1])
