"""Runs the examples in tests/examples as their heads say, in Python and in JavaScript, on a fresh `up`, with credentials that were made over
HTTP: each must print what it was told by a node, by the API's front door, and by the broker of what it forbids.

Arguments: the program `probeops`, an empty folder. Needs node in PATH with `npm ci` done in tests/examples/node and, for this Python, the
package nats-py[nkeys].
"""

import json
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
COMMANDS = {
    "python": [sys.executable, EXAMPLES / "python/ask.py"],
    "node": ["node", EXAMPLES / "node/ask.mjs"],
}
# Only a hang takes this long, in seconds.
HANG_S = 180
# What each prints, line by line.
EXPECTED = [
    r"outcome: success from demo-eu-1",
    r"event: accepted .*",
    r"event: progress .*PING 127\.0\.0\.1.*",
    r"event: progress .*64 bytes from 127\.0\.0\.1: icmp_seq=1 .*",
    r"event: progress .*64 bytes from 127\.0\.0\.1: icmp_seq=2 .*",
    r"event: outcome .*",
    r"job: finished with 1 outcome",
    r"door: job",
    r"door: accepted",
    r"door: progress",
    r"door: progress",
    r"door: progress",
    r"door: outcome",
    r"door: finished",
    r"problem: 403 forbidden",
    r"forbidden: .*(?i:permissions violation for publish).*job\.v1\.elsewhere\.ping\.example-(python|node).*",
]


class Up:
    """`probeops up` in a folder of its own."""

    def __init__(self, program, folder):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.http = f"127.0.0.1:{free.getsockname()[1]}"
        self.output = self.folder / "up.out"
        with self.output.open("w") as out:
            command = [pathlib.Path(program).resolve(), "up", "--http", self.http]
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=out, stderr=subprocess.STDOUT)

    def wait(self):
        started = time.monotonic()
        while "Ctrl-C" not in self.output.read_text():
            assert self.process.poll() is None, f"up ended:\n{self.output.read_text()}"
            assert time.monotonic() - started < HANG_S, f"up is not ready:\n{self.output.read_text()}"
            time.sleep(0.1)

    def data(self, name):
        return self.folder / ".probeops" / name

    def post(self, path, body):
        headers = {"authorization": f"Bearer {self.data('admin.key').read_text().strip()}", "content-type": "application/json"}
        request = urllib.request.Request(f"http://{self.http}{path}", json.dumps(body).encode(), headers, method="POST")
        with urllib.request.urlopen(request, timeout=HANG_S) as answer:
            return json.load(answer)

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(HANG_S) == 0, "up ended with another code than 0"


def run(up, language, command):
    """Runs an example as a service of its own, and compares what it prints."""
    name = f"example-{language}"
    made = up.post("/v1/services", {"name": name, "regions": ["demo-eu"], "tools": ["ping"], "rate": "60/m", "valid_for": "1h"})
    creds = up.folder / f"{name}.creds"
    creds.write_text(made["creds"])
    server = up.data("servers").read_text().split()[0]
    arguments = [server, up.data("tls/ca.pem"), creds, name, "demo-eu"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=HANG_S, check=False)
    printed = done.stdout.splitlines()
    assert done.returncode == 0, f"{language} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    assert len(printed) == len(EXPECTED), f"{language} printed {len(printed)} lines, not {len(EXPECTED)}:\n{done.stdout}{done.stderr}"
    for line, expected in zip(printed, EXPECTED):
        assert re.fullmatch(expected, line), f"{language} printed `{line}`, which is not `{expected}`"
    print(f"{language}: {len(printed)} lines as expected; the last: {printed[-1]}")


def main(program, folder):
    up = Up(program, folder)
    try:
        up.wait()
        for language, command in COMMANDS.items():
            run(up, language, command)
    finally:
        up.stop()


main(*sys.argv[1:])
