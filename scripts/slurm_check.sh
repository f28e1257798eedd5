#!/usr/bin/env bash
# Tests a sweep on SLURM: a temporary controller and a node of two CPUs on this machine.
#
#   bash scripts/slurm_check.sh target/release/mtil-bench
#
# Needs root and SLURM's daemons (Debian: apt-get install slurm-wlm munge), and builds nothing. The
# test checks that
#
# - sbatch accepts the script of `sweep plan`,
# - two runs run at the same time,
# - a run that gets SIGINT stops cleanly, and the script requeues it,
# - a run that SLURM kills and requeues is resumed,
# - the accuracies of an interrupted run equal those of an uninterrupted one.
set -euo pipefail

skip() { printf '\n==== SKIPPED: %s ====\n\n' "$*"; exit 0; }
die() { printf '\nFAILED: %s\n' "$*" >&2; exit 1; }
step() { printf '\n== %s\n' "$*"; }

[ $# -eq 1 ] || die "usage: slurm_check.sh MTIL_BENCH"
binary=$(realpath "$1")
[ -x "$binary" ] || die "$1 is not a program"
PATH=$PATH:/usr/sbin:/sbin
for program in slurmctld slurmd munged sbatch squeue scontrol scancel; do
  command -v "$program" >/dev/null || skip "$program is missing; apt-get install slurm-wlm munge"
done
[ "$(id -u)" -eq 0 ] || skip "SLURM's daemons need root"

work=$(mktemp -d)
chmod 755 "$work"
daemons=()
job=
finish() {
  status=$?
  # This addresses the temporary controller, because SLURM_CONF is set before any job.
  if [ -n "$job" ]; then
    scancel "$job" >/dev/null 2>&1 || true
    sleep 1
  fi
  for ((i = ${#daemons[@]} - 1; i >= 0; i--)); do
    kill "${daemons[i]}" 2>/dev/null || true
    wait "${daemons[i]}" 2>/dev/null || true
  done
  if [ "$status" -ne 0 ]; then
    for log in "$work"/*.log; do printf '\n-- %s\n' "$log"; tail -n 15 "$log"; done
    echo "files kept in $work"
  else
    rm -rf "$work"
  fi
}
trap finish EXIT

# until_ SECONDS WHAT COMMAND…: waits until the command succeeds.
until_() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    [ "$SECONDS" -lt "$end" ] || die "waited too long until $what"
    sleep 0.2
  done
}

step "a controller and a node"
host=$(hostname -s)
mkdir -p "$work"/{munge,state,spool}
chmod 755 "$work/munge"
(umask 077; head -c 128 /dev/urandom >"$work/munge/key")
munged --foreground --force --key-file="$work/munge/key" --socket="$work/munge/socket" \
  --pid-file="$work/munge/pid" --log-file="$work/munge/log" --seed-file="$work/munge/seed" \
  >"$work/munged.log" 2>&1 &
daemons+=($!)
until_ 20 "munged answers" test -S "$work/munge/socket"
# Separate ports. Credentials expire soon, because a requeued job waits for the old one to expire.
cat >"$work/slurm.conf" <<EOF
ClusterName=check
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket=$work/munge/socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2
MpiDefault=none
ReturnToService=2
MinJobAge=600
KillWait=5
JobCompType=jobcomp/filetxt
JobCompLoc=$work/completed.txt
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=check Nodes=$host Default=YES MaxTime=INFINITE State=UP
EOF
case $(slurmctld -V) in
  *" "1[0-9].* | *" "2[0-2].*) ;;
  *) echo "CgroupPlugin=disabled" >"$work/cgroup.conf" ;;
esac
export SLURM_CONF="$work/slurm.conf"
slurmctld -D -f "$SLURM_CONF" >"$work/slurmctld.log" 2>&1 &
daemons+=($!)
slurmd -D -N "$host" -f "$SLURM_CONF" >"$work/slurmd.log" 2>&1 &
daemons+=($!)
idle() { [ "$(sinfo --noheader --format=%t 2>/dev/null)" = idle ]; }
until_ 60 "the node is idle" idle
slurmctld -V
sinfo

step "a sweep of 2 methods and 2 seeds, in a folder with spaces"
sweep="$work/a sweep"
shared=(--quick --tasks "shapes,digits" --eval-subset 20 --no-checkpoints --save-every 20)
cd "$work"
plan() {
  "$binary" sweep plan "$sweep" --methods finetune,gnsp --seeds 42,43 \
    --set steps=150 --set batch=8 --set reference_batch=8 -- "${shared[@]}"
}
plan
plan >/dev/null 2>&1 || die "planning the same sweep again fails"
"$binary" sweep status "$sweep" 2>/dev/null && die "a sweep without runs is reported as complete"
grep '^#SBATCH' "$sweep/sweep.sbatch"

step sbatch
job=$(sbatch --parsable --cpus-per-task=1 --time=30 "$sweep/sweep.sbatch")
show() { squeue --array --format='%.10i %.9P %.10j %.3t %.8M %R'; }
# status LINE: the state of the run of a line.
status() { "$binary" sweep status "$sweep" 2>/dev/null | awk -v line="$1" '$1 == line' || true; }
beyond() { status "$1" | grep -Eq 'running: task 1 of 2, step ([3-9][0-9]|1[0-9][0-9]) '; }
restarts() { scontrol show job "${job}_$1" | grep -o 'Restarts=[0-9]*'; }
until_ 300 "line 1 is running" beyond 1
show
[ "$(squeue --noheader --array --states=RUNNING --format=%i | wc -l)" -le 2 ] ||
  die "more than 2 at once"

step "line 1 gets the signal that SLURM sends before the time limit"
# Addressed by job number: for JOB_TASK scancel repeats the signal until the requeued job runs, and
# stops that one too.
task=$(squeue --noheader --array --states=RUNNING --format='%A %K' | awk '$2 == 1 { print $1 }')
timeout 5 scancel --batch --signal=INT "$task" || true
requeued() { [ "$(restarts "$1")" = Restarts=1 ]; }
until_ 120 "line 1 is back in the queue" requeued 1
show
status 1
cat "$sweep/logs/slurm-"*_1.out
grep -q "attempt 1: status 130, stopped by a signal" "$sweep/logs/slurm-"*_1.out ||
  die "line 1 was not stopped cleanly"

step "line 3 is killed and requeued by SLURM"
until_ 600 "line 3 is running" beyond 3
scontrol requeue "${job}_3"
until_ 120 "line 3 is back in the queue" requeued 3
show

step "all runs complete"
complete() { "$binary" sweep status "$sweep" >"$work/status.txt" 2>/dev/null; }
until_ 1800 "all runs are complete" complete
cat "$work/status.txt"
over() { [ -z "$(squeue --noheader)" ]; }
until_ 60 "the queue is empty" over
scontrol show job "$job" | grep -E 'ArrayTaskId|JobState|Restarts'
cat "$sweep/logs/slurm-"*.out
for line in 1 2 3 4; do
  state=$(scontrol show job "${job}_$line" | grep -o 'JobState=[A-Z_]*')
  [ "$state" = JobState=COMPLETED ] || die "line $line: $state"
done
resumed=$({ grep -l '"event":"resume"' "$sweep"/runs/mini/*/*/events.jsonl || true; } | wc -l)
[ "$resumed" -eq 2 ] || die "$resumed runs were resumed, not 2"

step "the interrupted run equals an uninterrupted one"
interrupted="$sweep/runs/mini/finetune,steps=150,batch=8,reference_batch=8,seed=42/finetune"
"$binary" run --methods finetune --seed 42 --set steps=150 --set batch=8 \
  --set reference_batch=8 --out whole "${shared[@]}" >whole.log 2>&1
cmp "$interrupted/matrix.json" whole/finetune/matrix.json || die "the accuracies differ"
echo "matrix.json is the same, byte for byte"

step done
