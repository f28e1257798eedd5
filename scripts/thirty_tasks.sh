#!/usr/bin/env bash
# Adds thirty drawn tasks one by one to a run, and prints what each of them costs: the time of the
# command, the size of the run directory, and the peak memory of the process.
#
#   scripts/thirty_tasks.sh                        # gnsp-update, into a temporary folder
#   OUT=thirty METHOD=er scripts/thirty_tasks.sh   # another method; keeps the folder
#
# The tasks are parts of the tasks of the suites `mini` and `mini-dev`, exported to folders. BIN is
# the program (default: the release build). Earlier tasks are evaluated on 20 images each.
set -euo pipefail

cd "$(dirname "$0")/.."
bin=$(realpath "${BIN:-target/release/mtil-bench}")
method=${METHOD:-gnsp-update}
if [ -z "${OUT:-}" ]; then
  out=$(mktemp -d)
  trap 'rm -rf "$out"' EXIT
else
  mkdir -p "$OUT"
  out=$(realpath "$OUT")
fi

for suite in mini mini-dev; do
  [ -d "$out/$suite" ] || "$bin" suite export "$suite" "$out/$suite" >"$out/log" 2>&1
done

# Divides the classes of each exported task into tasks of two to four classes.
tasks=()
for folder in "$out"/mini/*/ "$out"/mini-dev/*/; do
  [ -d "$folder/train" ] || continue
  name=$(basename "$(dirname "$folder")")-$(basename "$folder")
  mapfile -t classes < <(ls "$folder/train")
  count=${#classes[@]}
  parts=$(((count + 1) / 3))
  for part in $(seq "$parts"); do
    task=$name-$part
    first=$(((part - 1) * count / parts))
    next=$((part * count / parts))
    for split in train test; do
      mkdir -p "$out/tasks/$task/$split"
      for class in "${classes[@]:first:next - first}"; do
        ln -sfn "$folder/$split/$class" "$out/tasks/$task/$split/$class"
      done
    done
    tasks+=("$task")
  done
done
tasks=("${tasks[@]:0:30}")

suite=$out/suite.toml
printf 'name = "thirty"\n' >"$suite"
printf '%-5s %-28s %8s %10s %10s\n' task name 's' 'disk MB' 'peak MB'
for index in "${!tasks[@]}"; do
  printf '\n[[task]]\nname = "%s"\npath = "tasks/%s"\n' "${tasks[index]}" "${tasks[index]}" >>"$suite"
  begun=$(date +%s.%N)
  "$bin" run --suite "$suite" --methods "$method" --out "$out/run" --no-checkpoints \
    --eval-subset 20 --reference drawn --set lr=3e-4 --set steps=40 --set batch=32 --set reference_batch=32 \
    --set reference_pairs=256 --set warmup=10 >>"$out/log" 2>&1
  ended=$(date +%s.%N)
  run=$out/run/$method
  peak=$(sed -n 's/.*"peak_rss_mb": \([0-9.]*\).*/\1/p' "$run/metrics.json")
  disk=$(du -sk "$run" | cut -f1)
  awk -v i="$((index + 1))" -v n="${tasks[index]}" -v s="$(echo "$ended - $begun" | bc)" \
    -v d="$disk" -v p="$peak" \
    'BEGIN { printf "%-5d %-28s %8.1f %10.2f %10.1f\n", i, n, s, d / 1024, p }'
done
