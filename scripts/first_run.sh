#!/usr/bin/env bash
# What a newcomer sees: a fresh clone, the commands of the README's first block as they stand
# there, then three mistakes. Prints each command, the end of what it printed, its seconds and its
# exit code. Builds from nothing, 25 minutes on two cores: bash scripts/first_run.sh [FOLDER]
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-$(mktemp -d)}
unset CARGO_TARGET_DIR
git clone --quiet "$repository" "$folder/clone"
cd "$folder/clone"
git log -1 --format='commit %h, %cs'

follow() { # LINES COMMAND: runs a command and shows the last LINES of its output
  local start=$SECONDS code=0
  printf '\n$ %s\n' "$2"
  bash -c "$2" >"$folder/output" 2>&1 || code=$?
  grep -v '^ *\(Compiling\|Downloading\|Downloaded\|Updating\|Locking\) ' "$folder/output" |
    tail -n "$1"
  case $2 in
  *"cargo test"*)
    awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
      END { printf "all together: %d passed, %d failed, %d ignored\n", passed, failed, ignored }' \
      "$folder/output"
    ;;
  esac
  printf '(%d s, exit code %d)\n' $((SECONDS - start)) "$code"
}

# The first fenced block of the README.
mapfile -t commands < <(sed -n '/^```$/,/^```$/{/^```/d;p}' README.md | sed '/^mtil-bench/q' |
  grep '^cargo' | sed 's/ *#.*//')
for command in "${commands[@]}"; do follow 24 "$command"; done

# A flag, a method and a picture that are not what they should be.
follow 8 "cargo run --release -- --quik"
follow 8 "cargo run --release -- run --methods gnps"
head -c 100 docs/report.png >broken.png
follow 8 "cargo run --release -- classify --model runs/mini/gnsp broken.png"
