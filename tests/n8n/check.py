"""Checks the workflows without an n8n: each parses, has what an import needs, leads nowhere that is not there, and tells no secret.

Arguments: workflow files. Ends with 1 and a line for each mistake.
"""

import json
import pathlib
import re
import sys

# What begins an execution, or only tells something.
TRIGGERS = ("n8n-nodes-base.webhook", "n8n-nodes-base.scheduleTrigger", "n8n-nodes-probeops.probeOpsTrigger")
STICKY_NOTE = "n8n-nodes-base.stickyNote"
# Secrets of any kind: signing secrets, credentials in a header, keys of ProbeOps, passwords in a URL.
SECRET = re.compile(r"whsec_[A-Za-z0-9+/]{8}|[Bb]earer [A-Za-z0-9_.-]{8}|[Bb]asic [A-Za-z0-9+/]{8}|pk_[A-Za-z0-9]+_[A-Za-z0-9]{8}|://[^/\s\"]+:[^/\s\"@]+@")
NODE_FIELDS = {"id": str, "name": str, "type": str, "typeVersion": (int, float), "position": list, "parameters": dict}


def strings(value):
    """Every string in a document."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
    elif isinstance(value, str):
        yield value


def mistakes_of_node(node):
    for field, kind in NODE_FIELDS.items():
        if not isinstance(node.get(field), kind):
            yield f"`{field}` is missing or of another type"
    for name, credential in node.get("credentials", {}).items():
        if set(credential) != {"id", "name"}:
            yield f"credential `{name}` has {sorted(credential)}, not only an id and a name"
    headers = node.get("parameters", {}).get("headerParameters", {}).get("parameters", [])
    for header in headers:
        if re.search("authorization|token|api-?key|cookie", header["name"], re.I):
            yield f"header `{header['name']}` belongs into a credential"
    if node.get("type") == "n8n-nodes-base.wait" and node["parameters"].get("resume") == "webhook" and node["parameters"].get("httpMethod") != "POST":
        yield "it waits for GET, and callbacks are POSTs"


def mistakes(workflow):
    """All that is wrong with a workflow."""
    for field in ("id", "name"):
        if not isinstance(workflow.get(field), str) or not workflow[field]:
            yield f"`{field}` is missing: it could not be imported twice, or found"
    nodes, connections = workflow.get("nodes"), workflow.get("connections")
    if not isinstance(nodes, list) or not nodes or not isinstance(connections, dict):
        yield "`nodes` must be a list with nodes in it, `connections` an object"
        return
    names = [node.get("name") for node in nodes]
    ids = [node.get("id") for node in nodes]
    for kind, values in (("name", names), ("id", ids)):
        for twice in {value for value in values if values.count(value) > 1}:
            yield f"two nodes have the {kind} `{twice}`"
    for node in nodes:
        for mistake in mistakes_of_node(node):
            yield f"node `{node.get('name')}`: {mistake}"
    reached = {node["name"] for node in nodes if node["type"] in TRIGGERS}
    if not reached:
        yield "nothing starts it"
    edges = []
    for source, outputs in connections.items():
        if source not in names:
            yield f"a connection begins at `{source}`, which is no node"
        for branch in outputs.get("main", []):
            for target in branch or []:
                edges.append((source, target["node"]))
                if target["node"] not in names:
                    yield f"a connection of `{source}` leads to `{target['node']}`, which is no node"
    for _ in nodes:
        reached |= {target for source, target in edges if source in reached}
    for node in nodes:
        if node["name"] not in reached and node["type"] != STICKY_NOTE:
            yield f"nothing leads to `{node['name']}`"
    for text in strings(workflow):
        for named in re.findall(r"\$\('([^']+)'\)", text):
            if named not in names:
                yield f"an expression reads `{named}`, which is no node"
        if SECRET.search(text):
            yield "there is a secret in it"
    if workflow.get("pinData"):
        yield "it has pinned data"


def main(paths):
    seen = {}
    wrong = 0
    for path in map(pathlib.Path, paths):
        try:
            workflow = json.loads(path.read_text())
            found = list(mistakes(workflow))
        except ValueError as error:
            workflow, found = {}, [f"is not JSON: {error}"]
        if "id" in workflow:
            if workflow["id"] in seen:
                found.append(f"has the id of {seen[workflow['id']]}")
            seen[workflow["id"]] = path
        for mistake in found:
            print(f"{path}: {mistake}", file=sys.stderr)
        wrong += len(found)
    print(f"{len(paths)} workflows, {wrong} mistakes")
    return 1 if wrong or not paths else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
