"""MoE-Adapters with the noise of its gates and the dropout of its adapters, in plain PyTorch.

Run:   python tests/reference/moe_draws.py tests/data/clip/tiny tests/data/methods
Made with: Python 3.11, torch 2.15.0, safetensors 0.8.0, tokenizers 0.23.3 (CPU, one thread).

Writes `moe.safetensors` and `moe.json`. The method is `moe_adapters` of `methods_two_tasks.py` with
the random draws of training (JiazuoYu/MoE-Adapters4CL mtil/clip/model.py:333-338,476-480,
adapter.py):

    router logits  x'[0] . R_t + (softplus(x'[0] . N_t) + 0.01) * normal, with N_t [d, E] of the
                   task and no noise in evaluation; the choice and the softmax over the chosen
                   experts use them
    freezing       of the two most chosen experts of a block, the lower index of equals
    dropout        0.1, in training, after the ReLU on the hidden units of an adapter

The draws are those of the program under test (`normal`, `keep`, and `image_order`, because draws
belong to images): ChaCha8 from seeds that are SHA-256 of the run's seed, the purpose, the block and
the training step. They are inputs and not compared.

moe.json           {losses [t][k][part], accuracy [stage][task], blocks, frozen [t][block],
                   f32_against_f64}
moe.safetensors    drawn.initial.{name}, drawn.after{t}.{name}: the names of `moe_initial`, and
                   B.noise.{task} [d, E]
"""

import argparse
import hashlib
import json
import math
import struct
from pathlib import Path

import torch
from safetensors.torch import save_file

from gnsp_methods import chacha8, expanded, number_of
from methods_two_tasks import (
    SETTINGS,
    TOWERS,
    largest,
    loss_difference,
    moe_adapters,
    moe_initial,
    prepare,
    relative,
)

RUN_SEED, TRAIN_ORDER, ADAPTER_DRAWS, DROPOUT = 1, 2, 12, 0.1


# ---- draws --------------------------------------------------------------------------------------


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
    """Dropout factors: 0 with the dropout probability p, else 1/(1 - p)."""
    share = torch.tensor(DROPOUT, dtype=torch.float32).item()
    draws = words(seed)
    values = [
        0.0 if (next(draws) >> 8) / (1 << 24) < share else 1.0 / (1.0 - DROPOUT)
        for _ in range(math.prod(shape))
    ]
    return torch.tensor(values, dtype=torch.float32).view(shape)


def image_order(task, epoch, n):
    """The order of the training images (Fisher-Yates); draws belong to a place in the batch."""
    seed = derive(RUN_SEED, TRAIN_ORDER, task)
    digest = hashlib.sha256(b"batch order\0" + struct.pack("<QQ", seed, epoch)).digest()
    draws, out = chacha8(struct.unpack("<8I", digest)), list(range(n))
    for i in range(n - 1, 0, -1):
        j = next(draws) * (i + 1) >> 64
        out[i], out[j] = out[j], out[i]
    return out


def our_block(name):
    tower, layer = name.split("_model.encoder.layers.")
    return f"{dict(vision='visual', text='text')[tower]}.blocks.{layer}"


class Draws:
    """The draws of one training step of a task."""

    def __init__(self, task, update):
        self.seed = lambda block, what: derive(
            derive(
                derive(RUN_SEED, ADAPTER_DRAWS, task), what, number_of(our_block(block).encode())
            ),
            update,
        )

    def noise(self, block, answers):
        width = torch.nn.functional.softplus(answers) + 0.01
        return width * normal(self.seed(block, 0), *answers.shape).to(answers.dtype)

    def dropout(self, block, hidden, index, tokens):
        """Factors of the hidden units [images, n, experts, r] of the first `tokens` tokens.

        `index` holds the experts of each image.
        """
        kept = torch.ones_like(hidden)
        for e in range(hidden.shape[2]):
            rows = (index == e).any(1).nonzero().flatten()
            if len(rows):
                kept[rows, :tokens, e] = keep(
                    self.seed(block, 1 + e), len(rows), tokens, hidden.shape[3]
                ).to(hidden.dtype)
        return kept


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="Hugging Face directory of the tiny CLIP")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    cfg, weights, _, worlds = prepare(args.checkpoint)
    m, g = SETTINGS["moe"], torch.Generator().manual_seed(SETTINGS["seed"] + 1)
    initial = moe_initial(cfg, SETTINGS, 2, SETTINGS["seed"])
    for tower in TOWERS:
        c = cfg["text_config" if tower == "text_model" else "vision_config"]
        for i in range(c["num_hidden_layers"]):
            for t in range(2):
                initial[f"{tower}.encoder.layers.{i}.noise.{t}"] = 0.3 * torch.randn(
                    c["hidden_size"], m["experts"], generator=g
                )
    drawn = lambda task, update, images: (Draws(task, update), image_order(task, update, images))
    a, b = (
        moe_adapters(worlds[d], weights, initial, d, drawn) for d in (torch.float32, torch.float64)
    )
    assert a["frozen"] == b["frozen"] and a["accuracy"] == b["accuracy"]
    assert a["margin"] > 1e-4, f"a router is undecided by {a['margin']:.1e}: take another seed"
    moved = lambda x, y: [
        relative(x[n] - initial[n], y[n] - initial[n].double())
        for n in x
        if not torch.equal(x[n], initial[n])
    ]
    difference = dict(
        loss=loss_difference(a, b),
        logits=largest(a["logits"], b["logits"]),
        weights=max(max(moved(x, y)) for x, y in zip(a["weights"], b["weights"])),
    )
    record = {k: a[k] for k in ("blocks", "losses", "accuracy", "frozen", "margin")}
    (args.out / "moe.json").write_text(
        json.dumps(dict(record, f32_against_f64=difference), separators=(",", ":")) + "\n"
    )
    tensors = {f"drawn.initial.{n}": w for n, w in initial.items()}
    for t, w in enumerate(a["weights"]):
        tensors |= {f"drawn.after{t}.{n}": x for n, x in w.items() if t == 1}
    save_file({k: v.contiguous() for k, v in tensors.items()}, args.out / "moe.safetensors")
    print(
        "loss " + "  ".join(f"{l[0][0]:.4f}->{l[-1][0]:.4f}" for l in a["losses"]),
        f"closest router {a['margin']:.1e}",
        difference,
    )


if __name__ == "__main__":
    main()
