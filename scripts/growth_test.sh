#!/usr/bin/env bash
# Learns eight tasks of the embedded suite at once and one by one with each method, and compares the
# weights and the state that later tasks would get:
#
#   scripts/growth_test.sh                    # every method
#   scripts/growth_test.sh gnsp,zscl,er
#
# Two methods end otherwise: `joint` learns all tasks at once and takes no further ones, and the
# checkpoints of `moe-adapters` have a router for each task of the suite, also for those that are not
# learned yet. Its state is equal.
#
# BIN is the program (default: the release build).
set -euo pipefail

cd "$(dirname "$0")/.."
bin=$(realpath "${BIN:-target/release/mtil-bench}")
methods=${1:-$("$bin" methods | awk '/^[a-z]/ { print $1 }' | paste -sd,)}
tasks=$("$bin" suite check mini 2>&1 | awk '/ classes,/ { print $1 }' | head -n 8 | paste -sd,)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

learn() { # METHOD TASKS FOLDER
  "$bin" run --quick --methods "$1" --tasks "$2" --out "$3" --eval-subset 10 >>"$out/log" 2>&1
}

# Prints the digests of what a run has learned.
digests() { # RUN
  (cd "$1" && find checkpoints state -name '*.safetensors' -not -path '*/state/*' -o \
    -path 'state/*' -not -name position.json -not -name manifest.json -type f |
    sort | xargs sha256sum)
}

failed=0
for method in ${methods//,/ }; do
  learn "$method" "$tasks" "$out/whole"
  begun=
  for task in ${tasks//,/ }; do
    begun+=${begun:+,}$task
    if ! learn "$method" "$begun" "$out/grown"; then
      echo "$method: $(tail -n 1 "$out/log")"
      continue 2
    fi
  done
  if difference=$(diff <(digests "$out/whole/$method") <(digests "$out/grown/$method")); then
    echo "$method: equal"
  else
    echo "$method: differs: $(sed -n 2p <<<"$difference")"
    failed=1
  fi
done
exit "$failed"
