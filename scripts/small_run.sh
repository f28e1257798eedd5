# A run of seconds with all phases, and what it must result in. Sourced by the tests of failures.

bin=${BIN:-target/release/mtil-bench}
[ -x "$bin" ] || { echo "no program at $bin: cargo build --release, or set BIN" >&2; exit 2; }

# Runs METHOD in FOLDER, with its output in FOLDER.log. Three tasks have an evaluation, training
# with saves within the task, the save of the task, Gram accumulation and the report. Replaces the
# calling shell: call it in a subshell.
small_run() { # METHOD FOLDER [ARGUMENTS]
  local method=$1 folder=$2
  shift 2
  exec "$bin" run --quick --tasks shapes,digits,cloth --methods "$method" --out "$folder" \
    --save-every 3 --set batch=8 --set reference_batch=8 --set reference_pairs=16 \
    --eval-subset 20 "$@" >"$folder.log" 2>&1
}

# Prints what a user takes from a run: weights, accuracies, and the data of the report, without
# times and memory.
facts() { # RUN
  (
    cd "$1"
    sha256sum checkpoints/*/model.safetensors
    cat matrix.json
    grep -vE '"(wall_seconds|peak_rss_mb)"' metrics.json
    # The losses of the first and last step of each task. A resumed run records its own first step
    # too.
    grep -E '"event":"step".*"step":(1|8),' events.jsonl | sed 's/,"images_per_s":[^,}]*//' |
      sort -u
  )
}

# Prints the files that an interrupted run must not leave behind.
leftovers() { # FOLDER [OPTION OF FIND]...
  find "$@" -name '.tmp*' -o -name '.mtil-*' -o -name 'state.new' -o -name 'state.old'
}
