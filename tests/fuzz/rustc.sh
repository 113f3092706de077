#!/bin/sh
# The compiler; for our own crates with the instrumentation that libFuzzer reads, and, if planted.toml says so, with the bugs
# that are planted in them. All of these are options of stable Rust.
rustc=$1
shift
case " $* " in
*" --crate-name probeops_shared "* | *" --crate-name probeops_nats "* | *" --crate-name probeops_agent "* | *" --crate-name probeops_api "* | *" --crate-name probeops_fuzz "*)
    exec "$rustc" "$@" ${PROBEOPS_PLANTED:+--cfg planted} -C passes=sancov-module -C llvm-args=-sanitizer-coverage-level=4 \
        -C llvm-args=-sanitizer-coverage-inline-8bit-counters -C llvm-args=-sanitizer-coverage-pc-table \
        -C llvm-args=-sanitizer-coverage-trace-compares
    ;;
*) exec "$rustc" "$@" ;;
esac
