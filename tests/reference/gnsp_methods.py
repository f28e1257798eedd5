"""GNSP, its parts, GPM, Adam-NSCL and LoRA on three tasks of a tiny CLIP, in plain PyTorch.

The methods are written from their formulas.

Run:   python tests/reference/gnsp_methods.py tests/data/clip/tiny tests/data/methods
Made with: Python 3.11, torch 2.15.0, safetensors 0.8.0, tokenizers 0.23.3 (CPU, one thread).

Writes `gnsp.safetensors` and `gnsp.json`. The data, the settings and the digests are those of
`methods_two_tasks.py`: the batch is the whole training set of a task and the reference pairs are
one batch, so no order and no draw of the program under test matters. All figures are of a float32
run. Every method also runs in float64, which bounds the part of a difference that is rounding.

    L = CE + lambda_cd CD + lambda_map MAP (GNSP src/models/finetune_gnsp.py:245-362), on the first
    task too; teacher: the pretrained model; rows of the losses: total, task, distillation,
    alignment.
    On the first task, all parameters but `logit_scale` train. On later tasks, with a projection,
    only the MLP weights of the vision tower and `visual_projection.weight` train (:112-121);
    without one, all do.

    memory  after a task, with the new weights: G = X^T X over the inputs X of each projected
            weight, all tokens, the whole training set as one batch
            (src/models/get_data_matrix.py:62-116)
      sum   M <- M + G; with `norms`, G is divided by its Frobenius norm, and first
            visual_projection's M by its own
      basis GPM (Saha et al. 2021, arXiv 2103.09762, eq. 5, 8, 9): with the basis Q so far,
            G' = (I - QQ^T) G (I - QQ^T) and its eigenvalues S', the fewest leading directions with
            tr G - tr G' + S'_1 + .. + S'_k >= e_t tr G join Q, where e_t = 0.97 + 0.003 t
            (GPM main_cifar100.py:190-193)
    rank    the number of protected directions U of M, eigenvalues S descending
      tail  the smallest k with sum_{j>=k} S_j < 0.15 sum_j S_j (finetune_gnsp.py:134-147)
      ratio S_j > 10 S_n is protected (Wang et al. 2021, Adam-NSCL optim/adam_svd.py
            `get_transforms`). The data have fewer rows than features, so S_n is zero; values below
            1e-7 S_1 count as zero
    site    gradient: g <- g - g U U^T before AdamW (finetune_gnsp.py:429-448); update: AdamW's
            step, likewise (Adam-NSCL)

    lora    every weight W of attention (query, key and value as one) and MLP of both towers is
            W + (alpha / r) A B, in the layout [in, out]; A is normal with deviation 1/r, B is zero.
            Only A and B train. They are added to W after each task, and the next task has new ones
            (Hu et al. 2021, arXiv 2106.09685). A is drawn by the rule of the program under test
            (`adapter`) and not compared.

gnsp.json
    methods       {name: {lr [t][k], losses [t][k][part], ranks [t]{name: directions protected in
                  task t}, drift [t]{name: displacement of the outputs on them in task t,
                  |dW U| / |W U|}, logits [stage][task][image][class], first and ensemble
                  [stage][task], f32_against_f64}}
        first, ensemble: accuracies in %, of template 0 and of the mean of the normalised features
        of both templates, normalised again; those of GNSP's own rule are `ensemble` until a task is
        learned and `first` after its own stage
gnsp.safetensors
    {method}.digest{t}, {method}.final.{name}: as in methods.safetensors
    {method}.memory.{name}: M after the second task; of a basis Q, the projector I - QQ^T
"""

import argparse
import hashlib
import json
import math
import struct
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tiny_clip import distillation, encode_image, encode_text, learning_rate, smoothed_ce
from methods_two_tasks import (
    KEPT,
    AdamW,
    digest,
    largest,
    loss_difference,
    one_hot,
    prepare,
    relative,
    signs,
)

TASKS = 3
# Smallest difference of the cosines of two classes that is certain in float32.
BORDER = 2e-6
FAMILY = dict(
    lambda_cd=1.0,
    lambda_map=0.75,
    tail=0.15,
    energy=0.97,
    energy_step=0.003,
    ratio=10.0,
    lora_rank=4,
    lora_alpha=4.0,
    lora_seed=1,
)
NULL_SPACE = dict(site="gradient", history="sum", norms=True, rule="tail")
METHODS = {
    "gnsp": dict(cd=True, map=True, projection=NULL_SPACE),
    "gnsp-update": dict(cd=True, map=True, projection=dict(NULL_SPACE, site="update")),
    "cd": dict(cd=True),
    "map": dict(map=True),
    "cd-map": dict(cd=True, map=True),
    "null-space": dict(projection=NULL_SPACE),
    "gpm": dict(projection=dict(site="gradient", history="basis", norms=False, rule="energy")),
    "adam-nscl": dict(projection=dict(site="update", history="sum", norms=False, rule="ratio")),
    "lora": dict(lora=True),
}


# ---- projection ---------------------------------------------------------------------------------


def grams(p, world, t):
    seen = {}

    def note(name, x):
        x = x.reshape(-1, x.shape[-1])
        seen[name] = x.T @ x

    with torch.no_grad():
        encode_image(p, world["cfg"], world["tasks"][t]["train_pixels"], note)
    return seen


def spectrum(m):
    """Eigenvalues, descending, and their eigenvectors, in float64."""
    values, vectors = torch.linalg.eigh(m.double())
    return values.flip(0).clamp(min=0), vectors.flip(1)


def cut(shares, limit):
    """Asserts that no share is so near to the limit that rounding would decide the rank."""
    distance = (torch.tensor(shares) - limit).abs().min().item()
    assert distance > 1e-5, f"a rank is decided by {distance:.1e}: take another seed"


def grow(q, g, energy):
    """The basis q [n, k], extended by the directions of g that q does not explain."""
    g = g.double()
    n = len(g)
    outside = torch.eye(n, dtype=g.dtype) - q @ q.T
    rest = outside @ g @ outside
    values, vectors = spectrum(rest)
    explained = g.trace() - rest.trace()
    shares = [((explained + values[:k].sum()) / g.trace()).item() for k in range(n + 1)]
    cut(shares, energy)
    k = next(k for k, share in enumerate(shares) if share >= energy)
    return torch.cat([q, vectors[:, :k]], 1)


def protected(m, rule):
    values, vectors = spectrum(m)
    n = len(values)
    if rule == "tail":
        shares = [(values[k:].sum() / values.sum()).item() for k in range(n + 1)]
        cut(shares, FAMILY["tail"])
        k = next(k for k, share in enumerate(shares) if share < FAMILY["tail"])
    else:
        floor = 1e-7 * values[0]
        smallest = values[-1] if values[-1] > floor else 0.0
        limit = max(FAMILY["ratio"] * smallest, floor)
        logs = (values.clamp(min=1e-30) / limit).log10().abs()
        assert logs.min() > 0.001, (
            f"a rank is decided by a factor of {10 ** logs.min().item():.3f}: take another seed"
        )
        k = int((values > limit).sum())
    return vectors[:, :k]


class Memory:
    def __init__(self, rules):
        self.rules, self.kept = rules, {}

    def absorb(self, seen, t):
        for name, g in seen.items():
            if self.rules["history"] == "basis":
                q = self.kept.get(name, torch.zeros(len(g), 0, dtype=torch.float64))
                self.kept[name] = grow(q, g, FAMILY["energy"] + FAMILY["energy_step"] * t)
                continue
            if self.rules["norms"]:
                # Divides the batch by its norm, then the sum (over one batch) by its own norm.
                g = g / g.norm()
                g = g / g.norm()
            before = self.kept.get(name)
            if before is not None and self.rules["norms"] and name == "visual_projection.weight":
                before = before / before.norm()
            self.kept[name] = g if before is None else before + g

    def matrices(self):
        """The sums; for a basis Q, I - QQ^T."""
        if self.rules["history"] == "basis":
            return {n: torch.eye(len(q), dtype=q.dtype) - q @ q.T for n, q in self.kept.items()}
        return dict(self.kept)

    def directions(self, dtype):
        if self.rules["history"] == "basis":
            return {n: q.to(dtype) for n, q in self.kept.items()}
        return {n: protected(m, self.rules["rule"]).to(dtype) for n, m in self.kept.items()}


# ---- adapters -----------------------------------------------------------------------------------


def expanded(seed):
    """The ChaCha8 key that PCG32 derives from a seed."""
    state, key, mask = seed, [], (1 << 64) - 1
    for _ in range(8):
        state = (state * 6364136223846793005 + 11634580027462260723) & mask
        word, turn = (((state >> 18) ^ state) >> 27) & 0xFFFFFFFF, state >> 59
        key.append((word >> turn | word << (32 - turn)) & 0xFFFFFFFF)
    return key


def chacha8(key):
    """The 64-bit numbers of ChaCha8."""
    turned = lambda x, n: (x << n | x >> (32 - n)) & 0xFFFFFFFF
    counter = 0
    while True:
        begin = [
            0x61707865,
            0x3320646E,
            0x79622D32,
            0x6B206574,
            *key,
            counter & 0xFFFFFFFF,
            counter >> 32,
            0,
            0,
        ]
        x = begin[:]

        def quarter(a, b, c, d):
            for into, other, last, n in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                x[into] = (x[into] + x[other]) & 0xFFFFFFFF
                x[last] = turned(x[last] ^ x[into], n)

        for _ in range(4):
            for i in range(4):
                quarter(i, 4 + i, 8 + i, 12 + i)
            for i in range(4):
                quarter(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
        words = [(a + b) & 0xFFFFFFFF for a, b in zip(x, begin)]
        yield from (words[i] | words[i + 1] << 32 for i in range(0, 16, 2))
        counter += 1


def number_of(data):
    return struct.unpack("<Q", hashlib.sha256(data).digest()[:8])[0]


def adapter(path, t, rows, rank):
    """The initial A of the weight at `path` of clip-model, [rows, rank]: Box-Muller normals."""
    packed = lambda *numbers: b"".join(struct.pack("<Q", n) for n in numbers)
    seed = number_of(packed(FAMILY["lora_seed"], 11, t))
    draws = chacha8(expanded(number_of(packed(seed, number_of(f"{path}.lora.a".encode())))))
    uniform = lambda: (next(draws) >> 11) / (1 << 53)
    values = []
    for _ in range(rows * rank):
        u, v = uniform(), uniform()
        values.append(math.sqrt(-2 * math.log(1 - u)) * math.cos(2 * math.pi * v) / rank)
    return torch.tensor(values, dtype=torch.float32).view(rows, rank)


def adapters(weights, t):
    """{path of clip-model: (names of the weights, A, B)}."""
    out, rank = {}, FAMILY["lora_rank"]
    for tower, ours in (("vision_model", "visual"), ("text_model", "text")):
        for layer in range(
            sum(
                n.startswith(f"{tower}.encoder.layers.") and n.endswith("mlp.fc1.weight")
                for n in weights
            )
        ):
            theirs, path = f"{tower}.encoder.layers.{layer}", f"{ours}.blocks.{layer}"
            for names, name in (
                ([f"self_attn.{x}_proj" for x in "qkv"], "attn.in_proj"),
                (["self_attn.out_proj"], "attn.out_proj"),
                (["mlp.fc1"], "mlp.c_fc"),
                (["mlp.fc2"], "mlp.c_proj"),
            ):
                names = [f"{theirs}.{n}.weight" for n in names]
                columns, rows = (sum(len(weights[n]) for n in names), weights[names[0]].shape[1])
                out[f"{path}.{name}.weight"] = (
                    names,
                    adapter(f"{path}.{name}.weight", t, rows, rank),
                    torch.zeros(rank, columns),
                )
    return out


def with_adapters(p, spec, q):
    out, scale = dict(p), FAMILY["lora_alpha"] / FAMILY["lora_rank"]
    for path, (names, _, _) in spec.items():
        delta = (scale * q[path + ".a"] @ q[path + ".b"]).T
        for n, part in zip(names, delta.split([len(p[n]) for n in names])):
            out[n] = p[n] + part
    return out


# ---- the run ------------------------------------------------------------------------------------


def losses(method, world, t, p, pretrained):
    s, cfg, task, r = world["settings"], world["cfg"], world["tasks"][t], world["reference"]
    scale = p["logit_scale"].exp()
    z = scale * encode_image(p, cfg, task["train_pixels"]) @ encode_text(p, cfg, task["rows"][0]).T
    parts = [
        smoothed_ce(z, one_hot(task["train_labels"], z.shape[1], z), s["smoothing"]),
        torch.zeros(()),
        torch.zeros(()),
    ]
    if method.get("cd") or method.get("map"):
        with torch.no_grad():
            zt = (
                scale
                * encode_image(pretrained, cfg, r["pixels"])
                @ encode_text(pretrained, cfg, r["rows"]).T
            )
        zs = scale * encode_image(p, cfg, r["pixels"]) @ encode_text(p, cfg, r["rows"]).T
        if method.get("cd"):
            kd = [distillation(a, b, s["temperature"]) for a, b in ((zt, zs), (zt.T, zs.T))]
            parts[1] = FAMILY["lambda_cd"] * sum(kd)
        if method.get("map"):
            labels = torch.tensor(r["labels"])
            same = (labels[:, None] == labels[None, :]).to(zs.dtype)
            y = same / same.sum(1, keepdim=True)
            parts[2] = FAMILY["lambda_map"] * (
                smoothed_ce(zs, y, s["smoothing"]) + smoothed_ce(zs.T, y, s["smoothing"])
            )
    return [sum(parts), *parts]


def evaluate(p, world):
    """Logits against template 0; accuracies of template 0 and of both templates."""
    logits, first, ensemble = [], [], []
    with torch.no_grad():
        for task in world["tasks"]:
            f = encode_image(p, world["cfg"], task["test_pixels"])
            g = [encode_text(p, world["cfg"], rows) for rows in task["rows"]]
            logits.append((p["logit_scale"].exp() * f @ g[0].T).tolist())
            mean = sum(g)
            for out, classes in ((first, g[0]), (ensemble, mean / mean.norm(dim=1, keepdim=True))):
                z = f @ classes.T
                two = z.topk(2).values
                gap = (two[:, 0] - two[:, 1]).min().item()
                assert gap > BORDER, (
                    f"a test image is on the border of two classes by {gap:.1e}: take another seed"
                )
                out.append(100.0 * (z.argmax(1) == task["test_labels"]).double().mean().item())
    return logits, first, ensemble


def run(method, world, weights, dtype):
    s = world["settings"]
    pretrained = {n: w.to(dtype) for n, w in weights.items()}
    p = {n: w.clone() for n, w in pretrained.items()}
    out = dict(lr=[], losses=[], ranks=[], drift=[], logits=[], first=[], ensemble=[], weights=[])
    memory = Memory(method["projection"]) if "projection" in method else None
    for t in range(TASKS):
        spaces = memory.directions(dtype) if memory else {}
        out["ranks"].append({n: u.shape[1] for n, u in spaces.items()})
        spec = adapters(weights, t) if method.get("lora") else {}
        q = {
            f"{path}.{k}": w.to(dtype)
            for path, (_, a, b) in spec.items()
            for k, w in (("a", a), ("b", b))
        }
        trained = q if spec else p
        names = list(q) if spec else list(spaces) or [n for n in p if n != "logit_scale"]
        adamw = AdamW(s)
        out["lr"].append([learning_rate(k, s) for k in range(s["steps"])])
        out["losses"].append([])
        for lr in out["lr"][-1]:
            for n in names:
                trained[n].requires_grad_(True)
            row = losses(method, world, t, with_adapters(p, spec, q), pretrained)
            grads = torch.autograd.grad(row[0], [trained[n] for n in names])
            if spaces and method["projection"]["site"] == "gradient":
                grads = [g - g @ spaces[n] @ spaces[n].T for n, g in zip(names, grads)]
            before = {n: trained[n].detach() for n in names}
            adamw.step(trained, names, grads, lr)
            if spaces and method["projection"]["site"] == "update":
                for n, u in spaces.items():
                    step = trained[n] - before[n]
                    trained[n] = before[n] + step - step @ u @ u.T
            out["losses"][-1].append([x.item() for x in row])
        start, p = (
            out["weights"][-1] if t else p,
            {n: w.detach() for n, w in with_adapters(p, spec, q).items()},
        )
        moved = {
            n: ((p[n] - start[n]) @ u).norm() / (start[n] @ u).norm() for n, u in spaces.items()
        }
        out["drift"].append({n: x.item() for n, x in moved.items()})
        if memory and t < TASKS - 1:
            memory.absorb(grams(p, world, t), t)
        logits, first, ensemble = evaluate(p, world)
        out["logits"].append(logits)
        out["first"].append(first)
        out["ensemble"].append(ensemble)
        out["weights"].append({n: w.clone() for n, w in p.items()})
    out["memory"] = memory.matrices() if memory else {}
    return out


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="Hugging Face directory of the tiny CLIP")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    _, weights, data, worlds = prepare(args.checkpoint)
    stored = load_file(args.out / "methods.safetensors")
    assert torch.equal(stored["task0.train_images"], data["tasks"][0]["train_images"]), (
        "methods.safetensors is of another world"
    )
    names = sorted(n for n in weights if n != "logit_scale" and not n.endswith("k_proj.bias"))
    r = signs(max(w.numel() for w in weights.values()))
    record, tensors = dict(settings=FAMILY, tasks=TASKS, methods={}), {}
    for name, method in METHODS.items():
        a, b = (run(method, worlds[d], weights, d) for d in (torch.float32, torch.float64))
        for key in ("ranks", "first", "ensemble"):
            assert a[key] == b[key], f"{name}: float32 and float64 have other {key}"
        digests = [[digest(w, weights, names, r) for w in x["weights"]] for x in (a, b)]
        apart = max(
            ((x - y).abs() / y[:, :1].clamp(min=1e-12)).max().item() for x, y in zip(*digests)
        )
        kept = max(relative(a["weights"][-1][n], b["weights"][-1][n]) for n in KEPT)
        held = max([relative(m, b["memory"][n]) for n, m in a["memory"].items()], default=0.0)
        difference = dict(
            loss=loss_difference(a, b),
            logits=largest(a["logits"], b["logits"]),
            digest=apart,
            kept=kept,
            memory=held,
        )
        record["methods"][name] = dict(
            {k: v for k, v in a.items() if k not in ("weights", "memory")},
            f32_against_f64=difference,
        )
        for t, d in enumerate(digests[0]):
            tensors[f"{name}.digest{t}"] = d
        tensors |= {f"{name}.final.{n}": a["weights"][-1][n] for n in KEPT}
        tensors |= {f"{name}.memory.{n}": m.float() for n, m in a["memory"].items()}
        ends = "  ".join(f"{l[0][0]:.4f}->{l[-1][0]:.4f}" for l in a["losses"])
        print(f"{name:12} loss {ends}  ranks {[sorted(set(x.values())) for x in a['ranks'][1:]]}")
        print(
            " " * 13
            + "float32 against float64: "
            + "  ".join(f"{k} {v:.1e}" for k, v in difference.items())
        )
    save_file(
        {k: v.detach().contiguous().clone() for k, v in tensors.items()},
        args.out / "gnsp.safetensors",
    )
    (args.out / "gnsp.json").write_text(json.dumps(record, separators=(",", ":")) + "\n")
    print({f.name: f.stat().st_size for f in sorted(args.out.glob("gnsp.*"))})


if __name__ == "__main__":
    main()
