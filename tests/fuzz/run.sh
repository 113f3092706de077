#!/usr/bin/env bash
# Fuzzes all that reads from a wire or a file.
#
#   run.sh                  each target for 20 s, as many at a time as there are processors
#   run.sh SECONDS [NAME…]  for so long, these targets
#   run.sh planted [NAME…]  each target, with a bug planted in a parser that it calls (shared/src/planted.rs): no input that it begins with shows
#                           it, and what the target asserts has to notice it
#
# A new input that reaches something is kept in target/fuzz/corpus/NAME, one that breaks something in target/fuzz/found/NAME-…; what is worth it goes
# into tests/fuzz/corpus/NAME, which every run begins with.
set -euo pipefail
cd "$(dirname "$0")"
targets=(job request outcome events subjects audit selector target policy settings jwt dns icmp tls whois http broker collector headers enroll registers schedule spool)
at_once=$(nproc)
seconds=${1:-20}
planted=
if [ "$seconds" = planted ]; then
    planted=1 seconds=600 at_once=${#targets[@]}
fi
[ $# -lt 2 ] || targets=("${@:2}")
kept=$PWD/../../target/fuzz
program=$kept/probeops-fuzz${planted:+-planted}
mkdir -p "$kept/found" "$kept/log"

# libFuzzer as Debian compiles it: one library of 200 kB, without the compiler that its package asks for.
if [ -z "${LIBFUZZER:-}" ]; then
    export LIBFUZZER=$kept/usr/lib/llvm-14/lib/libFuzzer.a
    if [ ! -e "$LIBFUZZER" ]; then
        package=$(mktemp -d)
        (cd "$package" && { apt-get download -qq libfuzzer-14-dev || { apt-get update -qq && apt-get download -qq libfuzzer-14-dev; }; } &&
            dpkg-deb -x libfuzzer-14-dev_*.deb "$kept")
        rm -r "$package"
    fi
fi

# One program for all targets; it is copied away, because the next build may be of the other kind.
cargo build --release --locked ${planted:+--config planted.toml}
cp ../../target/release/probeops-fuzz "$program"

fuzz() {
    local name=$1 corpus=$kept/corpus/$1
    [ -z "$planted" ] || corpus=$(mktemp -d)
    mkdir -p "$corpus"
    # What is planted is a small step from an input to begin with.
    local steps=()
    [ -z "$planted" ] || steps=(-mutate_depth=1 -keep_seed=1)
    # More than 64 KiB no message has; what a slow input is, the targets say themselves.
    PROBEOPS_FUZZ_TARGET=$name exec "$program" "${steps[@]}" -max_total_time="$seconds" -max_len=65536 -timeout=60 -rss_limit_mb=1024 -detect_leaks=0 \
        -print_final_stats=1 -verbosity=1 -artifact_prefix="$kept/found/$name-" "$corpus" "corpus/$name" >"$kept/log/$name" 2>&1
}
# Whether a target holds for all inputs that it begins with.
begins() { PROBEOPS_FUZZ_TARGET=$1 "$program" -runs=0 -verbosity=0 -artifact_prefix="$kept/found/$1-" "corpus/$1" >"$kept/log/$1" 2>&1; }
# What a run has come to, of its log.
told() { sed -n 's/^#\([0-9]*\)[[:space:]]*DONE *cov: \([0-9]*\) .*corp: \([0-9]*\).*/\1 inputs, \2 places reached, \3 kept/p' "$kept/log/$1"; }

trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
failed=()
for ((first = 0; first < ${#targets[@]}; first += at_once)); do
    running=() begun=$(date +%s)
    for name in "${targets[@]:first:at_once}"; do
        [ -z "$planted" ] || begins "$name" || { echo "$name: one of the inputs that it begins with shows the bug that was planted" >&2 && exit 1; }
        fuzz "$name" &
        running+=("$name:$!")
    done
    for run in "${running[@]}"; do
        name=${run%:*}
        if wait "${run#*:}"; then
            echo "$name: $(told "$name")"
            [ -z "$planted" ] || failed+=("$name")
        elif [ -n "$planted" ] && grep -qx "planted: $name" "$kept/log/$name"; then
            echo "$name: found after $(($(stat -c %Y "$kept/log/$name") - begun)) s: $(grep -A1 -m1 'panicked at' "$kept/log/$name" | tail -1 | cut -c1-160)"
        else
            failed+=("$name")
        fi
    done
done
[ ${#failed[@]} -eq 0 ] && exit
for name in "${failed[@]}"; do
    if [ -n "$planted" ]; then
        echo "$name has not found the bug that was planted" >&2
    else
        echo "$name has found something:" >&2
        grep -E -A4 'panicked at|ERROR: libFuzzer|SUMMARY|Test unit written' "$kept/log/$name" >&2 || tail -n 20 "$kept/log/$name" >&2
    fi
done
exit 1
