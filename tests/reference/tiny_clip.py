"""A CLIP, the losses and the learning-rate schedule of GNSP, in plain PyTorch.

Shared by the reference implementations of the methods (`methods_two_tasks.py`, `gnsp_methods.py`,
`moe_draws.py`). Parameters have the names of a Hugging Face checkpoint.

Made with: Python 3.11, torch 2.15.0, safetensors 0.8.0 (CPU, one thread).

Layout: Hugging Face, `[out, in]` for every linear weight, `visual_projection.weight` `[e, d]`
included.
"""

import math

import torch
from safetensors.torch import load_file


def layer_norm(x, p, name, eps):
    return torch.nn.functional.layer_norm(
        x, x.shape[-1:], p[name + ".weight"], p[name + ".bias"], eps
    )


def unseen(name, x):
    """Receives the input of a linear map, and does nothing with it."""


def attention(x, p, name, heads, mask, seen=unseen):
    b, n, d = x.shape
    for c in "qkv":
        seen(f"{name}.{c}_proj.weight", x)
    q, k, v = (
        (x @ p[f"{name}.{c}_proj.weight"].T + p[f"{name}.{c}_proj.bias"])
        .view(b, n, heads, d // heads)
        .transpose(1, 2)
        for c in "qkv"
    )
    scores = q @ k.transpose(2, 3) / math.sqrt(d // heads)
    if mask is not None:
        scores = scores + mask
    y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, d)
    seen(f"{name}.out_proj.weight", y)
    return y @ p[f"{name}.out_proj.weight"].T + p[f"{name}.out_proj.bias"]


def blocks(x, p, tower, cfg, mask, seen, attended):
    for i in range(cfg["num_hidden_layers"]):
        n = f"{tower}.encoder.layers.{i}"
        x = x + attention(
            layer_norm(x, p, n + ".layer_norm1", cfg["layer_norm_eps"]),
            p,
            n + ".self_attn",
            cfg["num_attention_heads"],
            mask,
            attended,
        )
        h = layer_norm(x, p, n + ".layer_norm2", cfg["layer_norm_eps"])
        seen(n + ".mlp.fc1.weight", h)
        h = h @ p[n + ".mlp.fc1.weight"].T + p[n + ".mlp.fc1.bias"]
        h = h * torch.sigmoid(1.702 * h)
        seen(n + ".mlp.fc2.weight", h)
        x = x + h @ p[n + ".mlp.fc2.weight"].T + p[n + ".mlp.fc2.bias"]
    return x


def encode_image(p, cfg, pixels, seen=unseen, attended=unseen):
    """Normalised features.

    `seen` receives the input of every linear map that GNSP projects, `attended` those of the
    attention.
    """
    v = cfg["vision_config"]
    e = "vision_model.embeddings."
    w = p[e + "patch_embedding.weight"]
    x = torch.nn.functional.conv2d(pixels, w, stride=w.shape[-1]).flatten(2).transpose(1, 2)
    x = (
        torch.cat([p[e + "class_embedding"].expand(len(x), 1, -1), x], dim=1)
        + p[e + "position_embedding.weight"]
    )
    x = layer_norm(x, p, "vision_model.pre_layrnorm", v["layer_norm_eps"])
    x = blocks(x, p, "vision_model", v, None, seen, attended)
    x = layer_norm(x[:, 0], p, "vision_model.post_layernorm", v["layer_norm_eps"])
    seen("visual_projection.weight", x)
    f = x @ p["visual_projection.weight"].T
    return f / f.norm(dim=-1, keepdim=True)


def encode_text(p, cfg, rows, attended=unseen):
    """Normalised features of unpadded token rows; `attended` as for images."""
    t = cfg["text_config"]
    n = max(map(len, rows))
    ids = torch.tensor([r + [0] * (n - len(r)) for r in rows])
    e = "text_model.embeddings."
    x = p[e + "token_embedding.weight"][ids] + p[e + "position_embedding.weight"][:n]
    x = blocks(
        x,
        p,
        "text_model",
        t,
        torch.full((n, n), -math.inf, dtype=x.dtype).triu(1),
        unseen,
        attended,
    )
    x = layer_norm(x, p, "text_model.final_layer_norm", t["layer_norm_eps"])
    x = x[torch.arange(len(rows)), torch.tensor([r.index(t["eos_token_id"]) for r in rows])]
    f = x @ p["text_projection.weight"].T
    return f / f.norm(dim=-1, keepdim=True)


def smoothed_ce(z, targets, eps):
    """mean_i -sum_j ((1-eps) targets_ij + eps/C) log softmax(z_i)_j"""
    return -(((1 - eps) * targets + eps / z.shape[1]) * z.log_softmax(1)).sum(1).mean()


def distillation(teacher, student, t):
    """T^2 times the mean over rows of the cross-entropy of the softened rows."""
    return -t * t * ((teacher / t).softmax(1) * (student / t).log_softmax(1)).sum(1).mean()


def learning_rate(k, s):
    if k < s["warmup"]:
        return s["base_lr"] * (k + 1) / s["warmup"]
    return (
        s["base_lr"]
        * 0.5
        * (1 + math.cos(math.pi * (k - s["warmup"]) / (s["steps"] - s["warmup"])))
    )


def check_against_transformers(checkpoint, cfg, weights):
    """Checks the features of this CLIP against those recorded by `clip_checkpoints.py`."""
    want = load_file(checkpoint / "expected.safetensors")
    p = {n: w.double() for n, w in weights.items()}
    f = encode_image(p, cfg, (want["pixels"].double() - 127.5) / 64)
    t = encode_text(p, cfg, [r[:n].tolist() for r, n in zip(want["input_ids"], want["lengths"])])
    error = max(
        (f - want["image_embeds"]).abs().max().item(), (t - want["text_embeds"]).abs().max().item()
    )
    assert error < 1e-6, error
    print(f"features against transformers: largest difference {error:.1e}")
