r"""Filter for collapsed stacks that makes the flame graph of a training step readable.

It keeps the frames of this workspace and of Burn's autodiff, and ends each stack with the kind of
its innermost frame: matrix products, packing, copying and so on.

Run:   cargo build --release --workspace --bins \
           --config 'profile.release.debug="line-tables-only"' \
           --config 'profile.release.strip="none"'
       perf record -F 49 --call-graph dwarf,16384 -o step.data \
           target/release/step train DIR --steps 2
       perf script -i step.data | inferno-collapse-perf | python benches/flamegraph.py \
           | inferno-flamegraph >step.svg
Needs: perf, inferno (cargo install inferno)

The build needs line tables for inlined functions. The microkernels of matrix products are assembly
without unwinding tables, so their callers are unknown and they appear at the bottom of the graph.
"""

import collections
import re
import sys

KINDS = [
    ("microkernel", "matrix products"),
    ("pack", "packing for matrix products"),
    ("clear_page", "the kernel clears pages"),
    ("memset", "zeroing"),
    ("memmove", "copying"),
    ("memcpy", "copying"),
    ("pulp", "vectorised loops"),
    ("vectorize", "vectorised loops"),
]
CRATES = (
    "clip_kernels::host",
    "clip_losses",
    "clip_model::model",
    "gnsp_optimizer",
    "host_gemm",
    "mtil_engine::run",
    "burn_autodiff",
)
OURS = re.compile(rf"^<?&?\b((?:{'|'.join(CRATES)})::[a-z_0-9:]+)")
# A vectorised loop: the module of its kernel.
LOOP = re.compile(r"^with_simd<(clip_kernels::host::[a-z_0-9]+)")


def thinned(stack):
    frames = stack.split(";")
    kept = []
    for frame in frames[1:]:
        frame = re.sub(r"::\{closure[^}]*\}|::\{impl[^}]*\}", "", frame)
        found = OURS.match(frame) or LOOP.match(frame)
        name = found.group(1).rstrip(":") if found else None
        if name and kept[-1:] != [name]:
            kept.append(name)
    kind = next((kind for sign, kind in KINDS if sign in frames[-1]), "other")
    return ";".join([*kept[:6], kind])


def main():
    total = collections.Counter()
    for line in sys.stdin:
        stack, count = line.rsplit(" ", 1)
        total[thinned(stack)] += int(count)
    for stack, count in sorted(total.items()):
        print(stack, count)


if __name__ == "__main__":
    main()
