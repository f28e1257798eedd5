"""A task of image-caption pairs between two classifications, in plain PyTorch.

Run:   python tests/reference/caption_task.py tests/data/clip/tiny tests/data/methods
Made with: Python 3.11, torch 2.15.0, safetensors 0.8.0, tokenizers 0.23.3 (CPU, one thread).

Writes `captions.json` and `captions.safetensors`, in the format of `methods_two_tasks.py`, whose
model, classifications, settings and images this uses: tasks 0 and 2 are its own, and task 1 has the
images of its task 1 with the captions below in place of classes. All figures are of a float32 run;
every method also runs in float64.

Task loss of the pairs (Radford et al. 2021, arXiv 2103.00020, figure 3; open_clip
`src/open_clip/loss.py`, `ClipLoss`): Z = s f g^T for the B images of the batch and one caption each,
    1/2 [ mean_i -log softmax(Z_i)_i + mean_j -log softmax(Z^T_j)_j ],
without label smoothing; equal captions are negatives of each other. The batch is the whole training
set, so its order has no effect.

The caption of image i of task t in epoch e is number derive(S, [e, t, i]) mod n of the image's n
captions, with derive(s, parts) = the first eight bytes (little endian) of SHA-256 of s and the parts
as little-endian u64, S = derive(1, [purpose, task in training]), and the purposes 19 of training, 20
of rehearsal, 16 of Fisher information (which has one epoch). 1 is the run's seed.

Methods, three tasks each
    captions-finetune   the task loss
    captions-sgd        the same by plain gradient descent, so that the change of the weights is the
                        sum of the gradients times the learning rate
    captions-er         and the memory as in `methods_two_tasks.py`: a batch of it has images of a
                        classification and pairs, each part weighted by its share; the pairs are the
                        negatives of each other
    captions-ewc        F of the pairs = mean over the images i of the squared gradient of
                        -1/2 [log softmax(Z_i)_i + log softmax(Z^T_i)_i], one image at a time, Z over
                        the whole training set

captions.json
    versions      of torch, safetensors and tokenizers
    train, test   captions of each image; train_rows: as token ids
    drawn         [epoch][image]: number of the caption in the training of task 1
    step          of the pretrained model on the pairs of epoch 0: logits, loss
    methods       as in methods.json, and for each a list of retrieval by stage, with the pretrained
                  model first: {image_to_text, text_to_image}: recall at 1, 5, 10 in %. An image is a
                  hit at K when any of its captions is among the K closest of all test captions.
captions.safetensors
    {method}.digest{t}, {method}.final.{name}: as in methods.safetensors
"""

import argparse
import hashlib
import json
from pathlib import Path

import safetensors
import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from methods_two_tasks import (
    KEPT,
    SETTINGS,
    AdamW,
    digest,
    fisher,
    largest,
    loss_difference,
    memory_batch,
    one_hot,
    prepare,
    relative,
    signs,
    squared_distance,
    update_memory,
    walk,
)
from tiny_clip import encode_image, encode_text, learning_rate, smoothed_ce

PAIRS = 1
RUN_SEED = 1
TRAINING, REHEARSAL, FISHER = 19, 20, 16
TRAIN = [
    ["a view of the river", "a blue river"],
    ["a forest", "a photo of a green forest", "the forest, a photo"],
    ["a small flower"],
    ["a photo of a cat", "two cats"],
    ["a view of the river"],
    ["a drawing of a forest", "a small dotted texture"],
    ["a flower above food", "a flower"],
    ["a large cat", "a drawing of a cat"],
]
TEST = [
    ["a satellite view of a river", "the river, a photo"],
    ["a large forest"],
    ["a picture of a flower", "a red flower", "three flowers"],
    ["a cat"],
]
METHODS = ["captions-finetune", "captions-sgd", "captions-er", "captions-ewc"]
SGD_LR = 1e-2


def derive(seed, parts):
    data = b"".join(n.to_bytes(8, "little") for n in [seed, *parts])
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little")


def drawn(purpose, task, epoch, images):
    """Number of the caption of each of the images of the pairs."""
    seed = derive(RUN_SEED, [purpose, task])
    return [derive(seed, [epoch, PAIRS, i]) % len(TRAIN[i]) for i in images]


def logits(p, world, images, captions):
    rows = [world["caption_rows"][i][n] for i, n in zip(images, captions)]
    pixels = world["tasks"][PAIRS]["train_pixels"][torch.tensor(images)]
    g = encode_text(p, world["cfg"], rows)
    return p["logit_scale"].exp() * encode_image(p, world["cfg"], pixels) @ g.T


def terms(z):
    """The term of each pair: half its two cross-entropies."""
    return -0.5 * (z.log_softmax(1).diagonal() + z.log_softmax(0).diagonal())


def pair_loss(p, world, images, captions):
    return terms(logits(p, world, images, captions)).mean()


def class_loss(p, world, t, images):
    task = world["tasks"][t]
    i = torch.tensor(images)
    f = encode_image(p, world["cfg"], task["train_pixels"][i])
    z = p["logit_scale"].exp() * f @ encode_text(p, world["cfg"], task["rows"][0]).T
    targets = one_hot(task["train_labels"][i], z.shape[1], z)
    return smoothed_ce(z, targets, world["settings"]["smoothing"])


def task_loss(p, world, t, images, captions):
    if t == PAIRS:
        return pair_loss(p, world, images, captions)
    return class_loss(p, world, t, images)


def pair_fisher(p, world):
    names = [n for n in p if n != "logit_scale"]
    total = {n: torch.zeros_like(w) for n, w in p.items()}
    q = {n: w.clone().requires_grad_(n in names) for n, w in p.items()}
    images = list(range(len(TRAIN)))
    seed = derive(RUN_SEED, [FISHER, PAIRS])
    captions = [derive(seed, [0, PAIRS, i]) % len(TRAIN[i]) for i in images]
    for i in images:
        own = terms(logits(q, world, images, captions))[i]
        for n, g in zip(names, torch.autograd.grad(own, [q[n] for n in names])):
            total[n] += g**2 / len(images)
    return total


class Rehearsed:
    """What `memory_batch` reads of a context."""

    def __init__(self, settings, k):
        self.s, self.k = settings, k


def rehearsal(p, world, t, k, memory):
    items = walk(memory)
    batch = memory_batch(Rehearsed(world["settings"], k), items)
    size = world["settings"]["memory_batch"]
    epoch = k // -(-len(items) // size)
    total = 0
    for task in sorted({u for u, _ in batch}):
        images = [i for u, i in batch if u == task]
        captions = drawn(REHEARSAL, t, epoch, images) if task == PAIRS else None
        total = total + len(images) * task_loss(p, world, task, images, captions)
    return total / len(batch)


def retrieval(p, world):
    """Recall of the test pairs, and the closest decision."""
    task = world["tasks"][PAIRS]
    image_of = torch.tensor([i for i, all in enumerate(TEST) for _ in all])
    with torch.no_grad():
        f = encode_image(p, world["cfg"], task["test_pixels"])
        g = encode_text(p, world["cfg"], world["test_rows"])
        z = (f @ g.T).double()
    margin = min((z[i][:, None] - z[i][None]).abs().fill_diagonal_(1).min() for i in range(len(z)))
    margin = min(margin, (z.T[:, :, None] - z.T[:, None]).abs().add(torch.eye(len(z))).min())
    own = image_of[None] == torch.arange(len(z))[:, None]
    ranks = lambda z, own: [((s > s[o].max()) & ~o).sum().item() for s, o in zip(z, own)]
    recall = lambda r: [100 * sum(x < k for x in r) / len(r) for k in (1, 5, 10)]
    found = dict(image_to_text=recall(ranks(z, own)), text_to_image=recall(ranks(z.T, own.T)))
    return found, margin.item()


def run(name, world, weights, dtype):
    s = world["settings"]
    p = {n: w.to(dtype) for n, w in weights.items()}
    names = [n for n in p if n != "logit_scale"]
    past, memory = [], []
    found, margin = retrieval(p, world)
    out = dict(losses=[], lr=[], weights=[], logits=[], accuracy=[])
    out |= dict(retrieval=[found], margin=margin)
    for t in range(3):
        images = list(range(s["train_images"]))
        optimizer, losses, rates = AdamW(s), [], []
        for k in range(s["steps"]):
            q = {n: w.detach().clone().requires_grad_(n in names) for n, w in p.items()}
            captions = drawn(TRAINING, t, k, images) if t == PAIRS else None
            parts = dict(task=task_loss(q, world, t, images, captions))
            if name == "captions-ewc" and past:
                distance = sum(squared_distance(q, anchor, f) for anchor, f in past)
                parts["penalty"] = s["ewc_lambda"] / 2 * distance
            if name == "captions-er" and t > 0:
                parts["replay"] = rehearsal(q, world, t, k, memory)
            loss = sum(parts.values())
            grads = torch.autograd.grad(loss, [q[n] for n in names], allow_unused=True)
            grads = [torch.zeros_like(q[n]) if g is None else g for n, g in zip(names, grads)]
            lr = learning_rate(k, s)
            if name == "captions-sgd":
                lr *= SGD_LR / s["base_lr"]
                for n, g in zip(names, grads):
                    p[n] = p[n].detach() - lr * g
            else:
                optimizer.step(p, names, grads, lr)
            part = lambda n: parts[n].item() if n in parts else 0.0
            losses.append([loss.item(), part("task"), 0.0, 0.0, part("penalty"), part("replay")])
            rates.append(lr)
        out["losses"].append(losses)
        out["lr"].append(rates)
        p = {n: w.detach() for n, w in p.items()}
        out["weights"].append({n: w.clone() for n, w in p.items()})
        if name == "captions-ewc":
            f = pair_fisher(p, world) if t == PAIRS else fisher(p, world, t)
            past.append((out["weights"][-1], f))
        if name == "captions-er":
            memory, _ = update_memory("first", memory, p, world, t)
        found, margin = retrieval(p, world)
        out["retrieval"].append(found)
        out["margin"] = min(out["margin"], margin)
        found, accuracy = evaluate(p, world)
        out["logits"].append(found)
        out["accuracy"].append(accuracy)
    return out


def evaluate(p, world):
    """Logits and accuracies of the classifications; none of the pairs."""
    logits, accuracy = [], []
    with torch.no_grad():
        for t, task in enumerate(world["tasks"]):
            f = encode_image(p, world["cfg"], task["test_pixels"])
            z = p["logit_scale"].exp() * f @ encode_text(p, world["cfg"], task["rows"][0]).T
            g = sum(encode_text(p, world["cfg"], rows) for rows in task["rows"])
            right = (f @ (g / g.norm(dim=1, keepdim=True)).T).argmax(1) == task["test_labels"]
            logits.append([] if t == PAIRS else z.tolist())
            accuracy.append(None if t == PAIRS else 100 * right.double().mean().item())
    return logits, accuracy


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="Hugging Face directory of the tiny CLIP")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    cfg, weights, _, worlds = prepare(args.checkpoint)
    tokenizer = Tokenizer.from_file(str(args.checkpoint / "tokenizer.json"))
    ids = lambda text: tokenizer.encode(text).ids
    for world in worlds.values():
        world["caption_rows"] = [[ids(text) for text in all] for all in TRAIN]
        world["test_rows"] = [ids(text) for all in TEST for text in all]
    s = SETTINGS
    context = cfg["text_config"]["max_position_embeddings"]
    assert all(len(ids(text)) <= context for all in TRAIN + TEST for text in all)
    images = list(range(len(TRAIN)))
    not_compared = [n for n in weights if n.endswith("k_proj.bias")]
    names = sorted(n for n in weights if n != "logit_scale" and n not in not_compared)
    r = signs(max(w.numel() for w in weights.values()))
    z = logits(weights, worlds[torch.float32], images, drawn(TRAINING, PAIRS, 0, images))
    record = dict(
        versions=dict(
            torch=torch.__version__.split("+")[0],
            safetensors=safetensors.__version__,
            tokenizers=tokenizers.__version__,
        ),
        train=TRAIN,
        train_rows=worlds[torch.float32]["caption_rows"],
        test=TEST,
        drawn=[drawn(TRAINING, PAIRS, k, images) for k in range(s["steps"])],
        step=dict(logits=z.tolist(), loss=terms(z).mean().item()),
        methods={},
    )
    tensors = {}
    for name in METHODS:
        a, b = (run(name, worlds[d], weights, d) for d in (torch.float32, torch.float64))
        assert a["retrieval"] == b["retrieval"] and a["accuracy"] == b["accuracy"]
        assert a["margin"] > 1e-6, "a rank is too close: take other captions"
        digests = [[digest(w, weights, names, r) for w in x["weights"]] for x in (a, b)]
        apart = max(
            ((x - y).abs() / y[:, :1].clamp(min=1e-12)).max().item() for x, y in zip(*digests)
        )
        difference = dict(
            loss=loss_difference(a, b),
            logits=largest(*([z for stage in x["logits"] for z in stage if z] for x in (a, b))),
            digest=apart,
            kept=max(relative(a["weights"][-1][n], b["weights"][-1][n]) for n in KEPT),
        )
        keys = ("lr", "losses", "logits", "accuracy", "retrieval")
        record["methods"][name] = dict(
            tasks=3, **{k: a[k] for k in keys}, f32_against_f64=difference
        )
        for t, d in enumerate(digests[0]):
            tensors[f"{name}.digest{t}"] = d
        tensors |= {f"{name}.final.{n}": a["weights"][-1][n] for n in KEPT}
        ends = "  ".join(f"{l[0][0]:.4f}->{l[-1][0]:.4f}" for l in a["losses"])
        print(f"{name:18} loss {ends}  closest rank {a['margin']:.1e}")
        print(" " * 19 + "  ".join(f"{k} {v:.1e}" for k, v in difference.items()))
        print(" " * 19, a["retrieval"][0], a["retrieval"][-1])
    save_file(
        {k: v.detach().contiguous().clone() for k, v in tensors.items()},
        args.out / "captions.safetensors",
    )
    (args.out / "captions.json").write_text(json.dumps(record, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
