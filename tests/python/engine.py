"""As much of a container engine as docker-compose.yml asks for, from the kernel's own parts.

A container has a network namespace with the engine's name server in it, a root of its own that holds what its image does and no more, and a
process that entered both and gave up everything but its user. Must run as root in mount, network and process namespaces of its own (see
`isolate`), so that whatever it makes is gone with it.
"""

import ctypes
import os
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET, PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 0x40000000, 1, 24, 38
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NAME_SERVER = "127.0.0.11"
POLL_S = 0.2


class Wrong(Exception):
    """Something is not as it must be; the text says what."""


def isolate():
    """Starts this program again in namespaces of its own; whatever it leaves behind ends with it."""
    if os.geteuid() != 0:
        raise Wrong("this needs root, to make namespaces and to become each service's user: run it with sudo")
    if os.environ.get("PROBEOPS_ISOLATED") == "1":
        return
    unshare = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, *sys.argv]
    # However this process ends, killed included, that one does, and with it the first of its namespace, and so all in it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    inner = subprocess.Popen(
        unshare, env={**os.environ, "PROBEOPS_ISOLATED": "1"}, preexec_fn=lambda: LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    )
    try:
        sys.exit(inner.wait())
    finally:
        inner.kill()
        inner.wait()


def command(*argv):
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode != 0:
        raise Wrong(f"{shlex.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


@dataclass
class Image:
    """What a container is made from: where each program is here, what runs unless told, and its folders with their owner and mode."""

    programs: dict
    entrypoint: list = field(default_factory=list)
    folders: dict = field(default_factory=dict)
    # The libraries it has; any if empty.
    libraries: set = field(default_factory=set)

    def needed(self):
        """The libraries that the programs are linked with."""
        found = set()
        for inside, program in self.programs.items():
            linked = subprocess.run(["ldd", program], capture_output=True, text=True)
            if linked.returncode != 0 and "not a dynamic executable" not in linked.stderr:
                raise Wrong(f"ldd {program}: {linked.stderr.strip()}")
            for path in re.findall(r"(/\S+) \(0x", linked.stdout):
                if self.libraries and Path(path).name not in self.libraries:
                    raise Wrong(f"{inside} is linked with {Path(path).name}, which its image does not have (it has {sorted(self.libraries)})")
                found.add(path)
        return found


class Engine:
    """Networks, volumes and containers below one folder."""

    def __init__(self, folder):
        self.folder = folder
        self.containers = {}
        self.networks = {}
        for name in ("roots", "volumes", "logs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        os.chmod(folder / "volumes", 0o711)
        Path("/run/netns").mkdir(parents=True, exist_ok=True)
        command("mount", "-t", "tmpfs", "tmpfs", "/run/netns")
        command("ip", "link", "set", "lo", "up")

    def network(self, name):
        number = len(self.networks) + 1
        bridge = f"net{number}"
        command("ip", "link", "add", bridge, "type", "bridge")
        command("ip", "address", "add", f"10.77.{number}.1/24", "dev", bridge)
        command("ip", "link", "set", bridge, "up")
        self.networks[name] = (number, bridge)

    def gateway(self, name):
        return f"10.77.{self.networks[name][0]}.1"

    def volume(self, name, target, image):
        """The folder of a volume; an empty one takes over what the image has where it is mounted, as engines do."""
        path = self.folder / "volumes" / name
        path.mkdir(exist_ok=True)
        if not any(path.iterdir()):
            for folder, (owner, mode) in sorted(image.folders.items()):
                if folder == target or folder.startswith(f"{target}/"):
                    inside = path / os.path.relpath(folder, target)
                    inside.mkdir(exist_ok=True)
                    os.chown(inside, owner, owner)
                    os.chmod(inside, mode)
        return path

    def resolve(self, name, networks):
        """The address of a container, for one that shares a network with it."""
        other = self.containers.get(name)
        shared = [network for network in networks if other and other.running() and network in other.addresses]
        return other.addresses[shared[0]] if shared else None


class Container:
    """One service, made but not started."""

    def __init__(self, engine, name, service, image, files):
        self.engine, self.name, self.service, self.image = engine, name, service, image
        self.uid, self.gid = (int(part) for part in service["user"].split(":"))
        self.root = engine.folder / "roots" / name
        self.addresses, self.process, self.name_server = {}, None, None
        self._join()
        self._build(files)
        engine.containers[name] = self

    def _join(self):
        """Its network namespace, a cable to each network, and the engine's name server."""
        command("ip", "netns", "add", self.name)
        inside = ["ip", "-n", self.name]
        command(*inside, "link", "set", "lo", "up")
        number = len(self.engine.containers) + 2
        for index, network in enumerate(self.service.get("networks") or []):
            subnet, bridge = self.engine.networks[network]
            cable, address = f"c{number}-{index}", f"10.77.{subnet}.{number}"
            command("ip", "link", "add", cable, "type", "veth", "peer", "name", f"eth{index}", "netns", self.name)
            command("ip", "link", "set", cable, "master", bridge, "up")
            command(*inside, "address", "add", f"{address}/24", "dev", f"eth{index}")
            command(*inside, "link", "set", f"eth{index}", "up")
            self.addresses[network] = address
        for key, value in (self.service.get("sysctls") or {}).items():
            setting = f"/proc/sys/{key.replace('.', '/')}"
            command("ip", "netns", "exec", self.name, "sh", "-c", f"echo {shlex.quote(str(value))} >{setting}")
        self.name_server = threading.Thread(target=self._answer_names, args=(self._bound(),), daemon=True)
        self.name_server.start()

    def _bound(self):
        """The name server's socket. Entering a network is a thread's own affair, and a socket stays where it was made."""
        made = []

        def bind():
            enter_network(self.name)
            server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            server.bind((NAME_SERVER, 53))
            made.append(server)

        thread = threading.Thread(target=bind)
        thread.start()
        thread.join()
        if not made:
            raise Wrong(f"{self.name}: the name server has no socket")
        return made[0]

    def _answer_names(self, server):
        while True:
            query, client = server.recvfrom(512)
            labels, at = [], 12
            while query[at]:
                labels.append(query[at + 1 : at + 1 + query[at]].decode())
                at += 1 + query[at]
            question, kind = query[12 : at + 5], struct.unpack("!H", query[at + 1 : at + 3])[0]
            address = self.engine.resolve(".".join(labels).lower(), self.addresses)
            record = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 1, 4) + socket.inet_aton(address) if address and kind == 1 else b""
            flags = 0x8180 if address else 0x8183
            server.sendto(query[:2] + struct.pack("!HHHHH", flags, 1, 1 if record else 0, 0, 0) + question + record, client)

    def _build(self, files):
        """Its root: what the image has, then volumes, then what is in memory; and then nothing more, if it is read-only."""
        self.root.mkdir(exist_ok=True)
        command("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(self.root))
        for folder, (owner, mode) in sorted(self.image.folders.items()):
            self._inside(folder).mkdir(parents=True, exist_ok=True)
            os.chown(self._inside(folder), owner, owner)
            os.chmod(self._inside(folder), mode)
        for path in sorted(self.image.needed()):
            self._bind(path, path)
        for inside, path in self.image.programs.items():
            self._bind(path, inside)
        for device in ("null", "zero", "random", "urandom"):
            self._bind(f"/dev/{device}", f"/dev/{device}", read_only=False)
        for number, stream in enumerate(("stdin", "stdout", "stderr")):
            self._inside(f"/dev/{stream}").symlink_to(f"/proc/self/fd/{number}")
        self._inside("/proc").mkdir()
        command("mount", "-t", "proc", "proc", str(self._inside("/proc")))
        self._inside("/etc").mkdir(exist_ok=True)
        self._inside("/etc/resolv.conf").write_text(f"nameserver {NAME_SERVER}\n")
        for source, target, read_only in sorted(files, key=lambda entry: entry[1].count("/")):
            self._bind(source, target, read_only)
        for entry in self.service.get("tmpfs") or []:
            target, _, options = entry.partition(":")
            self._inside(target).mkdir(parents=True, exist_ok=True)
            command("mount", "-t", "tmpfs", "-o", options or "mode=1777", "tmpfs", str(self._inside(target)))
        if self.service.get("read_only"):
            command("mount", "-o", "remount,ro", str(self.root))

    def _inside(self, path):
        return self.root / path.lstrip("/")

    def _bind(self, source, target, read_only=True):
        source, inside = Path(source), self._inside(target)
        inside.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            inside.mkdir(exist_ok=True)
        elif source.exists():
            inside.touch()
        else:
            raise Wrong(f"{self.name}: there is no {source} to mount on {target}")
        command("mount", "--bind", str(source), str(inside))
        if read_only:
            command("mount", "-o", "remount,bind,ro", str(inside))

    def _confine(self):
        enter_network(self.name)
        os.chroot(self.root)
        os.chdir("/")
        capability = 0
        while LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
            capability += 1
        os.setgroups([])
        os.setgid(self.gid)
        os.setuid(self.uid)
        LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)

    def spawn(self, argv, output):
        """Starts a program in the container, as its user."""
        environment = {"PATH": SEARCH_PATH, "HOME": "/", **{key: str(value) for key, value in (self.service.get("environment") or {}).items()}}
        # Engines give the streams to the container's user, who may then open /dev/stdout.
        os.fchown(output.fileno(), self.uid, self.gid)
        try:
            return subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, preexec_fn=self._confine, start_new_session=True
            )
        except FileNotFoundError as error:
            raise Wrong(f"{self.name}: its image has no program {argv[0]}; it has {sorted(self.image.programs)}") from error

    def start(self):
        """Starts its own command."""
        argv = [*(self.service.get("entrypoint") or self.image.entrypoint), *(self.service.get("command") or [])]
        with open(self.log_file, "ab") as output:
            self.process = self.spawn(argv, output)

    def execute(self, argv, patience_s):
        """Runs a program beside its own, to the end: its exit code and what it printed."""
        with open(self.engine.folder / "logs" / f"{self.name}.exec", "w+b") as output:
            process = self.spawn(argv, output)
            try:
                code = process.wait(timeout=patience_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                code = f"no answer within {patience_s} s"
            output.seek(0)
            return code, output.read().decode(errors="replace").strip()

    @property
    def log_file(self):
        return self.engine.folder / "logs" / f"{self.name}.log"

    def running(self):
        return self.process is not None and self.process.poll() is None

    def said(self):
        """The end of its log."""
        lines = self.log_file.read_text(errors="replace").splitlines() if self.log_file.exists() else []
        return "\n".join(f"    {line}" for line in lines[-12:]) or "    (nothing)"

    def stop(self, patience_s):
        """Tells it to stop, as the engine would; its exit code."""
        self.process.send_signal(getattr(signal, self.service.get("stop_signal", "SIGTERM")))
        try:
            return self.process.wait(timeout=patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise Wrong(f"{self.name} did not stop within its grace period of {patience_s} s; it said:\n{self.said()}") from None

    def remove(self):
        """Takes its root and network away; its volumes stay."""
        command("umount", "--recursive", str(self.root))
        for index in range(len(self.addresses)):
            command("ip", "-n", self.name, "link", "delete", f"eth{index}")
        command("ip", "netns", "delete", self.name)
        del self.engine.containers[self.name]


def enter_network(name):
    with open(f"/run/netns/{name}") as namespace:
        if LIBC.setns(namespace.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter the network of {name}")


def wait_until(what, patience_s, done):
    """Asks until it is so; a hang is reported with the last answer."""
    deadline = time.monotonic() + patience_s
    while True:
        answer, detail = done()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise Wrong(f"{what} within {patience_s:.0f} s: {detail}")
        time.sleep(POLL_S)
