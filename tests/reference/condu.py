"""ConDU on three tasks of a tiny CLIP, in plain PyTorch, written from its formulas.

Run:   python tests/reference/condu.py tests/data/clip/tiny tests/data/methods
Made with: Python 3.11, torch 2.15.0, safetensors 0.8.0, tokenizers 0.23.3 (CPU, one thread).

Writes `condu.safetensors` and `condu.json`. The data are those of `methods_two_tasks.py`, and so
are the settings: the batch is the whole training set of a task. All figures are of a float32 run.
Both methods also run in float64, which bounds the part of a difference that is rounding.

ConDU (arXiv 2503.10705, zhangzicong518/ConDU 7fd32cf, src/delta_models.py, src/models/finetune.py,
src/models/evaluation.py)
    task       from the pretrained weights, all but logit_scale (`condu`), or adapters
               s (A B)^T on both weights of every MLP, merged (`condu-lora`): A [in, r], B [r, out]
               normal with the deviation 0.01, drawn by the rule of the program under test,
               s = 1/sqrt(r)
    after      tau_i = scale_i mask_i U of the earlier tasks, tau_t = weights - pretrained;
               sigma = 1 where sum_i tau_i > 0, else -1; mask_i = [tau_i sigma > 0];
               U = sigma max_i mask_i |tau_i|;
               scale_i = sum of mean|tau_i| / sum of mean|mask_i U|, means over a tensor, sums over
               the tensors
    prototype  of a class: its mean image feature + its mean text feature over the templates, under
               the pretrained model, normalised
    votes      of an image: the K tasks whose best prototype is nearest to its pretrained feature;
               logits: mean over them and the pretrained model of 100 cos(image, class), with the
               normalised mean of both templates as class
    answer     a learned task: its own model, pretrained + scale_i mask_i U; another one, and all of
               them without the task: the votes

The tensors are those of clip-model, in its layout ([in, out]; queries, keys and values of an
attention are one). A bit is undecided where the sum, or a task's value, is below MARGIN of the
tensor's mean |tau|, at the key biases (see `not_compared` of `methods_two_tasks.py`), and where a
mask before it was undecided. float32 and float64 agree on all others.

condu.json
    settings     {method: overrides of the program under test}
    methods      {name: {lr [t][k], losses [t][k][total, task], scales [t][i],
                 given [t][task], without [t][task]: accuracies, votes [t][image][k] over the test
                 images of all tasks, voted [t][task][image][class], own [t][task][image][class]
                 for learned tasks, undecided [t]: share of the bits, f32_against_f64}}
condu.safetensors
    {method}.masks{t}, {method}.decided{t} u8 [t+1, bytes], {method}.signs{t} u8 [bytes] of U > 0: a
                 bit per parameter, the lowest first, the tensors in the order of their paths, each
                 from a whole byte on
    {method}.delta{t}.{path}: U after the last task, where not zero
    prototypes{t} [classes, width]
"""

import argparse
import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file

from basis_methods import adapted, uniforms
from methods_two_tasks import AdamW, largest, loss_difference, one_hot, prepare, relative
from tiny_clip import encode_image, encode_text, learning_rate, smoothed_ce

TASKS = 3
RANK = 4
VOTE = 1
MARGIN = 4e-3
BORDER = 1e-4
METHODS = {
    "condu": dict(lr=1e-3),
    "condu-lora": dict(lr=1e-2, adapters=True),
}


def overrides(method):
    out = [f"unify.vote={VOTE}", f"lr={method['lr']}"]
    if "adapters" in method:
        out += [f"lora.rank={RANK}", f"lora.alpha={RANK / math.sqrt(RANK)}"]
    return out


# ---- the layout of clip-model -------------------------------------------------------------------


def layout(weights):
    """[(path, names, kind)] in the order of the paths."""
    out = [("logit_scale", ["logit_scale"], "scalar")]
    for tower, ours in (("vision_model", "visual"), ("text_model", "text")):
        embeddings = f"{tower}.embeddings"
        position = f"{embeddings}.position_embedding.weight"
        out.append((f"{ours}.positional_embedding", [position], "same"))
        norms = {"ln_post": "post_layernorm", "ln_pre": "pre_layrnorm"}
        if ours == "visual":
            out.append(("visual.class_embedding", [f"{embeddings}.class_embedding"], "same"))
            out.append(("visual.conv1.weight", [f"{embeddings}.patch_embedding.weight"], "patch"))
            out.append(("visual.proj", ["visual_projection.weight"], "linear"))
        else:
            norms = {"ln_final": "final_layer_norm"}
            token = f"{embeddings}.token_embedding.weight"
            out.append(("text.token_embedding.weight", [token], "same"))
            out.append(("text.proj", ["text_projection.weight"], "linear"))
        norms = {f"{ours}.{k}": f"{tower}.{v}" for k, v in norms.items()}
        layers = sum(
            n.startswith(f"{tower}.encoder.layers.") and n.endswith("mlp.fc1.weight")
            for n in weights
        )
        for layer in range(layers):
            theirs, path = f"{tower}.encoder.layers.{layer}", f"{ours}.blocks.{layer}"
            norms[f"{path}.ln_1"], norms[f"{path}.ln_2"] = (
                f"{theirs}.layer_norm1",
                f"{theirs}.layer_norm2",
            )
            for names, name in (
                ([f"self_attn.{x}_proj" for x in "qkv"], "attn.in_proj"),
                (["self_attn.out_proj"], "attn.out_proj"),
                (["mlp.fc1"], "mlp.c_fc"),
                (["mlp.fc2"], "mlp.c_proj"),
            ):
                names = [f"{theirs}.{n}" for n in names]
                out.append((f"{path}.{name}.weight", [f"{n}.weight" for n in names], "linear"))
                out.append((f"{path}.{name}.bias", [f"{n}.bias" for n in names], "same"))
        for path, name in norms.items():
            out.append((f"{path}.gamma", [f"{name}.weight"], "same"))
            out.append((f"{path}.beta", [f"{name}.bias"], "same"))
    assert sorted(n for _, names, _ in out for n in names) == sorted(weights)
    return sorted(out)


def ours(p, entries):
    """{path: tensor}."""
    out = {}
    for path, names, kind in entries:
        parts = [p[n].detach() for n in names]
        if kind == "linear":
            out[path] = torch.cat([w.T for w in parts], dim=1)
        elif kind == "patch":
            out[path] = parts[0].reshape(len(parts[0]), -1).T
        elif kind == "scalar":
            out[path] = parts[0].reshape(1)
        else:
            out[path] = torch.cat(parts)
    return out


def theirs(q, like, entries):
    """The opposite of `ours`."""
    out = {}
    for path, names, kind in entries:
        if kind == "linear":
            parts = q[path].split([len(like[n]) for n in names], dim=1)
            out |= {n: w.T for n, w in zip(names, parts)}
        elif kind == "patch":
            out[names[0]] = q[path].T.reshape(like[names[0]].shape)
        elif kind == "scalar":
            out[names[0]] = q[path].reshape(like[names[0]].shape)
        else:
            out |= dict(zip(names, q[path].split([len(like[n]) for n in names])))
    return out


# ---- unifying -----------------------------------------------------------------------------------


class Unified:
    def __init__(self, deltas):
        """`deltas`: of each task {path: tau}."""
        self.u, self.masks = {}, [{} for _ in deltas]
        own, kept = torch.zeros(len(deltas)).double(), torch.zeros(len(deltas)).double()
        for path in deltas[0]:
            tau = torch.stack([d[path] for d in deltas])
            sigma = torch.where(tau.double().sum(0) > 0, 1.0, -1.0).to(tau.dtype)
            mask = tau * sigma > 0
            most = (mask * tau.abs()).max(0).values
            self.u[path] = torch.where(most > 0, sigma * most, 0.0)
            for i, m in enumerate(mask):
                self.masks[i][path] = m
                own[i] += tau[i].double().abs().mean()
                kept[i] += (m * self.u[path]).double().abs().mean()
        self.scales = (own / kept).to(tau.dtype)

    def delta(self, i):
        return {path: self.scales[i] * self.masks[i][path] * u for path, u in self.u.items()}


def decided(deltas, before, biases):
    """[{path: bits}] of each task: whether rounding cannot change its mask."""
    out = [{} for _ in deltas]
    for path in deltas[0]:
        tau = torch.stack([d[path] for d in deltas]).double()
        used = tau.abs()[tau != 0]
        border = MARGIN * (used.mean().item() if len(used) else 0.0)
        total = tau.sum(0).abs()
        untouched = (tau == 0).all(0)
        good = (total > border) | untouched
        if path in biases:
            # The keys are the second third.
            good &= torch.arange(len(good)) // (len(good) // 3) != 1
        for known in before or []:
            good &= known[path]
        for i, t in enumerate(tau):
            # A zero of the new task is one unless it is rounded: where its whole row is zero.
            zero = t == 0 if i + 1 < len(tau) else (t == 0).all(-1, keepdim=True)
            out[i][path] = good & (zero | (t.abs() > border))
    return out


def packed(bits):
    """One bit per parameter, the lowest first, each tensor from a whole byte on."""
    out = []
    for tensor in bits.values():
        flat = tensor.reshape(-1).to(torch.uint8)
        flat = torch.cat([flat, flat.new_zeros(-len(flat) % 8)]).view(-1, 8)
        out.append((flat * (1 << torch.arange(8, dtype=torch.uint8))).sum(1).to(torch.uint8))
    return torch.cat(out)


# ---- training -----------------------------------------------------------------------------------


def normal_factor(path, t, factor, rows, columns):
    draw, values = uniforms(path, 0, factor, t), []
    for _ in range(rows * columns):
        u, v = draw(), draw()
        values.append(math.sqrt(-2 * math.log(1 - u)) * math.cos(2 * math.pi * v) * 0.01)
    return torch.tensor(values, dtype=torch.float32).view(rows, columns)


def task_loss(p, world, t):
    s, cfg, task = world["settings"], world["cfg"], world["tasks"][t]
    f, g = encode_image(p, cfg, task["train_pixels"]), encode_text(p, cfg, task["rows"][0])
    z = p["logit_scale"].exp() * f @ g.T
    return smoothed_ce(z, one_hot(task["train_labels"], z.shape[1], z), s["smoothing"])


def train(method, world, pretrained, t, out):
    """The weights after a task."""
    s = dict(world["settings"], base_lr=method["lr"])
    dtype = pretrained["logit_scale"].dtype
    q, names = {n: w.clone() for n, w in pretrained.items()}, [
        n for n in pretrained if n != "logit_scale"
    ]
    weights = lambda: q
    if "adapters" in method:
        mlps = {n: path for n, (path, _) in adapted(pretrained, "all").items() if ".mlp." in n}
        q = {}
        for n, path in mlps.items():
            rows, columns = pretrained[n].shape[1], pretrained[n].shape[0]
            q[f"{n} a"] = normal_factor(path, t, "a", rows, RANK).to(dtype)
            q[f"{n} b"] = normal_factor(path, t, "b", RANK, columns).to(dtype)
        names = list(q)
        weights = lambda: dict(
            pretrained,
            **{n: pretrained[n] + (q[f"{n} a"] @ q[f"{n} b"]).T / math.sqrt(RANK) for n in mlps},
        )
    adamw = AdamW(s)
    out["lr"].append([learning_rate(k, s) for k in range(s["steps"])])
    out["losses"].append([])
    for lr in out["lr"][-1]:
        for n in names:
            q[n].requires_grad_(True)
        loss = task_loss(weights(), world, t)
        adamw.step(q, names, torch.autograd.grad(loss, [q[n] for n in names]), lr)
        out["losses"][-1].append([loss.item()] * 2)
    return {n: w.detach() for n, w in weights().items()}


# ---- voting -------------------------------------------------------------------------------------


def classes(p, world, t):
    mean = sum(encode_text(p, world["cfg"], rows) for rows in world["tasks"][t]["rows"]) / len(
        world["tasks"][t]["rows"]
    )
    return mean / mean.norm(dim=1, keepdim=True)


def prototypes(p, world, t):
    task = world["tasks"][t]
    f = encode_image(p, world["cfg"], task["train_pixels"])
    texts = sum(encode_text(p, world["cfg"], rows) for rows in task["rows"]) / len(task["rows"])
    labels = task["train_labels"]
    images = torch.stack([f[labels == c].mean(0) for c in range(len(texts))])
    both = (images + texts) / 2
    return both / both.norm(dim=1, keepdim=True)


def clear(z):
    """Predictions that rounding cannot change."""
    two = z.topk(2).values
    gap = (two[:, 0] - two[:, 1]).min().item()
    assert gap > BORDER, f"a test image is on the border of two classes by {gap:.1e}"
    return z.argmax(1)


def evaluate(models, protos, world, out):
    """`models`: the pretrained one, then those of the learned tasks."""
    cfg, learned = world["cfg"], len(models) - 1
    rows = dict(given=[], without=[], votes=[], voted=[], own=[])
    heads = [[classes(p, world, t) for t in range(TASKS)] for p in models]
    first = 0
    for t, task in enumerate(world["tasks"][:TASKS]):
        features = [encode_image(p, cfg, task["test_pixels"]) for p in models]
        nearest = torch.stack([(features[0] @ c.T).max(1).values for c in protos], 1)
        k = min(VOTE, learned)
        order = nearest.sort(dim=1, descending=True, stable=True)
        if learned > k:
            gap = (order.values[:, k - 1] - order.values[:, k]).min().item()
            assert gap > BORDER, f"two tasks vote with a similarity apart by {gap:.1e}"
        votes = order.indices[:, :k]
        rows["votes"] += votes.tolist()

        def voted(candidates):
            each = torch.stack(
                [100 * f @ torch.cat([h[c] for c in candidates]).T for f, h in zip(features, heads)]
            )
            chosen = torch.cat([torch.zeros_like(votes[:, :1]), votes + 1], 1)
            return torch.stack([each[chosen[i], i].mean(0) for i in range(len(chosen))])

        labels = task["test_labels"]
        z = voted([t])
        rows["voted"].append(z.tolist())
        if t < learned:
            z = 100 * features[1 + t] @ heads[1 + t][t].T
            rows["own"].append(z.tolist())
        rows["given"].append(100.0 * (clear(z) == labels).double().mean().item())
        right = clear(voted(range(TASKS))) == labels + first
        rows["without"].append(100.0 * right.double().mean().item())
        first += len(heads[0][t])
    for key, value in rows.items():
        out[key].append(value)


def run(method, world, weights, dtype, entries):
    pretrained = {n: w.to(dtype) for n, w in weights.items()}
    base = ours(pretrained, entries)
    keys = "lr losses scales given without votes voted own".split()
    out, steps = {key: [] for key in keys}, []
    unified, protos, known = None, [], None
    biases = [path for path, _, _ in entries if path.endswith("in_proj.bias")]
    for t in range(TASKS):
        after = ours(train(method, world, pretrained, t, out), entries)
        deltas = [unified.delta(i) for i in range(t)] if unified else []
        deltas.append({path: after[path] - base[path] for path in base})
        known = decided(deltas, known, biases)
        unified = Unified(deltas)
        with torch.no_grad():
            protos.append(prototypes(pretrained, world, t))
            tau = [unified.delta(i) for i in range(t + 1)]
            models = [{path: base[path] + d[path] for path in base} for d in tau]
            models = [theirs(q, pretrained, entries) for q in models]
            evaluate([pretrained, *models], protos, world, out)
        out["scales"].append(unified.scales.tolist())
        steps.append((unified, known))
    return out, steps, protos


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="Hugging Face directory of the tiny CLIP")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    _, weights, _, worlds = prepare(args.checkpoint)
    entries = layout(weights)
    settings = {name: overrides(method) for name, method in METHODS.items()}
    record, tensors = dict(settings=settings, tasks=TASKS, methods={}), {}
    for name, method in METHODS.items():
        (a, steps, protos), (b, others, _) = (
            run(method, worlds[d], weights, d, entries) for d in (torch.float32, torch.float64)
        )
        for key in ("given", "without", "votes"):
            assert a[key] == b[key], f"{name}: float32 and float64 have other {key}"
        undecided, apart = [], 0.0
        for t, ((u, known), (v, _)) in enumerate(zip(steps, others)):
            bits = lambda sets: torch.stack([packed(s) for s in sets])
            masks, others_masks, sure = bits(u.masks), bits(v.masks), bits(known)
            assert not ((masks ^ others_masks) & sure).any(), f"{name}: an undecided mask, task {t}"
            count = sum(x.numel() for x in u.u.values()) * (t + 1)
            undecided.append(1 - sum(int(x.sum()) for s in known for x in s.values()) / count)
            tensors[f"{name}.masks{t}"], tensors[f"{name}.decided{t}"] = masks, sure
            tensors[f"{name}.signs{t}"] = packed({path: x > 0 for path, x in u.u.items()})
            for path, x in u.u.items():
                if x.any() and not path.endswith("in_proj.bias"):
                    # A sign that rounding turns leaves another value.
                    same = (x > 0) == (v.u[path] > 0)
                    apart = max(apart, relative(x * same, v.u[path] * same))
                if t == TASKS - 1 and x.any():
                    tensors[f"{name}.delta{t}.{path}"] = x
        difference = dict(
            loss=loss_difference(a, b),
            voted=largest(a["voted"], b["voted"]),
            scales=max(largest(x, y) for x, y in zip(a["scales"], b["scales"])),
            delta=apart,
        )
        record["methods"][name] = dict(a, undecided=undecided, f32_against_f64=difference)
        tensors |= {f"prototypes{t}": x for t, x in enumerate(protos)}
        ends = "  ".join(f"{l[0][0]:.4f}->{l[-1][0]:.4f}" for l in a["losses"])
        print(f"{name:11} loss {ends}  scales {a['scales'][-1]}  given {a['given']}")
        print(f"{'':11} without {a['without']}  undecided {undecided}")
        print(f"{'':11} votes {a['votes'][1:]}")
        shown = "  ".join(f"{k} {v:.1e}" for k, v in difference.items())
        print(f"{'':11} float32 against float64: {shown}")
    save_file(
        {k: v.detach().contiguous().clone() for k, v in tensors.items()},
        args.out / "condu.safetensors",
    )
    (args.out / "condu.json").write_text(json.dumps(record, separators=(",", ":")) + "\n")
    print({f.name: f.stat().st_size for f in sorted(args.out.glob("condu.*"))})


if __name__ == "__main__":
    main()
