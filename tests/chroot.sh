#!/usr/bin/env bash
# Builds the agent with no need of a C library, at most 12 MB, and runs it in a chroot with nothing in it but the program, its settings, its
# credential and the broker's authority: it pings, asks a name server and a web server for those who ask it over a real broker. Needs root,
# and `named` (apt-get install bind9).
#
#   tests/chroot.sh PROBEOPS       where PROBEOPS is the command, such as target/release/probeops
#   tests/chroot.sh --build        only builds
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "tests/chroot.sh: $*" >&2; exit 1; }
target=$(rustc -vV | sed -n 's/^host: //p')
# With a target of its own, so that what is run while building is not built so.
# Without a C library to ask whether the system has it, random numbers would come from /dev/urandom, which is not in the chroot.
RUSTFLAGS='-C target-feature=+crt-static --cfg getrandom_backend="linux_getrandom"' \
    cargo build --locked --profile dist --target "$target" -p probeops-agent
[ "${1:-}" != --build ] || exit 0

probeops=$(realpath "${1:?"which probeops? such as target/release/probeops"}")
[ "$(id -u)" = 0 ] || fail "chroot needs root"
command -v named >/dev/null || fail "there is no named: apt-get install bind9"
agent=target/$target/dist/probeops-agent
bytes=$(stat --format %s "$agent")
[ "$bytes" -le 12000000 ] || fail "the agent has $bytes bytes, not at most 12000000"

work=$(mktemp -d)
ids=()
ended() {
    for id in "${ids[@]}"; do kill "$id" 2>/dev/null && wait "$id" || true; done
    rm -rf "$work"
}
trap ended EXIT
# Waits until a file has these words in it, for at most half a minute, as long as a process runs that writes it.
until_says() {
    local file=$1 words=$2 id=$3
    for _ in $(seq 300); do
        grep --quiet --fixed-strings "$words" "$file" 2>/dev/null && return
        kill -0 "$id" 2>/dev/null || break
        sleep 0.1
    done
    cat "$file" >&2
    fail "nobody said \`$words\`"
}

cd "$work"
chmod 755 .
"$probeops" up --http 127.0.0.1:0 --data state >up.log 2>&1 &
ids+=($!)
until_says up.log "ready http://" $!
url=$(grep --only-matching 'http://127\.0\.0\.1:[0-9]*' up.log | head -1)
"$probeops" nodes add chroot-1 --region chroot --tools ping,dns,http --data state >/dev/null

printf '$TTL 60\n@ SOA ns root 1 60 60 60 60\n@ NS ns\nns A 127.0.0.1\nwww A 192.0.2.1\n' >zone
cat >named.conf <<NAMED
options { directory "$work"; listen-on port 5399 { 127.0.0.1; }; listen-on-v6 { none; }; recursion no; pid-file none; session-keyfile none; };
controls { };
zone "probe.test" { type primary; file "zone"; };
NAMED
named -g -n 1 -c "$work/named.conf" >named.log 2>&1 &
ids+=($!)
until_says named.log "running" $!

mkdir root
install -m 755 "$OLDPWD/$agent" root/probeops-agent
cp state/nodes/chroot-1.creds root/node.creds
cp state/tls/ca.pem root/ca.pem
echo 'allow_loopback = true' >root/policy.toml
cat >root/agent.toml <<AGENT
servers = ["$(head -1 state/servers | tr -d '[:space:]')"]
ca = "/ca.pem"
creds = "/node.creds"
policy = "/policy.toml"
resolvers = ["127.0.0.1:5399"]
AGENT
env -i "$(command -v chroot)" root /probeops-agent --config /agent.toml >agent.log 2>&1 &
ids+=($!)
until_says agent.log "the agent is ready" $!

ask() { "$probeops" "$@" --from chroot 2>&1 || { cat agent.log >&2; fail "$* does not do in an empty chroot"; }; }
export PROBEOPS_URL=$url PROBEOPS_TOKEN
PROBEOPS_TOKEN=$(cat state/admin.key)
grep --quiet "2 received" <<<"$(ask ping 127.0.0.1 --count 2)" || fail "ping: $(ask ping 127.0.0.1 --count 2)"
grep --quiet "192.0.2.1" <<<"$(ask dns www.probe.test)" || fail "dns: $(ask dns www.probe.test)"
grep --quiet "HTTP/1.1 200" <<<"$(ask http "${url/127.0.0.1/localhost}/readyz")" || fail "http: $(ask http "$url/readyz")"
[ "$(ls root | xargs)" = "agent.toml ca.pem node.creds policy.toml probeops-agent" ] || fail "the chroot has got $(ls root | xargs)"
echo "probeops-agent: static, $bytes bytes, pings, resolves and fetches in an empty chroot"
