#!/bin/sh
# Fuzzes one reader on a stable compiler: fuzz/run.sh TARGET SECONDS [option of libFuzzer]...
#
# New inputs are kept in fuzz/corpus/TARGET, failing ones in fuzz/artifacts/TARGET.
set -eu
target=$1 seconds=$2
shift 2
cd "$(dirname "$0")/.."
host=$(rustc -vV | sed -n 's/^host: //p')
corpus=fuzz/corpus/$target artifacts=fuzz/artifacts/$target
mkdir -p "$corpus" "$artifacts"

# The coverage that cargo-fuzz asks for, by options that stable compilers accept with
# RUSTC_BOOTSTRAP. Without an explicit --target they would apply to build scripts too.
RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Cdebug-assertions" \
    cargo build --manifest-path fuzz/Cargo.toml --release --target "$host" --bin "$target"

# libFuzzer takes seeds that are not in its corpus folder as a list of files.
seeds=$(mktemp) scratch=$(mktemp -d)
trap 'rm -rf "$seeds" "$scratch"' EXIT
for path in $(sed -n "s/^$target //p" fuzz/seeds.txt); do
    [ ! -e "$path" ] || find "$path" -maxdepth 1 -type f -size -65k
done | paste -sd, - > "$seeds"

TMPDIR=$scratch "${CARGO_TARGET_DIR:-fuzz/target}/$host/release/$target" \
    -max_total_time="$seconds" -max_len=65536 -rss_limit_mb=2048 -timeout=10 \
    -artifact_prefix="$artifacts/" -seed_inputs="@$seeds" "$@" "$corpus"
