"""Ours and PyTorch in turn, each measurement a process of its own on the same number of threads.

Run:   cargo build --release --workspace --bins
       target/release/step make DIR
       target/release/mtil-bench suite export mini DIR/suite              # for the case `mini`
       python benches/compare.py target/release DIR [--rounds 5] [--only train,gram,prompts,mini] [--variants reference,tuned]
                                   [--threads 2] [--steps 2] [--tasks A,B]
Needs: what the scripts in benches/pytorch need

    train     a step of GNSP on a later task                 against reference, tuned, compiled of pytorch/gnsp_step.py
    gram      the pass that remembers, 16 images             against gram, gram-streamed
    prompts   the classifiers of an evaluation               against reference, batched of pytorch/evaluation.py
    mini      finetune and gnsp on the embedded suite        against reference, tuned of pytorch/mini_suite.py

A round runs ours, then each of theirs; every second round in the opposite order. A ratio is theirs divided by ours in seconds (above 1: ours is
faster), round by round; given are the median and the range. What both sides computed is compared as well, and a difference ends the
program with an error once everything is written: DIR/compare.json, which keeps the cases of earlier calls, and DIR/compare.md with the
tables of this one.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / "datasets/mini/clip-mini"
# Relative; of losses, of traces, and of values of unit vectors against one.
LARGEST_DIFFERENCE = 1e-4


def numbers(values):
    """JSON has no number that is none."""
    return [math.nan if value is None else value for value in values]


def largest(differences):
    """Not a number if one of them is not."""
    differences = list(differences)
    return math.nan if any(map(math.isnan, differences)) else max(differences)


class Case:
    """What is run, and what its JSON lines mean. `ours` and `theirs` are commands."""

    # Whether both sides are to compute the same numbers.
    compared = True

    def __init__(self, options):
        self.options = options
        self.binaries, self.folder = Path(options.binaries), Path(options.folder)

    def script(self, name, verb, *arguments):
        return [sys.executable, str(HERE / "pytorch" / name), verb, str(self.folder), *arguments, "--threads", str(self.options.threads)]

    def step(self, verb, *arguments):
        return [str(self.binaries / "step"), verb, str(self.folder), *arguments]

    def seconds(self, line):
        """Of one unit of work."""
        return statistics.median(line["seconds"])

    def values(self, line):
        """What was computed."""
        return []

    def difference(self, ours, theirs):
        """The largest relative difference of what was computed; none where the two cannot be compared."""
        a, b = self.values(ours), self.values(theirs)
        if not a or len(a) != len(b):
            return None
        return largest(abs(x - y) / abs(y) for x, y in zip(a, b))

    def extra(self, who, line):
        """Further figures for the table, in words."""
        return ""


class Train(Case):
    name, title = "train", "a step of GNSP on a later task, 8 task and 8 reference images"
    variants = ("reference", "tuned", "compiled")

    def ours(self):
        return self.step("train", "--steps", str(self.options.steps))

    def theirs(self, variant):
        return self.script("gnsp_step.py", variant, "--steps", str(self.options.steps))

    def values(self, line):
        return numbers(line["losses"])

    def extra(self, who, line):
        return f"losses {', '.join(f'{loss:.5f}' for loss in self.values(line))}"


class Gram(Case):
    name, title = "gram", "the pass that remembers, 16 images"
    variants = ("gram", "gram-streamed")

    def ours(self):
        return self.step("gram", "--repeat", str(self.options.steps))

    def theirs(self, variant):
        return self.script("gnsp_step.py", variant, "--steps", str(self.options.steps))

    def values(self, line):
        return numbers(value for _, value in sorted(line["traces"].items()))

    def extra(self, who, line):
        return f"{16 / self.seconds(line):.2f} images a second"


class Prompts(Case):
    name, title = "prompts", "a prompt of an evaluation's classifiers"
    variants = ("reference", "batched")
    # One class in so many, for those to which classes cost what their prompts do: ours gains from prompts that begin alike, and takes all.
    SAMPLE = {"reference": 144, "batched": 6}

    def ours(self):
        return self.step("prompts", "--repeat", "1")

    def theirs(self, variant):
        return self.script("evaluation.py", variant, "--repeat", "1", "--sample", str(self.SAMPLE[variant]))

    def seconds(self, line):
        return statistics.median(line["seconds"]) / line["prompts"]

    def difference(self, ours, theirs):
        a, b = ours["check"], theirs["check"]
        thinned = (a[::sample] for sample in self.SAMPLE.values())
        a = next((thin for thin in thinned if len(thin) == len(b)), a)
        return largest(abs(x - y) for x, y in zip(numbers(a), numbers(b))) if len(a) == len(b) else None

    def extra(self, who, line):
        words = f"{1 / self.seconds(line):.1f} prompts a second"
        later = line.get("later_seconds")
        if later is not None:
            later = statistics.median(later) if isinstance(later, list) else later
            words += f"; later stages {1e3 * later:.1f} ms in all"
        return words


class Mini(Case):
    name, title = "mini", "finetune and gnsp on the embedded suite, everything"
    variants = ("reference", "tuned")
    # Batches and crops are drawn by other generators.
    compared = False

    def seconds(self, line):
        # From start to end of the process, since ours says no other.
        return line["wall_seconds_whole"]

    def ours(self):
        out = tempfile.mkdtemp(prefix="compare-mini-")
        suite = ["--methods", "finetune,gnsp", "--seed", "1", "--no-checkpoints", "--out", out]
        return [str(self.binaries / "mtil-bench"), *suite, *self.tasks()]

    def tasks(self):
        return ["--tasks", self.options.tasks] if self.options.tasks else []

    def theirs(self, variant):
        command = [sys.executable, str(HERE / "pytorch/mini_suite.py"), str(self.folder / "suite"), str(MODEL)]
        published = ["--published"] if variant == "reference" else []
        return [*command, *published, *self.tasks(), "--threads", str(self.options.threads)]

    def finish(self, command, wall, peak):
        """The line of a program that prints none: what is in the folder it wrote."""
        out = Path(command[command.index("--out") + 1])
        methods = {}
        for path in sorted(out.rglob("metrics.json")):
            methods[path.parent.name] = json.loads(path.read_text())
        shutil.rmtree(out)
        return {"seconds": [wall], "first_seconds": wall, "peak_mb": peak, "methods": methods}

    def extra(self, who, line):
        def of(found, *keys):
            value = next((found[key] for key in keys if key in found), None)
            return "?" if value is None else f"{value:.1f}"

        words = []
        for method, found in line["methods"].items():
            found = found.get("metrics", found)
            words.append(f"{method}: Transfer {of(found, 'transfer')}, Average {of(found, 'average', 'avg')}, Last {of(found, 'last')}")
        if "training_seconds" in line:
            parts = [f"{line[part + '_seconds']:.1f} s {part}" for part in ("reading", "training", "evaluation")]
            words.append(", ".join(parts))
        return "; ".join(words)


CASES = {case.name: case for case in (Train, Gram, Prompts, Mini)}


def run(case, command, threads):
    """The last JSON line of a process; the wall time and the peak memory of one that prints none."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(command, stdout=out, stderr=errors, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - start
        for file in (out, errors):
            file.seek(0)
        if child.returncode:
            sys.exit(f"{' '.join(command)}\nended with {child.returncode}:\n{errors.read().decode(errors='replace')[-2000:]}")
        printed = out.read().decode(errors="replace").strip().splitlines()
    if hasattr(case, "finish") and "--out" in command:
        line = case.finish(command, wall, usage.ru_maxrss * 1024 / 1e6)
    else:
        line = json.loads(printed[-1])
    line["processor_seconds_whole"] = usage.ru_utime + usage.ru_stime
    line["wall_seconds_whole"] = wall
    return line


def earlier(path):
    """The cases of an earlier call."""
    try:
        return json.loads(path.read_text())["cases"]
    except (OSError, ValueError, KeyError):
        return {}


def measured(case, options):
    rounds = []
    for turn in range(options.rounds):
        variants = [v for v in case.variants if not options.variants or v in options.variants]
        sides = ["ours", *variants]
        lines = {}
        for side in sides if turn % 2 == 0 else reversed(sides):
            lines[side] = run(case, case.ours() if side == "ours" else case.theirs(side), options.threads)
            told = f"{case.name}, round {turn + 1}, {side}: {case.seconds(lines[side]):.4g} s, {lines[side]['peak_mb']:.0f} MB"
            print(told, file=sys.stderr, flush=True)
        rounds.append(lines)
    return rounds


def worst(differences):
    """None if one is."""
    differences = list(differences)
    return None if None in differences else largest(differences)


def summary(case, rounds):
    """By side: medians, ratios over the rounds, and how far what it computed is from ours."""
    found = {}
    for side in rounds[0]:
        lines = [turn[side] for turn in rounds]
        seconds = [case.seconds(line) for line in lines]
        ratios = [case.seconds(turn[side]) / case.seconds(turn["ours"]) for turn in rounds]
        memory = [turn[side]["peak_mb"] / turn["ours"]["peak_mb"] for turn in rounds]
        found[side] = {
            "seconds": statistics.median(seconds),
            "first_seconds": statistics.median(line["first_seconds"] for line in lines),
            "peak_mb": statistics.median(line["peak_mb"] for line in lines),
            "times_ours": statistics.median(ratios),
            "times_ours_range": [min(ratios), max(ratios)],
            "memory_times_ours": statistics.median(memory),
            "difference": None if side == "ours" else worst(case.difference(turn["ours"], turn[side]) for turn in rounds),
            "words": case.extra(side, lines[0]),
        }
    return found


def duration(seconds):
    return f"{seconds:.2f} s" if seconds >= 0.5 else f"{1e3 * seconds:.3g} ms"


def table(case, found):
    rows = [f"| {case.title} | time | times ours (range over the rounds) | peak memory | times ours | difference | |", "|---" * 7 + "|"]
    for side, f in found.items():
        low, high = f["times_ours_range"]
        speed, memory, difference = "1", "1", "–"
        if side != "ours":
            speed, memory = f"{f['times_ours']:.2f} ({low:.2f} to {high:.2f})", f"{f['memory_times_ours']:.2f}"
            difference = "–" if f["difference"] is None else f"{f['difference']:.1e}"
        name = side if side == "ours" else f"PyTorch, {side}"
        rows.append(f"| {name} | {duration(f['seconds'])} | {speed} | {f['peak_mb']:.0f} MB | {memory} | {difference} | {f['words']} |")
    return "\n".join(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binaries", help="the folder of `step` and `mtil-bench`")
    parser.add_argument("folder", help="what `step make` wrote")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(CASES))
    parser.add_argument("--variants", type=lambda text: text.split(","), help="of PyTorch; all by default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2, help="timed steps or passes of a process, after one that is not")
    parser.add_argument("--tasks", help="of the embedded suite, for `mini`; all by default")
    options = parser.parse_args()
    unknown = [name for name in options.only if name not in CASES]
    if unknown:
        parser.error(f"--only {','.join(unknown)}: known are {', '.join(CASES)}")
    known = {variant for name in options.only for variant in CASES[name].variants}
    strangers = sorted(set(options.variants or []) - known)
    if strangers:
        parser.error(f"--variants {','.join(strangers)}: known are {', '.join(sorted(known))}")
    results = Path(options.folder) / "compare.json"
    everything, tables, wrong = earlier(results), [], []
    for name in options.only:
        case = CASES[name](options)
        rounds = measured(case, options)
        found = summary(case, rounds)
        settings = {name: getattr(options, name) for name in ("rounds", "threads", "steps", "tasks")}
        settings["torch"], settings["processors"] = version("torch"), os.cpu_count()
        everything[name] = {"settings": settings, "summary": found, "rounds": rounds}
        tables.append(table(case, found))
        print(tables[-1], flush=True)
        for side, f in found.items():
            if f["difference"] is None and side != "ours" and case.compared:
                wrong.append(f"{name}, {side}: what it computed does not correspond to ours")
            if f["difference"] is not None and not f["difference"] <= LARGEST_DIFFERENCE:
                wrong.append(f"{name}, {side}: differs from ours by {f['difference']:.1e}")
        # After each case, so that what was measured is kept if a later one fails.
        results.write_text(json.dumps({"cases": everything}, indent=1) + "\n")
        (Path(options.folder) / "compare.md").write_text("\n\n".join(tables) + "\n")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
