"""What schemathesis cannot know of the fabric that it meets: who is there, and what it must not saw off, since it sits on it. Counts the requests.

Every other request that fits the schema is pointed at a live node, with this machine as its target, so that jobs really run.
"""

import atexit
import collections
import datetime
import itertools
import json
import os
import threading
import urllib.error
import urllib.request

import schemathesis

URL, ADMIN_KEY, OWN_KEY_ID = os.environ["FUZZ_URL"], os.environ["FUZZ_ADMIN_KEY"], os.environ["FUZZ_KEY_ID"]
DELIVERY_ID, SCHEDULE_ID = os.environ["FUZZ_DELIVERY_ID"], os.environ["FUZZ_SCHEDULE_ID"]
REGION, NOBODY, SPARES = "demo-eu", "nobody-is-here", {"drainNode": "spare-1", "revokeNode": "spare-2"}
TARGETS = {"http": "http://127.0.0.1:1/", "whois": "example.com", "dns": "localhost"}

NODES = {"demo-eu-1", "demo-us-1", *SPARES.values()}

# When nothing is due while all of this runs.
FAR_OFF = {"at": (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=300)).isoformat(),
           "every": "300d", "cron": "0 30 2 29 2 *"}

# What is over at once when nobody answers it.
QUICK = {"runDns", "runHttp", "runTcp", "runTls"}

# Of a hundred schedules, which are all that a caller may have, others need some.
SCHEDULES_KEPT = 40

# Whose turn it is to be aimed, and what else is to differ from time to time: drawn apart, or one would always meet the same of the other.
turn, draw = itertools.count(), itertools.count()
made_schedules = collections.deque()
counts = collections.defaultdict(lambda: {"modes": collections.Counter(), "statuses": collections.Counter()})
counting = threading.Lock()


def ask(method, path, body=None):
    """Asks as the admin, beside what is tested."""
    request = urllib.request.Request(URL + path, None if body is None else json.dumps(body).encode(), method=method)
    request.add_header("authorization", f"Bearer {ADMIN_KEY}")
    request.add_header("content-type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def aim(job):
    """Points a job at a live node and at this machine."""
    job["from"] = REGION
    if job.get("target"):
        job["target"] = TARGETS.get(job.get("tool"), "127.0.0.1")


def put_off(schedule, wholly):
    """Lets a schedule make no jobs, or not often: one that is resumed would, beside all else."""
    schedule["paused"] = True
    if str(schedule.get("every")).endswith(("s", "m")):
        schedule["every"] = schedule["every"][:-1] + "h"
    if wholly:
        schedule.update({name: when for name, when in FAR_OFF.items() if name in schedule})
        aim(schedule)


def forget_schedules():
    """Deletes the oldest of those that were made, if they are there still."""
    while len(made_schedules) > SCHEDULES_KEPT:
        try:
            ask("DELETE", f"/v1/schedules/{made_schedules.popleft()}")
        except urllib.error.HTTPError as refused:
            if refused.code != 404:
                raise


def waiting_job():
    """A job whose node is not there and comes never."""
    return ask("POST", "/v1/jobs", {"tool": "echo", "from": NOBODY, "when": "online"})["id"]


@schemathesis.hook
def before_call(context, case, kwargs):
    operation = case.operation.definition.raw["operationId"]
    positive = case.meta is not None and case.meta.generation.mode.is_positive
    every_other = next(turn) % 2 == 0
    identity = (case.path_parameters or {}).get("id")
    if operation == "revokeKey" and (identity == OWN_KEY_ID or positive and every_other):
        case.path_parameters["id"] = ask("POST", "/v1/keys", {"name": "to be revoked", "scopes": ["jobs:read"]})["id"]
    if operation == "deleteSchedule" and identity == SCHEDULE_ID:
        case.path_parameters["id"] = "none"
    if operation in SPARES and (identity in NODES or positive and every_other):
        case.path_parameters["id"] = SPARES[operation]
    if not positive:
        return
    if operation.startswith("run") and operation != "runEcho":
        # Some selectors that fit the schema mean whoever is there: nobody waits for a minute of made-up packets.
        case.headers["Prefer"] = f"wait={int(operation in QUICK or next(draw) % 8 < 2)}"
    if operation == "createSchedule" and isinstance(case.body, dict):
        forget_schedules()
        put_off(case.body, every_other)
    if not every_other:
        return
    if operation in ("readSchedule", "pauseSchedule", "resumeSchedule", "listScheduleResults"):
        case.path_parameters["id"] = SCHEDULE_ID
    if operation == "createService" and isinstance(case.body, dict):
        # Names that fit are likely to be taken otherwise: by the ones before.
        case.body["name"] = f"fuzz-{next(draw)}"
        case.body["regions"] = [REGION]
        case.body.pop("nodes", None)
    if operation in ("readDelivery", "replayDelivery"):
        case.path_parameters["id"] = DELIVERY_ID
    if operation == "cancelJob":
        case.path_parameters["id"] = waiting_job()
    if operation == "readNode":
        case.path_parameters["id"] = "demo-eu-1"
    if operation == "runJob" and isinstance(case.body, dict):
        aim(case.body)
    if operation == "runJobs" and isinstance(case.body, dict):
        for job in case.body["jobs"]:
            if isinstance(job, dict):
                aim(job)
    if operation.startswith("run") and "from" in (case.query or {}):
        tool = operation.removeprefix("run").lower()
        case.query["from"] = [REGION]
        if "target" in case.query:
            case.query["target"] = TARGETS.get(tool, "127.0.0.1")
    if operation == "runEcho":
        case.headers["Accept"] = ("text/event-stream", "text/plain", "application/json")[next(draw) % 3]


@schemathesis.hook
def after_call(context, case, response):
    mode = case.meta.generation.mode.value if case.meta is not None else "positive"
    with counting:
        operation = case.operation.definition.raw["operationId"]
        if operation == "createSchedule" and response.status_code == 201:
            made_schedules.append(response.json()["id"])
        of = counts[operation]
        of["modes"][mode] += 1
        of["statuses"][str(response.status_code)] += 1


@atexit.register
def write():
    with open(os.environ["FUZZ_COUNTS"], "w", encoding="utf-8") as file:
        json.dump(counts, file)
