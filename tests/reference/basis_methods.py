"""Low-rank adapters with a chosen basis on three tasks of a tiny CLIP, in plain PyTorch.

The methods are written from their formulas.

Run:   python tests/reference/basis_methods.py tests/data/clip/tiny tests/data/methods
Made with: Python 3.11, torch 2.15.0, safetensors 0.8.0, tokenizers 0.23.3 (CPU, one thread).

Writes `bases.safetensors` and `bases.json`. The data and the digests are those of
`methods_two_tasks.py`, and so are the settings: the batch is the whole training set of a task. All
figures are of a float32 run. Every method also runs in float64, which bounds the part of a
difference that is rounding.

    Weights are W [out, in]; an adapter adds s (A B)^T with A [in, r], B [r, out], s = alpha / r, to
    each of the weights q, k, v and o of every attention of both towers (`kv`: k and v; `all`: also
    both weights of the MLPs). It is merged after each task. Directions are columns.

    keeplora   (arXiv 2601.19659, MaolinLuo/KeepLoRA a17f9c2, MTIL/trainer/trainer.py)
      start    SVD of the pretrained W = U S V^T; M has the leading columns of U (`output`, the
               published code) or V (`input`, the paper) whose cumulative share of S^2 is below the
               energy, and at least one
      task     G = gradient of the task's loss at the start; SVD of G^T - M M^T G^T = U S V^T;
               A = U_r, B = S_r V_r^T, W <- W - s (A B)^T; B trains
      after    X [in, tokens]: the inputs with the new weights; M is extended by the leading left
               singular vectors of X - M M^T X until it explains the energy of X (GPM)
    inflora    (CVPR 2024, LibContinual core/model/InfLoRA_opt.py)
      task     H = X X^T of the new task's inputs with the weights at its start; A = leading left
               singular vectors of H - F F^T H, B = 0; B trains
      after    F is extended as above, by the energy of H of the new weights
    nusa-cl    (arXiv 2510.21175)
      task     SVD of W; k = least count whose share of S^2 reaches the energy; A, B the at most r
               last singular vectors, and a matrix C = 0 between them, which trains alone
    osf        (PEFT src/peft/tuners/osf/utils.py)
      task     SVD of W, the upper half frozen; of the lower half, U_l, S_l and V_l train, from W's
               own values; the gradients (`osf`) or steps (`osf-update`) of U_l and V_l are projected
               off the upper half's vectors
    codyra     (arXiv 2412.01004, Artificer-AI-Lab/CoDyRA c1691e4)
      task     A diag(w) B with A uniform within 1/sqrt(in), B = 0, w normal, drawn by the rule of
               the program under test and not compared; all train
      loss     + the cross-entropy of the classes among the images against the 0/1 matrix [class,
               image], averaged over the classes of all tasks so far
      step     after each update k > 3 (the first half), with the threshold c of the step:
               w <- sign(w) max(|w| - c, 0), and 0 where |w| < z c; z = 2 (the published code), 1
               (`codyra-soft`, the paper)

bases.json
    settings  {method: overrides of the program under test}
    methods   {name: {lr [t][k], losses [t][k][total, task], ranks [t]{name: directions in M or F,
              or trained ranks, after task t}, logits, first, ensemble, f32_against_f64}}: as in
              gnsp.json
bases.safetensors
    {method}.digest{t}, {method}.final.{name}: as in methods.safetensors
"""

import argparse
import json
import math
import struct
from pathlib import Path

import torch
from safetensors.torch import save_file

from tiny_clip import encode_image, encode_text, learning_rate, smoothed_ce
from gnsp_methods import chacha8, cut, evaluate, expanded, grow, number_of
from methods_two_tasks import (
    KEPT,
    digest,
    largest,
    loss_difference,
    one_hot,
    prepare,
    relative,
    signs,
)

TASKS = 3
RANK = 4
SEED = 1
METHODS = {
    "keeplora": dict(
        weights="qkvo", alpha=2.0, decay=0.01, basis="gradient", side="output", energy=0.3,
        text_energy=0.2, inputs=0.6,
    ),
    "keeplora-input": dict(
        weights="qkvo", alpha=2.0, decay=0.01, basis="gradient", side="input", energy=0.3,
        text_energy=0.2, inputs=0.6,
    ),
    "inflora": dict(weights="kv", alpha=2.0, basis="input", inputs=0.6, step=0.05),
    "nusa-cl": dict(weights="qkvo", alpha=4.0, basis="tail", energy=0.85),
    "osf": dict(weights="all", alpha=4096.0, rank=4096, basis="split", share=0.5, site="gradient"),
    "osf-update": dict(
        weights="all", alpha=4096.0, rank=4096, basis="split", share=0.5, site="update"
    ),
    "codyra": dict(
        weights="all", alpha=4.0, basis="gated", beta2=0.9999, threshold=0.3, thresholds=2, zero=2.0
    ),
    "codyra-soft": dict(
        weights="all", alpha=4.0, basis="gated", beta2=0.9999, threshold=0.3, thresholds=2, zero=1.0
    ),
}


def overrides(method):
    """The settings of the program under test."""
    out = [f"lora.rank={method.get('rank', RANK)}", f"lora.alpha={method['alpha']}"]
    if method["basis"] == "gradient":
        out += [
            f"lora.protect.weights.energy={method['energy']}",
            f"lora.protect.weights.text_energy={method['text_energy']}",
        ]
    if "inputs" in method:
        out.append(f"lora.protect.inputs.energy={method['inputs']}")
        # The mean over batches depends on the order, the second moment does not.
        out.append(f"lora.pass_batch={4 if method['basis'] == 'input' else 8}")
    if "step" in method:
        out.append(f"lora.protect.inputs.step={method['step']}")
    if method["basis"] == "gated":
        out += [
            f"lora.gate.max={method['threshold']}",
            f"lora.gate.steps={method['thresholds']}",
        ]
    return out


# ---- weights and their names ---------------------------------------------------------------------


def adapted(weights, which):
    """{name: (path of clip-model, part)} of the adapted weights."""
    out = {}
    for tower, ours in (("vision_model", "visual"), ("text_model", "text")):
        layers = sum(
            n.startswith(f"{tower}.encoder.layers.") and n.endswith("mlp.fc1.weight")
            for n in weights
        )
        for layer in range(layers):
            theirs, path = f"{tower}.encoder.layers.{layer}", f"{ours}.blocks.{layer}"
            for part, c in enumerate("kv" if which == "kv" else "qkv"):
                name = f"{theirs}.self_attn.{c}_proj.weight"
                out[name] = (f"{path}.attn.in_proj.weight", part)
            if which != "kv":
                out[f"{theirs}.self_attn.out_proj.weight"] = (f"{path}.attn.out_proj.weight", 0)
            if which == "all":
                out[f"{theirs}.mlp.fc1.weight"] = (f"{path}.mlp.c_fc.weight", 0)
                out[f"{theirs}.mlp.fc2.weight"] = (f"{path}.mlp.c_proj.weight", 0)
    return out


def uniforms(path, part, factor, t):
    """The draws of a factor by the rule of the program under test."""
    packed = lambda *numbers: b"".join(struct.pack("<Q", n) for n in numbers)
    seed = number_of(packed(SEED, 11, t))
    name = f"{path}.lora.parts.{part}.{factor}"
    draws = chacha8(expanded(number_of(packed(seed, number_of(name.encode())))))
    return lambda: (next(draws) >> 11) / (1 << 53)


def random_factor(path, part, t, rows, rank):
    """A [rows, rank], uniform."""
    draw, limit = uniforms(path, part, "a", t), 1 / math.sqrt(rows)
    values = [(2 * draw() - 1) * limit for _ in range(rows * rank)]
    return torch.tensor(values, dtype=torch.float32).view(rows, rank)


def random_gate(path, part, t, rank):
    """w [1, rank], normal."""
    draw, values = uniforms(path, part, "gate", t), []
    for _ in range(rank):
        u, v = draw(), draw()
        values.append(math.sqrt(-2 * math.log(1 - u)) * math.cos(2 * math.pi * v))
    return torch.tensor(values, dtype=torch.float32).view(1, rank)


# ---- bases --------------------------------------------------------------------------------------


def below(s, energy):
    shares = (s * s).cumsum(0) / (s * s).sum()
    cut(shares.tolist(), energy)
    return int((shares < energy).sum())


def off(m, x):
    return x - m @ (m.T @ x)


def weight_basis(method, w, name):
    u, s, vh = torch.linalg.svd(w.double())
    energy = method["text_energy"] if name.startswith("text") else method["energy"]
    k = max(below(s, energy), 1)
    return (u if method["side"] == "output" else vh.T)[:, :k]


def gather(p, world, t):
    """The inputs [tokens, in] of the attention's weights over a task: its images and prompts."""
    seen = {}

    def note(name, x):
        seen[name] = x.reshape(-1, x.shape[-1]).double()

    task, cfg = world["tasks"][t], world["cfg"]
    with torch.no_grad():
        encode_image(p, cfg, task["train_pixels"], attended=note)
        encode_text(p, cfg, task["rows"][0], note)
    return seen


class Adapters:
    """The factors of all weights in one task."""

    def __init__(self, method, p, names, bases, world, t):
        self.method, self.scale = method, method["alpha"] / method.get("rank", RANK)
        self.factors, self.base, self.held, self.ranks = {}, dict(p), {}, {}
        dtype = p["logit_scale"].dtype
        grads = self.gradients(p, names, world, t) if method["basis"] == "gradient" else {}
        inputs = gather(p, world, t) if method["basis"] == "input" else {}
        for name, (path, part) in names.items():
            w = p[name]
            if method["basis"] == "gradient":
                g = grads[name].double().T
                u, s, vh = torch.linalg.svd(off(bases[name], g), full_matrices=False)
                f = dict(a=u[:, :RANK], b=s[:RANK, None] * vh[:RANK])
            elif method["basis"] == "input":
                h = inputs[name].T @ inputs[name]
                u = torch.linalg.svd(off(bases[name], h))[0]
                f = dict(a=u[:, :RANK], b=torch.zeros(RANK, len(w)))
            elif method["basis"] == "gated":
                f = dict(
                    a=random_factor(path, part, t, w.shape[1], RANK),
                    gate=random_gate(path, part, t, RANK),
                    b=torch.zeros(RANK, len(w)),
                )
            else:
                # [in, out], as the adapter.
                u, s, vh = torch.linalg.svd(w.double().T, full_matrices=False)
                n = len(s)
                if method["basis"] == "tail":
                    r = min(n - below(s, method["energy"]) - 1, RANK)
                    f = dict(a=u[:, n - r :], core=torch.zeros(r, r), b=vh[n - r :])
                else:
                    k = int(method["share"] * n)
                    f = dict(a=u[:, k:], gate=s[None, k:], b=vh[k:])
                    self.held[name] = dict(a=u[:, :k].to(dtype), b=vh[:k].T.to(dtype))
            f = {k: v.to(dtype) for k, v in f.items()}
            self.factors |= {f"{name} {k}": v for k, v in f.items()}
            self.ranks[name] = f["a"].shape[1]
            if method["basis"] in ("gradient", "split"):
                self.base[name] = w - self.delta(name)
        trained = {
            "gradient": ["b"],
            "input": ["b"],
            "tail": ["core"],
            "split": ["a", "gate", "b"],
            "gated": ["a", "gate", "b"],
        }[method["basis"]]
        self.names = [n for n in self.factors if n.split()[1] in trained]

    def gradients(self, p, names, world, t):
        q = {n: w.detach().clone().requires_grad_(n in names) for n, w in p.items()}
        loss = task_loss(q, world, t)[0]
        return dict(zip(names, torch.autograd.grad(loss, [q[n] for n in names])))

    def delta(self, name):
        get = lambda k: self.factors.get(f"{name} {k}")
        x = get("a")
        if get("gate") is not None:
            x = x * get("gate")
        if get("core") is not None:
            x = x @ get("core")
        return self.scale * (x @ get("b")).T

    def weights(self):
        return dict(self.base, **{n: self.base[n] + self.delta(n) for n in self.ranks})

    def projected(self, key, x):
        """A gradient or step without the held directions."""
        name, factor = key.split()
        held = self.held.get(name, {}).get(factor)
        if held is None:
            return x
        return off(held, x) if factor == "a" else off(held, x.T).T

    def shrink(self, k, steps):
        m, dense = self.method, steps / 2
        if m["basis"] != "gated" or k <= dense:
            return
        every = int((steps - dense) // m["thresholds"])
        grown = sum(dense <= i and i % every == 0 for i in range(k + 1))
        c = m["threshold"] * min(grown, m["thresholds"] - 1) / (m["thresholds"] - 1)
        for key in self.names:
            if key.endswith(" gate"):
                w = self.factors[key]
                apart = min((w.abs() - c).abs().min(), (w.abs() - m["zero"] * c).abs().min())
                assert apart > 1e-4, "a gate is on the threshold: take another seed"
                shrunk = w.sign() * (w.abs() - c).clamp(min=0)
                self.factors[key] = torch.where(w.abs() < m["zero"] * c, 0.0, shrunk)


# ---- the run ------------------------------------------------------------------------------------


def task_loss(p, world, t):
    """The loss, normalised features of images and classes, and the scale."""
    s, cfg, task = world["settings"], world["cfg"], world["tasks"][t]
    f, g = encode_image(p, cfg, task["train_pixels"]), encode_text(p, cfg, task["rows"][0])
    scale = p["logit_scale"].exp()
    z = scale * f @ g.T
    return smoothed_ce(z, one_hot(task["train_labels"], z.shape[1], z), s["smoothing"]), f, g, scale


def losses(method, p, world, t):
    task, f, g, scale = task_loss(p, world, t)
    if method["basis"] != "gated":
        return [task, task]
    labels = world["tasks"][t]["train_labels"]
    target = one_hot(labels, len(g), f).T
    texts = -(target * (scale * g @ f.T).log_softmax(1)).sum() / (len(g) * (t + 1))
    return [task + texts, task]


class AdamW:
    """AdamW with decoupled weight decay."""

    def __init__(self, s, method):
        self.s, self.k, self.m, self.v = s, 0, {}, {}
        self.decay, self.beta2 = method.get("decay", 0.0), method.get("beta2", s["beta2"])

    def step(self, p, names, grads, lr):
        s, self.k = self.s, self.k + 1
        for n, g in zip(names, grads):
            self.m[n] = s["beta1"] * self.m.get(n, 0) + (1 - s["beta1"]) * g
            self.v[n] = self.beta2 * self.v.get(n, 0) + (1 - self.beta2) * g * g
            m, v = self.m[n] / (1 - s["beta1"] ** self.k), self.v[n] / (1 - self.beta2**self.k)
            kept = p[n].detach() * (1 - lr * self.decay)
            p[n] = kept - lr * m / (v.sqrt() + s["epsilon"])


def run(method, world, weights, dtype):
    s = world["settings"]
    p = {n: w.to(dtype) for n, w in weights.items()}
    names = adapted(weights, method["weights"])
    bases = {n: torch.zeros(p[n].shape[1], 0, dtype=torch.float64) for n in names}
    if method["basis"] == "gradient":
        bases = {n: weight_basis(method, p[n], n) for n in names}
    out = dict(lr=[], losses=[], ranks=[], logits=[], first=[], ensemble=[], weights=[])
    for t in range(TASKS):
        adapters = Adapters(method, p, names, bases, world, t)
        adamw = AdamW(s, method)
        out["lr"].append([learning_rate(k, s) for k in range(s["steps"])])
        out["losses"].append([])
        for k, lr in enumerate(out["lr"][-1]):
            q = adapters.factors
            for n in adapters.names:
                q[n].requires_grad_(True)
            row = losses(method, adapters.weights(), world, t)
            grads = torch.autograd.grad(row[0], [q[n] for n in adapters.names])
            if method.get("site") == "gradient":
                grads = [adapters.projected(n, g) for n, g in zip(adapters.names, grads)]
            before = {n: q[n].detach() for n in adapters.names}
            adamw.step(q, adapters.names, grads, lr)
            if method.get("site") == "update":
                for n, w in before.items():
                    q[n] = w + adapters.projected(n, q[n] - w)
            adapters.shrink(k, s["steps"])
            out["losses"][-1].append([x.item() for x in row])
        p = {n: w.detach() for n, w in adapters.weights().items()}
        out["ranks"].append(adapters.ranks)
        if method["basis"] == "gated":
            gates = {n: adapters.factors[f"{n} gate"] for n in names}
            out["ranks"][-1] = {n: int((w != 0).sum()) for n, w in gates.items()}
        if "inputs" in method:
            energy = method["inputs"] + method.get("step", 0.0) * t
            for n, x in gather(p, world, t).items():
                if n in names:
                    g = x.T @ x
                    bases[n] = grow(bases[n], g @ g if method["basis"] == "input" else g, energy)
            out["ranks"][-1] = {n: bases[n].shape[1] for n in names}
        logits, first, ensemble = evaluate(p, world)
        out["logits"].append(logits)
        out["first"].append(first)
        out["ensemble"].append(ensemble)
        out["weights"].append({n: w.clone() for n, w in p.items()})
    return out


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="Hugging Face directory of the tiny CLIP")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    _, weights, _, worlds = prepare(args.checkpoint)
    names = sorted(n for n in weights if n != "logit_scale" and not n.endswith("k_proj.bias"))
    r = signs(max(w.numel() for w in weights.values()))
    settings = {name: overrides(method) for name, method in METHODS.items()}
    record, tensors = dict(settings=settings, tasks=TASKS, methods={}), {}
    for name, method in METHODS.items():
        a, b = (run(method, worlds[d], weights, d) for d in (torch.float32, torch.float64))
        for key in ("ranks", "first", "ensemble"):
            assert a[key] == b[key], f"{name}: float32 and float64 have other {key}"
        digests = [[digest(w, weights, names, r) for w in x["weights"]] for x in (a, b)]
        apart = max(
            ((x - y).abs() / y[:, :1].clamp(min=1e-12)).max().item() for x, y in zip(*digests)
        )
        kept = max(relative(a["weights"][-1][n], b["weights"][-1][n]) for n in KEPT)
        difference = dict(
            loss=loss_difference(a, b),
            logits=largest(a["logits"], b["logits"]),
            digest=apart,
            kept=kept,
        )
        record["methods"][name] = dict(
            {k: v for k, v in a.items() if k != "weights"}, f32_against_f64=difference
        )
        for t, d in enumerate(digests[0]):
            tensors[f"{name}.digest{t}"] = d
        tensors |= {f"{name}.final.{n}": a["weights"][-1][n] for n in KEPT}
        ends = "  ".join(f"{l[0][0]:.4f}->{l[-1][0]:.4f}" for l in a["losses"])
        print(f"{name:14} loss {ends}  ranks {[sorted(set(x.values())) for x in a['ranks']]}")
        print(
            " " * 15
            + "float32 against float64: "
            + "  ".join(f"{k} {v:.1e}" for k, v in difference.items())
        )
    save_file(
        {k: v.detach().contiguous().clone() for k, v in tensors.items()},
        args.out / "bases.safetensors",
    )
    (args.out / "bases.json").write_text(json.dumps(record, separators=(",", ":")) + "\n")
    print({f.name: f.stat().st_size for f in sorted(args.out.glob("bases.*"))})


if __name__ == "__main__":
    main()
