"""Matrix products at the shapes of training by our libraries, PyTorch, NumPy and BLAS libraries.

Run:   cargo build --release -p gnsp-benches --bin products [--features blas]
       python benches/pytorch/products.py target/release/products [--threads 2] [--rounds 3]
                                          [--library NAME=FILE.so[,VARIABLE=VALUE]]…
Needs: torch, numpy, threadpoolctl

    --library openblas=libopenblas.so.0                    a library with the CBLAS interface, by
                                                           ctypes
    --library skylakex=libopenblas.so.0,OPENBLAS_CORETYPE=SkylakeX
    --library torch-avx512=torch,LD_PRELOAD=avx512.so      PyTorch or NumPy in another environment

Each library runs in a process of its own. A round runs all of them in turn. The output is a
Markdown table of the medians of the rounds' medians in GFLOP/s, after a description of the
processor: caches, clock and theoretical peak. The environment variables OPENBLAS_CORETYPE and
OPENBLAS_L2_SIZE are unset, because they select other kernels than a library would by default.
"""

import argparse
import ctypes
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

SHAPES = {
    "ViT-B/32, 16 images": (16 * 50, 768, 3072),
    "ViT-B/16, 8 images": (8 * 197, 768, 3072),
    "ViT-B/16, 16 images": (16 * 197, 768, 3072),
    "ViT-L/14, 8 images": (8 * 257, 1024, 4096),
    "embedded, 64 images": (64 * 17, 128, 512),
}
PRODUCTS = ("X·W", "G·Wᵀ", "Xᵀ·G", "XᵀX")


def timed(call, limit):
    """Returns the sorted seconds of at least seven calls, after an untimed one."""
    call()
    seconds, start = [], time.perf_counter()
    while len(seconds) < 7 or time.perf_counter() - start < limit:
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return sorted(seconds)


def torch_products(threads):
    import torch

    torch.set_num_threads(threads)

    def multiply(a, b):
        return lambda: torch.mm(a, b)

    return torch.randn, lambda x, w, g: {
        "X·W": multiply(x, w),
        "G·Wᵀ": multiply(g, w.T),
        "Xᵀ·G": multiply(x.T, g),
        "XᵀX": multiply(g.T, g),
    }


def numpy_products():
    import numpy

    random = numpy.random.default_rng(1)

    def multiply(a, b):
        return lambda: a @ b

    return lambda *shape: random.standard_normal(shape, dtype="float32"), lambda x, w, g: {
        "X·W": multiply(x, w),
        "G·Wᵀ": multiply(g, w.T),
        "Xᵀ·G": multiply(x.T, g),
        # NumPy calls SYRK for the product of a matrix and its transpose.
        "XᵀX": multiply(g.T, g),
    }


def cblas_products(file):
    import numpy

    library = ctypes.CDLL(file)
    random = numpy.random.default_rng(1)
    row, plain, transposed, lower = 101, 111, 112, 122

    def pointer(matrix):
        return matrix.ctypes.data_as(ctypes.c_void_p)

    def multiply(a, b, a_transposed, b_transposed):
        m, k = a.shape[::-1] if a_transposed else a.shape
        n = b.shape[0] if b_transposed else b.shape[1]
        output = numpy.empty((m, n), dtype="float32")
        flag = {False: plain, True: transposed}
        arguments = (
            row,
            flag[a_transposed],
            flag[b_transposed],
            m,
            n,
            k,
            ctypes.c_float(1),
            pointer(a),
            a.shape[1],
        )
        arguments += (pointer(b), b.shape[1], ctypes.c_float(0), pointer(output), n)

        def call():
            library.cblas_sgemm(*arguments)

        call()
        left, right = (a.T if a_transposed else a), (b.T if b_transposed else b)
        at = numpy.linspace(0, m - 1, 7).astype(int)
        expected = left[at].astype("float64") @ right.astype("float64")
        wrong = numpy.abs(output[at] - expected).max() / numpy.abs(expected).max()
        if not wrong < 1e-5:
            raise SystemExit(f"{file} computes wrong products: {wrong:.1e} of the largest entry")
        return call

    def gram(g):
        n, k = g.shape[1], g.shape[0]
        output = numpy.empty((n, n), dtype="float32")
        arguments = (
            row,
            lower,
            transposed,
            n,
            k,
            ctypes.c_float(1),
            pointer(g),
            n,
            ctypes.c_float(0),
            pointer(output),
            n,
        )
        return lambda: library.cblas_ssyrk(*arguments)

    return lambda *shape: random.standard_normal(shape, dtype="float32"), lambda x, w, g: {
        "X·W": multiply(x, w, False, False),
        "G·Wᵀ": multiply(g, w, False, True),
        "Xᵀ·G": multiply(x, g, True, False),
        "XᵀX": gram(g),
    }


def measure(way, threads, limit):
    """Prints a JSON line for each shape and product."""
    makers = {"torch": lambda: torch_products(threads), "numpy": numpy_products}
    make, products = makers.get(way, lambda: cblas_products(way))()
    for shape, (rows, width, hidden) in SHAPES.items():
        calls = products(make(rows, width), make(width, hidden), make(rows, hidden))
        for product, call in calls.items():
            operations = rows * hidden * hidden if product == "XᵀX" else 2 * rows * width * hidden
            seconds = timed(call, limit)
            median = operations / statistics.median(seconds) / 1e9
            print(
                json.dumps(
                    {
                        "shape": shape,
                        "product": product,
                        "median": median,
                        "best": operations / seconds[0] / 1e9,
                    }
                )
            )


def processor(clock):
    """Returns the description of the processor and its peak at the measured clock in MHz."""
    text = Path("/proc/cpuinfo").read_text()
    find = lambda key: re.search(rf"^{key}\s*: (.*)$", text, re.M).group(1)
    flags, family, stated = find("flags").split(), int(find("cpu family")), float(find("cpu MHz"))
    amd = "AMD" in find("vendor_id")
    # Operations per cycle: two fused multiply-adds on 16 or 8 numbers. Zen 4 takes two cycles
    # for 16 numbers.
    wide = "avx512f" in flags and not (amd and family < 26)
    per_cycle = 64 if wide else 32 if "fma" in flags else 16
    cores = len(os.sched_getaffinity(0))
    caches = []
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size, ways = (
            (index / name).read_text().strip()
            for name in ("level", "type", "size", "ways_of_associativity")
        )
        caches.append(f"L{level} {kind.lower()} {size}, {ways} ways")
    vectors = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "no AVX2"
    name = f"{find('model name')}, family {family}, {vectors}"
    peak = clock * 1e6 * per_cycle * cores / 1e9
    return (
        f"{name}, {cores} processors at {clock:.0f} MHz (stated: {stated:.0f}): "
        f"at most {peak:.0f} GFLOP/s. "
        f"Caches: {'; '.join(caches)}."
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("binary")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--library", action="append", default=[])
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return measure(options.measure, options.threads, options.seconds)
    base = {
        k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
    }
    threads = ("OMP", "OPENBLAS", "MKL", "BLIS", "RAYON")
    base |= {f"{name}_NUM_THREADS": str(options.threads) for name in threads}
    jobs = {}
    single = {f"{name}_NUM_THREADS": "1" for name in threads if name != "RAYON"}
    jobs["ours"] = ([options.binary, "--seconds", str(options.seconds)], base | single)
    for library in ["torch=torch", "numpy=numpy", *options.library]:
        name, _, rest = library.partition("=")
        way, *variables = rest.split(",")
        command = [
            sys.executable,
            __file__,
            "-",
            "--measure",
            way,
            "--threads",
            str(options.threads),
            "--seconds",
            str(options.seconds),
        ]
        jobs[name] = (command, base | dict(v.split("=", 1) for v in variables))
    rates, clocks = {}, []
    for round in range(options.rounds):
        for name in jobs if round % 2 == 0 else reversed(jobs):
            command, environment = jobs[name]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{name}: {done.stderr.strip() or done.returncode}")
            for line in map(json.loads, done.stdout.splitlines()):
                if "clock_mhz" in line:
                    clocks.append(line["clock_mhz"])
                    continue
                key = line["shape"], line["product"], line.get("way", name)
                rates.setdefault(key, []).append(line["median"])
    ways = list(dict.fromkeys(way for _, _, way in rates))
    print(processor(statistics.median(clocks)))
    print(
        f"Medians of {options.rounds} rounds, {options.threads} threads, GFLOP/s; "
        "XᵀX counts one triangle.\n"
    )
    print("| | | " + " | ".join(ways) + " |")
    print("|---" * (len(ways) + 2) + "|")
    for shape, (rows, width, hidden) in SHAPES.items():
        for product in PRODUCTS:
            cells = [rates.get((shape, product, way)) for way in ways]
            cells = ["" if cell is None else f"{statistics.median(cell):.0f}" for cell in cells]
            print(
                f"| {shape}: {rows} x {width} x {hidden} | {product} | " + " | ".join(cells) + " |"
            )


if __name__ == "__main__":
    main()
