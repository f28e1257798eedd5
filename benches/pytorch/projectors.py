"""Projectors of ViT-B/16 in PyTorch, as in the published code, compared with ours.

Run:   cargo build --release -p gnsp-benches
       vit_b16_projectors grams DIR && vit_b16_projectors build DIR
       python benches/pytorch/projectors.py target/release/vit_b16_projectors DIR [ROUNDS]
Needs: torch, numpy, safetensors

The inputs are DIR/grams.safetensors (25 Gram matrices as upper triangles) and
DIR/projectors.safetensors (our 25 dense projectors). The script times ours, torch.linalg.eigh and
torch.svd in turn on the same processors, each on all 25 matrices. Then it compares our projectors
with those of torch.linalg.eigh in float64 and of torch.svd in float32, as published
(GNSP src/models/finetune_gnsp.py:134-166).
"""

import json
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
from safetensors.numpy import load_file

RHO = 0.15


def rank(values):
    """Returns the smallest k whose tail is below RHO of the sum of the descending values."""
    values = values.double()
    tails = torch.flip(torch.cumsum(torch.flip(values, [0]), 0), [0])
    return int((tails / tails[0] >= RHO).sum())


def by_svd(m):
    _, s, v = torch.svd(m)
    k = rank(s)
    return k, v[:, :k], s


def by_eigh(m):
    s, v = torch.linalg.eigh(m)
    s, v = torch.flip(s, [0]), torch.flip(v, [1])
    k = rank(s.clamp(min=0))
    return k, v[:, :k], s


def projector(u):
    u = u.double()
    return torch.eye(len(u), dtype=torch.float64) - u @ u.T


def difference(a, b):
    return float(torch.linalg.norm(a - b) / torch.linalg.norm(b))


def main():
    binary, folder = sys.argv[1:3]
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 3
    grams = {}
    for name, packed in load_file(f"{folder}/grams.safetensors").items():
        n = int((np.sqrt(8 * len(packed) + 1) - 1) / 2)
        m = np.zeros((n, n), dtype=np.float32)
        m[np.triu_indices(n)] = packed
        grams[name] = torch.from_numpy(m + np.triu(m, 1).T)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {len(grams)} matrices")

    times = {"ours": [], "eigh": [], "svd": []}
    found = {}
    for turn in range(rounds):
        command = [binary, "time", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        ours = json.loads(done.stdout)
        times["ours"].append(ours["seconds"])
        for name, solve in (("eigh", by_eigh), ("svd", by_svd)):
            if name == "svd" and turn > 0:
                continue  # It takes minutes.
            started = time.perf_counter()
            found[name] = {path: solve(m)[:2] for path, m in grams.items()}
            times[name].append(time.perf_counter() - started)
        line = ", ".join(f"{name} {seconds[-1]:.2f} s" for name, seconds in times.items())
        print(f"round {turn + 1}: {line}", flush=True)
    middle = {k: statistics.median(v) for k, v in times.items()}
    print(f"ours: {middle['ours']:.2f} s, peak {ours['peak_mb']:.0f} MB of additional memory")
    for name in ("eigh", "svd"):
        print(f"torch {name}: {middle[name]:.2f} s, {middle[name] / middle['ours']:.1f} times ours")

    mine = load_file(f"{folder}/projectors.safetensors")
    print(
        "parameter, n, k, relative gap at the cut, "
        "ours - eigh f64, ours - svd f32, svd f32 - eigh f64"
    )
    worst = [0.0, 0.0, 0.0]
    for path, m in grams.items():
        k, u, s = by_eigh(m.double())
        exact, published = projector(u), projector(found["svd"][path][1])
        p = torch.from_numpy(mine[path]).double()
        row = [difference(p, exact), difference(p, published), difference(published, exact)]
        worst = [max(a, b) for a, b in zip(worst, row)]
        gap = float((s[k - 1] - s[k]) / s[0])
        same = "" if k == ours["ranks"][path] == found["svd"][path][0] else "  RANKS DIFFER"
        print(f"{path}, {len(m)}, {k}, {gap:.1e}, " + ", ".join(f"{x:.1e}" for x in row) + same)
    print("worst: " + ", ".join(f"{x:.1e}" for x in worst))


main()
