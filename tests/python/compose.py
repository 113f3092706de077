"""Starts docker-compose.yml as local processes, follows what its head tells the first user, and sends jobs through the proxy.

    python3 compose.py PROBEOPS_PROGRAM WORK_FOLDER          needs root, PyYAML, nginx, curl, busybox and a nats-server

Each service's own command, environment, user, mounts, networks and health check are used, in the order of `depends_on`. What this file knows
of the services is only what their images hold (`images` below) and which questions to ask.
"""

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

# Beside the sources nothing is left.
sys.dont_write_bytecode = True
from compose_file import is_one_shot, ordered, read, seconds
from engine import Container, Engine, Image, Wrong, isolate, wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
ONE_SHOT_S = 60
GRACE_S_DEFAULT = 10
# The libraries of gcr.io/distroless/cc-debian12, as far as programs of ours could want them.
DISTROLESS = {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "libstdc++.so.6", "libresolv.so.2", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}


def local(name, package):
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        raise Wrong(f"{name} is missing: apt-get install {package}")
    return os.path.realpath(path)


def images(probeops, work):
    """Each image's name, and what of this machine stands for what it holds."""
    found = subprocess.run([probeops, "nats-server", "--data", str(work)], stdout=subprocess.PIPE, text=True)
    if found.returncode != 0:
        raise Wrong("there is no nats-server; what was tried and how to get one is above")
    shell, certificates = local("busybox", "busybox"), Path("/etc/ssl/certs/ca-certificates.crt")
    ours = from_dockerfile(REPOSITORY / "cli/Dockerfile")
    ours.programs["/usr/local/bin/probeops"] = probeops
    if certificates.exists():
        ours.programs[str(certificates)] = str(certificates)
    return {
        "probeops": ours,
        "nats": Image({"/usr/local/bin/nats-server": found.stdout.strip(), "/bin/sh": shell, "/usr/bin/wget": shell}),
        "nginx": Image({"/usr/sbin/nginx": local("nginx", "nginx-light"), "/usr/bin/curl": local("curl", "curl"), "/bin/sh": shell}),
    }


def from_dockerfile(path):
    """What an image of ours starts, and the folders it gives to its user."""
    text = path.read_text().replace("\\\n", " ")
    toolchain = re.search(r'^channel = "(.*)"', (REPOSITORY / "rust-toolchain.toml").read_text(), re.M)[1]
    if not re.search(rf"^FROM rust:{re.escape(toolchain)}-", text, re.M):
        raise Wrong(f"{path} does not build with Rust {toolchain}, as rust-toolchain.toml says")
    entrypoint = json.loads(re.search(r"^ENTRYPOINT (.*)$", text, re.M)[1])
    mode, made = re.search(r"^RUN install -d -m (\d+) (.*)$", text, re.M).groups()
    owner = int(re.search(r"^COPY --from=build --chown=(\d+):\1 /folders/ /$", text, re.M)[1])
    folders = {folder.removeprefix("/folders"): (owner, int(mode, 8)) for folder in made.split()}
    return Image({}, entrypoint, folders, DISTROLESS)


def mounts(engine, service, image):
    """Where each mount comes from, where it goes, and whether it may be written."""
    found = []
    for entry in service.get("volumes") or []:
        source, target, *mode = entry.split(":")
        path = REPOSITORY / source if source.startswith("./") else engine.volume(source, target, image)
        found.append((path, target, mode == ["ro"]))
    return found


def up(engine, file, known):
    """What `docker compose up` does: makes every container, then starts each when what it depends on is there."""
    containers = {}
    for name, service in file["services"].items():
        image = known.get(service["image"].split(":")[0])
        if image is None:
            raise Wrong(f"service {name}: nothing here stands for the image {service['image']}; known are {sorted(known)}")
        # The volumes of all are there before any is mounted, so the first image that has the folder is the one that counts.
        mounts(engine, service, image)
    for name, service in file["services"].items():
        image = known[service["image"].split(":")[0]]
        containers[name] = Container(engine, name, service, image, mounts(engine, service, image))
    for name in ordered(file["services"]):
        for other, dependency in (file["services"][name].get("depends_on") or {}).items():
            await_condition(containers[other], dependency["condition"])
        containers[name].start()
        print(f"  started {name}", flush=True)
    for container in containers.values():
        condition = "service_completed_successfully" if is_one_shot(container.service) else "service_healthy"
        await_condition(container, condition)
    return containers


def await_condition(container, condition):
    if condition == "service_completed_successfully":
        try:
            code = container.process.wait(timeout=ONE_SHOT_S)
        except subprocess.TimeoutExpired:
            code = f"nothing for {ONE_SHOT_S} s"
        if code != 0:
            raise Wrong(f"{container.name} should have ended with 0 and ended with {code}; it said:\n{container.said()}")
    elif condition == "service_healthy":
        health = container.service["healthcheck"]
        patience = seconds(health["start_period"]) + seconds(health["interval"]) * health["retries"]
        wait_until(f"{container.name} is not healthy", patience, lambda: healthy(container))


def healthy(container):
    """Runs the health check as it is written."""
    if not container.running():
        raise Wrong(f"{container.name} ended with {container.process.poll()}; it said:\n{container.said()}")
    health = container.service["healthcheck"]
    kind, *argv = health["test"]
    if kind not in ("CMD", "CMD-SHELL"):
        raise Wrong(f"the health check of {container.name} must begin with CMD or CMD-SHELL, not {kind}")
    argv = argv if kind == "CMD" else ["/bin/sh", "-c", *argv]
    code, output = container.execute(argv, seconds(health["timeout"]))
    return code == 0, f"{shlex.join(argv)} ended with {code}: {output}\n{container.name} said:\n{container.said()}"


class Host:
    """The machine of the first user: a folder, curl, and the published ports."""

    def __init__(self, engine, containers):
        self.containers, self.folder = containers, engine.folder / "host"
        self.folder.mkdir(exist_ok=True)
        published = []
        for container in containers.values():
            for entry in container.service.get("ports") or []:
                port, target = entry.split(":")
                published.append(f'connect-to = "localhost:{port}:{next(reversed(container.addresses.values()))}:{target}"')
        # Addresses of containers are the engine's affair: the commands name the published port, as they would on any machine.
        (self.folder / ".curlrc").write_text("\n".join([*published, "silent", "show-error", "fail-with-body", "max-time = 60"]) + "\n")

    def shell(self, line):
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder)}
        done = subprocess.run(["sh", "-c", line], cwd=self.folder, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise Wrong(f"{line}\n  ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def follow(self, line):
        """Does what a line in the head of the file says."""
        match shlex.split(line):
            case ["docker", "compose", "up", *_]:
                return ""
            case ["docker", "compose", "cp", source, to]:
                service, _, path = source.partition(":")
                copy = self.containers[service].root / path.lstrip("/")
                if not copy.is_file():
                    raise Wrong(f"{line}\n  there is no such file")
                shutil.copy(copy, self.folder / to)
                return ""
            case ["docker", "compose", "exec", service, *argv]:
                code, output = self.containers[service].execute(argv, 30)
                # A target on the Internet need not answer here; that the job was run and came back is what counts.
                if code != 0 and not (argv[1] == "ping" and "unresolved" in output):
                    raise Wrong(f"{line}\n  ended with {code}: {output}")
                return output
            case _:
                return self.shell(line)

    def ask(self, path, body=None):
        data = f"-H 'content-type: application/json' -d {shlex.quote(json.dumps(body))}" if body else ""
        key = '"authorization: Bearer $(cat admin.key)"'
        return json.loads(self.shell(f"curl --cacert ca.pem -H {key} {data} https://localhost:8443{path}"))


def head_commands(path):
    """The commands in the comment at the head of the file."""
    head = path.read_text().split("\nx-")[0]
    lines = [line[1:].strip() for line in head.splitlines() if line.startswith("#   ")]
    if not any(line.startswith("curl ") for line in lines):
        raise Wrong(f"the head of {path.name} shows no curl command")
    return lines


def examine(engine, host, file):
    """One job by name to each agent, and one to each region; every one over HTTPS to an agent that is on a WebSocket."""
    broker = next(c for c in host.containers.values() if c.service["image"].startswith("nats:"))
    monitoring = next(argument for argument in broker.service["healthcheck"]["test"] if argument.startswith("http://")).rsplit("/", 1)[0]
    code, connections = broker.execute(["wget", "-qO-", f"{monitoring}/connz"], 10)
    if code != 0:
        raise Wrong(f"the broker does not tell its connections: {connections}")
    on_wss = {c["name"].removeprefix("agent ") for c in json.loads(connections)["connections"] if c.get("type") == "websocket"}
    agents = {name for name, service in file["services"].items() if service.get("command", [""])[0] == "agent"}
    if on_wss != agents or len(agents) != 2:
        raise Wrong(f"two agents should be on a WebSocket, {sorted(agents)}; the broker sees {sorted(on_wss)}")
    nodes = {node["id"]: node for node in host.ask("/v1/nodes")["nodes"] if node["online"]}
    regions = {node["region"] for node in nodes.values()}
    if set(nodes) != agents or len(regions) != 2:
        raise Wrong(f"two agents in two regions should be online, and are: {nodes}")
    for node in nodes.values():
        target = engine.gateway(file["services"][node["id"]]["networks"][0])
        for selector in (node["region"], f"node:{node['id']}"):
            job = {"tool": "ping", "target": target, "from": selector, "parameters": {"count": 2, "interval_ms": 100}}
            finished = host.ask("/v1/jobs", job)
            [outcome] = finished["results"]
            if outcome["status"] != "success" or outcome["node"]["id"] != node["id"] or outcome["report"]["stats"]["received"] != 2:
                raise Wrong(f"the job {job} should be two replies at {node['id']}, and is {outcome}")
            print(f"  ping {target} from {selector}: two replies, by {outcome['node']['id']}", flush=True)
    return finished["id"]


def api_goes_away(host):
    """Who asks while the API is not there is told so in its own words."""
    api = next(container for container in host.containers.values() if container.service["command"] == ["api"])
    api.stop(seconds(api.service["stop_grace_period"]))
    status, kind = host.shell("curl --cacert ca.pem -o away.json -w '%{http_code} %{content_type}' https://localhost:8443/livez || true").split()
    problem = json.loads((host.folder / "away.json").read_text())
    if (status, kind, problem["code"]) != ("503", "application/problem+json", "unavailable"):
        raise Wrong(f"without its API the proxy answers {status} {kind} {problem}")


def revoked_stays_revoked(host):
    """A node taken back ends with 78, and the next start does not give it back."""
    by_command = {container.service["command"][0]: container for container in host.containers.values() if container.service.get("command")}
    agent, provision = by_command["agent"], by_command["provision"]
    host.follow(f"docker compose exec {by_command['keymaster'].name} probeops nodes revoke {agent.name}")
    for _ in range(2):
        code = agent.process.wait(timeout=ONE_SHOT_S)
        if code != 78:
            raise Wrong(f"{agent.name} was revoked and ended with {code}, not 78; it said:\n{agent.said()}")
        provision.start()
        await_condition(provision, "service_completed_successfully")
        agent.start()
    if f"node {agent.name} was revoked and stays so" not in provision.said():
        raise Wrong(f"{provision.name} does not say that {agent.name} stays revoked; it said:\n{provision.said()}")
    agent.process.wait(timeout=ONE_SHOT_S)


def secrets_are_kept(containers):
    """No secret can be read by everybody, and no agent or proxy or broker or API sees a key that is not its own."""
    for container in containers.values():
        command = container.service["command"][0]
        holds_keys = command in ("init", "provision", "keymaster")
        for entry in container.service.get("volumes") or []:
            folder = container.root / entry.split(":")[1].lstrip("/")
            for path in (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
                text = path.read_bytes()[:65536]
                secret = b"PRIVATE KEY-" in text or b" SEED-" in text or text.startswith((b"SO", b"SA", b"SU", b"pk_", b"pe_"))
                where = f"{container.name}: {path.relative_to(container.root)}"
                if secret and stat.S_IMODE(path.stat().st_mode) & 0o077:
                    raise Wrong(f"{where} is a secret, and others than its owner can read it")
                own = (path.name in ("node.creds", "node.nk", "token") or path.name == "server.key" and command in ("--config", "-e")
                       or (command, path.parent.name) in (("api", "creds"), ("sentry", "sentry")))
                if secret and not holds_keys and not own:
                    raise Wrong(f"{where} is a secret that this service has no use for")


def down(containers):
    """Stops everything, the other way round, each with its own signal; everything must end cleanly."""
    for name in reversed(ordered({name: container.service for name, container in containers.items()})):
        container = containers[name]
        if container.running():
            code = container.stop(seconds(container.service.get("stop_grace_period", f"{GRACE_S_DEFAULT}s")))
            if code != 0:
                raise Wrong(f"{name} was told to stop and ended with {code}; it said:\n{container.said()}")
    for container in list(containers.values()):
        container.remove()


def main(probeops, work):
    path = Path(os.environ.get("PROBEOPS_COMPOSE_FILE", REPOSITORY / "docker-compose.yml"))
    file = read(path)
    # Before the network is left behind: nats-server may have to be fetched.
    work.mkdir(parents=True, exist_ok=True)
    known = images(probeops, work)
    isolate()
    engine = Engine(work)
    for network in file["networks"]:
        engine.network(network)
    print("the first start", flush=True)
    containers = up(engine, file, known)
    host = Host(engine, containers)
    for line in head_commands(path):
        print(f"  {line}\n    {host.follow(line).strip()}", flush=True)
    job = examine(engine, host, file)
    # Signed by the keymaster, which the API asks: it has no key itself.
    if "SEED" not in host.ask("/v1/services", {"name": "billing", "regions": ["demo-eu"], "tools": ["echo"]})["creds"]:
        raise Wrong("a service that is made over HTTP gets no credential")
    secrets_are_kept(containers)
    api_goes_away(host)
    down(containers)
    print("started again", flush=True)
    containers = up(engine, file, known)
    host = Host(engine, containers)
    if host.ask(f"/v1/jobs/{job}")["id"] != job:
        raise Wrong("a job from before is not there with the same key, after all was stopped and started")
    examine(engine, host, file)
    revoked_stays_revoked(host)
    down(containers)
    print("docker-compose.yml holds", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: compose.py PROBEOPS_PROGRAM WORK_FOLDER")
    try:
        main(os.path.abspath(sys.argv[1]), Path(sys.argv[2]).absolute())
    except Wrong as wrong:
        sys.exit(f"compose.py: {wrong}")
