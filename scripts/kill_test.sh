#!/usr/bin/env bash
# Kills runs with `kill -9` at random moments, resumes them with the same command, and compares
# weights, accuracies and report data with those of an uninterrupted run:
#
#   scripts/kill_test.sh 5                    # 5 kills of gnsp
#   scripts/kill_test.sh 100 gnsp,zscl,er     # 100 kills of each method
#
# BIN is the program (default: the release build), SEED the seed of the moments (default: 1).
set -euo pipefail

kills=${1:?usage: scripts/kill_test.sh KILLS [METHOD,METHOD]}
methods=${2:-gnsp}
cd "$(dirname "$0")/.."
. scripts/small_run.sh
RANDOM=${SEED:-1}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# Prints a number below $1, uniform up to a millionth of the range.
random_below() { echo $(((RANDOM * 32768 + RANDOM) % 1000000 * $1 / 1000000)); }

# Prints the phase in which a run was killed.
phase() { # RUN
  if [ ! -s "$1/events.jsonl" ]; then
    echo start
  elif [ -n "$(leftovers "$1")" ]; then
    echo save
  else
    tail -n 1 "$1/events.jsonl" | sed -n 's/.*"event":"\([a-z_]*\)".*/after the event \1/p'
  fi
}

# Prints what is wrong with the resumed run FOLDER, nothing if it is right. Processes may share
# FOLDER itself, where the temporary file of a killed one stays for an hour.
problem() { # METHOD FOLDER
  if ! (small_run "$1" "$2"); then
    echo "did not resume: $(tail -n 1 "$2.log")"
  elif ! facts "$2/$1" | diff - "$out/expected" >"$out/difference"; then
    echo "differs: $(sed -n 2p "$out/difference")"
  elif [ -n "$(leftovers "$2" -mindepth 2)" ]; then
    echo "left behind: $(leftovers "$2" -mindepth 2 | head -n 1)"
  fi
}

failed=0
for method in ${methods//,/ }; do
  begin=$(date +%s%N)
  (small_run "$method" "$out/$method") || { cat "$out/$method.log"; exit 1; }
  length=$(($(date +%s%N) - begin))
  facts "$out/$method/$method" >"$out/expected"
  count=0 runs=0 wrong=0
  : >"$out/phases"
  while [ "$count" -lt "$kills" ]; do
    runs=$((runs + 1))
    folder="$out/$method-$runs"
    # Up to three kills in a run: most resumed runs are killed again.
    for _ in 1 2 3; do
      small_run "$method" "$folder" &
      child=$!
      pause=$(random_below "$length")
      sleep "$((pause / 1000000000)).$(printf %09d $((pause % 1000000000)))"
      # A run that has ended by itself counts as no kill.
      killed=
      kill -9 "$child" 2>/dev/null && killed=yes
      wait "$child" 2>/dev/null || true
      if [ -n "$killed" ]; then
        count=$((count + 1))
        phase "$folder/$method" >>"$out/phases"
      fi
      [ "$count" -lt "$kills" ] || break
    done
    problem=$(problem "$method" "$folder")
    if [ -n "$problem" ]; then
      wrong=$((wrong + 1))
      echo "$method: run $runs $problem"
    fi
    rm -rf "$folder" "$folder.log"
  done
  echo "$method: $count kills in $runs runs, $wrong lost or different"
  sort "$out/phases" | uniq -c | sort -rn
  [ "$wrong" -eq 0 ] || failed=1
done
exit "$failed"
