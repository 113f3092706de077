#!/usr/bin/env bash
# Starts `up`, makes a service's credential as README says, and asks straight over NATS with nats-py: once as granted, once not.
set -euo pipefail
probeops=$1 data=$2
here=$(dirname "$0")

"$probeops" up --data "$data" --http 127.0.0.1:0 >"$data.out" 2>"$data.err" &
up=$!
stop() { kill -TERM "$up" 2>/dev/null && wait "$up" || true; }
trap stop EXIT
for _ in $(seq 600); do
    grep -q '^ready ' "$data.out" && break
    kill -0 "$up" 2>/dev/null || { cat "$data.out" "$data.err"; exit 1; }
    sleep 0.1
done
grep -q '^ready ' "$data.out" || { cat "$data.out" "$data.err"; exit 1; }

"$probeops" services add billing --regions demo-eu --tools tcp --data "$data"
broker=$("$probeops" services list --data "$data" -o json >/dev/null && sed -n 's/^ *listen: *"\?\([0-9.:]*\)"\?.*/\1/p' "$data/broker/server.conf" | head -n 1)
ask() { "$PYTHON" "$here/ask.py" "tls://$broker" "$data/tls/ca.pem" "$data/services/billing.creds" billing "$@"; }

outcome=$(ask demo-eu tcp 127.0.0.1)
echo "$outcome"
echo "$outcome" | "$PYTHON" -c 'import json, sys; outcome = json.load(sys.stdin); assert outcome["status"] == "success", outcome'

code=0
ask demo-us tcp 127.0.0.1 2>"$data.forbidden" || code=$?
cat "$data.forbidden"
[ "$code" -eq 4 ] || { echo "a publication that is not granted ended with $code, not 4" >&2; exit 1; }
grep -qi 'permissions violation for publish to "job.v1.demo-us.tcp.billing"' "$data.forbidden"
