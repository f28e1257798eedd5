#!/usr/bin/env bash
# Measures the seconds from SIGINT to the exit of the program in each phase of its work, and prints
# them with the exit codes:
#
#   scripts/interrupt_test.sh MODEL         # a model folder, as of a ViT-B/16
#
# BIN is the program (default: the release build), OUT the folder of the runs (default: a temporary
# one). The images are those of the embedded suite.
set -euo pipefail

model=$(realpath "${1:?usage: scripts/interrupt_test.sh MODEL}")
cd "$(dirname "$0")/.."
bin=$(realpath "${BIN:-target/release/mtil-bench}")
if [ -n "${OUT:-}" ]; then
  out=$(realpath -m "$OUT")
  mkdir -p "$out"
else
  out=$(mktemp -d)
  trap 'rm -rf "$out"' EXIT
fi

# Starts a command, waits until TEXT appears in its log, sends SIGINT after PAUSE more seconds, and
# prints the seconds until it exits.
measure() { # NAME TEXT PAUSE COMMAND...
  local name=$1 text=$2 pause=$3 log begin child code=0
  shift 3
  log="$out/${name// /-}.log"
  RUST_LOG=mtil_engine=debug "$bin" "$@" >"$log" 2>&1 &
  child=$!
  until grep -qs "$text" "$log"; do
    if ! kill -0 "$child" 2>/dev/null; then
      echo "| $name | ended before it could be stopped: $(tail -n 1 "$log") |"
      return
    fi
    sleep 0.1
  done
  sleep "$pause"
  begin=$(date +%s%N)
  kill -INT "$child" 2>/dev/null || true
  wait "$child" || code=$?
  awk -v name="$name" -v ns=$(($(date +%s%N) - begin)) -v code="$code" \
    'BEGIN { printf "| %s | %.1f | %d |\n", name, ns / 1e9, code }'
}

# Each command resumes what the one before left.
run() { # METHOD ARGUMENTS
  local method=$1
  shift
  echo run --quick --tasks shapes,digits --model "$model" --methods "$method" --eval-subset 64 \
    --set steps=3 --set warmup=1 --set batch=64 --set reference_batch=64 --out "$out/runs" "$@"
}

echo "| phase | seconds | exit code |"
echo "|---|---|---|"
# shellcheck disable=SC2046 # The commands have several words.
{
  measure "evaluation" 'on=Evaluation done=1 ' 0 $(run gnsp --save-every 1)
  measure "training" 'TaskStart' 20 $(run gnsp --save-every 1)
  measure "save within a task" ' img/s  ' 1 $(run gnsp --save-every 1)
  measure "Gram accumulation" 'on=Gram done=1 ' 0 $(run gnsp --save-every 1)
  measure "null spaces of the next task" 'TaskStart { task: 1' 2 $(run gnsp --save-every 1)
  measure "selection" 'TaskStart' 20 $(run finetune --select lr=1e-6,1e-5)
  measure "regression, encoding" 'on=Encoding done=1 ' 0 $(run rail-primal)
  measure "regression, solution" 'on=Encoding done=1 ' 15 $(run rail-primal)
  measure "caching" 'on=Evaluation done=1 ' 0 $(run zero-shot --cache "$out/cache")
}
