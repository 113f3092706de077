"""Runs the workflows and the node in a real n8n, against a real ProbeOps, and prints what was seen as Markdown.

Arguments: the program `probeops`, an empty folder. Needs `n8n` and its `node` in PATH, and the node built. Ends with 1 if any check failed.
"""

import base64
import hashlib
import hmac
import http.server
import itertools
import json
import os
import pathlib
import platform
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.cookiejar import CookieJar

HERE = pathlib.Path(__file__).parent
NODE = HERE / "node"
# As the workflows say.
API = "http://127.0.0.1:8080"
# Only a hang takes this long, in seconds.
HANG_S = 120
# What n8n calls nodes that it loads from a folder; one that was installed has the name of its package.
PACKAGE, LOADED_AS = "n8n-nodes-probeops.", "CUSTOM."
CREDENTIAL_ID = "probeopsApi00001"
# How an execution ends.
OVER = ("success", "error", "crashed", "canceled")
# The workflow whose trigger is ours: what its publishing does is a check of its own.
TRIGGERED = "probeopsTrig0001"


class Failed(Exception):
    """Something is not as it should be."""


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def ask(method, url, body=None, headers=None, opener=None, raw=None):
    """One request: the status and the body, read as JSON where it is."""
    data = raw if raw is not None else None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json", "accept": "application/json", **(headers or {})}, method=method)
    try:
        with (opener or urllib.request.build_opener()).open(request, timeout=90) as answer:
            status, text = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read()
    try:
        return status, json.loads(text)
    except ValueError:
        return status, text.decode(errors="replace")


def until(what, look, within_s=HANG_S):
    """Looks until there is something to see."""
    started = time.monotonic()
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() - started > within_s:
            raise Failed(f"{what}: not within {within_s} s")
        time.sleep(0.1)


def listens(url):
    try:
        return ask("GET", url)[0] == 200
    except OSError:
        return False


def wants(condition, seen):
    if not condition:
        raise Failed(json.dumps(seen, default=str)[:1500])


def unflatten(text):
    """Reads what the package `flatted` wrote: a list of values whose strings are places in the list."""
    entries = json.loads(text)
    made = {}

    def at(index):
        if index not in made:
            entry = entries[index]
            if isinstance(entry, dict):
                made[index] = {}
                made[index].update({name: value(inner) for name, inner in entry.items()})
            elif isinstance(entry, list):
                made[index] = []
                made[index].extend(value(inner) for inner in entry)
            else:
                made[index] = entry
        return made[index]

    def value(inner):
        return at(int(inner)) if isinstance(inner, str) else inner

    return at(0)


class Execution:
    """What n8n keeps of an execution."""

    def __init__(self, row):
        self.id, self.status, self.mode, data = row
        result = unflatten(data)["resultData"]
        self.runs = result["runData"]
        self.error = (result.get("error") or {}).get("message")

    def output(self, node, branch=0):
        """What a node gave to this branch, as a list of documents."""
        runs = self.runs.get(node)
        if not runs or not runs[-1].get("data"):
            return None
        return [item["json"] for item in runs[-1]["data"]["main"][branch] or []]

    def __repr__(self):
        return f"execution {self.id}: {self.status}, {self.error}, nodes {list(self.runs)}"


class ProbeOps:
    """`probeops up` in a folder."""

    def __init__(self, program, folder):
        self.output = folder / "up.log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PROBEOPS_")}
        command = [program, "up", "--http", API.removeprefix("http://"), "--data", str(folder / "probeops"), "--callback-allow", "127.0.0.0/8"]
        self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=self.output.open("w"), stderr=subprocess.STDOUT)
        until("up is not ready", lambda: self.process.poll() is not None or "Ctrl-C" in self.output.read_text())
        if self.process.poll() is not None:
            raise Failed(f"up ended:\n{self.output.read_text()}")
        self.key = (folder / "probeops" / "admin.key").read_text().strip()
        self.version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()

    def ask(self, method, path, body=None, expected=(200, 201, 202)):
        status, answer = ask(method, API + path, body, {"authorization": f"Bearer {self.key}"})
        if status not in expected:
            raise Failed(f"{method} {path} was answered {status}: {answer}")
        return answer

    def delivery(self, job):
        """The delivery of a job's callback, when it is there."""
        _, answer = ask("GET", f"{API}/v1/deliveries/msg_{job}", headers={"authorization": f"Bearer {self.key}"})
        return answer if isinstance(answer, dict) and answer.get("status") == "delivered" else None

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(HANG_S)


class N8n:
    """An n8n with a folder of its own."""

    def __init__(self, folder):
        self.folder = folder / "n8n"
        self.folder.mkdir()
        self.log = folder / "n8n.log"
        self.port = free_port()
        self.origin = f"http://127.0.0.1:{self.port}"
        self.process = None
        self.before = 0
        self.environment = {
            **os.environ,
            "N8N_USER_FOLDER": str(self.folder),
            "N8N_LISTEN_ADDRESS": "127.0.0.1",
            "N8N_HOST": "127.0.0.1",
            "N8N_PORT": str(self.port),
            "N8N_RUNNERS_BROKER_PORT": str(free_port()),
            "WEBHOOK_URL": f"{self.origin}/",
            "N8N_ENCRYPTION_KEY": "of-this-run",
            "N8N_SECURE_COOKIE": "false",
            "N8N_CUSTOM_EXTENSIONS": str(NODE / "dist"),
            "NODE_FUNCTION_ALLOW_BUILTIN": "crypto",
            "N8N_BLOCK_ENV_ACCESS_IN_NODE": "false",
            "N8N_DIAGNOSTICS_ENABLED": "false",
            "N8N_VERSION_NOTIFICATIONS_ENABLED": "false",
            "N8N_TEMPLATES_ENABLED": "false",
            "N8N_COMMUNITY_PACKAGES_ENABLED": "false",
        }
        self.version = self.run("--version").strip().splitlines()[-1]
        self.node_version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
        self.opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))

    def run(self, *arguments):
        done = subprocess.run(["n8n", *arguments], env=self.environment, capture_output=True, text=True, timeout=HANG_S, check=False)
        if done.returncode != 0:
            raise Failed(f"n8n {' '.join(arguments)} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def start(self):
        self.process = subprocess.Popen(["n8n", "start"], env=self.environment, stdout=self.log.open("a"), stderr=subprocess.STDOUT)
        until("n8n is not ready", lambda: self.process.poll() is not None or listens(f"{self.origin}/healthz/readiness"))
        if self.process.poll() is not None:
            raise Failed(f"n8n ended:\n{self.log.read_text()}")
        until("n8n has no editor", lambda: "Editor is now accessible" in self.log.read_text())

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(HANG_S)

    def webhook(self, path, body, **more):
        self.before = self.newest()
        return ask("POST", f"{self.origin}/webhook/{path}", body, **more)

    def rest(self, method, path, body=None):
        """Asks what the editor asks, as the owner."""
        status, answer = ask(method, f"{self.origin}/rest{path}", body, {"browser-id": "run.py"}, self.opener)
        if status not in (200, 201):
            raise Failed(f"{method} /rest{path} was answered {status}: {answer}")
        return answer["data"] if isinstance(answer, dict) and "data" in answer else answer

    def publish(self, workflow):
        """What the button in the editor does."""
        version = self.rest("GET", f"/workflows/{workflow}")["versionId"]
        self.rest("POST", f"/workflows/{workflow}/activate", {"versionId": version})

    def executions(self, workflow):
        """The executions of a workflow, newest first."""
        rows = self.select(
            "select e.id, e.status, e.mode, d.data from execution_entity e join execution_data d on d.executionId = e.id "
            "where e.workflowId = ? order by e.id desc",
            workflow,
        )
        return [Execution(row) for row in rows]

    def newest(self):
        """The number of the newest execution."""
        return self.select("select coalesce(max(id), 0) from execution_entity")[0][0]

    def select(self, query, *arguments):
        found = sqlite3.connect(f"file:{self.folder / '.n8n' / 'database.sqlite'}?mode=ro", uri=True)
        try:
            return found.execute(query, arguments).fetchall()
        finally:
            found.close()

    def ended(self, workflow, fits=lambda execution: True, after=None):
        """The first execution after another, or else since a webhook was called last, that is over and fits."""
        after = self.before if after is None else after

        def look():
            over = [execution for execution in self.executions(workflow) if execution.id > after and execution.status in OVER and fits(execution)]
            return over and over[-1]

        return until(f"an execution of {workflow}", look)

    def waiting(self, workflow):
        return until(f"{workflow} waits", lambda: [execution for execution in self.executions(workflow) if execution.status == "waiting"])[0]


def answering(statuses):
    """A web server that answers with these statuses in turn, as one behind a bad balancer does."""
    turn = itertools.cycle(statuses)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(next(turn))
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    return Handler


def signed(secret, body, at=None, webhook_id="msg_made_here"):
    """The headers of a callback as Standard Webhooks has them, written here anew: neither the API's code nor the workflow's."""
    at = str(int(time.time() if at is None else at))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    mac = hmac.new(key, f"{webhook_id}.{at}.".encode() + body, hashlib.sha256)
    return {"webhook-id": webhook_id, "webhook-timestamp": at, "webhook-signature": f"v1,{base64.b64encode(mac.digest()).decode()}"}


class Run:
    """All checks, one after the other; each is told."""

    def __init__(self, program, folder):
        self.folder = pathlib.Path(folder)
        self.failed = 0
        self.program = program
        self.probeops = self.n8n = None

    def check(self, what, look):
        try:
            seen = look()
            print(f"- ok: {what}: {seen}", flush=True)
        except Exception as error:  # What it is does not matter: the check failed, and the next may not.
            self.failed += 1
            print(f"- FAILED: {what}: {type(error).__name__} {error}", flush=True)

    def prepare(self):
        """Starts ProbeOps, imports credentials and workflows as they are into n8n, and publishes them."""
        self.n8n = N8n(self.folder)
        self.probeops = ProbeOps(self.program, self.folder)
        key = self.probeops.ask("POST", "/v1/keys", {"name": "n8n", "scopes": ["jobs:write", "jobs:read", "nodes:read"]})["key"]
        self.probeops.key = key
        # Secrets belong to who made them, so the key of n8n makes its own.
        self.secret = self.probeops.ask("POST", "/v1/secrets", {"name": "n8n", "origin": self.n8n.origin})
        self.n8n.environment["PROBEOPS_SECRET"] = self.secret["secret"]
        self.credential = {"url": API, "token": key, "secretId": self.secret["id"], "secret": self.secret["secret"]}
        credentials = self.folder / "credentials.json"
        credentials.write_text(json.dumps([
            {"id": "probeopsHeader01", "name": "ProbeOps API key", "type": "httpHeaderAuth", "data": {"name": "Authorization", "value": f"Bearer {key}"}},
            {"id": CREDENTIAL_ID, "name": "ProbeOps API", "type": "probeOpsApi", "data": self.credential},
        ]))
        self.n8n.run("import:credentials", f"--input={credentials}")
        credentials.unlink()
        examples = self.folder / "examples"
        examples.mkdir()
        for path in (NODE / "examples").glob("*.json"):
            (examples / path.name).write_text(path.read_text().replace(f'"type": "{PACKAGE}', f'"type": "{LOADED_AS}'))
        workflows = []
        for folder in (HERE / "workflows", examples):
            self.n8n.run("import:workflow", "--separate", f"--input={folder}")
            workflows += [json.loads(path.read_text())["id"] for path in sorted(folder.glob("*.json"))]
        self.n8n.start()
        self.n8n.rest("POST", "/owner/setup", {"email": "owner@n8n.example", "firstName": "O", "lastName": "W", "password": "Of-this-run-1"})
        for workflow in workflows:
            if workflow != TRIGGERED:
                self.n8n.publish(workflow)

    # The four workflows.

    def sync(self):
        status, answer = self.n8n.webhook("probeops-ping", {"target": "127.0.0.1", "from": "demo-eu"})
        execution = self.n8n.ended("probeopsSync0001")
        wants(status == 200 and answer["alert"] is False and answer["findings"][0]["loss_pct"] == 0, answer)
        wants(execution.status == "success" and "Alert" not in execution.runs, execution)
        return f"execution {execution.id}, no alert, {answer['findings'][0]['rtt_avg_ms']} ms"

    def sync_alert(self):
        status, answer = self.n8n.webhook("probeops-ping", {"target": "nothing.invalid", "from": "demo-eu"})
        execution = self.n8n.ended("probeopsSync0001")
        wants(status == 200 and answer["alert"] is True and answer["text"], answer)
        wants(execution.status == "success" and "Alert" in execution.runs, execution)
        return f"execution {execution.id}, alert \"{answer['text']}\""

    def asynchronous(self):
        status, _ = self.n8n.webhook("probeops-async", {"count": 5})
        wants(status == 200, status)
        waiting = self.n8n.waiting("probeopsAsync001")
        execution = self.n8n.ended("probeopsAsync001")
        wants(execution.id == waiting.id and execution.status == "success", execution)
        found = execution.output("What was found")
        wants(found[0]["status"] == "finished" and found[0]["stats"]["received"] == 5, found)
        delivery = until("the delivery", lambda: self.probeops.delivery(found[0]["job"]))
        return f"execution {execution.id} waited and was resumed, job finished, callback delivered, tries: {delivery['tries']}"

    def asynchronous_quick(self):
        self.n8n.webhook("probeops-async", {"count": 1})
        execution = self.n8n.ended("probeopsAsync001")
        found = execution.output("What was found")
        wants(execution.status == "success" and found[0]["stats"]["received"] == 1, execution)
        delivery = until("the delivery", lambda: self.probeops.delivery(found[0]["job"]))
        return f"execution {execution.id}, job of one packet, answers {[attempt.get('status') for attempt in delivery['attempts']]}"

    def receiver(self):
        callback = {"url": f"{self.n8n.origin}/webhook/probeops-callback", "secret_id": self.secret["id"]}
        before = self.n8n.newest()
        job = self.probeops.ask("POST", "/v1/jobs", {"tool": "ping", "target": "127.0.0.1", "from": "demo-eu", "parameters": {"count": 1}, "callback": callback})
        delivery = until("the delivery", lambda: self.probeops.delivery(job["id"]))
        execution = self.n8n.ended("probeopsSigned01", after=before)
        wants(execution.output("Use the job")[0] == {"job": job["id"], "status": "finished"}, execution.output("Use the job"))
        return f"execution {execution.id}, delivered, tries: {delivery['tries']}"

    def receiver_refuses(self):
        body = json.dumps({"type": "job.completed", "timestamp": "2026-01-01T00:00:00Z", "data": {"id": "forged", "status": "finished"}}).encode()
        good = signed(self.secret["secret"], body)
        other = signed("whsec_" + base64.b64encode(b"another secret of 24 byte").decode(), body)
        cases = {
            "not signed": ({}, body, 401),
            "another secret": (other, body, 401),
            "changed on the way": (good, body.replace(b"forged", b"f0rged"), 401),
            "ten minutes old": (signed(self.secret["secret"], body, time.time() - 600), body, 401),
            "signed by us": (good, body, 200),
        }
        seen = {}
        for name, (headers, sent, expected) in cases.items():
            status, answer = self.n8n.webhook("probeops-callback", None, raw=sent, headers=headers)
            wants(status == expected, {name: [status, answer]})
            seen[name] = status
        return json.dumps(seen)

    def receiver_rotation(self):
        self.probeops.ask("POST", f"/v1/secrets/{self.secret['id']}/rotate")
        return "after the secret was replaced, the receiver that has the old one: " + self.receiver()

    def ask_regions(self, statuses):
        """The answer of the workflow for a server that answers with these in turn, and its execution."""
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), answering(statuses))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            status, answer = self.n8n.webhook("probeops-diff", {"target": f"http://127.0.0.1:{server.server_port}/"})
        finally:
            server.shutdown()
        execution = self.n8n.ended("probeopsDiff0001", lambda execution: execution.mode == "webhook")
        wants(status == 200 and execution.status == "success", [status, answer, execution])
        return answer, execution

    def diff_same(self):
        answer, execution = self.ask_regions([200])
        wants(answer["differs"] is False and "Differs" not in execution.runs, answer)
        wants(list(answer["seen"]) == ["status 200"] and len(answer["seen"]["status 200"]) == 2, answer)
        return f"execution {execution.id}, seen {json.dumps(answer['seen'])}"

    def diff_differs(self):
        answer, execution = self.ask_regions([200, 503])
        wants(answer["differs"] is True and set(answer["seen"]) == {"status 200", "status 503"}, answer)
        return f"execution {execution.id}, \"{answer['text'].split('/: ')[1]}\""

    def diff_scheduled(self):
        execution = self.n8n.ended("probeopsDiff0001", lambda execution: execution.mode == "trigger", after=0)
        compared = execution.output("Compare")
        wants(execution.status == "success" and compared and compared[0]["differs"] is False, execution)
        return f"execution {execution.id}, begun by the schedule, seen {json.dumps(compared[0]['seen'])}"

    # The node.

    def credential_test(self):
        def tested(data):
            body = {"credentials": {"id": CREDENTIAL_ID, "name": "ProbeOps API", "type": "probeOpsApi", "data": data}}
            return self.n8n.rest("POST", "/credentials/test", body)["status"]

        good, bad = tested(self.credential), tested({**self.credential, "token": "pk_none"})
        wants((good, bad) == ("OK", "Error"), [good, bad])
        return f"the right key {good}, a wrong one {bad}"

    def drop_downs(self):
        def options(method, name):
            return self.n8n.rest("POST", "/dynamic-node-parameters/options", {
                "path": f"parameters.{name}", "methodName": method, "currentNodeParameters": {},
                "nodeTypeAndVersion": {"name": f"{LOADED_AS}probeOps", "version": 1},
                "credentials": {"probeOpsApi": {"id": CREDENTIAL_ID, "name": "ProbeOps API"}},
            })

        tools, regions, nodes = options("getTools", "tool"), options("getRegions", "regions"), options("getNodes", "nodes")
        told = {tool["name"] for tool in self.probeops.ask("GET", "/v1/tools")["tools"]}
        wants({tool["value"] for tool in tools} == told, tools)
        wants({"*", "demo-eu"} <= {region["value"] for region in regions}, regions)
        wants("node:demo-eu-1" in {node["value"] for node in nodes}, nodes)
        return f"{len(tools)} tools; {', '.join(region['name'] for region in regions)}; {', '.join(node['name'] for node in nodes)}"

    def node_parks(self):
        status, answer = self.n8n.webhook("probeops-park", {})
        wants(status == 200, answer)
        waiting = self.n8n.waiting("probeopsPark0001")
        # Whoever learns the URL does not know the secret.
        body = json.dumps({"type": "job.completed", "data": {"id": "forged", "status": "finished", "results": []}}).encode()
        refused = [ask("POST", answer["resume"], raw=body, headers=headers)[0] for headers in ({}, signed("whsec_" + base64.b64encode(bytes(32)).decode(), body))]
        wants(refused == [401, 401], refused)
        still = [execution.status for execution in self.n8n.executions("probeopsPark0001") if execution.id == waiting.id]
        wants(still == ["waiting"], still)
        execution = self.n8n.ended("probeopsPark0001", lambda execution: execution.id == waiting.id)
        used = execution.output("Use the results")
        wants(execution.status == "success" and used[0]["status"] == "finished" and len(used[0]["regions"]) >= 2, [execution, used])
        delivery = until("the delivery", lambda: self.probeops.delivery(used[0]["job"]))
        return f"execution {execution.id} parked, two forged callbacks got 401, resumed with regions {', '.join(used[0]['regions'])} tries: {delivery['tries']}"

    def node_waits(self):
        asked = {"tool": "tcp", "target": "127.0.0.1", "node": "demo-eu-1", "options": {"port": 8080}}
        status, answer = self.n8n.webhook("probeops-wait", asked)
        execution = self.n8n.ended("probeopsWait0001")
        wants(status == 200 and answer["status"] == "finished" and answer["results"][0]["node"]["id"] == "demo-eu-1", answer)
        wants(execution.output("Run and wait")[0]["id"] == answer["id"], execution)
        return f"execution {execution.id}, run, then read again"

    def node_tells(self):
        asked = {"tool": "ping", "target": "127.0.0.1", "node": "demo-eu-1", "options": {"counter": 1}}
        status, answer = self.n8n.webhook("probeops-wait", asked)
        execution = self.n8n.ended("probeopsWait0001")
        wants(status == 200 and "counter" in str(answer.get("description")), answer)
        return f"execution {execution.id}, \"{answer['error']}: {answer['description']}\""

    def node_triggers(self):
        workflow = TRIGGERED
        before = self.n8n.newest()
        self.n8n.publish(workflow)
        # Publishing is answered before the node has been told of it.
        until = time.monotonic() + 30
        while not (schedules := self.probeops.ask("GET", "/v1/schedules")["schedules"]) and time.monotonic() < until:
            time.sleep(0.2)
        wants(len(schedules) == 1, f"made {len(schedules)} schedules, not 1")
        execution = self.n8n.ended(workflow, after=before)
        used = execution.output("Use the results")
        wants(execution.status == "success" and used[0]["schedule"] == schedules[0]["id"], [execution, used])
        self.n8n.rest("POST", f"/workflows/{workflow}/deactivate", {})
        until = time.monotonic() + 30
        while (left := self.probeops.ask("GET", "/v1/schedules")["schedules"]) and time.monotonic() < until:
            time.sleep(0.2)
        wants(left == [], "the schedule is still there")
        return f"execution {execution.id}, begun by schedule {used[0]['schedule']}, which is gone with the workflow"

    def all(self):
        self.prepare()
        print("# What run.sh saw\n")
        print(f"n8n {self.n8n.version} on Node {self.n8n.node_version}, {self.probeops.version}, {platform.system()} {platform.machine()}, "
              f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC\n")
        print("## The workflows\n")
        self.check("sync-ping-alert, a host that answers", self.sync)
        self.check("sync-ping-alert, a host that there is not", self.sync_alert)
        self.check("async-resume", self.asynchronous)
        self.check("async-resume, a job that may be over before n8n waits", self.asynchronous_quick)
        self.check("signed-receiver, a callback of ProbeOps", self.receiver)
        self.check("signed-receiver, callbacks of others", self.receiver_refuses)
        self.check("scheduled-diff, regions that see the same", self.diff_same)
        self.check("scheduled-diff, regions that do not", self.diff_differs)
        self.check("scheduled-diff, by its schedule", self.diff_scheduled)
        print("\n## The node\n")
        self.check("credential, its test", self.credential_test)
        self.check("drop-downs", self.drop_downs)
        self.check("run a job, parked until the callback", self.node_parks)
        self.check("run a job and wait, get a job", self.node_waits)
        self.check("run a job that is refused", self.node_tells)
        self.check("trigger on a schedule's results", self.node_triggers)
        # Last: what the node knows is the old secret from now on.
        self.check("signed-receiver, rotation", self.receiver_rotation)
        print(f"\nFailed checks: {self.failed}." if self.failed else "\nAll checks passed.")

    def stop(self):
        for started in (self.n8n, self.probeops):
            if started:
                started.stop()
        if self.failed and os.environ.get("KEEP_LOGS"):
            shutil.copytree(self.folder, os.environ["KEEP_LOGS"], dirs_exist_ok=True, ignore=shutil.ignore_patterns("n8n"))


def main(program, folder):
    with socket.socket() as port:
        if port.connect_ex(("127.0.0.1", 8080)) == 0:
            sys.exit("something listens on 127.0.0.1:8080 already, where the workflows expect the API")
    run = Run(program, folder)
    try:
        run.all()
    finally:
        run.stop()
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
