#!/usr/bin/env bash
# Runs on disks that fill up, on read-only folders, with files from the future, and two processes in
# one folder; compares the resumed runs with an undisturbed one:
#
#   scripts/disk_test.sh 20       # 20 sizes of the disk, from almost nothing to almost enough
#
# BIN is the program (default: the release build). Mounts small file systems in memory (tmpfs), for
# which it needs root or user namespaces.
set -euo pipefail

sizes=${1:-5}
cd "$(dirname "$0")/.."
if [ "$(id -u)" -ne 0 ] && [ -z "${IN_NAMESPACE:-}" ] && unshare -rm true 2>/dev/null; then
  IN_NAMESPACE=yes exec unshare -rm bash scripts/disk_test.sh "$sizes"
fi
. scripts/small_run.sh
out=$(mktemp -d)
disk="$out/disk"
mkdir "$disk"
if ! mount -t tmpfs -o size=1m tmpfs "$disk" 2>/dev/null; then
  rmdir "$disk" "$out"
  echo "==== SKIPPED: full disks and read-only folders: no right to mount a file system ===="
  exit 0
fi
trap 'umount "$disk" 2>/dev/null; rm -rf "$out"' EXIT
umount "$disk"

fail() {
  echo "FAILED: $1" >&2
  tail -n 5 "$out"/*.log "$disk"/*.log >&2 2>/dev/null || true
  exit 1
}

# Fails unless FOLDER.log ends with one error that contains TEXT.
expect_error() { # CODE FOLDER TEXT
  [ "$1" -eq 1 ] || fail "$2: exit code $1"
  [ "$(grep -c '^error: ' "$2.log")" -eq 1 ] || fail "$2: not one error"
  grep '^error: ' "$2.log" | grep -q "$3" || fail "$2: the error does not say '$3'"
  ! grep -q panicked "$2.log" || fail "$2: a panic"
}

expect_same() { # FOLDER
  (small_run gnsp "$1") || fail "$1 does not resume"
  facts "$1/gnsp" | diff - "$out/expected" || fail "$1 differs from an undisturbed run"
  [ -z "$(leftovers "$1")" ] || fail "$1: left behind: $(leftovers "$1")"
}

# The log is beside the run, so runs on the disk are reached through a link.
ln -s "$disk/run" "$out/run"

(small_run gnsp "$out/whole") || fail "the undisturbed run"
facts "$out/whole/gnsp" >"$out/expected"
whole=$(du -sk "$out/whole" | cut -f1)

echo "== full disks: $whole KiB are needed"
for number in $(seq "$sizes"); do
  size=$((whole * number / (sizes + 1)))
  mount -t tmpfs -o "size=${size}k" tmpfs "$disk"
  mkdir -p "$disk/run"
  code=0
  (small_run gnsp "$out/run") || code=$?
  expect_error "$code" "$out/run" "No space left on device"
  printf '%6d KiB: %s\n' "$size" "$(grep '^error: ' "$out/run.log" | cut -c1-150)"
  mount -o remount,size=1g "$disk"
  expect_same "$out/run"
  umount "$disk"
done

echo "== a full disk under other commands"
mount -t tmpfs -o size=8k tmpfs "$disk"
for command in \
  "model convert crates/mini-world/clip-mini $disk/converted --to open-clip" \
  "embed --model embedded --images $out/whole/samples --out $disk/features.npy" \
  "suite export mini $disk/exported"; do
  code=0
  # shellcheck disable=SC2086 # A command has several words.
  "$bin" $command >"$out/command.log" 2>&1 || code=$?
  expect_error "$code" "$out/command" "No space left on device"
  [ -z "$(find "$disk" -name '.tmp*' -o -name '.mtil-*')" ] || fail "$command: temporary files"
  printf '%s\n' "$(grep '^error: ' "$out/command.log" | cut -c1-150)"
  rm -rf "${disk:?}"/*
done
umount "$disk"

echo "== a read-only folder"
mount -t tmpfs -o size=1g tmpfs "$disk"
mkdir -p "$disk/run"
code=0
(timeout -s INT 2 bash -c '. scripts/small_run.sh; small_run "$@"' - gnsp "$out/run") || code=$?
mount -o remount,ro "$disk"
code=0
(small_run gnsp "$out/run") || code=$?
expect_error "$code" "$out/run" "Read-only file system"
mount -o remount,rw "$disk"
expect_same "$out/run"

echo "== files from the future: the clock went back"
find "$disk/run" -exec touch -d '+2 years' {} +
expect_same "$out/run"
find "$disk/run" -exec touch -d '+2 years' {} +
(small_run gnsp "$out/run" --from-task 2) || fail "files from the future, --from-task"
expect_same "$out/run"

echo "== two processes in one folder"
small_run gnsp "$out/two" &
first=$!
until [ -s "$out/two/gnsp/events.jsonl" ]; do sleep 0.05; done
code=0
(small_run gnsp "$out/two" --device flex >"$out/second.log") || code=$?
wait "$first" || fail "the first of two processes"
facts "$out/two/gnsp" | diff - "$out/expected" || fail "the first of two processes differs"
[ "$code" -eq 1 ] || fail "the second of two processes: exit code $code"
echo "all as expected"
