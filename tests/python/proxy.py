"""An agent whose only way to its broker is an HTTP proxy with authentication (tinyproxy, and squid), over `tls://` and `wss://`: jobs run, the
connection is taken up again, every way in which a proxy says no is told with its cure, and the password is seen nowhere. A machine enrols,
runs, renews and changes its key through the proxy that was named once. One whose clock is set renews and runs on. And what
`probeops-agent doctor` says where a clock is wrong and where nobody may ping.

Arguments: the program `probeops`, an empty folder. Needs root, tinyproxy, squid, libfaketime, unshare and setpriv.
"""

import base64
import glob
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time

# Only a hang takes this long, in seconds.
HANG_S = 60
LOOK_EVERY_S = 0.05
USER, PASSWORD = "node", "PLANTED-proxy-password"
NOBODY = "65534"


def find(program, package):
    path = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    assert path, f"{program} is missing: apt-get install {package}"
    return path


def wait_until(what, so):
    deadline = time.monotonic() + HANG_S
    while not so():
        assert time.monotonic() < deadline, f"not within {HANG_S} s: {what}"
        time.sleep(LOOK_EVERY_S)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Process:
    """A process of ours, ended by its own id."""

    def __init__(self, folder, name, argv, **environment):
        self.log_file = folder / f"{name}.log"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PROBEOPS_") and not name.lower().endswith("_proxy")}
        with open(self.log_file, "a") as log:
            self.child = subprocess.Popen(argv, cwd=folder, env={**kept, **environment}, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def log(self):
        return self.log_file.read_text()

    def wait_for(self, words, times=1):
        wait_until(f"{self.log_file.name} says `{words}`:\n{self.log()[-3000:]}", lambda: self.log().count(words) >= times)

    def end(self):
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(HANG_S)
            except subprocess.TimeoutExpired:
                self.child.kill()
        return self.child.wait()


class Https:
    """HTTPS before the API, by the broker's certificate."""

    def __init__(self, tls, to):
        self.context, self.to = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), to
        self.context.load_cert_chain(tls / "server.pem", tls / "server.key")
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            client, _ = self.listener.accept()
            threading.Thread(target=self.carry, args=(client,), daemon=True).start()

    def carry(self, client):
        try:
            with self.context.wrap_socket(client, server_side=True) as near, socket.create_connection(("127.0.0.1", self.to)) as far:
                back = threading.Thread(target=self.copy, args=(far, near), daemon=True)
                back.start()
                self.copy(near, far)
                back.join(HANG_S)
        except OSError:
            pass

    @staticmethod
    def copy(source, to):
        try:
            while part := source.recv(65536):
                to.sendall(part)
            to.shutdown(socket.SHUT_WR)
        except OSError:
            pass


class Site:
    """A broker, an API, and a node behind proxies."""

    def __init__(self, program, folder):
        self.program, self.folder = str(pathlib.Path(program).resolve()), pathlib.Path(folder)
        self.folder.mkdir(parents=True)
        self.processes = []
        self.http = free_port()
        self.start("up", [self.program, "up", "--data", "data", "--http", f"127.0.0.1:{self.http}"]).wait_for("started again it keeps its state")
        self.data = self.folder / "data"
        self.tls = (self.data / "servers").read_text().split()[0]
        websocket = re.search(r"websocket\s*{[^}]*?(?:listen:\s*\"?[^:\s]*:|port:\s*)(\d+)", (self.data / "broker/server.conf").read_text())
        self.wss = f"wss://127.0.0.1:{websocket[1]}"
        self.password_file = self.folder / "proxy.password"
        self.password_file.write_text(PASSWORD + "\n")
        self.password_file.chmod(0o600)

    def start(self, name, argv, **environment):
        process = Process(self.folder, name, argv, **environment)
        self.processes.append(process)
        return process

    def end(self):
        for process in reversed(self.processes):
            process.end()

    def node(self, name):
        command = [self.program, "nodes", "add", name, "--region", name, "--tools", "echo,tcp,ping", "--data", "data", "--out", f"{name}.creds"]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True)
        return self.folder / f"{name}.creds"

    def settings(self, creds, server, *more):
        policy = self.folder / "policy.toml"
        policy.write_text("allow_loopback = true\n")
        return ["--servers", server, "--ca", str(self.data / "tls/ca.pem"), "--creds", str(creds), "--policy", str(policy), *more]

    def through(self, port):
        return ["--proxy", f"http://{USER}@127.0.0.1:{port}", "--proxy-password-file", str(self.password_file)]

    def job(self, tool, target, region, *options):
        environment = {**os.environ, "PROBEOPS_URL": f"http://127.0.0.1:{self.http}", "PROBEOPS_TOKEN": (self.data / "admin.key").read_text().strip()}
        argv = [self.program, tool, target, "--from", region, "--output", "json", *options]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True)
        return done.stdout + done.stderr

    def doctor(self, settings, *prefix):
        argv = [*prefix, self.program, "agent", "doctor", *settings, "--json", "--health-file", str(self.folder / "none")]
        done = subprocess.run(argv, capture_output=True, text=True)
        assert PASSWORD not in done.stdout + done.stderr
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)["checks"]

    def tinyproxy(self, name, port, connect_ports):
        allowed = "".join(f"ConnectPort {allowed}\n" for allowed in connect_ports)
        (self.folder / f"{name}.conf").write_text(
            f"Port {port}\nListen 127.0.0.1\nTimeout 600\nMaxClients 50\nLogLevel Connect\nBasicAuth {USER} {PASSWORD}\n{allowed}"
        )
        proxy = self.start(name, [find("tinyproxy", "tinyproxy"), "-d", "-c", str(self.folder / f"{name}.conf")])
        wait_until(f"{name} listens", lambda: listens(port))
        return proxy

    def squid(self, port, connect_ports, name="squid"):
        helper = "/usr/lib/squid/basic_ncsa_auth"
        assert os.path.exists(helper), f"{helper} is missing: apt-get install squid"
        hashed = subprocess.run(["openssl", "passwd", "-apr1", PASSWORD], check=True, capture_output=True, text=True).stdout.strip()
        (self.folder / "squid.users").write_text(f"{USER}:{hashed}\n")
        (self.folder / "squid.users").chmod(0o644)
        run = self.folder / name
        run.mkdir()
        run.chmod(0o777)
        (self.folder / f"{name}.conf").write_text(
            f"http_port 127.0.0.1:{port}\npid_filename {run}/squid.pid\naccess_log none\ncache_log {run}/cache.log\ncache deny all\n"
            f"coredump_dir {run}\nauth_param basic program {helper} {self.folder}/squid.users\nauth_param basic children 1\n"
            f"acl known proxy_auth REQUIRED\nacl brokers port {' '.join(map(str, connect_ports))}\n"
            "http_access deny !brokers\nhttp_access allow known\nhttp_access deny all\nshutdown_lifetime 1 seconds\n"
        )
        proxy = self.start(name, [find("squid", "squid"), "-N", "-f", str(self.folder / f"{name}.conf"), "-n", name.replace("-", "")])
        wait_until(f"squid listens:\n{proxy.log()}", lambda: listens(port))
        return proxy


def port_of(server):
    return int(server.rsplit(":", 1)[1])


def failed(checks, check):
    """The failure of this kind: its detail and its cure."""
    found = [one for one in checks if one["verdict"] == "failed" and one["check"] == check]
    assert len(found) == 1, f"{check} should have failed: {json.dumps(checks, indent=1)}"
    return found[0]["detail"], found[0]["cure"]


def jobs_run_and_go_on(site):
    """The way there and back, over both kinds of address; a proxy that goes away is waited for."""
    ports = {"far": free_port(), "away": free_port()}
    proxies = {"far": site.tinyproxy("tinyproxy-far", ports["far"], [port_of(site.tls)]), "away": site.squid(ports["away"], [port_of(site.wss)])}
    agents = {}
    for name, server in (("far", site.tls), ("away", site.wss)):
        argv = [site.program, "agent", *site.settings(site.node(name), server, *site.through(ports[name])), "--log-format", "text"]
        agents[name] = site.start(f"agent-{name}", argv, PROBEOPS_LOG="debug")
        agents[name].wait_for("the agent is ready")
        answer = site.job("echo", "hello", name)
        assert '"status": "success"' in answer or '"status":"success"' in answer, answer
    # What stands between is kept from.
    denied = site.job("tcp", "127.0.0.1", "far", "--port", str(ports["far"]))
    assert "the node's own way to its broker" in denied, denied
    # tinyproxy goes, and comes back.
    proxies["far"].end()
    agents["far"].wait_for("the connection to the broker is gone")
    agents["far"].wait_for("is not reached: no TCP connection to 127.0.0.1")
    site.tinyproxy("tinyproxy-again", ports["far"], [port_of(site.tls)])
    agents["far"].wait_for("INFO connected to the broker", 2)
    wait_until("jobs run again", lambda: "success" in site.job("echo", "again", "far"))
    for name, agent in agents.items():
        argv = pathlib.Path(f"/proc/{agent.child.pid}/cmdline").read_bytes() + pathlib.Path(f"/proc/{agent.child.pid}/environ").read_bytes()
        assert PASSWORD.encode() not in argv and "DEBUG" in agent.log()
        # Nor as the header has it.
        for secret in (PASSWORD, base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()):
            assert secret not in agent.log(), f"the log of {name} has the password"
        assert agent.end() == 0, agent.log()[-3000:]
    return ports


def refusals_have_cures(site, ports):
    creds = site.folder / "far.creds"
    code, checks = site.doctor(site.settings(creds, site.tls, *site.through(ports["far"])))
    assert code == 0 and {one["check"] for one in checks} >= {"proxy", "tls", "broker", "control plane", "clock"}, checks
    # No user, a wrong password, both of them 407.
    detail, cure = failed(site.doctor(site.settings(creds, site.tls, "--proxy", f"http://127.0.0.1:{ports['far']}"))[1], "proxy")
    assert " 407 " in detail and "set proxy = " in cure, (detail, cure)
    site.password_file.write_text("wrong")
    detail, cure = failed(site.doctor(site.settings(creds, site.wss, *site.through(ports["away"])))[1], "proxy")
    assert " 407 " in detail and "correct the user and the password" in cure, (detail, cure)
    site.password_file.write_text(PASSWORD)
    # Ports to which the proxy does not connect.
    detail, cure = failed(site.doctor(site.settings(creds, site.wss, *site.through(ports["far"])))[1], "proxy")
    assert " 403 " in detail and "allow CONNECT to" in cure and "port 443" in cure, (detail, cure)
    # A broker that is not there, behind a proxy that is.
    closed = free_port()
    other = free_port()
    site.tinyproxy("tinyproxy-other", other, [closed])
    detail, cure = failed(site.doctor(site.settings(creds, f"tls://127.0.0.1:{closed}", *site.through(other)))[1], "proxy")
    assert re.search(r" 50\d ", detail), (detail, cure)
    # A proxy that is not there, and no password file.
    detail, cure = failed(site.doctor(site.settings(creds, site.tls, *site.through(closed)))[1], "proxy")
    assert "Connection refused" in detail and cure.startswith("nc -vz"), (detail, cure)
    gone = ["--proxy", f"http://{USER}@127.0.0.1:{ports['far']}", "--proxy-password-file", "/nonexistent/password"]
    detail, cure = failed(site.doctor(site.settings(creds, site.tls, *gone))[1], "proxy")
    assert "there is no file /nonexistent/password" in detail and "install -m 640" in cure, (detail, cure)
    # TLS is with the broker itself: another authority is refused through the proxy as without it.
    settings = site.settings(creds, site.tls, *site.through(ports["far"]))
    stranger = site.folder / "stranger.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=stranger"]
    subprocess.run([*command, "-keyout", "/dev/null", "-out", stranger], check=True, capture_output=True)
    settings[settings.index("--ca") + 1] = str(stranger)
    detail, cure = failed(site.doctor(settings)[1], "tls")
    assert "ProbeOps authority" in detail and "install -m 644 ca.pem" in cure, (detail, cure)
    agent = site.start("agent-stranger", [site.program, "agent", *settings])
    agent.wait_for("ProbeOps authority")
    assert "the agent is ready" not in agent.log()
    agent.end()


def a_machine_enrols_through_it(site):
    """One setting, given once, is for the API and the broker, the enrolment and all that follows."""
    https = Https(site.data / "server-tls", site.http)
    url, state = f"https://127.0.0.1:{https.port}", site.folder / "state"
    environment = {**os.environ, "PROBEOPS_URL": f"http://127.0.0.1:{site.http}", "PROBEOPS_TOKEN": (site.data / "admin.key").read_text().strip()}
    command = [site.program, "enroll-tokens", "add", "--region", "behind", "--tools", "echo,tcp"]
    (site.folder / "token").write_text(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)

    def agent(*argv):
        done = subprocess.run([site.program, "agent", *argv], capture_output=True, text=True, env={**os.environ, "PROBEOPS_LOG": "trace"})
        assert PASSWORD not in done.stdout + done.stderr
        return done.returncode, done.stdout + done.stderr

    def enroll(*settings):
        ca = str(site.data / "tls/ca.pem")
        return agent("enroll", url, "--state", str(state), "--ca", ca, "--token-file", str(site.folder / "token"), "--node", "behind-1", "--servers", site.tls, *settings)

    ports = {"both": free_port(), "api": free_port()}
    proxies = {"both": site.squid(ports["both"], [https.port, port_of(site.tls)], "squid-enrol")}
    site.tinyproxy("tinyproxy-api", ports["api"], [https.port])
    site.password_file.write_text("wrong")
    code, said = enroll(*site.through(ports["both"]))
    assert code == 1 and "407" in said and "correct the user and the password in the setting `proxy`" in said, said
    site.password_file.write_text(PASSWORD)
    # The API is reached, the broker is not: nothing is used up.
    code, said = enroll(*site.through(ports["api"]))
    assert code == 1 and "Nothing is used up" in said and " 403 " in said, said
    code, said = enroll(*site.through(ports["both"]))
    assert code == 0 and "is enrolled" in said, said
    record = json.loads((state / "enrollment.json").read_text())
    assert record["proxy"] == {"proxy": f"http://{USER}@127.0.0.1:{ports['both']}", "proxy_password_file": str(site.password_file)}, record
    # Nobody names it again.
    policy = str(site.folder / "policy.toml")
    code, checks = site.doctor(["--state", str(state), "--policy", policy])
    api = [one for one in checks if one["check"] == "api"]
    assert code == 0 and api[0]["verdict"] == "ok" and f"through the proxy http://127.0.0.1:{ports['both']}" in api[0]["detail"], checks
    running = site.start("agent-behind", [site.program, "agent", "--state", str(state), "--policy", policy, "--log-format", "text"], PROBEOPS_LOG="debug")
    running.wait_for("the broker is reached through a proxy")
    running.wait_for("the agent is ready")
    assert "success" in site.job("echo", "hello", "behind")
    code, said = agent("rotate", "--state", str(state))
    assert code == 0 and "with its new key" in said, said
    running.wait_for("INFO connected to the broker", 2)
    wait_until("jobs run with the new key", lambda: "success" in site.job("echo", "again", "behind"))
    proxies["both"].end()
    code, said = agent("rotate", "--state", str(state))
    assert code == 1 and f"through the proxy http://127.0.0.1:{ports['both']}" in said, said
    # The way is another when its owner says so.
    code, said = enroll("--proxy", "none")
    assert code == 0 and "nothing to do" in said and "the way to the API and the broker is another" in said, said
    code, checks = site.doctor(["--state", str(state), "--policy", policy])
    api = [one for one in checks if one["check"] == "api"]
    assert code == 0 and api[0]["verdict"] == "ok" and "proxy" not in api[0]["detail"], checks
    assert PASSWORD not in running.log() and running.end() == 0, running.log()[-3000:]


def a_clock_is_set(site):
    """Forward by more than a credential lasts, and back again: it is renewed at once, and jobs run on."""
    libraries = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
    assert libraries, "libfaketime is missing: apt-get install libfaketime"
    clock = site.folder / "clock"
    faked = {"LD_PRELOAD": libraries[0], "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    clock.write_text("+0s")
    state, token, policy = site.folder / "clock-state", site.folder / "clock-token", str(site.folder / "policy.toml")
    environment = {**os.environ, "PROBEOPS_URL": f"http://127.0.0.1:{site.http}", "PROBEOPS_TOKEN": (site.data / "admin.key").read_text().strip()}
    command = [site.program, "enroll-tokens", "add", "--region", "clock", "--tools", "echo"]
    token.write_text(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    ca = str(site.data / "tls/ca.pem")
    command = [site.program, "agent", "enroll", environment["PROBEOPS_URL"], "--state", str(state), "--ca", ca, "--token-file", str(token), "--node", "clock-1", "--servers", site.tls]
    enrolled = subprocess.run(command, capture_output=True, text=True)
    assert enrolled.returncode == 0, enrolled.stdout + enrolled.stderr

    def given():
        return json.loads((state / "enrollment.json").read_text())["given"]

    running = site.start("agent-clock", [site.program, "agent", "--state", str(state), "--policy", policy, "--log-format", "text"], **faked)
    running.wait_for("the agent is ready")
    assert "success" in site.job("echo", "hello", "clock")
    # From the right day to a wrong one, and from that to the right one, which is as much of a jump.
    for step, offset in enumerate(["+30h", "+0s"], 1):
        known = given()
        clock.write_text(offset)
        wait_until(f"the credential is renewed when the clock is set to {offset}:\n{running.log()[-3000:]}", lambda: given() != known)
        running.wait_for("there is another credential; connecting with it", step)
        wait_until(f"jobs run when the clock is at {offset}:\n{running.log()[-3000:]}", lambda: "success" in site.job("echo", "again", "clock"))
        assert given()["valid_for_ms"] > 20 * 3_600_000, given()
    assert running.end() == 0, running.log()[-3000:]
    clock.write_text("+20m")
    checks = site.doctor(["--state", str(state), "--policy", policy], "env", *(f"{name}={value}" for name, value in faked.items()))[1]
    detail, cure = failed(checks, "clock")
    assert re.match(r"1[12]\d{5} ms ahead of the control plane's", detail) and "ntp" in cure, (detail, cure)


def nobody_may_ping(site):
    """A network namespace of its own lets no group ping, and reaches nobody."""
    for path in (site.folder, site.data):
        path.chmod(0o755)
    creds = site.folder / "far.creds"
    creds.chmod(0o644)
    program = site.folder / "probeops-for-all"
    shutil.copy(site.program, program)
    prefix = ["unshare", "--net", "setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--bounding-set", "-all", "--inh-caps", "-all", "--no-new-privs"]
    own, site.program = site.program, str(program)
    settings = site.settings(creds, site.tls)
    code, checks = site.doctor(settings, *prefix)
    site.program = own
    detail, cure = failed(checks, "icmp sockets")
    assert code == 1 and "datagram no" in detail and "CAP_NET_RAW no" in detail, detail
    assert f'sysctl -w net.ipv4.ping_group_range="{NOBODY} {NOBODY}"' in cure, cure
    assert any(one["check"] == "credential" and one["verdict"] == "note" and one["cure"].startswith("chmod o=") for one in checks), checks
    failed(checks, "tools")
    failed(checks, "network")


def main():
    site = Site(*sys.argv[1:3])
    try:
        ports = jobs_run_and_go_on(site)
        refusals_have_cures(site, ports)
        a_machine_enrols_through_it(site)
        a_clock_is_set(site)
        nobody_may_ping(site)
    finally:
        site.end()
    print("through proxies: jobs run, refusals have cures, the password is seen nowhere; a node whose clock is set renews")


main()
