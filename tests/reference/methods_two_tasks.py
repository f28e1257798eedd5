"""The baselines of the benchmark on a tiny CLIP, in plain PyTorch, written from their formulas.

Run:   python tests/reference/methods_two_tasks.py tests/data/clip/tiny tests/data/methods
Made with: Python 3.11, torch 2.15.0, safetensors 0.8.0, tokenizers 0.23.3 (CPU, one thread).

Writes `methods.safetensors` (images, weights) and `methods.json` (everything else). All figures are
of a float32 run. Every method also runs in float64, which bounds the part of a difference that is
rounding. The model is that of `tiny_clip.py`.

Nothing depends on a random generator of the program under test: the batch is the whole training set
of a task, all losses are means, training images have the model's size (a crop of the whole area is
the image itself), and reference pairs and the rehearsal memory are used in order.

Common to all trained methods
    6 training steps per task, k = 0..5, with a new AdamW (betas 0.9 0.999, eps 1e-6, no decay) for
    each task. The eps is a hundred times the usual one, so that elements whose gradient is rounding
    noise do not take full steps;
    lr(k) = base (k+1)/2 for k < 2, then base (1 + cos(pi (k-2)/4))/2; all parameters but
    `logit_scale` train;
    f, g: L2-normalised image and text features; s = exp(logit_scale), the student's, for teacher
    logits too;
    task loss: mean over the batch of the cross-entropy of s f g^T against
    (1-eps) one-hot + eps/C, eps = 0.2, template 0;
    KD(A, B) = T^2 mean_r [ -sum_c softmax(A_r/T)_c log softmax(B_r/T)_c ], T = 2 (a cross-entropy,
    which includes the teacher's entropy).
    Pixels: (v/255 - mean)/std with the checkpoint's mean and std, in training and evaluation.
    `icarl-*`, `er` and `ewc` run three tasks, the others the first two.

methods.json
    settings      the numbers above and those of the methods (`memory_images`, `memory_batch`,
                  `ewc_lambda`, `rail`, `moe`, ...)
    tasks         [{class_names, templates, prompts: per template a list of texts, rows: the same as
                  token ids}]
    reference     {captions, rows, labels: index of the first pair with the same caption, prompts:
                  the distinct captions in order of first occurrence, prompt_rows}; its images are
                  in the other file
    captions      {texts, rows}: the text list of `zscl` and `zscl-star`
    virtual_rows  token rows of `lwf-vr`, unpadded
    parts         names of the columns of `losses` below: total, task, distillation, alignment,
                  penalty, replay. The parts are weighted, so they add up to the total; absent ones
                  are 0. Losses are those before training step k.
    digest_names  names of the rows of the digests (Hugging Face, sorted)
    kept          tensors stored whole after a method's last task
    not_compared  tensors excluded from comparisons: key biases, whose true gradient is zero
                  (softmax does not see them), so that they follow rounding noise; the penalties of
                  `wc` and `zscl` contain them, see f32_against_f64
    methods       {name: {tasks, lr [t][k], losses [t][k][part],
                  logits [stage][task][image][class], accuracy [stage][task], memory [stage][task]
                  lists of training-image indices (icarl, er), f32_against_f64}}
        stage     after task 0, 1, ...; all tasks of the method are evaluated at every stage,
                  learned or not
        logits    of the 4 test images of a task against template 0 of its classes, times s
        accuracy  in %, of the mean of the normalised features of both templates, normalised again
        f32_against_f64  largest differences of the two runs: `loss` over all parts, relative to the
                  total; `logits` absolute; `digest` over all digests, relative to the norm; `kept`
                  relative per tensor
    rail          see `rail`
    moe           see `moe_adapters`

methods.safetensors
    task{t}.train_images [8,3,32,32] u8, task{t}.train_labels [8] i64,
    task{t}.test_images [4,3,32,32], task{t}.test_labels, reference.images [8,3,32,32] u8
    {method}.digest{t} [tensors, 2] f64: of the change d = weights after task t - pretrained
                  weights, its L2 norm and its inner product with the signs r, r_i = +1 where the
                  top bit of splitmix64(i) is 0, else -1, i the row-major index in Hugging Face
                  layout ([out, in] for linear weights);
                  splitmix64(i): z = (i+1) 0x9E3779B97F4A7C15,
                  z = (z ^ z>>30) 0xBF58476D1CE4E5B9, z = (z ^ z>>27) 0x94D049BB133111EB,
                  z ^ z>>31, all mod 2^64
    {method}.final.{name} f32: weights after the last task
    rail.*, moe.*
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

from tiny_clip import (
    attention,
    check_against_transformers,
    distillation,
    encode_image,
    encode_text,
    layer_norm,
    learning_rate,
    smoothed_ce,
)

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

SETTINGS = dict(
    steps=6,
    warmup=2,
    base_lr=1e-3,
    batch=8,
    train_images=8,
    test_images=4,
    classes=4,
    smoothing=0.2,
    temperature=2.0,
    beta1=0.9,
    beta2=0.999,
    epsilon=1e-6,
    weight_decay=0.0,
    seed=11,
    wc_beta=1.0,
    average_every=2,
    we_wise_alpha=0.99,
    wise_alpha=0.8,
    memory_images=7,
    memory_batch=4,
    ewc_lambda=1000.0,
    gift_cd=1.0,
    gift_map=0.25,
    gift_l2=1.0,
    gift_floor=1e-6,
    rail=dict(hidden=48, ridge=0.1, gamma=0.1, dual_ridge=0.001, fusion=0.9, scale=100.0),
    moe=dict(experts=4, top=2, bottleneck=8, scale=0.1, frozen_per_task=2),
)
TASKS = [
    dict(
        class_names=["red circle", "blue square", "green triangle", "dog"],
        templates=["a photo of a {}.", "a drawing of a {}."],
    ),
    dict(
        class_names=["river", "forest", "flower", "cat"],
        templates=["a satellite view of a {}.", "the {}, a photo."],
    ),
    dict(
        class_names=["number one", "number two", "letter a", "letter b"],
        templates=["a picture of the {}.", "a photo of the {}."],
    ),
]
REFERENCE = [
    "a photo of a bird",
    "a photo of food",
    "a photo of a bird",
    "a photo of an aircraft",
    "a picture of a triangle",
    "a photo of food",
    "a drawing of the letter b",
    "a photo of a bird",
]
CAPTIONS = [
    "a small dotted texture",
    "three large birds",
    "a view of the river",
    "food, a photo",
    "a blue circle above",
    "two dogs",
]
PARTS = ["total", "task", "distillation", "alignment", "penalty", "replay"]
KEPT = [
    "text_model.encoder.layers.1.self_attn.v_proj.weight",
    "text_model.final_layer_norm.weight",
    "text_projection.weight",
    "vision_model.embeddings.class_embedding",
    "vision_model.encoder.layers.0.mlp.fc2.weight",
    "visual_projection.weight",
]


# ---- data ---------------------------------------------------------------------------------------


def make_data(s, tok, eos):
    """A smooth pattern of the class and one of the task, plus noise."""
    g = torch.Generator().manual_seed(s["seed"])
    up = lambda t: torch.nn.functional.interpolate(
        t, size=(32, 32), mode="bilinear", align_corners=False
    )
    to_bytes = lambda x: (x * 40 + 127.5).clamp(0, 255).to(torch.uint8)
    rows = lambda texts: [tok.encode(x).ids for x in texts]
    noise = lambda n: 0.5 * torch.randn(n, 3, 32, 32, generator=g)
    tasks = []
    for names in TASKS:
        base = up(torch.randn(1, 3, 2, 2, generator=g))
        patterns = up(torch.randn(s["classes"], 3, 4, 4, generator=g))
        train, test = (torch.arange(s[k]) % s["classes"] for k in ("train_images", "test_images"))
        prompts = [[t.replace("{}", c) for c in names["class_names"]] for t in names["templates"]]
        tasks.append(
            dict(
                names,
                prompts=prompts,
                rows=[rows(p) for p in prompts],
                train_labels=train,
                test_labels=test,
                train_images=to_bytes(base + patterns[train] + noise(len(train))),
                test_images=to_bytes(base + patterns[test] + noise(len(test))),
            )
        )
    prompts = list(dict.fromkeys(REFERENCE))
    n = len(REFERENCE)
    reference = dict(
        captions=REFERENCE,
        rows=rows(REFERENCE),
        labels=[REFERENCE.index(c) for c in REFERENCE],
        prompts=prompts,
        prompt_rows=rows(prompts),
        images=to_bytes(1.2 * up(torch.randn(n, 3, 4, 4, generator=g)) + noise(n)),
    )
    virtual = [
        [eos - 1, *torch.randint(0, eos + 1, (10,), generator=g).tolist(), eos] for _ in range(6)
    ]
    # A draw may be the end-of-text token; the feature is that of the first one.
    virtual[2][4] = eos
    return dict(
        tasks=tasks,
        reference=reference,
        captions=dict(texts=CAPTIONS, rows=rows(CAPTIONS)),
        virtual_rows=virtual,
    )


def one_hot(labels, classes, like):
    return torch.nn.functional.one_hot(labels, classes).to(like.dtype)


# ---- parts of the methods -----------------------------------------------------------------------


class Context:
    """The inputs of a loss besides the weights `p`.

    These are the world, the task, the weights at its start, the teacher and the rehearsal memory.
    """

    def __init__(self, world, t, k, start, pretrained, memory, past):
        self.w, self.s, self.cfg = world, world["settings"], world["cfg"]
        self.t, self.k, self.start, self.pretrained, self.memory, self.past = (
            t,
            k,
            start,
            pretrained,
            memory,
            past,
        )
        self.task = world["tasks"][t]


def task_loss(c, p, name=""):
    f, g = encode_image(p, c.cfg, c.task["train_pixels"]), encode_text(p, c.cfg, c.task["rows"][0])
    z = p["logit_scale"].exp() * f @ g.T
    return smoothed_ce(z, one_hot(c.task["train_labels"], z.shape[1], z), c.s["smoothing"])


def frozen_text_kd(c, p, teacher, pixels, rows):
    """KD(Zt, Zs) + KD(Zt^T, Zs^T), without a gradient for the text tower.

    Zt = s f_teacher(U) g_teacher(V)^T, Zs = s f(U) g_teacher(V)^T.
    ZSCL mtil/src/models/finetune.py: teacher texts on both sides, weights 1 and 1
    (`--image_loss --text_loss`).
    """
    scale = p["logit_scale"].exp()
    with torch.no_grad():
        g = encode_text(teacher, c.cfg, rows)
        zt = scale * encode_image(teacher, c.cfg, pixels) @ g.T
    zs = scale * encode_image(p, c.cfg, pixels) @ g.T
    t = c.s["temperature"]
    return distillation(zt, zs, t) + distillation(zt.T, zs.T, t)


def squared_distance(p, q, importance=None):
    """sum_p F (p - q)^2 over all parameters, F = 1 when absent.

    ZSCL mtil/src/models/helpers.py, `l2_loss`.
    """
    total = 0
    for n in p:
        d = (p[n] - q[n]) ** 2
        total = total + (d if importance is None else importance[n] * d).sum()
    return total


def memory_batch(c, items):
    """Batch k of the memory, in order and cyclic from the start of the task.

    The last batch may be smaller.
    """
    m = c.s["memory_batch"]
    batches = [items[i : i + m] for i in range(0, len(items), m)]
    return batches[c.k % len(batches)]


def walk(memory):
    """The memory as (task, image) pairs: tasks in order, images in the order of selection."""
    return [(t, i) for t, chosen in enumerate(memory) for i in chosen]


# ---- the methods --------------------------------------------------------------------------------


def finetune(c, p):
    """L = CE. ZSCL mtil/src/models/finetune.py without flags."""
    return dict(task=task_loss(c, p))


def wc(c, p):
    """L = CE + beta sum (theta - theta_start)^2, beta = 1.

    theta_start: the weights at the start of the task. ZSCL `wc.sh`, `--l2 1`.
    """
    return dict(task=task_loss(c, p), penalty=c.s["wc_beta"] * squared_distance(p, c.start))


def lwf(c, p):
    """L = CE + KD on the task's own training images and class prompts (template 0).

    Teacher: the model at the start of the task. ZSCL `lwf.sh`. Images are preprocessed as for
    evaluation. The reference batch is the whole training set.
    """
    return dict(
        task=task_loss(c, p),
        distillation=frozen_text_kd(c, p, c.start, c.task["train_pixels"], c.task["rows"][0]),
    )


def lwf_vr(c, p):
    """As `lwf`, with the texts V = random token rows (`virtual_rows`).

    ZSCL `lwf_vr.sh`, helpers.py `virtual_vocab`.
    """
    return dict(
        task=task_loss(c, p),
        distillation=frozen_text_kd(c, p, c.start, c.task["train_pixels"], c.w["virtual_rows"]),
    )


def zscl_star(c, p):
    """L = CE + KD on the reference images with the text list `captions`.

    Teacher: the pretrained model. Weights averaged as in `we`. ZSCL `ZSCL_stars.sh`.
    """
    return dict(
        task=task_loss(c, p),
        distillation=frozen_text_kd(
            c, p, c.pretrained, c.w["reference"]["pixels"], c.w["captions"]["rows"]
        ),
    )


def zscl(c, p):
    """`zscl_star` plus the penalty of `wc`. ZSCL `ZSCL.sh`.

    The initial weights of a task after the first, and its anchor, are the average of the task
    before.
    """
    return dict(zscl_star(c, p), penalty=c.s["wc_beta"] * squared_distance(p, c.start))


def zscl_minus(c, p):
    """L = CE + KD on the reference images with a list of prompts (`reference.prompts`).

    Teacher: the pretrained model. ZSCL `ZSCL_minus.sh`.
    """
    r = c.w["reference"]
    return dict(
        task=task_loss(c, p),
        distillation=frozen_text_kd(c, p, c.pretrained, r["pixels"], r["prompt_rows"]),
    )


def icarl(c, p):
    """Task 0: L = CE. Later: L = CE + KD on a batch of the memory with the task's class prompts.

    Teacher: the pretrained model. ZSCL mtil/src/models/icarl.py with `--image_loss --text_loss`.
    The memory has no labels.
    """
    if c.t == 0:
        return finetune(c, p)
    pixels = torch.stack(
        [c.w["tasks"][t]["train_pixels"][i] for t, i in memory_batch(c, walk(c.memory))]
    )
    return dict(
        task=task_loss(c, p),
        distillation=frozen_text_kd(c, p, c.pretrained, pixels, c.task["rows"][0]),
    )


def er(c, p):
    """Task 0: L = CE. Later: L = CE + mean smoothed CE over a batch of the memory.

    The CE of an image is against template 0 of its own task. Experience replay with a balanced
    memory (Chaudhry et al. 2019, arXiv 1902.10486): floor(K / tasks seen) images of every task, the
    first of its training set. The mean is over the images of the batch, of whatever task; smoothing
    is eps/C with C of the image's task.
    """
    parts = finetune(c, p)
    if c.t > 0:
        batch = memory_batch(c, walk(c.memory))
        total = 0
        for task in sorted({t for t, _ in batch}):
            data = c.w["tasks"][task]
            i = torch.tensor([i for t, i in batch if t == task])
            z = (
                p["logit_scale"].exp()
                * encode_image(p, c.cfg, data["train_pixels"][i])
                @ encode_text(p, c.cfg, data["rows"][0]).T
            )
            total = total + len(i) * smoothed_ce(
                z, one_hot(data["train_labels"][i], z.shape[1], z), c.s["smoothing"]
            )
        parts["replay"] = total / len(batch)
    return parts


def ewc(c, p):
    """L = CE + (lambda/2) sum_{u<t} sum F_u (theta - theta_u)^2, one anchor for each task.

    Kirkpatrick et al. 2017, arXiv 1612.00796. theta_u: weights after task u. F_u = mean over the
    training images of u of (d/dtheta log softmax(s f g^T)_y)^2 at theta_u, y the true label, no
    smoothing, template 0 of u, gradient of one image at a time, through both towers.
    """
    parts = finetune(c, p)
    if c.past:
        parts["penalty"] = (
            c.s["ewc_lambda"] / 2 * sum(squared_distance(p, anchor, f) for anchor, f in c.past)
        )
    return parts


def gift(c, p):
    """L = CE + CD + 0.25 ITA + l2 sum F (theta - theta_start)^2.

    Teacher: the model at the start of the task. CD = KD(Zt, Zs) + KD(Zt^T, Zs^T) and
    ITA = CE'(Zs, Y) + CE'(Zs^T, Y) on the reference pairs, both towers of the student in Zs;
    Y_ij = [l_i = l_j] / sum_k [l_i = l_k], CE' smoothed with eps/R. F = g^2 / mean(g^2) for each
    tensor, g the gradient of CD + 0.25 ITA at the same training step, 1e-6 where there is none
    (`logit_scale`); F is a constant. The gradient is the sum of those of CE, CD + ITA, penalty.

    GIFT (Luo-Jiaming/GIFT_CL) src/models/finetune_gift.py, configs/mtil_order_I.json. A tensor is
    one of OpenAI's layout: query, key and value of an attention are one tensor (a weight [3d, d], a
    bias [3d]) with one mean.
    """
    s, r = c.s, c.w["reference"]
    scale = p["logit_scale"].exp()
    with torch.no_grad():
        zt = (
            scale
            * encode_image(c.start, c.cfg, r["pixels"])
            @ encode_text(c.start, c.cfg, r["rows"]).T
        )
    zs = scale * encode_image(p, c.cfg, r["pixels"]) @ encode_text(p, c.cfg, r["rows"]).T
    cd = s["gift_cd"] * (
        distillation(zt, zs, s["temperature"]) + distillation(zt.T, zs.T, s["temperature"])
    )
    labels = torch.tensor(r["labels"])
    same = (labels[:, None] == labels[None, :]).to(zs.dtype)
    y = same / same.sum(1, keepdim=True)
    ita = s["gift_map"] * (
        smoothed_ce(zs, y, s["smoothing"]) + smoothed_ce(zs.T, y, s["smoothing"])
    )
    trained = [n for n in p if n != "logit_scale"]
    squares = {
        n: g.detach() ** 2
        for n, g in zip(
            trained, torch.autograd.grad(cd + ita, [p[n] for n in trained], retain_graph=True)
        )
    }
    importance = {"logit_scale": torch.full_like(p["logit_scale"], s["gift_floor"]).detach()}
    for n in trained:
        group = [n]
        for q in "qkv":
            if f".{q}_proj." in n:
                group = [n.replace(f".{q}_proj.", f".{o}_proj.") for o in "qkv"]
        importance[n] = squares[n] / torch.cat([squares[m].flatten() for m in group]).mean()
    penalty = s["gift_l2"] * squared_distance(p, c.start, importance)
    return dict(task=task_loss(c, p), distillation=cd, alignment=ita, penalty=penalty)


# Changes of the weights besides training steps. ZSCL mtil/src/models/helpers.py `merge_we`,
# `wise_we`; finetune.py.
#   we       W = start of the task, n = 0; after training step k, when k mod 2 = 0 (k = 0, 2, 4):
#            n <- n + 1, W <- (n W + theta)/(n + 1); W = mean of the start and of three snapshots.
#            After the task theta <- W. (ZSCL also merges at its extra training step of lr 0.)
#   we-wise  W <- alpha (n W + theta)/(n + 1) + (1 - alpha) theta_start at the same training steps,
#            alpha = 0.99.
#   wise     theta <- 0.8 theta + 0.2 theta_start after the task.
# The averaged weights are evaluated, and are the start, the anchor and the `start` teacher of the
# next task.
METHODS = {
    "finetune": dict(loss=finetune),
    "wc": dict(loss=wc),
    "lwf": dict(loss=lwf),
    "lwf-vr": dict(loss=lwf_vr),
    "zscl": dict(loss=zscl, average="we"),
    "zscl-star": dict(loss=zscl_star, average="we"),
    "zscl-minus": dict(loss=zscl_minus),
    "we": dict(loss=finetune, average="we"),
    "we-wise": dict(loss=finetune, average="we-wise"),
    "wise": dict(loss=finetune, average="wise"),
    "icarl-fixed": dict(loss=icarl, memory="fixed", tasks=3),
    "icarl-reference": dict(loss=icarl, memory="reference", tasks=3),
    "er": dict(loss=er, memory="first", tasks=3),
    "ewc": dict(loss=ewc, fisher=True, tasks=3),
    "gift": dict(loss=gift),
}


def herd(features, count, shrink_images):
    """Herding: picks k = 0, 1, .. minimise ||mu - (sum of picked + x)/(k + 1)||^2.

    Without replacement, the first of equals. mu = mean of the normalised features, not normalised
    again (ZSCL mtil/src/dynamic_dataset.py). With `shrink_images` False, the index into the
    remaining features is used as the index of the image. ZSCL does so, and stores wrong images from
    the second pick on.

    Also returns the smallest distance between the best and the second best criterion.
    """
    mean, left, total = features.mean(0), list(range(len(features))), 0
    picked, margin = [], math.inf
    for k in range(min(count, len(features))):
        d = ((mean - (total + features[left]) / (k + 1)) ** 2).sum(1)
        j = int(d.argmin())
        if len(left) > 1:
            two = d.sort().values[:2]
            margin = min(margin, (two[1] - two[0]).item())
        total = total + features[left[j]]
        picked.append(left[j] if shrink_images else j)
        del left[j]
    return picked, margin


def update_memory(kind, memory, p, world, t):
    """The memory after task t, K = 7.

    Task 0: the first K images. Later: old tasks keep their first floor(K/(t+1)), the new one gets

    fixed      floor(K/(t+1)) images by herding with the model just trained
    reference  K - floor(K/(t+1)) images by ZSCL's herding: exceeds K from the third task on
    first      its first floor(K/(t+1)) (er; task 0 too)
    """
    k = world["settings"]["memory_images"]
    quota = k // (t + 1)
    if t == 0 or kind == "first":
        n = len(world["tasks"][t]["train_labels"])
        return [m[:quota] for m in memory] + [list(range(min(quota, n)))], math.inf
    with torch.no_grad():
        features = encode_image(p, world["cfg"], world["tasks"][t]["train_pixels"])
    picked, margin = herd(features, quota if kind == "fixed" else k - quota, kind == "fixed")
    return [m[:quota] for m in memory] + [picked], margin


def fisher(p, world, t):
    task, names = world["tasks"][t], [n for n in p if n != "logit_scale"]
    total = {n: torch.zeros_like(w) for n, w in p.items()}
    q = {n: w.clone().requires_grad_(n in names) for n, w in p.items()}
    for x, y in zip(task["train_pixels"], task["train_labels"]):
        z = (
            q["logit_scale"].exp()
            * encode_image(q, world["cfg"], x[None])
            @ encode_text(q, world["cfg"], task["rows"][0]).T
        )
        for n, g in zip(names, torch.autograd.grad(z.log_softmax(1)[0, y], [q[n] for n in names])):
            total[n] += g**2 / len(task["train_labels"])
    return total


class AdamW:
    """AdamW without weight decay, hence Adam. Zero gradients count too."""

    def __init__(self, s):
        self.s, self.k, self.m, self.v = s, 0, {}, {}

    def step(self, p, names, grads, lr):
        s, self.k = self.s, self.k + 1
        for n, g in zip(names, grads):
            self.m[n] = s["beta1"] * self.m.get(n, 0) + (1 - s["beta1"]) * g
            self.v[n] = s["beta2"] * self.v.get(n, 0) + (1 - s["beta2"]) * g * g
            m, v = self.m[n] / (1 - s["beta1"] ** self.k), self.v[n] / (1 - s["beta2"] ** self.k)
            p[n] = p[n].detach() - lr * m / (v.sqrt() + s["epsilon"])


def loss_row(parts):
    return [sum(parts.values())] + [parts.get(n, torch.zeros(())) for n in PARTS[1:]]


def evaluate(features, world, tasks):
    """Logits against template 0, accuracies of both templates.

    `features(t, pixels)` and `texts(t, rows)` are those of task t.
    """
    image, text, scale = features
    logits, accuracy = [], []
    with torch.no_grad():
        for t in range(tasks):
            task = world["tasks"][t]
            f = image(t, task["test_pixels"])
            logits.append((scale * f @ text(t, task["rows"][0]).T).tolist())
            g = sum(text(t, rows) for rows in task["rows"])
            z = f @ (g / g.norm(dim=1, keepdim=True)).T
            two = z.topk(2).values
            assert (two[:, 0] - two[:, 1]).min() > 1e-4, (
                "a test image is on the border of two classes: take another seed"
            )
            accuracy.append(100.0 * (z.argmax(1) == task["test_labels"]).double().mean().item())
    return logits, accuracy


def run(method, world, weights, dtype):
    s, tasks = world["settings"], method.get("tasks", 2)
    pretrained = {n: w.to(dtype) for n, w in weights.items()}
    p = {n: w.clone() for n, w in pretrained.items()}
    names = [n for n in p if n != "logit_scale"]
    out = dict(lr=[], losses=[], logits=[], accuracy=[], weights=[], memory=[], margin=math.inf)
    memory, past = [], []
    for t in range(tasks):
        start = {n: w.clone() for n, w in p.items()}
        average, merged = {n: w.clone() for n, w in p.items()}, 0
        adamw = AdamW(s)
        out["lr"].append([learning_rate(k, s) for k in range(s["steps"])])
        out["losses"].append([])
        for k, lr in enumerate(out["lr"][-1]):
            for n in names:
                p[n].requires_grad_(True)
            row = loss_row(method["loss"](Context(world, t, k, start, pretrained, memory, past), p))
            adamw.step(p, names, torch.autograd.grad(row[0], [p[n] for n in names]), lr)
            out["losses"][-1].append([x.item() for x in row])
            if method.get("average") in ("we", "we-wise") and k % s["average_every"] == 0:
                merged += 1
                a = s["we_wise_alpha"] if method["average"] == "we-wise" else 1.0
                average = {
                    n: a * (merged * average[n] + p[n]) / (merged + 1) + (1 - a) * start[n]
                    for n in p
                }
        if method.get("average") in ("we", "we-wise"):
            p = average
        elif method.get("average") == "wise":
            p = {n: s["wise_alpha"] * p[n] + (1 - s["wise_alpha"]) * start[n] for n in p}
        if "memory" in method:
            memory, margin = update_memory(method["memory"], memory, p, world, t)
            out["memory"].append(memory)
            out["margin"] = min(out["margin"], margin)
        if method.get("fisher"):
            past.append(({n: w.clone() for n, w in p.items()}, fisher(p, world, t)))
        cfg = world["cfg"]
        both = (
            lambda t, x: encode_image(p, cfg, x),
            lambda t, r: encode_text(p, cfg, r),
            p["logit_scale"].exp(),
        )
        logits, accuracy = evaluate(both, world, tasks)
        out["logits"].append(logits)
        out["accuracy"].append(accuracy)
        out["weights"].append({n: w.clone() for n, w in p.items()})
    return out


# ---- RAIL ---------------------------------------------------------------------------------------


def rail(world, weights, hidden, dtype):
    """Ridge regression on frozen features.

    Xu et al. 2024, arXiv 2406.18868; linghan1997/Regression-based-Analytic-Incremental-Learning
    primal_RAIL.py, dual_RAIL.py, utils.py, configs/analytic_clip.yaml.

    Classes are numbered over the tasks in order; C_t of them are seen after task t, C are all. x:
    normalised image features of the pretrained model, Y: one-hot over the C_t.

    primal    phi = relu(x W), W [e, H] fixed, no bias. R = (sum phi^T phi + ridge I)^-1,
              theta = R sum phi^T Y for task 0; then, for the training set of a task as one batch,
              R <- R - R phi^T (I + phi R phi^T)^-1 phi R,
              theta <- [theta 0] + R phi^T (Y - phi [theta 0]) with the new R. This is the joint
              solution for all tasks. Output phi theta. Published H 15000, ridge 0.1.
    dual      k(a, b) = exp(-gamma |a - b|^2); alpha = (K + dual_ridge I)^-1 Y over all training
              images so far, output k(x, all) alpha. Published gamma 0.1, dual_ridge 0.001.
    fusion    q = softmax(100 x g^T) over the C, seen or not, g: normalised text features of
              template 0. Where argmax q < C_t, result (1 - 0.9) q + 0.9 [output 0], else q; the
              class is the argmax of the result.
    known     fusion when the task u of the image is known (not in the repository, which has only
              the former): q = softmax over the classes of u; where u is learned, result (1 - 0.9) q
              + 0.9 (output at the classes of u), else q.

    In the json, `rail.stages[t][form]`: {output [task][image][C_t], fused [task][image][C],
    predicted [task][image], known [task][image][classes of the task], known_predicted},
    `rail.zero_shot` [task][image][C] = q, for the two tasks. In the other file: rail.hidden = W,
    rail.features{t} = x of the training images, rail.theta{t} [H, C_t], rail.alpha{t} [images so
    far, C_t]. Features are those of `dtype`; the algebra on them is float64.
    """
    s, cfg = world["settings"]["rail"], world["cfg"]
    p = {n: w.to(dtype) for n, w in weights.items()}
    tasks = world["tasks"][:2]
    with torch.no_grad():
        train = [encode_image(p, cfg, t["train_pixels"]).double() for t in tasks]
        test = [encode_image(p, cfg, t["test_pixels"]).double() for t in tasks]
        g = encode_text(p, cfg, [r for t in tasks for r in t["rows"][0]]).double()
    hidden = hidden.double()
    sizes = [len(t["class_names"]) for t in tasks]
    first = [sum(sizes[:t]) for t in range(len(tasks) + 1)]
    lift = lambda x: (x @ hidden).relu()
    kernel = lambda a, b: (-s["gamma"] * ((a[:, None] - b[None]) ** 2).sum(-1)).exp()
    eye = lambda n: torch.eye(n, dtype=torch.float64)
    zero_shot = [(s["scale"] * x @ g.T).softmax(1) for x in test]
    out = dict(zero_shot=[q.tolist() for q in zero_shot], stages=[])
    tensors = {"rail.hidden": hidden.float()}
    r, theta, gram, cross, margin = (
        None,
        torch.zeros(hidden.shape[1], 0, dtype=torch.float64),
        0,
        0,
        math.inf,
    )
    for t, task in enumerate(tasks):
        seen = first[t + 1]
        phi, y = (
            lift(train[t]),
            torch.nn.functional.one_hot(task["train_labels"] + first[t], seen).double(),
        )
        theta = torch.cat([theta, torch.zeros(len(theta), sizes[t], dtype=torch.float64)], 1)
        gram = gram + phi.T @ phi
        cross = (
            torch.cat([cross, torch.zeros(len(theta), sizes[t], dtype=torch.float64)], 1)
            if t
            else 0
        ) + phi.T @ y
        if r is None:
            r = torch.linalg.inv(gram + s["ridge"] * eye(len(theta)))
        else:
            r = r - r @ phi.T @ torch.linalg.inv(eye(len(phi)) + phi @ r @ phi.T) @ phi @ r
        theta = theta + r @ phi.T @ (y - phi @ theta)
        joint = torch.linalg.solve(gram + s["ridge"] * eye(len(theta)), cross)
        assert (theta - joint).abs().max() < 1e-9 * joint.abs().max()
        x = torch.cat(train[: t + 1])
        labels = torch.cat([u["train_labels"] + first[i] for i, u in enumerate(tasks[: t + 1])])
        alpha = torch.linalg.solve(
            kernel(x, x) + s["dual_ridge"] * eye(len(x)),
            torch.nn.functional.one_hot(labels, seen).double(),
        )
        stage = {}
        for form, output in (
            ("primal", lambda z: lift(z) @ theta),
            ("dual", lambda z: kernel(z, x) @ alpha),
        ):
            rows = dict(output=[], fused=[], predicted=[], known=[], known_predicted=[])
            for u, z in enumerate(test):
                q, o = zero_shot[u], output(z)
                padded = torch.cat(
                    [o, torch.zeros(len(o), first[-1] - seen, dtype=torch.float64)], 1
                )
                inside = (q.argmax(1) < seen)[:, None]
                fused = torch.where(inside, (1 - s["fusion"]) * q + s["fusion"] * padded, q)
                own = slice(first[u], first[u + 1])
                known = (s["scale"] * z @ g[own].T).softmax(1)
                if u <= t:
                    known = (1 - s["fusion"]) * known + s["fusion"] * o[:, own]
                for v in (q, fused, known):
                    two = v.topk(2).values
                    margin = min(margin, (two[:, 0] - two[:, 1]).min().item())
                for key, v in (
                    ("output", o),
                    ("fused", fused),
                    ("predicted", fused.argmax(1)),
                    ("known", known),
                    ("known_predicted", known.argmax(1)),
                ):
                    rows[key].append(v.tolist())
            stage[form] = rows
        out["stages"].append(stage)
        tensors |= {
            f"rail.features{t}": train[t].float(),
            f"rail.theta{t}": theta.float(),
            f"rail.alpha{t}": alpha.float(),
        }
    return out, tensors, margin


# ---- MoE-Adapters -------------------------------------------------------------------------------

TOWERS = ("text_model", "vision_model")


def moe_initial(cfg, s, tasks, seed):
    """Initial values from a seed.

    With the published initialisation, experts would tie and gradients be zero at the start.

    Shapes for every residual block `B` = `{tower}.encoder.layers.{i}`: B.down.weight [E, r, d],
    B.down.bias [E, r], B.up.weight [E, d, r], B.up.bias [E, d], B.router.{task} [d, E].
    """
    g, m, out = torch.Generator().manual_seed(seed), s["moe"], {}
    for tower in TOWERS:
        c = cfg["text_config" if tower == "text_model" else "vision_config"]
        d, e, r = c["hidden_size"], m["experts"], m["bottleneck"]
        for i in range(c["num_hidden_layers"]):
            b = f"{tower}.encoder.layers.{i}."
            for name, shape, size in (
                ("down.weight", (e, r, d), d**-0.5),
                ("down.bias", (e, r), 0.1),
                ("up.weight", (e, d, r), r**-0.5),
                ("up.bias", (e, d), 0.1),
                *((f"router.{t}", (d, e), 0.3) for t in range(tasks)),
            ):
                out[b + name] = size * torch.randn(*shape, generator=g)
    return out


def moe_blocks(x, p, q, tower, cfg, settings, mask, task, count, draws=None):
    """The blocks of `tiny_clip.blocks` with adapters.

    `task` None leaves them out; `draws` of `moe_draws.py` adds noise and dropout.
    """
    for i in range(cfg["num_hidden_layers"]):
        n = f"{tower}.encoder.layers.{i}"
        x = x + attention(
            layer_norm(x, p, n + ".layer_norm1", cfg["layer_norm_eps"]),
            p,
            n + ".self_attn",
            cfg["num_attention_heads"],
            mask,
        )
        y = 0
        if task is not None:
            logits = x[:, 0] @ q[f"{n}.router.{task}"]
            if draws:
                logits = logits + draws.noise(n, x[:, 0] @ q[f"{n}.noise.{task}"])
            top = logits.topk(settings["top"] + 1)
            count(n, top)
            index = top.indices[:, : settings["top"]]
            gates = torch.zeros_like(logits).scatter(
                1, index, top.values[:, : settings["top"]].softmax(1)
            )
            hidden = (
                torch.einsum("bnd,erd->bner", x, q[n + ".down.weight"]) + q[n + ".down.bias"]
            ).relu()
            if draws:
                # Only the class token of the last block of the image tower is read.
                only_first = mask is None and i == cfg["num_hidden_layers"] - 1
                hidden = hidden * draws.dropout(n, hidden, index, 1 if only_first else x.shape[1])
            up = torch.einsum("bner,edr->bned", hidden, q[n + ".up.weight"]) + q[n + ".up.bias"]
            y = settings["scale"] * torch.einsum("be,bned->bnd", gates, up)
        h = (
            layer_norm(x, p, n + ".layer_norm2", cfg["layer_norm_eps"]) @ p[n + ".mlp.fc1.weight"].T
            + p[n + ".mlp.fc1.bias"]
        )
        h = h * torch.sigmoid(1.702 * h)
        x = x + h @ p[n + ".mlp.fc2.weight"].T + p[n + ".mlp.fc2.bias"] + y
    return x


def moe_image(p, q, cfg, settings, pixels, task, count=lambda n, top: None, draws=None):
    v, e = cfg["vision_config"], "vision_model.embeddings."
    w = p[e + "patch_embedding.weight"]
    x = torch.nn.functional.conv2d(pixels, w, stride=w.shape[-1]).flatten(2).transpose(1, 2)
    x = (
        torch.cat([p[e + "class_embedding"].expand(len(x), 1, -1), x], dim=1)
        + p[e + "position_embedding.weight"]
    )
    x = layer_norm(x, p, "vision_model.pre_layrnorm", v["layer_norm_eps"])
    x = moe_blocks(x, p, q, "vision_model", v, settings, None, task, count, draws)
    f = (
        layer_norm(x[:, 0], p, "vision_model.post_layernorm", v["layer_norm_eps"])
        @ p["visual_projection.weight"].T
    )
    return f / f.norm(dim=-1, keepdim=True)


def moe_text(p, q, cfg, settings, rows, task, count=lambda n, top: None, draws=None):
    t, e, n = cfg["text_config"], "text_model.embeddings.", max(map(len, rows))
    x = (
        p[e + "token_embedding.weight"][torch.tensor([r + [0] * (n - len(r)) for r in rows])]
        + p[e + "position_embedding.weight"][:n]
    )
    mask = torch.full((n, n), -math.inf, dtype=x.dtype).triu(1)
    x = layer_norm(
        moe_blocks(x, p, q, "text_model", t, settings, mask, task, count, draws),
        p,
        "text_model.final_layer_norm",
        t["layer_norm_eps"],
    )
    f = (
        x[torch.arange(len(rows)), torch.tensor([r.index(t["eos_token_id"]) for r in rows])]
        @ p["text_projection.weight"].T
    )
    return f / f.norm(dim=-1, keepdim=True)


def moe_adapters(
    world, weights, initial, dtype, drawn=lambda task, update, images: (None, slice(None))
):
    """Mixture of adapters.

    Yu et al. 2024, arXiv 2403.11549; JiazuoYu/MoE-Adapters4CL mtil/clip/model.py, adapter.py,
    src/models/finetune.py.

    In every residual block of both towers, with x' = x + attn(ln_1 x): x'' = x' + mlp(ln_2 x') +
    0.1 sum_e gate_e (U_e relu(D_e x' + a_e) + b_e): the adapters read x' itself. One decision for a
    whole sequence: logits = x'[0] . router of the task [d, E] (no bias; position 0 is the class
    token, or the start-of-text token, so the decision is the same for all texts). The 2 largest go
    through a softmax over the two; other gates are 0. CLIP is frozen; experts are shared by the
    tasks, routers are not. Task loss only.

    At every training step, image batch and class prompts are counted: how often each block chooses
    each expert. After the task, the 2 most chosen experts of each block (the lower index of equals)
    are frozen permanently, and may still be routed to. The counts restart with each task. A task
    that is not learned yet, and any other input, uses plain CLIP.

    An expert that no sequence chose at a training step has a zero gradient, so its moments decay
    and it may still move. The published scripts do so with two GPUs, where DataParallel turns
    missing gradients into zeros; on one GPU their AdamW skips such an expert.

    Left out of the published training: gate noise, and dropout 0.1 in the adapters. `moe_draws.py`
    adds them by `drawn`: the draws of a training step and the order of its images. Published: 22
    experts, bottleneck 64, up-projections, biases and routers initially 0, warm-up 100, 1000
    training steps. The published code computes a load-balancing loss but does not use it.

    In the json `moe`: lr, losses, logits, accuracy as for the methods; counts [t][block][expert],
    frozen [t][block] = the two of task t, blocks in the order of `blocks`; margin: the smallest
    difference of the 2nd and 3rd router logit. In the other file moe.initial.{name},
    moe.after{t}.{name} for all names of `moe_initial`.
    """
    s, cfg, m = world["settings"], world["cfg"], world["settings"]["moe"]
    p = {n: w.to(dtype) for n, w in weights.items()}
    q = {n: w.to(dtype) for n, w in initial.items()}
    scale = p["logit_scale"].exp()
    blocks = sorted({n.rsplit(".", 2)[0] for n in q})
    out = dict(
        blocks=blocks,
        lr=[],
        losses=[],
        logits=[],
        accuracy=[],
        counts=[],
        frozen=[],
        weights=[],
        margin=math.inf,
    )
    frozen = {b: set() for b in blocks}
    for t, task in enumerate(world["tasks"][:2]):
        counts, adamw = {b: [0] * m["experts"] for b in blocks}, AdamW(s)

        def gap(top):
            out["margin"] = min(
                out["margin"], (top.values[:, m["top"] - 1] - top.values[:, m["top"]]).min().item()
            )

        def count(block, top):
            gap(top)
            for row in top.indices[:, : m["top"]].tolist():
                for e in row:
                    counts[block][e] += 1

        of_task = lambda n: n.rsplit(".", 2)[1] in ("router", "noise")
        names = [n for n in q if not of_task(n) or n.endswith(f".{t}")]
        masks = {}
        for n in names:
            b = n.rsplit(".", 2)[0]
            masks[n] = torch.ones_like(q[n])
            if not of_task(n):
                masks[n][sorted(frozen[b])] = 0
        out["lr"].append([learning_rate(k, s) for k in range(s["steps"])])
        out["losses"].append([])
        for k, lr in enumerate(out["lr"][-1]):
            for n in names:
                q[n].requires_grad_(True)
            draws, order = drawn(t, k, len(task["train_labels"]))
            f = moe_image(p, q, cfg, m, task["train_pixels"][order], t, count, draws)
            z = scale * f @ moe_text(p, q, cfg, m, task["rows"][0], t, count, draws).T
            row = loss_row(
                dict(
                    task=smoothed_ce(
                        z, one_hot(task["train_labels"][order], z.shape[1], z), s["smoothing"]
                    )
                )
            )
            grads = torch.autograd.grad(row[0], [q[n] for n in names])
            adamw.step(q, names, [g * masks[n] for n, g in zip(names, grads)], lr)
            out["losses"][-1].append([x.item() for x in row])
        out["counts"].append([counts[b] for b in blocks])
        out["frozen"].append([])
        for b in blocks:
            order = sorted(range(m["experts"]), key=lambda e: (-counts[b][e], e))[
                : m["frozen_per_task"]
            ]
            frozen[b] |= set(order)
            out["frozen"][-1].append(sorted(order))
        route = lambda u: u if u <= t else None
        watch = lambda n, top: gap(top)
        both = (
            lambda u, x: moe_image(p, q, cfg, m, x, route(u), watch),
            lambda u, r: moe_text(p, q, cfg, m, r, route(u), watch),
            scale,
        )
        logits, accuracy = evaluate(both, world, 2)
        out["logits"].append(logits)
        out["accuracy"].append(accuracy)
        out["weights"].append({n: w.detach().clone() for n, w in q.items()})
    # Without adapters, the blocks are those of the model.
    with torch.no_grad():
        x = world["tasks"][0]["test_pixels"]
        assert torch.equal(moe_image(p, q, cfg, m, x, None), encode_image(p, cfg, x))
        rows = world["tasks"][0]["rows"][0]
        assert torch.equal(moe_text(p, q, cfg, m, rows, None), encode_text(p, cfg, rows))
    return out


# ---- comparison and output ----------------------------------------------------------------------


def signs(n):
    """+1 or -1 from the top bit of splitmix64 of the index."""
    mask, out = (1 << 64) - 1, []
    for i in range(n):
        z = (i + 1) * 0x9E3779B97F4A7C15 & mask
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        out.append(1.0 if (z ^ z >> 31) >> 63 == 0 else -1.0)
    return torch.tensor(out, dtype=torch.float64)


def digest(weights, pretrained, names, r):
    rows = []
    for n in names:
        d = (weights[n].double() - pretrained[n].double()).flatten()
        rows.append([d.norm().item(), (d @ r[: len(d)]).item()])
    return torch.tensor(rows, dtype=torch.float64)


def largest(a, b):
    return (
        (torch.tensor(a, dtype=torch.float64) - torch.tensor(b, dtype=torch.float64))
        .abs()
        .max()
        .item()
    )


def loss_difference(a, b):
    """The largest difference over all parts, relative to the total of the float64 run."""
    a, b = (torch.tensor(x["losses"], dtype=torch.float64) for x in (a, b))
    return ((a - b).abs() / b[..., :1].abs()).max().item()


def relative(a, b):
    return ((a.double() - b).norm() / b.norm()).item()


def prepare(checkpoint):
    """The checkpoint's settings and weights, the data, and the world in both precisions."""
    cfg = json.loads((checkpoint / "config.json").read_text())
    norm = json.loads((checkpoint / "preprocessor_config.json").read_text())
    weights = load_file(checkpoint / "model.safetensors")
    tok = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tok.no_padding()
    check_against_transformers(checkpoint, cfg, weights)
    context, eos = cfg["text_config"]["max_position_embeddings"], cfg["text_config"]["eos_token_id"]
    data = make_data(SETTINGS, tok, eos)
    all_rows = [r for t in data["tasks"] for rows in t["rows"] for r in rows]
    all_rows += data["reference"]["rows"] + data["captions"]["rows"] + data["virtual_rows"]
    assert all(len(r) <= context and eos in r for r in all_rows)

    def world(dtype):
        mean, std = (
            torch.tensor(norm[k], dtype=torch.float64).view(3, 1, 1)
            for k in ("image_mean", "image_std")
        )
        pixels = lambda images: ((images.double() * norm["rescale_factor"] - mean) / std).to(dtype)
        tasks = [
            dict(t, train_pixels=pixels(t["train_images"]), test_pixels=pixels(t["test_images"]))
            for t in data["tasks"]
        ]
        reference = dict(data["reference"], pixels=pixels(data["reference"]["images"]))
        return dict(data, settings=SETTINGS, cfg=cfg, tasks=tasks, reference=reference)

    return cfg, weights, data, {d: world(d) for d in (torch.float32, torch.float64)}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="Hugging Face directory of the tiny CLIP")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    cfg, weights, data, worlds = prepare(args.checkpoint)
    s = SETTINGS
    not_compared = sorted(n for n in weights if n.endswith("k_proj.bias"))
    names = sorted(n for n in weights if n != "logit_scale" and n not in not_compared)
    r = signs(max(w.numel() for w in weights.values()))
    tensors = {
        f"task{t}.{k}": v
        for t, task in enumerate(data["tasks"])
        for k, v in task.items()
        if torch.is_tensor(v)
    }
    tensors["reference.images"] = data["reference"]["images"]
    plain = lambda d: {k: v for k, v in d.items() if not torch.is_tensor(v)}
    record = dict(
        settings=s,
        tasks=[plain(t) for t in data["tasks"]],
        reference=plain(data["reference"]),
        captions=data["captions"],
        virtual_rows=data["virtual_rows"],
        parts=PARTS,
        digest_names=names,
        kept=KEPT,
        not_compared=not_compared,
        methods={},
    )

    plain_logits = None
    for name, method in METHODS.items():
        a, b = (run(method, worlds[d], weights, d) for d in (torch.float32, torch.float64))
        assert a["memory"] == b["memory"] and a["accuracy"] == b["accuracy"]
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
        entry = dict(
            tasks=method.get("tasks", 2),
            lr=a["lr"],
            losses=a["losses"],
            logits=a["logits"],
            accuracy=a["accuracy"],
        )
        if "memory" in method:
            entry["memory"] = a["memory"]
            assert a["margin"] > 1e-6, "herding picks are too close: take another seed"
        record["methods"][name] = dict(entry, f32_against_f64=difference)
        for t, d in enumerate(digests[0]):
            tensors[f"{name}.digest{t}"] = d
        tensors |= {f"{name}.final.{n}": a["weights"][-1][n] for n in KEPT}

        plain_logits = plain_logits or a["logits"]
        effect = largest([x[:2] for x in a["logits"][:2]], [x[:2] for x in plain_logits])
        ends = "  ".join(f"{l[0][0]:.4f}->{l[-1][0]:.4f}" for l in a["losses"])
        last = " ".join(f"{n} {x:.4f}" for n, x in zip(PARTS[1:], a["losses"][-1][-1][1:]) if x)
        print(f"{name:16} loss {ends}  last: {last}  logits apart from finetune's {effect:.1e}")
        print(
            " " * 17
            + "float32 against float64: "
            + "  ".join(f"{k} {v:.1e}" for k, v in difference.items()),
            a["memory"] or "",
        )

    e, h = cfg["projection_dim"], s["rail"]["hidden"]
    hidden = (torch.rand(e, h, generator=torch.Generator().manual_seed(s["seed"])) * 2 - 1) / e**0.5
    (a, ta, margin), (b, tb, _) = (
        rail(worlds[d], weights, hidden, d) for d in (torch.float32, torch.float64)
    )
    assert margin > 1e-4, "a decision of RAIL is too close: take another seed"
    apart = {
        form: max(
            largest(x[form][k], y[form][k])
            for x, y in zip(a["stages"], b["stages"])
            for k in ("output", "fused", "known")
        )
        for form in ("primal", "dual")
    }
    apart |= {
        f: max(relative(ta[k], tb[k].double()) for k in ta if k.startswith(f"rail.{f}"))
        for f in ("theta", "alpha")
    }
    record["rail"] = dict(a, f32_against_f64=apart)
    tensors |= ta
    print(
        "rail             float32 against float64 features: "
        + "  ".join(f"{k} {v:.1e}" for k, v in apart.items())
        + f"  closest decision {margin:.1e}"
    )

    initial = moe_initial(cfg, s, 2, s["seed"])
    a, b = (moe_adapters(worlds[d], weights, initial, d) for d in (torch.float32, torch.float64))
    assert (
        a["counts"] == b["counts"] and a["frozen"] == b["frozen"] and a["accuracy"] == b["accuracy"]
    )
    assert a["margin"] > 1e-4, "a router is undecided: take another seed"
    for counts in (c for stage in a["counts"] for c in stage):
        order = sorted(counts, reverse=True)
        assert order[1] > order[2], "the frozen experts are a tie: take another seed"
    pairs = list(zip(a["weights"], b["weights"]))
    difference = dict(
        loss=loss_difference(a, b),
        logits=largest(a["logits"], b["logits"]),
        weights=max(
            relative(x[n] - initial[n], y[n] - initial[n].double())
            for x, y in pairs
            for n in x
            if not torch.equal(x[n], initial[n])
        ),
    )
    record["moe"] = dict({k: v for k, v in a.items() if k != "weights"}, f32_against_f64=difference)
    tensors |= {f"moe.initial.{n}": w for n, w in initial.items()}
    for t, w in enumerate(a["weights"]):
        tensors |= {f"moe.after{t}.{n}": x for n, x in w.items()}
    print(
        "moe              loss " + "  ".join(f"{l[0][0]:.4f}->{l[-1][0]:.4f}" for l in a["losses"]),
        f"closest router {a['margin']:.1e}",
    )
    print(
        " " * 17
        + "float32 against float64: "
        + "  ".join(f"{k} {v:.1e}" for k, v in difference.items())
    )
    for b, *c in zip(a["blocks"], *a["counts"], *a["frozen"]):
        print(" " * 17 + b, *c)

    save_file(
        {k: v.detach().contiguous().clone() for k, v in tensors.items()},
        args.out / "methods.safetensors",
    )
    (args.out / "methods.json").write_text(json.dumps(record, separators=(",", ":")) + "\n")
    print({f.name: f.stat().st_size for f in sorted(args.out.iterdir())})


if __name__ == "__main__":
    main()
