"""Three tasks of GNSP on a tiny CLIP with fixed batches, in plain PyTorch: the oracle of `tests/tests/parity/gnsp_parity.rs`.

Run:   python tests/reference/gnsp_three_tasks.py tests/data/clip/tiny tests/data/gnsp
Made with: Python 3.11, torch 2.15.0, safetensors 0.8.0, tokenizers 0.23.3 (CPU, one thread).

It writes `three_tasks.safetensors` (inputs, Grams, weights) and `three_tasks.json` (settings, losses, ranks, figures), and
runs everything a second time in float64 to say how much of a disagreement is rounding.

The model is a plain-torch CLIP on the checkpoint's Hugging Face names. Layout: Hugging Face, `[out, in]` for every linear
weight, `visual_projection.weight` `[e, d]` included, so each projection acts on the second dimension.

Per task: AdamW (betas 0.9 0.999, eps 1e-8, no weight decay) anew; warm-up then cosine; loss = CE + CD + 0.75 MAP.
The first task trains everything but `logit_scale`; later ones only the weight matrices of the vision MLPs and
`visual_projection.weight`, with either the gradient (site `gradient`) or AdamW's update (site `update`) projected onto the
null space of the remembered inputs. After each task one pass over that task's Gram batches extends the memory.
"""

import argparse
import json
import math
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

SETTINGS = dict(
    tasks=3, steps=20, batch=8, classes=5, images_per_task=12, gram_batches=[4, 4, 3], reference_batches=2, reference_batch=6,
    base_lr=1e-3, warmup=5, smoothing=0.2, temperature=2.0, lambda_cd=1.0, lambda_map=0.75, rho=0.15,
    beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0, seed=2,
)
CLASSES = [
    ["a photo of a red circle.", "a photo of a blue circle.", "a photo of a green square.", "a photo of a dog.", "a photo of a cat."],
    ["a satellite view of a river.", "a satellite view of a forest.", "a drawing of food.", "the letter a.", "the letter b."],
    ["the number one.", "the number two.", "the number three.", "a striped texture.", "a small dotted texture."],
]
# Pairs of the two reference batches; equal captions are equal labels.
REFERENCE = [
    ["a photo of a bird", "a photo of a flower", "a photo of a bird", "a photo of an aircraft", "a picture of food", "a photo of a dog"],
    ["a drawing of a triangle", "a picture of the number zero", "a drawing of a triangle", "a drawing of a triangle", "a photo of a cat", "a photo of a flower"],
]


# ---- CLIP ---------------------------------------------------------------------------------------------------------


def layer_norm(x, p, name, eps):
    return torch.nn.functional.layer_norm(x, x.shape[-1:], p[name + ".weight"], p[name + ".bias"], eps)


def attention(x, p, name, heads, mask):
    b, n, d = x.shape
    q, k, v = (
        (x @ p[f"{name}.{c}_proj.weight"].T + p[f"{name}.{c}_proj.bias"]).view(b, n, heads, d // heads).transpose(1, 2) for c in "qkv"
    )
    scores = q @ k.transpose(2, 3) / math.sqrt(d // heads)
    if mask is not None:
        scores = scores + mask
    y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, d)
    return y @ p[f"{name}.out_proj.weight"].T + p[f"{name}.out_proj.bias"]


def blocks(x, p, tower, cfg, mask, seen):
    for i in range(cfg["num_hidden_layers"]):
        n = f"{tower}.encoder.layers.{i}"
        x = x + attention(layer_norm(x, p, n + ".layer_norm1", cfg["layer_norm_eps"]), p, n + ".self_attn", cfg["num_attention_heads"], mask)
        h = layer_norm(x, p, n + ".layer_norm2", cfg["layer_norm_eps"])
        seen(n + ".mlp.fc1.weight", h)
        h = h @ p[n + ".mlp.fc1.weight"].T + p[n + ".mlp.fc1.bias"]
        h = h * torch.sigmoid(1.702 * h)
        seen(n + ".mlp.fc2.weight", h)
        x = x + h @ p[n + ".mlp.fc2.weight"].T + p[n + ".mlp.fc2.bias"]
    return x


def encode_image(p, cfg, pixels, seen=lambda name, x: None):
    """Normalised features; `seen` gets the input of every linear map that GNSP projects."""
    v = cfg["vision_config"]
    e = "vision_model.embeddings."
    w = p[e + "patch_embedding.weight"]
    x = torch.nn.functional.conv2d(pixels, w, stride=w.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([p[e + "class_embedding"].expand(len(x), 1, -1), x], dim=1) + p[e + "position_embedding.weight"]
    x = layer_norm(x, p, "vision_model.pre_layrnorm", v["layer_norm_eps"])
    x = blocks(x, p, "vision_model", v, None, seen)
    x = layer_norm(x[:, 0], p, "vision_model.post_layernorm", v["layer_norm_eps"])
    seen("visual_projection.weight", x)
    f = x @ p["visual_projection.weight"].T
    return f / f.norm(dim=-1, keepdim=True)


def encode_text(p, cfg, rows):
    """Normalised features of unpadded token rows."""
    t = cfg["text_config"]
    n = max(map(len, rows))
    ids = torch.tensor([r + [0] * (n - len(r)) for r in rows])
    e = "text_model.embeddings."
    x = p[e + "token_embedding.weight"][ids] + p[e + "position_embedding.weight"][:n]
    x = blocks(x, p, "text_model", t, torch.full((n, n), -math.inf, dtype=x.dtype).triu(1), lambda name, x: None)
    x = layer_norm(x, p, "text_model.final_layer_norm", t["layer_norm_eps"])
    x = x[torch.arange(len(rows)), torch.tensor([r.index(t["eos_token_id"]) for r in rows])]
    f = x @ p["text_projection.weight"].T
    return f / f.norm(dim=-1, keepdim=True)


# ---- losses -------------------------------------------------------------------------------------------------------


def smoothed_ce(z, targets, eps):
    """mean_i -sum_j ((1-eps) targets_ij + eps/C) log softmax(z_i)_j"""
    return -(((1 - eps) * targets + eps / z.shape[1]) * z.log_softmax(1)).sum(1).mean()


def distillation(teacher, student, t):
    """T^2 times the mean over rows of the cross-entropy of the softened rows."""
    return -t * t * ((teacher / t).softmax(1) * (student / t).log_softmax(1)).sum(1).mean()


def step_losses(p, p0, cfg, s, x, y, class_rows, ref):
    scale = p["logit_scale"].exp()
    n = len(class_rows)
    z = scale * encode_image(p, cfg, x) @ encode_text(p, cfg, class_rows).T
    task = smoothed_ce(z, torch.nn.functional.one_hot(y, n).to(z.dtype), s["smoothing"])
    with torch.no_grad():
        zt = scale * encode_image(p0, cfg, ref["pixels"]) @ encode_text(p0, cfg, ref["rows"]).T
    zs = scale * encode_image(p, cfg, ref["pixels"]) @ encode_text(p, cfg, ref["rows"]).T
    cd = distillation(zt, zs, s["temperature"]) + distillation(zt.T, zs.T, s["temperature"])
    same = (ref["labels"][:, None] == ref["labels"][None, :]).to(z.dtype)
    targets = same / same.sum(1, keepdim=True)
    align = smoothed_ce(zs, targets, s["smoothing"]) + smoothed_ce(zs.T, targets, s["smoothing"])
    total = task + s["lambda_cd"] * cd + s["lambda_map"] * align
    return total, task, cd, align


# ---- schedule, Grams, projection ----------------------------------------------------------------------------------


def learning_rate(k, s):
    if k < s["warmup"]:
        return s["base_lr"] * (k + 1) / s["warmup"]
    return s["base_lr"] * 0.5 * (1 + math.cos(math.pi * (k - s["warmup"]) / (s["steps"] - s["warmup"])))


def task_gram(p, cfg, batches):
    """Every batch's X^T X over its Frobenius norm, summed, and the sum over its own norm."""
    sums = {}

    def seen(name, x):
        x = x.detach().reshape(-1, x.shape[-1])
        g = x.T @ x
        sums[name] = sums.get(name, 0) + g / g.norm()

    with torch.no_grad():
        for x in batches:
            encode_image(p, cfg, x, seen)
    return {n: a / a.norm() for n, a in sums.items()}


def absorb(memory, gram):
    for n, g in gram.items():
        if n not in memory:
            memory[n] = g.clone()
        elif n == "visual_projection.weight":
            memory[n] = memory[n] / memory[n].norm() + g
        else:
            memory[n] = memory[n] + g


def null_space(m, rho):
    """Basis of the protected directions, and the tail shares on both sides of the cut (strictly below rho means cut)."""
    values, vectors = torch.linalg.eigh(m.double())
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    tails = values.flip(0).cumsum(0).flip(0) / values.sum()
    k = next((j for j in range(len(values)) if tails[j] < rho), len(values))
    return vectors[:, :k].to(m.dtype), (tails[k].item() if k < len(tails) else 0.0, tails[k - 1].item() if k else 1.0)


# ---- the run ------------------------------------------------------------------------------------------------------


def make_data(s, tok):
    """Images with structure (a smooth pattern of the class and one of the task, plus noise), so that there is something to learn."""
    g = torch.Generator().manual_seed(s["seed"])
    up = lambda t: torch.nn.functional.interpolate(t, size=(32, 32), mode="bilinear", align_corners=False)
    to_bytes = lambda x: (x * 40 + 127.5).clamp(0, 255).to(torch.uint8)
    data = dict(tasks=[], reference=[])
    for t in range(s["tasks"]):
        base = up(torch.randn(1, 3, 2, 2, generator=g))
        patterns = up(torch.randn(s["classes"], 3, 4, 4, generator=g))
        labels = torch.arange(s["images_per_task"]) % s["classes"]
        noise = torch.randn(s["images_per_task"], 3, 32, 32, generator=g)
        images = to_bytes(base + patterns[labels] + 0.4 * noise)
        order = torch.cat([torch.randperm(s["images_per_task"], generator=g) for _ in range(s["steps"])])
        data["tasks"].append(
            dict(
                images=images, labels=labels, batches=order[: s["steps"] * s["batch"]].view(s["steps"], s["batch"]),
                gram_order=torch.randperm(s["images_per_task"], generator=g)[: sum(s["gram_batches"])],
                rows=[tok.encode(c).ids for c in CLASSES[t]],
            )
        )
    for captions in REFERENCE:
        n = len(captions)
        images = to_bytes(up(torch.randn(n, 3, 4, 4, generator=g)) * 1.2 + 0.4 * torch.randn(n, 3, 32, 32, generator=g))
        data["reference"].append(
            dict(images=images, labels=torch.tensor([captions.index(c) for c in captions]), rows=[tok.encode(c).ids for c in captions])
        )
    return data


def run(weights, cfg, data, s, site, dtype):
    pixels = lambda b: (b.to(dtype) - 127.5) / 64
    p = {n: w.to(dtype).clone() for n, w in weights.items()}
    p0 = {n: w.clone() for n, w in p.items()}
    refs = [dict(pixels=pixels(r["images"]), labels=r["labels"], rows=r["rows"]) for r in data["reference"]]
    memory, out = {}, dict(losses=[], lr=[], ranks=[], margins=[], drift=[], grams=[], memory=[], weights=[])
    for t, task in enumerate(data["tasks"]):
        spaces = {}
        if t == 0:
            trained = [n for n in p if n != "logit_scale"]
        else:
            for n, m in memory.items():
                u, margin = null_space(m, s["rho"])
                spaces[n] = u
                out["margins"].append((t, n, u.shape[1], m.shape[0], *margin))
            trained = list(spaces)
        out["ranks"].append({n: u.shape[1] for n, u in spaces.items()})
        before = {n: p[n].clone() for n in trained}
        state = {n: (torch.zeros_like(p[n]), torch.zeros_like(p[n])) for n in trained}
        for k in range(s["steps"]):
            lr = learning_rate(k, s)
            for n in trained:
                p[n].requires_grad_(True)
            idx = task["batches"][k]
            parts = step_losses(p, p0, cfg, s, pixels(task["images"][idx]), task["labels"][idx], task["rows"], refs[k % len(refs)])
            grads = torch.autograd.grad(parts[0], [p[n] for n in trained])
            with torch.no_grad():
                for n, g in zip(trained, grads):
                    w, u = p[n].detach(), spaces.get(n)
                    if u is not None and site == "gradient":
                        g = g - g @ u @ u.T
                    m, v = state[n]
                    m.mul_(s["beta1"]).add_(g, alpha=1 - s["beta1"])
                    v.mul_(s["beta2"]).addcmul_(g, g, value=1 - s["beta2"])
                    delta = -lr * (m / (1 - s["beta1"] ** (k + 1))) / ((v / (1 - s["beta2"] ** (k + 1))).sqrt() + s["epsilon"])
                    if u is not None and site == "update":
                        delta = delta - delta @ u @ u.T
                    p[n] = w + delta
            out["losses"].append([x.item() for x in parts])
            out["lr"].append(lr)
        # How much each projected layer's output moved on the directions it was to keep.
        out["drift"].append(
            {n: (((p[n] - before[n]) @ u).norm() / (before[n] @ u).norm()).item() for n, u in spaces.items()}
        )
        order = task["gram_order"].split(s["gram_batches"])
        gram = task_gram(p, cfg, [pixels(task["images"][o]) for o in order])
        absorb(memory, gram)
        out["grams"].append(gram)
        out["memory"].append({n: m.clone() for n, m in memory.items()})
        out["weights"].append({n: w.clone() for n, w in p.items()})
    return out


def check_against_transformers(checkpoint, cfg, weights):
    """The plain-torch model above gives the features that `clip_checkpoints.py` recorded."""
    want = load_file(checkpoint / "expected.safetensors")
    p = {n: w.double() for n, w in weights.items()}
    f = encode_image(p, cfg, (want["pixels"].double() - 127.5) / 64)
    t = encode_text(p, cfg, [r[:n].tolist() for r, n in zip(want["input_ids"], want["lengths"])])
    error = max((f - want["image_embeds"]).abs().max().item(), (t - want["text_embeds"]).abs().max().item())
    assert error < 1e-6, error
    print(f"features against transformers: largest difference {error:.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="Hugging Face directory of the tiny CLIP")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    cfg = json.loads((args.checkpoint / "config.json").read_text())
    weights = load_file(args.checkpoint / "model.safetensors")
    tok = Tokenizer.from_file(str(args.checkpoint / "tokenizer.json"))
    tok.no_padding()
    s = SETTINGS
    data = make_data(s, tok)
    check_against_transformers(args.checkpoint, cfg, weights)

    tensors = {}
    for t, task in enumerate(data["tasks"]):
        for key in ("images", "labels", "batches", "gram_order"):
            tensors[f"task{t}.{key}"] = task[key]
    for r, ref in enumerate(data["reference"]):
        for key in ("images", "labels"):
            tensors[f"reference{r}.{key}"] = ref[key]
    record = dict(
        settings=s,
        class_prompts=CLASSES, class_tokens=[task["rows"] for task in data["tasks"]],
        captions=REFERENCE, reference_tokens=[ref["rows"] for ref in data["reference"]],
        sites={},
    )
    used = torch.tensor(sorted({i for rows in record["class_tokens"][:1] + record["reference_tokens"] for r in rows for i in r}))
    for site in ("gradient", "update"):
        a, b = (run(weights, cfg, data, s, site, d) for d in (torch.float32, torch.float64))
        assert a["ranks"] == b["ranks"]
        la, lb = torch.tensor(a["losses"], dtype=torch.float64), torch.tensor(b["losses"], dtype=torch.float64)
        loss_error = ((la - lb).abs() / lb.abs()).amax(1)
        weight_error = {}
        for t in range(s["tasks"]):
            for n, w in b["weights"][t].items():
                e = ((a["weights"][t][n].double() - w).norm() / w.norm()).item()
                weight_error[n] = max(e, weight_error.get(n, 0.0))
        gram_error = max(((a["memory"][t][n].double() - m).norm() / m.norm()).item() for t in range(s["tasks"]) for n, m in b["memory"][t].items())
        record["sites"][site] = dict(
            lr=a["lr"], losses=a["losses"], losses_f64=b["losses"], ranks=a["ranks"], drift=a["drift"], drift_f64=b["drift"],
            f32_against_f64=dict(loss=loss_error.max().item(), memory=gram_error, weights=weight_error),
        )
        if site == "gradient":
            # Both sites agree until the end of the first task.
            for n, w in a["weights"][0].items():
                if n == "text_model.embeddings.token_embedding.weight":
                    # The rows of all other ids keep their pretrained values.
                    tensors["used_tokens"], w = used, w[used]
                if n != "logit_scale" and not n.startswith("text_model.encoder.layers.1."):
                    tensors[f"after0.{n}"] = w
        for t in range(s["tasks"]):
            if t == 0 and site == "update":
                continue
            for n, g in a["grams"][t].items():
                if t < 2 or g.shape[0] <= 32:
                    tensors[f"{site}.gram{t}.{n}"] = g
            if t == 1:
                tensors.update({f"{site}.memory{t}.{n}": m for n, m in a["memory"][t].items() if m.shape[0] <= 32})
        for n in a["memory"][0]:
            tensors[f"{site}.final.{n}"] = a["weights"][-1][n]

        print(f"== {site}")
        for t in range(s["tasks"]):
            l = a["losses"][t * s["steps"] : (t + 1) * s["steps"]]
            print(f"task {t}: loss {l[0][0]:.5f} -> {l[-1][0]:.5f}  (task part {l[0][1]:.4f} -> {l[-1][1]:.4f}, cd {l[0][2]:.4f} -> {l[-1][2]:.4f}, map {l[0][3]:.4f} -> {l[-1][3]:.4f})")
        for t, n, k, size, below, above in a["margins"]:
            print(f"task {t} {n:50} k {k:3} of {size:3}  tail shares {below:.4f} < {s['rho']} <= {above:.4f}  drift {a['drift'][t][n]:.3e} (f64 {b['drift'][t][n]:.3e})")
        worst = sorted(weight_error.items(), key=lambda x: -x[1])[:6]
        print(f"float32 against float64: loss {loss_error.max():.1e}  memory {gram_error:.1e}  weights", [(n, f"{e:.1e}") for n, e in worst])
    save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, args.out / "three_tasks.safetensors")
    (args.out / "three_tasks.json").write_text(json.dumps(record, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
