"""LADA on three tasks of a tiny CLIP, in plain PyTorch, written from its formulas.

Run:   python tests/reference/lada.py tests/data/clip/tiny tests/data/methods
Made with: Python 3.11, torch 2.15.0, safetensors 0.8.0, tokenizers 0.23.3 (CPU, one thread).

Writes `lada.safetensors` and `lada.json`. The data are those of `methods_two_tasks.py`: the batch
is the whole training set of a task, two images of each class. All figures are of a float32 run.
Everything also runs in float64, which bounds the part of a difference that is rounding.

LADA (arXiv 2505.23271, tri2911/LADA 28fd950, models/lada.py, models/peft_text.py,
models/peft_modules.py, trainer.py, utils/losses.py, utils/sampler.py)
    frozen     both towers; f: normalised image features, s = exp(logit_scale)
    adapters   in each block of the text tower, u its stream after the attention:
               u + mlp(ln_2(u)) + scale σ (ReLU(LN(u) D + d) U + e); D normal with the deviation
               1/sqrt(3 in), drawn by the rule of the program under test; d, U, e zero; LN of its
               own; σ = 1, trained
    vectors    of a class: the centres of k-means on f of its images, here the two images, or their
               mean with one vector
    logits     s f·t_c + alpha sum_l exp(-beta (1 - f·w_cl)) over the classes of all tasks so far;
               t: of earlier tasks stored, of the task normalised under the adapters, template 0
    rows       the batch, with weight 1, and from the second task on, a sample of each component of
               each earlier class, mean + sqrt(variance) N(0, I), normalised, with weight
               sample_weight · its share; noise drawn by the rule of the program under test
    loss       mean over all rows of weight · cross-entropy
    mixture    spherical Gaussians on image features that are not normalised; here one component,
               whose share is 1: their mean, and the mean over the directions of the variance,
               plus 1e-6
    optimizer  torch.optim.AdamW(eps 1e-6, weight decay 5e-4) and OneCycleLR with its defaults
    scores     with the task: a learned one s f·t_c + vectors, another one 100 f·(mean of both
               templates, normalised); without: the text logits of all classes, s f·t_c of learned
               and s f·mean of others; if the largest is of a learned class, the vectors are added
               to learned classes, and the others are excluded

lada.json
    settings     {name: overrides of the program under test}
    methods      {name: {lr, betas [t][k], losses [t][k][total, task, rehearsal], given [t][task],
                 without [t][task]: accuracies, scores [task][image][class of the task],
                 all [task][image][class] after the last task, f32_against_f64}}
lada.safetensors
    {name}.{t}.{texts,vectors,means,variances}: of the classes of task t
"""

import argparse
import json
import math
import struct
from pathlib import Path

import torch
from safetensors.torch import save_file

from condu import clear, classes
from gnsp_methods import chacha8, expanded, number_of
from methods_two_tasks import largest, loss_difference, prepare, relative
from tiny_clip import attention, encode_image, layer_norm

TASKS = 3
SEED = 1
STEPS = 6
LR = 1e-2
METHODS = {
    "lada": dict(vectors=16, alpha=1.0, beta=1.0, sample_weight=64.0),
    "lada-means": dict(vectors=1, alpha=20.0, beta=5.0, sample_weight=8.0),
}
BOTTLENECK, SCALE, COMPONENTS = 16, 0.1, 1
ADAPTERS, SAMPLES = 11, 23


def overrides(method):
    out = [f"lada.{key}={value}" for key, value in method.items()]
    return out + [f"lada.components={COMPONENTS}", "lada.augment=false", f"lr={LR}", "smoothing=0"]


# ---- draws --------------------------------------------------------------------------------------


def packed(*numbers):
    return b"".join(struct.pack("<Q", n) for n in numbers)


def normals(seed, rows, columns, deviation, dtype):
    draws = chacha8(expanded(seed))
    uniform = lambda: (next(draws) >> 11) / (1 << 53)
    values = []
    for _ in range(rows * columns):
        u, v = uniform(), uniform()
        values.append(math.sqrt(-2 * math.log(1 - u)) * math.cos(2 * math.pi * v) * deviation)
    return torch.tensor(values, dtype=torch.float32).view(rows, columns).to(dtype)


def new_adapters(cfg, t, dtype):
    d, seed, out = cfg["text_config"]["hidden_size"], number_of(packed(SEED, ADAPTERS, t)), {}
    for i in range(cfg["text_config"]["num_hidden_layers"]):
        path = f"text.blocks.{i}.lada."
        own = number_of(packed(seed, number_of((path + "down").encode())))
        out[f"{i}.ln.weight"] = torch.ones(d, dtype=dtype)
        out[f"{i}.ln.bias"] = torch.zeros(d, dtype=dtype)
        out[f"{i}.down"] = normals(own, d, BOTTLENECK, 1 / math.sqrt(3 * d), dtype)
        out[f"{i}.down_bias"] = torch.zeros(BOTTLENECK, dtype=dtype)
        out[f"{i}.up"] = torch.zeros(BOTTLENECK, d, dtype=dtype)
        out[f"{i}.up_bias"] = torch.zeros(d, dtype=dtype)
        out[f"{i}.scale"] = torch.ones(1, dtype=dtype)
    return out


# ---- the model ----------------------------------------------------------------------------------


def adapted_text(p, a, cfg, rows):
    """Normalised features of token rows under the adapters `a`."""
    t = cfg["text_config"]
    n = max(map(len, rows))
    ids = torch.tensor([r + [0] * (n - len(r)) for r in rows])
    e = "text_model.embeddings."
    x = p[e + "token_embedding.weight"][ids] + p[e + "position_embedding.weight"][:n]
    mask = torch.full((n, n), -math.inf, dtype=x.dtype).triu(1)
    for i in range(t["num_hidden_layers"]):
        name = f"text_model.encoder.layers.{i}"
        seen = layer_norm(x, p, name + ".layer_norm1", t["layer_norm_eps"])
        u = x + attention(seen, p, name + ".self_attn", t["num_attention_heads"], mask)
        h = layer_norm(u, p, name + ".layer_norm2", t["layer_norm_eps"])
        h = h @ p[name + ".mlp.fc1.weight"].T + p[name + ".mlp.fc1.bias"]
        h = h * torch.sigmoid(1.702 * h)
        mlp = h @ p[name + ".mlp.fc2.weight"].T + p[name + ".mlp.fc2.bias"]
        h = (layer_norm(u, a, f"{i}.ln", 1e-5) @ a[f"{i}.down"] + a[f"{i}.down_bias"]).relu()
        x = u + mlp + SCALE * a[f"{i}.scale"] * (h @ a[f"{i}.up"] + a[f"{i}.up_bias"])
    x = layer_norm(x, p, "text_model.final_layer_norm", t["layer_norm_eps"])
    x = x[torch.arange(len(rows)), torch.tensor([r.index(t["eos_token_id"]) for r in rows])]
    f = x @ p["text_projection.weight"].T
    return f / f.norm(dim=-1, keepdim=True)


def raw_image(p, cfg, pixels):
    """Image features that are not normalised."""
    name = "visual_projection.weight"
    seen = {}
    keep = lambda n, x: seen.update({n: x})
    encode_image(p, cfg, pixels, keep)
    return seen[name] @ p[name].T


def near(f, vectors, method):
    """alpha sum_l exp(-beta (1 - f·w)); `vectors`: [classes, vectors, width]."""
    beta = method["beta"]
    return method["alpha"] * (beta * torch.einsum("nd,cld->ncl", f, vectors) - beta).exp().sum(2)


# ---- a task -------------------------------------------------------------------------------------


def learn(p, world, t, earlier, method, out):
    cfg, task, dtype = world["cfg"], world["tasks"][t], p["logit_scale"].dtype
    raw = raw_image(p, cfg, task["train_pixels"])
    f = raw / raw.norm(dim=1, keepdim=True)
    assert torch.allclose(f, encode_image(p, cfg, task["train_pixels"]), atol=1e-6)
    labels, scale = task["train_labels"], p["logit_scale"].exp()
    count = len(task["rows"][0])
    own = torch.stack([f[labels == c] for c in range(count)])
    vectors = (own if method["vectors"] >= own.shape[1] else own.mean(1, keepdim=True)).clone()
    q = dict(new_adapters(cfg, t, dtype), vectors=vectors)
    for x in q.values():
        x.requires_grad_(True)
    optimizer = torch.optim.AdamW(q.values(), lr=LR, weight_decay=5e-4, eps=1e-6)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LR, total_steps=STEPS)
    out["losses"].append([])
    out["lr"].append([])
    out["betas"].append([])
    for k in range(STEPS):
        rows, target, weights = f, labels, torch.ones(len(f), dtype=dtype)
        if earlier:
            means = torch.cat([e["means"] for e in earlier])
            deviations = torch.cat([e["variances"] for e in earlier]).sqrt()
            seed = number_of(packed(SEED, SAMPLES, t, k))
            samples = means + deviations[:, None] * normals(seed, *means.shape, 1.0, dtype)
            samples = samples / samples.norm(dim=1, keepdim=True)
            rows = torch.cat([samples, f])
            target = torch.cat([torch.arange(len(means)), labels + len(means)])
            shares = torch.full((len(means),), method["sample_weight"], dtype=dtype)
            weights = torch.cat([shares, weights])
        own_texts = adapted_text(p, q, cfg, task["rows"][0])
        texts = torch.cat([*(e["texts"] for e in earlier), own_texts])
        parts = [near(rows, e["vectors"], method) for e in earlier]
        z = scale * rows @ texts.T + torch.cat([*parts, near(rows, q["vectors"], method)], 1)
        each = weights * torch.nn.functional.cross_entropy(z, target, reduction="none")
        loss = each.mean()
        split = len(rows) - len(f)
        task_part, rest = each[split:].sum() / len(rows), each[:split].sum() / len(rows)
        out["losses"][-1].append([loss.item(), task_part.item(), rest.item()])
        group = optimizer.param_groups[0]
        out["lr"][-1].append(group["lr"])
        out["betas"][-1].append(group["betas"][0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if k + 1 < STEPS:
            schedule.step()
    with torch.no_grad():
        of_class = [raw[labels == c] for c in range(count)]
        return dict(
            texts=adapted_text(p, q, cfg, task["rows"][0]),
            vectors=q["vectors"].detach(),
            means=torch.stack([x.mean(0) for x in of_class]),
            variances=torch.stack(
                [(x * x).mean(0).sub(x.mean(0) ** 2).mean() + 1e-6 for x in of_class]
            ),
        )


# ---- evaluation ---------------------------------------------------------------------------------


def evaluate(p, world, learned, method, out):
    cfg, scale = world["cfg"], p["logit_scale"].exp()
    heads = [classes(p, world, t) for t in range(TASKS)]
    known = sum(len(e["texts"]) for e in learned)
    rows, first = dict(given=[], without=[]), 0
    scores, everything = [], []
    for t, task in enumerate(world["tasks"][:TASKS]):
        f = encode_image(p, cfg, task["test_pixels"])
        z = 100 * f @ heads[t].T
        if t < len(learned):
            e = learned[t]
            z = scale * f @ e["texts"].T + near(f, e["vectors"], method)
        scores.append(z.tolist())
        labels = task["test_labels"]
        rows["given"].append(100.0 * (clear(z) == labels).double().mean().item())
        texts = torch.cat([e["texts"] for e in learned] + heads[len(learned) :])
        z = scale * f @ texts.T
        is_learned = clear(z) < known
        own = torch.cat([near(f, e["vectors"], method) for e in learned], 1)
        own = torch.cat([own, torch.full((len(f), z.shape[1] - known), -math.inf)], 1)
        z = torch.where(is_learned[:, None], z + own, z)
        everything.append(z.tolist())
        right = clear(z) == labels + first
        rows["without"].append(100.0 * right.double().mean().item())
        first += len(heads[t])
    out["scores"], out["all"] = scores, everything
    for key, value in rows.items():
        out[key].append(value)


def run(method, world, weights, dtype):
    p = {n: w.to(dtype) for n, w in weights.items()}
    out = {key: [] for key in "lr betas losses given without".split()}
    learned = []
    for t in range(TASKS):
        learned.append(learn(p, world, t, learned, method, out))
        with torch.no_grad():
            evaluate(p, world, learned, method, out)
    return out, learned


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="Hugging Face directory of the tiny CLIP")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    _, weights, _, worlds = prepare(args.checkpoint)
    settings = {name: overrides(method) for name, method in METHODS.items()}
    record, tensors = dict(settings=settings, tasks=TASKS, methods={}), {}
    for name, method in METHODS.items():
        (a, learned), (b, others) = (
            run(method, worlds[d], weights, d) for d in (torch.float32, torch.float64)
        )
        for key in ("given", "without"):
            assert a[key] == b[key], f"{name}: float32 and float64 have other {key}"
        difference = dict(
            loss=loss_difference(a, b),
            scores=max(largest(x, y) for x, y in zip(a["scores"], b["scores"])),
            state=max(
                relative(x[key], y[key].double())
                for x, y in zip(learned, others)
                for key in ("texts", "vectors", "means", "variances")
            ),
        )
        record["methods"][name] = dict(a, f32_against_f64=difference)
        for t, of in enumerate(learned):
            of["vectors"] = of["vectors"].flatten(0, 1)
            tensors |= {f"{name}.{t}.{key}": value for key, value in of.items()}
        ends = "  ".join(f"{l[0][0]:.4f}->{l[-1][0]:.4f}" for l in a["losses"])
        print(f"{name:11} loss {ends}  given {a['given']}  without {a['without']}")
        shown = "  ".join(f"{k} {v:.1e}" for k, v in difference.items())
        print(f"{'':11} float32 against float64: {shown}")
    save_file(
        {k: v.detach().contiguous().clone() for k, v in tensors.items()},
        args.out / "lada.safetensors",
    )
    (args.out / "lada.json").write_text(json.dumps(record, separators=(",", ":")) + "\n")
    print({f.name: f.stat().st_size for f in sorted(args.out.glob("lada.*"))})


if __name__ == "__main__":
    main()
