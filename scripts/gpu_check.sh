#!/usr/bin/env bash
# Runs all checks and measurements for a GPU and writes the results to one JSON file.
#
#   bash scripts/gpu_check.sh [--device cuda:0] [--out gpu.json] [--binaries DIR]
#                             [--size vit-b-16|tiny] [--quick]
#
# 1. Tests on the first device of the backend (CUDA_VISIBLE_DEVICES selects another): losses, the
#    optimizer, CLIP's parity, and short runs of GNSP against flex. Skipped with --binaries, because
#    they need the sources built.
# 2. `device compare` against flex.
# 3. A short run on the embedded suite.
# 4. 20 steps of GNSP on ViT-B/16 with 64 task and 64 reference images: in f32 (on CUDA the tuner
#    may use TF32 tensor cores for it), with checkpointing, and with half of the reference pairs; on
#    CUDA also in bf16 and after a full search of the tuner. If python3 has torch with CUDA,
#    safetensors and openai-clip, the same steps run in PyTorch in f32, tf32 and bf16, eager and
#    compiled.
#
# The script first builds the programs with the device's cargo feature (cuda, wgpu or vulkan).
# --binaries DIR uses existing ones: a folder with `mtil-bench` and `step`. --quick uses tiny sizes
# and few steps, to try the script on a machine without a GPU (--device wgpu --size tiny).
#
# A part that fails or takes longer than half an hour (two hours with --quick) is recorded with its
# message. The other parts still run, and the exit status is 1. Needs python3.
set -uo pipefail
here=$(realpath "$0")

device=cuda:0
out=gpu.json
binaries=
size=vit-b-16
quick=
while [ $# -gt 0 ]; do
  case "$1" in
    --device) device=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --binaries) binaries=$2; shift 2 ;;
    --size) size=$2; shift 2 ;;
    --quick) quick=1; shift ;;
    -h | --help) sed -n '2,23p' "$here" | cut -c3-; exit 0 ;;
    *) echo "gpu_check.sh: unknown argument $1; see --help" >&2; exit 2 ;;
  esac
done
backend=${device%%:*}
case "$backend" in
  cuda | wgpu | vulkan | flex) ;;
  *) echo "gpu_check.sh: --device $device: cuda:N, wgpu:N, vulkan:N or flex" >&2; exit 2 ;;
esac

# Resolve relative paths before changing the folder, and fail early if the output is not writable.
mkdir -p "$(dirname "$out")" && touch "$out" || {
  echo "gpu_check.sh: cannot write $out; choose another --out" >&2
  exit 1
}
out=$(realpath "$out")
[ -z "$binaries" ] || binaries=$(realpath "$binaries") || exit 1
cd "$(dirname "$here")/.." || exit 1

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
parts=()
step() { printf '\n== %s\n' "$*" >&2; }
# part NAME JSON-FILE: adds the results of a finished part.
part() { parts+=("$1=$2"); }
# Seconds after which a part is stopped. A software driver, which --quick is meant for, compiles
# shaders for most of an hour.
longest=1800
[ -z "$quick" ] || longest=7200
# record NAME COMMAND…: runs a part. Its result is its output or the last line of it, which must be
# JSON, otherwise its error message.
record() {
  local name=$1 file="$work/$1.json" status
  shift
  step "$name: $*"
  timeout --kill-after=30 "$longest" "$@" >"$work/$name.out" 2>"$work/$name.err"
  status=$?
  if ! python3 - "$status" "$longest" "$work/$name.out" "$work/$name.err" >"$file" <<'PY'
import json, sys

status, longest, out, errors = sys.argv[1:]
text = open(out, errors="replace").read().strip()
found = None
for candidate in (text, text.splitlines()[-1] if text else ""):
    try:
        found = json.loads(candidate)
        break
    except ValueError:
        pass
if status == "0" and found is not None:
    print(json.dumps(found))
    sys.exit(0)
last = "".join(open(errors, errors="replace").readlines()[-5:]).strip()
why = f"stopped after {longest} s" if status in ("124", "137") else f"exit status {status}"
print(json.dumps({"failed": f"{why}: {last}"}))
sys.exit(1)
PY
  then
    failed=1
    tail -n 5 "$work/$name.err" >&2
  fi
  head -c 400 "$file" >&2; echo >&2
  part "$name" "$file"
}

command -v python3 >/dev/null || {
  echo "gpu_check.sh: python3 is missing; it merges the results" >&2
  exit 1
}
if [ -z "$binaries" ]; then
  feature=()
  [ "$backend" = flex ] || feature=(--features "$backend")
  step "building for $backend"
  MTIL_BENCH_COMMIT=$(git rev-parse --short=12 HEAD 2>/dev/null) && export MTIL_BENCH_COMMIT
  cargo build --release --workspace --bins "${feature[@]}" || exit 1
  target=$(cargo metadata --format-version 1 --no-deps |
    sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
  binaries="$target/release"
  step "tests on $backend"
  tests=(env "BURN_DEVICE=$backend" "CUBECL_AUTOTUNE_LEVEL=${CUBECL_AUTOTUNE_LEVEL:-minimal}"
    cargo test --release -p clip-losses -p gnsp-optimizer -p gnsp-tests "${feature[@]}")
  if {
    "${tests[@]}" --lib --test behaviour -- --skip properties:: &&
      "${tests[@]}" --test parity -- clip_parity:: backends::
  } >"$work/tests.out" 2>&1 &&
    ! grep -q "SKIPPED: $backend " "$work/tests.out"; then
    echo '{"passed": true}' >"$work/tests.json"
  else
    failed=1
    grep "SKIPPED: $backend " "$work/tests.out" >&2
    tail -n 30 "$work/tests.out" >&2
    echo '{"passed": false}' >"$work/tests.json"
  fi
  part tests "$work/tests.json"
fi
bench="$binaries/mtil-bench" one="$binaries/step"
for program in "$bench" "$one"; do
  [ -x "$program" ] || { echo "gpu_check.sh: $program is missing" >&2; exit 1; }
done

steps=20 batch=64 sizes=tiny,vit-b-32,vit-b-16,vit-l-14 repetitions=10 run=(--quick)
if [ -n "$quick" ]; then
  steps=2 batch=8 sizes=tiny repetitions=2
  run=(--quick --tasks shapes,digits --set steps=3 --set batch=8 --set reference_batch=8
    --eval-subset 20)
fi

step "device compare"
compare=("$bench" device compare --sizes "$sizes" --repetitions "$repetitions"
  --out "$work/compare")
[ -z "$quick" ] || compare+=(--limit 0)
devices=flex
[ "$backend" = flex ] || devices="flex,$device"
compare+=(--devices "$devices")
record compare "${compare[@]}" --json
# Missing measurements and results that differ from those of flex are failures.
python3 - "$work/compare.json" <<'PY' || failed=1
import json, sys

compared = json.load(open(sys.argv[1]))
wrong = []
tolerance = compared.get("facts", {}).get("tolerance")
for m in compared.get("measurements", []):
    name, outcome = f"{m['work']} of {m['size']} on {m['device']}", m["outcome"]
    if "measured" not in outcome:
        wrong.append(f"{name}: {outcome}")
    elif (outcome["measured"].get("difference") or 0) > tolerance:
        wrong.append(f"{name}: differs from flex by {outcome['measured']['difference']:.1e}")
for r in compared.get("replays", []):
    found = r["outcome"].get("compared")
    if found is None or found["difference"] > found["tolerance"]:
        wrong.append(f"replay on {r['replayed_on']}: {r['outcome']}")
print("\n".join(wrong), file=sys.stderr)
sys.exit(bool(wrong))
PY

record mini "$bench" run "${run[@]}" --methods finetune,gnsp --device "$device" --no-checkpoints \
  --out "$work/mini" --json

mkdir -p "$work/step"
"$one" make "$work/step" --size "$size" >/dev/null || failed=1
shape=(--steps "$steps" --batch "$batch" --reference-batch "$batch")
train=("$one" train "$work/step" --device "$device")
record step-f32 "${train[@]}" "${shape[@]}"
# Burn does not compute in bf16 on wgpu and vulkan.
case "$backend" in cuda | flex) record step-bf16 "${train[@]}" --bf16 "${shape[@]}" ;; esac
record step-checkpointing "${train[@]}" --checkpointing "${shape[@]}"
record step-half-reference "${train[@]}" --half-reference "${shape[@]}"
if [ "$backend" = cuda ]; then
  # CubeCL's tuner may choose TF32 tensor cores: compare a full search with the default one.
  record step-tuned env CUBECL_AUTOTUNE_LEVEL=full "${train[@]}" "${shape[@]}"
fi
torch_works='import clip, safetensors, torch, sys; sys.exit(not torch.cuda.is_available())'
if [ "$backend" = cuda ] && python3 -c "$torch_works" 2>/dev/null; then
  for variant in reference tuned compiled; do
    for dtype in f32 tf32 bf16; do
      record "torch-$variant-$dtype" python3 benches/pytorch/gnsp_step.py "$variant" "$work/step" \
        --device "$device" --dtype "$dtype" "${shape[@]}"
    done
  done
else
  why="python3 needs torch with CUDA, safetensors and openai-clip"
  printf '\n==== SKIPPED: PyTorch (%s) ====\n' "$why" >&2
fi

commit=$(git rev-parse HEAD 2>/dev/null || echo unknown)
if ! python3 - "$out" "$device" "$commit" "${parts[@]}" <<'PY'
import json, os, platform, subprocess, sys, tempfile

out, device, commit, *parts = sys.argv[1:]
result = {"device": device, "commit": commit, "machine": platform.platform()}
try:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=True)
    result["gpu"] = done.stdout.strip()
except (OSError, subprocess.CalledProcessError):
    result["gpu"] = None
for part in parts:
    name, path = part.split("=", 1)
    text = open(path).read()
    try:
        result[name] = json.loads(text)
    except ValueError:
        result[name] = {"failed": text.strip()[-400:]}
folder = os.path.dirname(os.path.abspath(out))
with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
    json.dump(result, file, indent=1)
os.replace(file.name, out)
print(f"written: {out}")
PY
then
  failed=1
fi
exit "$failed"
