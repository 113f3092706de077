"""Whether the API is what /openapi.json says, asked of `up` with live agents: a client generated from it runs one job, and schemathesis sends
every operation data that fit its schema and data that do not, with all of its checks.

Arguments: the program `probeops`, an empty folder, the folder of the built client. Needs schemathesis in this Python's environment, `node`,
and root: all of it runs in a network of its own, in which there is only the loopback, since whom jobs are pointed at is made up.
"""

import json
import os
import pathlib
import subprocess
import sys
import time
import urllib.request

import schemathesis

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "python"))

from readme import HANG_S, Reader, succeeded  # noqa: E402

# How many requests every operation gets at the least.
CASES_MIN = 100
# Only a hang takes this long, in seconds.
FUZZING_MAX_S = 600
# Nodes to be drained and to be revoked while others do the work.
SPARES = ["spare-1", "spare-2"]
# A node that never comes, and its region: jobs can wait for it.
ABSENT = "absent"
# What makes no job while all of this runs, and who asks for nothing.
SCHEDULE = {"tool": "echo", "from": "demo-eu", "every": "365d"}
TOKEN = {"region": "demo-eu", "tools": ["echo"]}
SERVICE = {"name": "to-be-revoked", "regions": ["demo-eu"], "tools": ["echo"]}
# What is made to be ended: where, what names it, and of what.
MADE = {"revokeKey": ("/v1/keys", "id", {"name": "to be revoked", "scopes": ["jobs:read"]}),
        "deleteSecret": ("/v1/secrets", "id", {"name": "to be deleted", "origin": "https://callback.invalid"}),
        "deleteSchedule": ("/v1/schedules", "id", SCHEDULE),
        "revokeEnrollToken": ("/v1/enroll-tokens", "id", TOKEN),
        "revokeService": ("/v1/services", "name", SERVICE)}
# In a network of its own, any port is free.
BROKER = "127.0.0.1:4222"
SCOPES = ["jobs:read", "jobs:write", "nodes:read", "nodes:write", "nodes:enroll", "keys:write", "services:write", "audit:read", "metrics:read", "admin"]


def alone():
    """Goes on in a network of its own."""
    if os.environ.get("PROBEOPS_ALONE") != "1":
        command = ["unshare", "--net", "sh", "-ec", 'ip link set lo up; exec "$@"', "sh", sys.executable, *sys.argv]
        os.execvpe(command[0], command, {**os.environ, "PROBEOPS_ALONE": "1"})


class Api:
    """Whoever has a key of `up`."""

    def __init__(self, reader, key=None):
        self.url = f"http://{reader.http}"
        self.key = key or (reader.folder / ".probeops" / "admin.key").read_text().strip()

    def ask(self, method, path, body=None):
        request = urllib.request.Request(self.url + path, None if body is None else json.dumps(body).encode(), method=method)
        request.add_header("authorization", f"Bearer {self.key}")
        request.add_header("content-type", "application/json")
        with urllib.request.urlopen(request, timeout=HANG_S) as answer:
            return json.load(answer)


def client(reader, api, folder):
    """A client whose types come from the document runs one job."""
    environment = {**reader.environment, "PROBEOPS_URL": api.url, "PROBEOPS_TOKEN": api.key}
    command = ["node", str(pathlib.Path(folder).resolve() / "job.js")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG_S, check=False)
    print(succeeded(done))


def fuzz(reader, api):
    """All operations, all checks, both kinds of data."""
    created = api.ask("POST", "/v1/keys", {"name": "fuzz", "scopes": SCOPES})
    caller = Api(reader, created["key"])
    # Nobody has this name: the delivery is there, and is tried for as long as all of this takes.
    caller.ask("POST", "/v1/jobs", {"tool": "echo", "from": "demo-eu", "callback": {"url": "https://callback.invalid/"}})
    started = time.monotonic()
    while not (deliveries := caller.ask("GET", "/v1/deliveries")["deliveries"]):
        assert time.monotonic() - started < HANG_S, "the callback of a job has become nothing"
        time.sleep(0.1)
    schedule = caller.ask("POST", "/v1/schedules", SCHEDULE)
    keys = ",".join(key["id"] for key in caller.ask("GET", "/v1/keys")["keys"])
    counts = reader.folder / "counts.json"
    environment = {**reader.environment, "PYTHONPATH": str(HERE), "SCHEMATHESIS_HOOKS": "hooks", "FUZZ_URL": api.url,
                   "FUZZ_ADMIN_KEY": api.key, "FUZZ_KEY_IDS": keys, "FUZZ_DELIVERY_ID": deliveries[0]["id"],
                   "FUZZ_SCHEDULE_ID": schedule["id"], "FUZZ_COUNTS": str(counts)}
    program = pathlib.Path(sys.executable).parent / "schemathesis"
    command = [str(program), "--config-file", str(HERE / "schemathesis.toml"), "run", f"{api.url}/openapi.json", "--checks", "all",
               "--mode", "all", "--max-examples", str(CASES_MIN), "-H", f"Authorization: Bearer {caller.key}", *sys.argv[4:]]
    done = subprocess.run(command, cwd=reader.folder, env=environment, timeout=FUZZING_MAX_S, check=False)
    counted = json.loads(counts.read_text())
    few = repeat(caller, counted)
    print(f"{'operation':20}{'positive':>9}{'negative':>9}{'repeated':>9}  answers")
    for name, count in sorted(counted.items()):
        modes = "".join(f"{count['modes'].get(mode, 0):9}" for mode in ("positive", "negative", "repeated"))
        print(f"{name:20}{modes}  {', '.join(f'{status} × {times}' for status, times in sorted(count['statuses'].items()))}")
    assert done.returncode == 0, "what is above is not as /openapi.json says"
    assert not few, f"fewer than {CASES_MIN} requests for {few}"


def repeat(caller, counted):
    """Asks as often as the others what schemathesis does not: operations that take nothing, since there is only one request that fits, and
    those that end something, since it makes too few things to end. Names all others that had too few."""
    few = []
    for result in schemathesis.openapi.from_url(f"{caller.url}/openapi.json").get_all_operations():
        operation = result.ok()
        raw = operation.definition.raw
        count = counted.setdefault(raw["operationId"], {"modes": {}, "statuses": {}})
        missing = CASES_MIN - sum(count["modes"].values())
        made = MADE.get(raw["operationId"])
        if missing > 0 and not made and (raw["parameters"] or "requestBody" in raw):
            few.append(raw["operationId"])
            continue
        for _ in range(missing):
            place = {}
            if made:
                path, name, body = made
                place[name] = caller.ask("POST", path, body)[name]
            case = operation.Case(path_parameters=place, headers={"Authorization": f"Bearer {caller.key}"})
            response = case.call_and_validate()
            status = str(response.status_code)
            count["statuses"][status] = count["statuses"].get(status, 0) + 1
            count["modes"]["repeated"] = count["modes"].get("repeated", 0) + 1
    return few


def agent(node):
    """How a node is run that `up` does not run itself."""
    return ["probeops", "agent", "--servers", f"tls://{BROKER}", "--ca", ".probeops/tls/ca.pem", "--creds", f".probeops/nodes/{node}.creds"]


def main(program, folder, built_client, *_):
    alone()
    reader, spares = Reader(program, folder), []
    reader.environment["PROBEOPS_BROKER"] = BROKER
    try:
        reader.start()
        api = Api(reader)
        for spare in SPARES:
            succeeded(reader.shell(f"probeops nodes add {spare} --region {spare} --tools echo"))
            spares.append(subprocess.Popen(agent(spare), cwd=reader.folder, env=reader.environment, stderr=subprocess.DEVNULL))
        succeeded(reader.shell(f"probeops nodes add {ABSENT} --region {ABSENT} --tools echo"))
        client(reader, api, built_client)
        fuzz(reader, api)
    finally:
        for spare in spares:
            spare.terminate()
            spare.wait(HANG_S)
        reader.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
