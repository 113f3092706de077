"""Does what README.md says, as written there, in a fresh folder: starts `up`, pastes the curl call, asks from the command line, makes a
service's credential, and asks straight over NATS with nats-py, once as granted and once not.

Arguments: the program `probeops`, an empty folder. Needs curl and, for this Python, the packages nats-py[nkeys] and
prometheus-client.
"""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

README = pathlib.Path(__file__).parents[2] / "README.md"
# Only a hang takes this long, in seconds.
HANG_S = 180


def blocks(language):
    """The code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.M | re.S)


def block(language, words):
    """The one code block of a language that has these words in it."""
    found = [text for text in blocks(language) if words in text]
    assert len(found) == 1, f"README.md has {len(found)} {language} blocks with `{words}` in them, not 1"
    return found[0]


def shape(value):
    """What a JSON document is made of, without what differs from run to run."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__.replace("int", "number").replace("float", "number")


class Reader:
    """Somebody who follows README.md in a folder of his own."""

    def __init__(self, program, folder):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True)
        tools = self.folder / "bin"
        tools.mkdir()
        (tools / "probeops").symlink_to(pathlib.Path(program).resolve())
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PROBEOPS_")}
        self.environment = {**environment, "PATH": f"{tools}:{os.environ['PATH']}"}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.http = f"127.0.0.1:{free.getsockname()[1]}"
        self.up = None

    def start(self):
        """Starts `up` and waits until it is ready; returns what it printed."""
        output = self.folder / "up.out"
        with output.open("w") as out:
            command = ["probeops", "up", "--http", self.http]
            self.up = subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=out, stderr=subprocess.STDOUT)
        started = time.monotonic()
        while "Ctrl-C" not in output.read_text():
            assert self.up.poll() is None, f"up ended:\n{output.read_text()}"
            assert time.monotonic() - started < HANG_S, f"up is not ready:\n{output.read_text()}"
            time.sleep(0.1)
        return output.read_text()

    def stop(self):
        """Ctrl-C."""
        if self.up and self.up.poll() is None:
            self.up.send_signal(signal.SIGINT)
            assert self.up.wait(HANG_S) == 0, "up ended with another code than 0"

    def shell(self, text):
        """Pastes into a shell; only the port of the API is another."""
        text = text.replace("127.0.0.1:8080", self.http)
        return self.run(["sh", "-ec", text])

    def python(self, text, *arguments):
        """Saves as a file and runs it."""
        path = self.folder / "ask.py"
        path.write_text(text)
        return self.run([sys.executable, str(path), *arguments])

    def run(self, command):
        return subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=HANG_S, check=False)


def succeeded(done):
    assert done.returncode == 0, f"{done.args} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


def check_metrics(reader):
    """What was counted of all that, read as Prometheus reads it."""
    from prometheus_client.parser import text_string_to_metric_families

    text = succeeded(reader.shell(block("sh", "/metrics")))
    families = {family.name: family for family in text_string_to_metric_families(text)}
    for name, kind in {"probeops_jobs": "counter", "probeops_job_duration_seconds": "histogram", "probeops_job_queue_seconds": "histogram",
                       "probeops_nodes": "gauge", "probeops_http_requests": "counter", "probeops_build_info": "gauge"}.items():
        assert families[name].type == kind, families
    succeeded_pings = [sample.value for sample in families["probeops_jobs"].samples
                       if sample.name == "probeops_jobs_total" and sample.labels == {"tool": "ping", "outcome": "success"}]
    print(f"{len(families)} families of metrics, {succeeded_pings} pings")
    assert succeeded_pings and succeeded_pings[0] >= 3, text
    ready = {sample.labels["region"]: sample.value for sample in families["probeops_nodes"].samples if sample.labels["state"] == "ready"}
    assert ready == {"demo-eu": 1, "demo-us": 1}, ready


def check_http(reader, printed):
    """The call of README, the line that `up` prints, and the command line."""
    shown = json.loads(block("json", '"results"'))
    for line in [block("sh", "/v1/jobs"), re.search(r"^ +(curl .*)$", printed, re.M).group(1)]:
        answer = json.loads(succeeded(reader.shell(line)))
        print(json.dumps(answer, indent=2))
        assert answer["results"][0]["status"] == "success", answer
        # Where pings are not possible, `up` prints a line with another tool.
        if answer["tool"] == shown["tool"]:
            assert shape(answer) == shape(shown), f"README.md shows another answer than the API gives:\n{shape(shown)}\n{shape(answer)}"
    output = succeeded(reader.shell(block("sh", "/v1/run/")))
    print(output)
    assert "5 packets transmitted, 5 received" in output, output
    output = succeeded(reader.shell(block("sh", "probeops ping")))
    print(output)
    assert "2 packets transmitted, 2 received" in output, output


def check_nats(reader):
    """A service's credential and the few lines of Python, as granted and not."""
    for line in [line for text in blocks("sh") for line in text.splitlines() if line.startswith("probeops services add")]:
        print(succeeded(reader.shell(line)))
    snippet = block("python", "nats.connect")
    subject, outcome = succeeded(reader.python(snippet, "demo-eu")).split("\n", 1)
    print(subject, outcome)
    assert subject.endswith(".demo-eu-1"), subject
    outcome = json.loads(outcome)
    assert (outcome["status"], outcome["tool"]) == ("success", "tcp"), outcome
    forbidden = reader.python(snippet, "demo-us")
    print(forbidden.stderr)
    quoted = block("text", "permissions violation").strip()
    assert forbidden.returncode != 0 and quoted in forbidden.stderr, f"not what README quotes: {quoted}"


def main(program, folder):
    reader = Reader(program, folder)
    try:
        check_http(reader, reader.start())
        check_metrics(reader)
        check_nats(reader)
    finally:
        reader.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
