"""MoE-Adapters with the noise of its gates and the dropout of its adapters, in plain PyTorch.

Run:   python tests/reference/moe_draws.py tests/data/clip/tiny tests/data/methods
Made with: Python 3.11, torch 2.15.0, safetensors 0.8.0, tokenizers 0.23.3 (CPU, one thread).

It writes `moe.safetensors` and `moe.json`. Everything is as in `moe_adapters` of `methods_two_tasks.py` but for what training draws
(JiazuoYu/MoE-Adapters4CL mtil/clip/model.py:333-338,476-480, adapter.py):

    the answer of the router is x'[0] . R_t + (softplus(x'[0] . N_t) + 0.01) * normal, N_t [d, E] of the task, no noise in evaluation;
    both the choice and the softmax over the chosen see it;
    the two most chosen experts of a block are frozen, the lower index of equals;
    dropout of 0.1 on the hidden numbers of an adapter, after its ReLU, in training.

The draws are those of the program under test (`normal`, `keep`, and `image_order`, since they belong to images): ChaCha8 from seeds that are
SHA-256 of the run's seed, the purpose, the block and the update. They are inputs, not what is compared.

moe.json           {losses [t][k][part], accuracy [stage][task], blocks, frozen [t][block], f32_against_f64}
moe.safetensors    drawn.initial.{name}, drawn.after{t}.{name}: the names of `moe_initial`, and B.noise.{task} [d, E]
"""

import argparse
import hashlib
import json
import math
import struct
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from gnsp_methods import chacha8, expanded, number_of
from gnsp_three_tasks import attention, check_against_transformers, layer_norm, learning_rate, smoothed_ce
from methods_two_tasks import SETTINGS, TOWERS, AdamW, evaluate, largest, loss_difference, loss_row, make_data, moe_initial, one_hot, relative

RUN_SEED, TRAIN_ORDER, ADAPTER_DRAWS, DROPOUT = 1, 2, 12, 0.1


# ---- draws --------------------------------------------------------------------------------------------------------


def derive(seed, *parts):
    return number_of(b"".join(struct.pack("<Q", n) for n in (seed, *parts)))


def words(seed):
    """32-bit words."""
    for number in chacha8(expanded(seed)):
        yield number & 0xFFFFFFFF
        yield number >> 32


def normal(seed, *shape):
    draws = words(seed)
    uniform = lambda: ((next(draws) | next(draws) << 32) >> 11) / (1 << 53)
    values = []
    for _ in range(math.prod(shape)):
        u, v = uniform(), uniform()
        values.append(math.sqrt(-2 * math.log(1 - u)) * math.cos(2 * math.pi * v))
    return torch.tensor(values, dtype=torch.float32).view(shape)


def keep(seed, *shape):
    """0 with the probability of the dropout, else its inverse complement."""
    share = torch.tensor(DROPOUT, dtype=torch.float32).item()
    draws = words(seed)
    values = [0.0 if (next(draws) >> 8) / (1 << 24) < share else 1.0 / (1.0 - DROPOUT) for _ in range(math.prod(shape))]
    return torch.tensor(values, dtype=torch.float32).view(shape)


def image_order(task, epoch, n):
    """The order of the training images, by Fisher and Yates: draws belong to a place in the batch."""
    seed = derive(RUN_SEED, TRAIN_ORDER, task)
    digest = hashlib.sha256(b"batch order\0" + struct.pack("<QQ", seed, epoch)).digest()
    draws, out = chacha8(struct.unpack("<8I", digest)), list(range(n))
    for i in range(n - 1, 0, -1):
        j = next(draws) * (i + 1) >> 64
        out[i], out[j] = out[j], out[i]
    return out


# ---- the model ----------------------------------------------------------------------------------------------------


def blocks(x, p, q, tower, cfg, m, mask, task, count, draw):
    for i in range(cfg["num_hidden_layers"]):
        n = f"{tower}.encoder.layers.{i}"
        x = x + attention(layer_norm(x, p, n + ".layer_norm1", cfg["layer_norm_eps"]), p, n + ".self_attn", cfg["num_attention_heads"], mask)
        y = 0
        if task is not None:
            scores = x[:, 0] @ q[f"{n}.router.{task}"]
            if draw:
                width = torch.nn.functional.softplus(x[:, 0] @ q[f"{n}.noise.{task}"]) + 0.01
                scores = scores + width * normal(draw(n, 0), *scores.shape).to(x.dtype)
            top = scores.topk(m["top"] + 1)
            count(n, top)
            index = top.indices[:, : m["top"]]
            gates = torch.zeros_like(scores).scatter(1, index, top.values[:, : m["top"]].softmax(1))
            hidden = (torch.einsum("bnd,erd->bner", x, q[n + ".down.weight"]) + q[n + ".down.bias"]).relu()
            if draw:
                kept = torch.ones_like(hidden)
                # Of the last block of the image tower nobody reads more than the class token.
                last = tower == "vision_model" and i == cfg["num_hidden_layers"] - 1
                tokens = 1 if last else x.shape[1]
                for e in range(m["experts"]):
                    rows = (index == e).any(1).nonzero().flatten()
                    if len(rows):
                        kept[rows, :tokens, e] = keep(draw(n, 1 + e), len(rows), tokens, m["bottleneck"]).to(x.dtype)
                hidden = hidden * kept
            up = torch.einsum("bner,edr->bned", hidden, q[n + ".up.weight"]) + q[n + ".up.bias"]
            y = m["scale"] * torch.einsum("be,bned->bnd", gates, up)
        h = layer_norm(x, p, n + ".layer_norm2", cfg["layer_norm_eps"]) @ p[n + ".mlp.fc1.weight"].T + p[n + ".mlp.fc1.bias"]
        h = h * torch.sigmoid(1.702 * h)
        x = x + h @ p[n + ".mlp.fc2.weight"].T + p[n + ".mlp.fc2.bias"] + y
    return x


def image(p, q, cfg, m, pixels, task, count=lambda n, top: None, draw=None):
    v, e = cfg["vision_config"], "vision_model.embeddings."
    w = p[e + "patch_embedding.weight"]
    x = torch.nn.functional.conv2d(pixels, w, stride=w.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([p[e + "class_embedding"].expand(len(x), 1, -1), x], dim=1) + p[e + "position_embedding.weight"]
    x = layer_norm(x, p, "vision_model.pre_layrnorm", v["layer_norm_eps"])
    x = blocks(x, p, q, "vision_model", v, m, None, task, count, draw)
    f = layer_norm(x[:, 0], p, "vision_model.post_layernorm", v["layer_norm_eps"]) @ p["visual_projection.weight"].T
    return f / f.norm(dim=-1, keepdim=True)


def text(p, q, cfg, m, rows, task, count=lambda n, top: None, draw=None):
    t, e, n = cfg["text_config"], "text_model.embeddings.", max(map(len, rows))
    x = p[e + "token_embedding.weight"][torch.tensor([r + [0] * (n - len(r)) for r in rows])] + p[e + "position_embedding.weight"][:n]
    mask = torch.full((n, n), -math.inf, dtype=x.dtype).triu(1)
    x = layer_norm(blocks(x, p, q, "text_model", t, m, mask, task, count, draw), p, "text_model.final_layer_norm", t["layer_norm_eps"])
    f = x[torch.arange(len(rows)), torch.tensor([r.index(t["eos_token_id"]) for r in rows])] @ p["text_projection.weight"].T
    return f / f.norm(dim=-1, keepdim=True)


def our_block(name):
    tower, layer = name.split("_model.encoder.layers.")
    return f"{dict(vision='visual', text='text')[tower]}.blocks.{layer}"


def run(world, weights, initial, dtype):
    s, cfg, m = world["settings"], world["cfg"], world["settings"]["moe"]
    p = {n: w.to(dtype) for n, w in weights.items()}
    q = {n: w.to(dtype) for n, w in initial.items()}
    scale = p["logit_scale"].exp()
    names = sorted({n.rsplit(".", 2)[0] for n in q})
    out = dict(blocks=names, losses=[], accuracy=[], logits=[], frozen=[], weights=[], margin=math.inf)
    frozen = {b: set() for b in names}
    for t, task in enumerate(world["tasks"][:2]):
        counts, adamw = {b: [0] * m["experts"] for b in names}, AdamW(s)

        def gap(top):
            out["margin"] = min(out["margin"], (top.values[:, m["top"] - 1] - top.values[:, m["top"]]).min().item())

        def count(block, top):
            gap(top)
            for row in top.indices[:, : m["top"]].tolist():
                for e in row:
                    counts[block][e] += 1

        of_task = lambda n: n.rsplit(".", 2)[1] in ("router", "noise")
        trained = [n for n in q if not of_task(n) or n.endswith(f".{t}")]
        masks = {}
        for n in trained:
            masks[n] = torch.ones_like(q[n])
            if not of_task(n):
                masks[n][sorted(frozen[n.rsplit(".", 2)[0]])] = 0
        out["losses"].append([])
        for k in range(s["steps"]):
            draw = lambda block, what: derive(derive(derive(RUN_SEED, ADAPTER_DRAWS, t), what, number_of(our_block(block).encode())), k)
            for n in trained:
                q[n].requires_grad_(True)
            batch = image_order(t, k, len(task["train_labels"]))
            f = image(p, q, cfg, m, task["train_pixels"][batch], t, count, draw)
            z = scale * f @ text(p, q, cfg, m, task["rows"][0], t, count, draw).T
            row = loss_row(dict(task=smoothed_ce(z, one_hot(task["train_labels"][batch], z.shape[1], z), s["smoothing"])))
            grads = torch.autograd.grad(row[0], [q[n] for n in trained])
            adamw.step(q, trained, [g * masks[n] for n, g in zip(trained, grads)], learning_rate(k, s))
            out["losses"][-1].append([x.item() for x in row])
        out["frozen"].append([])
        for b in names:
            order = sorted(range(m["experts"]), key=lambda e: (-counts[b][e], e))[: m["frozen_per_task"]]
            frozen[b] |= set(order)
            out["frozen"][-1].append(sorted(order))
        route = lambda u: u if u <= t else None
        watch = lambda n, top: gap(top)
        both = (lambda u, x: image(p, q, cfg, m, x, route(u), watch), lambda u, r: text(p, q, cfg, m, r, route(u), watch), scale)
        logits, accuracy = evaluate(both, world, 2)
        out["logits"].append(logits)
        out["accuracy"].append(accuracy)
        out["weights"].append({n: w.detach().clone() for n, w in q.items()})
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="Hugging Face directory of the tiny CLIP")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    cfg = json.loads((args.checkpoint / "config.json").read_text())
    norm = json.loads((args.checkpoint / "preprocessor_config.json").read_text())
    weights = load_file(args.checkpoint / "model.safetensors")
    tok = Tokenizer.from_file(str(args.checkpoint / "tokenizer.json"))
    tok.no_padding()
    check_against_transformers(args.checkpoint, cfg, weights)
    data = make_data(SETTINGS, tok, cfg["text_config"]["eos_token_id"])

    def world(dtype):
        mean, std = (torch.tensor(norm[k], dtype=torch.float64).view(3, 1, 1) for k in ("image_mean", "image_std"))
        pixels = lambda images: ((images.double() * norm["rescale_factor"] - mean) / std).to(dtype)
        tasks = [dict(t, train_pixels=pixels(t["train_images"]), test_pixels=pixels(t["test_images"])) for t in data["tasks"]]
        return dict(settings=SETTINGS, cfg=cfg, tasks=tasks)

    m, g = SETTINGS["moe"], torch.Generator().manual_seed(SETTINGS["seed"] + 1)
    initial = moe_initial(cfg, SETTINGS, 2, SETTINGS["seed"])
    for tower in TOWERS:
        c = cfg["text_config" if tower == "text_model" else "vision_config"]
        for i in range(c["num_hidden_layers"]):
            for t in range(2):
                initial[f"{tower}.encoder.layers.{i}.noise.{t}"] = 0.3 * torch.randn(c["hidden_size"], m["experts"], generator=g)
    a, b = (run(world(d), weights, initial, d) for d in (torch.float32, torch.float64))
    assert a["frozen"] == b["frozen"] and a["accuracy"] == b["accuracy"]
    assert a["margin"] > 1e-4, f"a router is undecided by {a['margin']:.1e}: take another seed"
    moved = lambda x, y: [relative(x[n] - initial[n], y[n] - initial[n].double()) for n in x if not torch.equal(x[n], initial[n])]
    difference = dict(
        loss=loss_difference(a, b), logits=largest(a["logits"], b["logits"]),
        weights=max(max(moved(x, y)) for x, y in zip(a["weights"], b["weights"])),
    )
    record = {k: v for k, v in a.items() if k not in ("weights", "logits")}
    (args.out / "moe.json").write_text(json.dumps(dict(record, f32_against_f64=difference), separators=(",", ":")) + "\n")
    tensors = {f"drawn.initial.{n}": w for n, w in initial.items()}
    for t, w in enumerate(a["weights"]):
        tensors |= {f"drawn.after{t}.{n}": x for n, x in w.items() if t == 1}
    save_file({k: v.contiguous() for k, v in tensors.items()}, args.out / "moe.safetensors")
    print("loss " + "  ".join(f"{l[0][0]:.4f}->{l[-1][0]:.4f}" for l in a["losses"]), f"closest router {a['margin']:.1e}", difference)


if __name__ == "__main__":
    main()
