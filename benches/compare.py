"""Time and memory of this project and of PyTorch, measured in turn on the same number of threads.

Run:   cargo build --release --workspace --bins
       target/release/step make DIR
       target/release/mtil-bench suite export mini DIR/suite              # for the case `mini`
       python benches/compare.py target/release DIR [--rounds 5] [--only train,gram,prompts,mini]
                                 [--variants reference,tuned] [--threads 2] [--steps 2]
                                 [--tasks A,B]
Needs: the packages that the scripts in benches/pytorch need

    case      workload                                       variants of PyTorch
    train     a GNSP training step after the first task      pytorch/gnsp_step.py: reference, tuned,
                                                             compiled
    gram      Gram accumulation, 16 images                   pytorch/gnsp_step.py: gram,
                                                             gram-streamed
    prompts   the zero-shot classifiers of an evaluation     pytorch/evaluation.py: reference,
                                                             batched
    mini      finetune and gnsp on the embedded suite        pytorch/mini_suite.py: reference, tuned

Each measurement is a process of its own. A round runs ours, then each variant of PyTorch; every
second round runs them in reverse order. A ratio is PyTorch's time divided by ours in the same round
(above 1: ours is faster). The tables give its median and range over the rounds.

The script also compares the results of both sides. If they differ, it exits with an error after
writing all files: DIR/compare.json, which keeps the cases of earlier calls, and DIR/compare.md with
the tables of this call.
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
MODEL = HERE.parent / "crates/mini-world/clip-mini"
# Tolerance of the relative difference of losses and traces, and of entries of unit vectors.
LARGEST_DIFFERENCE = 1e-4


def numbers(values):
    """Returns the values with NaN for JSON's null."""
    return [math.nan if value is None else value for value in values]


def largest(differences):
    """Returns the largest difference, or NaN if one is NaN."""
    differences = list(differences)
    return math.nan if any(map(math.isnan, differences)) else max(differences)


class Case:
    """A workload: the commands `ours` and `theirs`, and the meaning of their JSON lines."""

    # Whether both sides must compute the same numbers.
    compared = True

    def __init__(self, options):
        self.options = options
        self.binaries, self.folder = Path(options.binaries), Path(options.folder)

    def script(self, name, verb, *arguments):
        command = [sys.executable, str(HERE / "pytorch" / name), verb, str(self.folder)]
        return [*command, *arguments, "--threads", str(self.options.threads)]

    def step(self, verb, *arguments):
        return [str(self.binaries / "step"), verb, str(self.folder), *arguments]

    def seconds(self, line):
        """Returns the seconds of one step, pass, prompt or run."""
        return statistics.median(line["seconds"])

    def values(self, line):
        """Returns the computed numbers that are compared."""
        return []

    def difference(self, ours, theirs):
        """Returns the largest relative difference of the results; None if the counts differ."""
        a, b = self.values(ours), self.values(theirs)
        if not a or len(a) != len(b):
            return None
        return largest(abs(x - y) / abs(y) for x, y in zip(a, b))

    def extra(self, who, line):
        """Returns additional figures for the last column of the table."""
        return ""


class Train(Case):
    name, title = "train", "GNSP training step after the first task, 8 task and 8 reference images"
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
    name, title = "gram", "Gram accumulation, 16 images"
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
    name, title = "prompts", "a prompt of the zero-shot classifiers of an evaluation"
    variants = ("reference", "batched")
    # PyTorch encodes every N-th class only, because its time is proportional to the prompts. Ours
    # encodes all: its time per prompt depends on the prefixes that the prompts share.
    SAMPLE = {"reference": 144, "batched": 6}

    def ours(self):
        return self.step("prompts", "--repeat", "1")

    def theirs(self, variant):
        sample = str(self.SAMPLE[variant])
        return self.script("evaluation.py", variant, "--repeat", "1", "--sample", sample)

    def seconds(self, line):
        return statistics.median(line["seconds"]) / line["prompts"]

    def difference(self, ours, theirs):
        a, b = ours["check"], theirs["check"]
        thinned = (a[::sample] for sample in self.SAMPLE.values())
        a = next((thin for thin in thinned if len(thin) == len(b)), a)
        if len(a) != len(b):
            return None
        return largest(abs(x - y) for x, y in zip(numbers(a), numbers(b)))

    def extra(self, who, line):
        words = f"{1 / self.seconds(line):.1f} prompts a second"
        later = line.get("later_seconds")
        if later is not None:
            later = statistics.median(later) if isinstance(later, list) else later
            words += f"; later evaluations {1e3 * later:.1f} ms in total"
        return words


class Mini(Case):
    name, title = "mini", "finetune and gnsp on the embedded suite, end to end"
    variants = ("reference", "tuned")
    # Both sides draw batches and crops with different generators.
    compared = False

    def seconds(self, line):
        # Wall time of the process, the only time that ours reports.
        return line["wall_seconds_whole"]

    def ours(self):
        out = tempfile.mkdtemp(prefix="compare-mini-")
        suite = ["--methods", "finetune,gnsp", "--seed", "1", "--no-checkpoints", "--out", out]
        return [str(self.binaries / "mtil-bench"), *suite, *self.tasks()]

    def tasks(self):
        return ["--tasks", self.options.tasks] if self.options.tasks else []

    def theirs(self, variant):
        script, suite = HERE / "pytorch/mini_suite.py", self.folder / "suite"
        command = [sys.executable, str(script), str(suite), str(MODEL)]
        published = ["--published"] if variant == "reference" else []
        return [*command, *published, *self.tasks(), "--threads", str(self.options.threads)]

    def finish(self, command, wall, peak):
        """Returns the JSON line of a program that prints none, from the files it wrote."""
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
            words.append(
                f"{method}: Transfer {of(found, 'transfer')}, "
                f"Average {of(found, 'average', 'avg')}, Last {of(found, 'last')}"
            )
        if "training_seconds" in line:
            parts = ("reading", "training", "evaluation")
            parts = [f"{line[part + '_seconds']:.1f} s {part}" for part in parts]
            words.append(", ".join(parts))
        return "; ".join(words)


CASES = {case.name: case for case in (Train, Gram, Prompts, Mini)}


def run(case, command, threads):
    """Returns the last JSON line of a process with its CPU and wall time added."""
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
            message = errors.read().decode(errors="replace")[-2000:]
            sys.exit(f"{' '.join(command)}\nexited with {child.returncode}:\n{message}")
        printed = out.read().decode(errors="replace").strip().splitlines()
    if hasattr(case, "finish") and "--out" in command:
        line = case.finish(command, wall, usage.ru_maxrss * 1024 / 1e6)
    else:
        line = json.loads(printed[-1])
    line["processor_seconds_whole"] = usage.ru_utime + usage.ru_stime
    line["wall_seconds_whole"] = wall
    return line


def earlier(path):
    """Returns the cases of earlier calls."""
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
            command = case.ours() if side == "ours" else case.theirs(side)
            lines[side] = run(case, command, options.threads)
            seconds, peak = case.seconds(lines[side]), lines[side]["peak_mb"]
            message = f"{case.name}, round {turn + 1}, {side}: {seconds:.4g} s, {peak:.0f} MB"
            print(message, file=sys.stderr, flush=True)
        rounds.append(lines)
    return rounds


def worst(differences):
    """Returns the largest difference, or None if one is None."""
    differences = list(differences)
    return None if None in differences else largest(differences)


def summary(case, rounds):
    """Returns medians, ratios over the rounds and the difference from our results, by side."""
    found = {}
    for side in rounds[0]:
        lines = [turn[side] for turn in rounds]
        seconds = [case.seconds(line) for line in lines]
        ratios = [case.seconds(turn[side]) / case.seconds(turn["ours"]) for turn in rounds]
        memory = [turn[side]["peak_mb"] / turn["ours"]["peak_mb"] for turn in rounds]
        difference = None
        if side != "ours":
            difference = worst(case.difference(turn["ours"], turn[side]) for turn in rounds)
        found[side] = {
            "seconds": statistics.median(seconds),
            "first_seconds": statistics.median(line["first_seconds"] for line in lines),
            "peak_mb": statistics.median(line["peak_mb"] for line in lines),
            "times_ours": statistics.median(ratios),
            "times_ours_range": [min(ratios), max(ratios)],
            "memory_times_ours": statistics.median(memory),
            "difference": difference,
            "words": case.extra(side, lines[0]),
        }
    return found


def duration(seconds):
    return f"{seconds:.2f} s" if seconds >= 0.5 else f"{1e3 * seconds:.3g} ms"


def table(case, found):
    rows = [
        f"| {case.title} | time | times ours (range over the rounds) | peak memory | times ours "
        "| difference | |",
        "|---" * 7 + "|",
    ]
    for side, f in found.items():
        low, high = f["times_ours_range"]
        speed, memory, difference = "1", "1", "–"
        if side != "ours":
            speed = f"{f['times_ours']:.2f} ({low:.2f} to {high:.2f})"
            memory = f"{f['memory_times_ours']:.2f}"
            difference = "–" if f["difference"] is None else f"{f['difference']:.1e}"
        name = side if side == "ours" else f"PyTorch, {side}"
        rows.append(
            f"| {name} | {duration(f['seconds'])} | {speed} | {f['peak_mb']:.0f} MB | {memory} "
            f"| {difference} | {f['words']} |"
        )
    return "\n".join(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binaries", help="folder of the programs `step` and `mtil-bench`")
    parser.add_argument("folder", help="folder written by `step make`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(CASES))
    parser.add_argument(
        "--variants", type=lambda text: text.split(","), help="variants of PyTorch; all by default"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--steps",
        type=int,
        default=2,
        help="timed steps or passes per process, after an untimed one",
    )
    parser.add_argument("--tasks", help="tasks of the embedded suite for `mini`; all by default")
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
        names = ("rounds", "threads", "steps", "tasks")
        settings = {name: getattr(options, name) for name in names}
        settings["torch"], settings["processors"] = version("torch"), os.cpu_count()
        everything[name] = {"settings": settings, "summary": found, "rounds": rounds}
        tables.append(table(case, found))
        print(tables[-1], flush=True)
        for side, f in found.items():
            if f["difference"] is None and side != "ours" and case.compared:
                wrong.append(f"{name}, {side}: the results cannot be compared with ours")
            if f["difference"] is not None and not f["difference"] <= LARGEST_DIFFERENCE:
                wrong.append(f"{name}, {side}: differs from ours by {f['difference']:.1e}")
        # Written after each case, so that a failure of a later case loses nothing.
        results.write_text(json.dumps({"cases": everything}, indent=1) + "\n")
        (Path(options.folder) / "compare.md").write_text("\n\n".join(tables) + "\n")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
