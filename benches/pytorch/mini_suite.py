"""Fine-tuning and GNSP on the embedded suite from end to end, in PyTorch.

Run:   mtil-bench suite export mini SUITE                           # target/release/mtil-bench
       python benches/pytorch/mini_suite.py SUITE crates/mini-world/clip-mini
                                            [--methods finetune,gnsp] [--tasks A,B] [--seed S]
                                            [--threads T] [--published]
Needs: torch, safetensors, tokenizers, numpy, pillow

The workload is that of `mtil-bench --methods finetune,gnsp`: eight tasks of 120 training steps on
batches of 32 images. GNSP adds 32 of 512 reference pairs to each step, and Gram accumulation over
the training set and new projectors to each task. All tasks and the held-out pairs are evaluated
before the first task and after each. The hyper-parameters are those of
crates/mtil-methods/methods/{finetune,gnsp}.toml, tables `[on.mini]`. PyTorch's generator draws the
batches and crops, so accuracies agree within the variation between seeds.

All images are in memory as tensors. Random crops are made for a whole batch at once, constant
features are cached, and evaluation encodes a whole test set at a time.

--published uses the towers as the published code does (GNSP src/models/finetune_gnsp.py:245-448,
evaluation.py:36-44). Every step encodes the class prompts, the teacher's images and texts and the
student's texts again. Gradients are multiplied by dense projectors, and AdamW is not fused. An
evaluation encodes class by class. Texts are padded to the context length, and the last block
computes all tokens. Images still stay in memory, and crops are still made for a whole batch.

The script ends with one JSON line: accuracies `A[r][c]` in %, and the seconds of training (with
Gram accumulation and projectors), of evaluation and of reading.
"""

import argparse
import csv
import json
import math
import sys
import time
import tomllib
from pathlib import Path

from gnsp_step import keep_pages

if __name__ == "__main__":
    keep_pages()

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

from gnsp_step import alignment_targets, normalize, reference_loss, report, task_loss, tower_of

STEPS, BATCH, WARMUP, LR, LR_LATER = 120, 32, 20, 3e-4, 1e-3
REFERENCE_BATCH, REFERENCE_PAIRS, GRAM_BATCH, TAIL_SHARE = 32, 512, 32, 0.15
CROP_AREA, CROP_RATIO = (0.9, 1.0), (3 / 4, 4 / 3)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


# ---- The suite -----------------------------------------------------------------------------------


def pictures(paths):
    return (
        torch.from_numpy(np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths]))
        .permute(0, 3, 1, 2)
        .contiguous()
    )


class Task:
    def __init__(self, root, config):
        self.name, self.classes, self.templates = (
            config["name"],
            config["classes"],
            config["templates"],
        )
        folder_of = {name: folder for folder, name in config.get("class_names", {}).items()}
        for half in ("train", "test"):
            paths, labels = [], []
            for label, name in enumerate(self.classes):
                own = sorted(
                    (
                        root / config["path"] / half / folder_of.get(name, name.replace(" ", "_"))
                    ).iterdir()
                )
                paths += own
                labels += [label] * len(own)
            setattr(self, half, (pictures(paths), torch.tensor(labels)))

    def prompts(self, templates):
        """Returns the prompts class by class."""
        return [
            template.replace("{}", name)
            for name in self.classes
            for template in self.templates[:templates]
        ]


def pairs(root):
    with open(root / "captions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return pictures([root / row["file"] for row in rows]), [row["caption"] for row in rows]


class Images:
    """Transforms of images to pixel values, with the generator of random crops."""

    def __init__(self, seed):
        self.mean, self.std = (torch.tensor(x).view(3, 1, 1) * 255 for x in (MEAN, STD))
        self.generator = torch.Generator().manual_seed(seed)

    def eval(self, images):
        return (images.float() - self.mean) / self.std

    def boxes(self, count, side):
        """Draws offset and length `[count, 2]` (y, x) of random crops, like torchvision."""
        uniform = lambda *shape: torch.rand(*shape, generator=self.generator)
        area = side**2 * (CROP_AREA[0] + (CROP_AREA[1] - CROP_AREA[0]) * uniform(count, 10))
        low, high = map(math.log, CROP_RATIO)
        ratio = torch.exp(low + (high - low) * uniform(count, 10))
        size = torch.stack([(area / ratio).sqrt().round(), (area * ratio).sqrt().round()], dim=-1)
        fits = (size <= side).all(-1)
        first = fits.int().argmax(1)
        size = torch.where(fits.any(1)[:, None], size[torch.arange(count), first], float(side))
        return (uniform(count, 2) * (side - size + 1)).floor(), size

    def train(self, images):
        """Crops randomly and resizes to the original size (bicubic), by two matrices per image."""
        count, _, side, _ = images.shape
        offset, size = self.boxes(count, side)
        centre = (torch.arange(side) + 0.5) * (size / side)[..., None]  # [count, 2, out]
        place = torch.arange(side) - offset[..., None]  # [count, 2, in], within the crop
        d = (place[:, :, None, :] + 0.5 - centre[..., None]).abs()
        weight = torch.where(d < 1, (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2)
        inside = (d < 2) & (place >= 0)[:, :, None] & (place < size[..., None])[:, :, None]
        weight = weight * inside
        weight = weight / weight.sum(-1, keepdim=True)
        rows, columns = weight[:, 0, None], weight[:, 1, None]
        out = rows @ images.float() @ columns.transpose(2, 3)
        return (out.round().clamp(0, 255) - self.mean) / self.std


# ---- A model and its evaluation ------------------------------------------------------------------


class Clip:
    def __init__(self, folder, published):
        self.visual, _ = tower_of(folder, "visual", handwritten=not published)
        self.text, scale = tower_of(folder, "text", handwritten=not published)
        self.visual.everything = self.text.everything = self.published = published
        self.scale = scale.exp()
        self.tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
        self.tokenizer.enable_padding(pad_id=0)

    def tokens(self, texts):
        return torch.tensor([e.ids for e in self.tokenizer.encode_batch(texts)])

    def texts(self, texts):
        return normalize(self.text(self.tokens(texts)))

    def parameters(self):
        for prefix, tower in (("visual.", self.visual), ("text.", self.text)):
            for name, parameter in tower.named_parameters():
                yield prefix + name, parameter


class Evaluator:
    def __init__(self, tasks, held_out, images):
        self.tasks, self.images = tasks, images
        self.pixels = [images.eval(task.test[0]) for task in tasks]
        self.held_pixels, self.captions = images.eval(held_out[0]), held_out[1]
        number = {caption: i for i, caption in enumerate(dict.fromkeys(self.captions))}
        says = torch.tensor([number[caption] for caption in self.captions])
        self.right = says[:, None] == says[None, :]
        self.kept = {}

    def text_changed(self):
        self.kept.clear()

    def head(self, clip, column, templates):
        key = (column, templates)
        task = self.tasks[column]
        if clip.published:
            prompts = task.prompts(templates)
            each = [
                clip.texts(prompts[i : i + templates]).mean(0)
                for i in range(0, len(prompts), templates)
            ]
            return normalize(torch.stack(each))
        if key not in self.kept:
            features = clip.texts(task.prompts(templates)).view(len(task.classes), templates, -1)
            self.kept[key] = normalize(features.mean(1))
        return self.kept[key]

    @torch.inference_mode()
    def __call__(self, clip, stage):
        accuracies = []
        for column, task in enumerate(self.tasks):
            # All templates for tasks that are not yet learned, the first one for the others.
            templates = 1 if stage is not None and column < stage else len(task.templates)
            features = clip.visual(self.pixels[column])
            best = (features @ self.head(clip, column, templates).T).argmax(1)
            accuracies.append(100 * (best == task.test[1]).double().mean().item())
        images = normalize(clip.visual(self.held_pixels))
        if clip.published or "captions" not in self.kept:
            self.kept["captions"] = clip.texts(self.captions)
        texts = self.kept["captions"]
        similarity = images @ texts.T
        recall = []
        for s in (similarity, similarity.T):
            best = s.masked_fill(~self.right, -math.inf).amax(1, keepdim=True)
            rank = ((s > best) & ~self.right).sum(1)
            recall.append([100 * (rank < k).double().mean().item() for k in (1, 5, 10)])
        return accuracies, (images.mean(0) - texts.mean(0)).norm().item(), recall


# ---- Training ------------------------------------------------------------------------------------


def schedule(step):
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


def order(count, generator):
    """Yields batches endlessly, in a new order in each epoch."""
    while True:
        yield from torch.randperm(count, generator=generator).split(BATCH)


class Memory:
    """Sums of the Gram matrices of all tasks, and the directions they protect."""

    def __init__(self):
        self.sums = {}

    @torch.no_grad()
    def remember(self, clip, task, images):
        new = {}

        def add(name, rows):
            rows = rows.reshape(-1, rows.shape[-1])
            gram = rows.T @ rows
            gram /= gram.norm()
            new[name] = new[name].add_(gram) if name in new else gram

        hooks = []
        for i, block in enumerate(clip.visual.blocks):
            written, block.handwritten = block.handwritten, False
            for part in ("c_fc", "c_proj"):
                name = f"visual.blocks.{i}.{part}.weight"
                hook = lambda _, args, name=name: add(name, args[0])
                hooks.append(getattr(block, part).register_forward_pre_hook(hook))
        hooks.append(
            clip.visual.ln_post.register_forward_hook(lambda _, args, out: add("visual.proj", out))
        )
        for batch in torch.randperm(len(task.train[0]), generator=images.generator).split(
            GRAM_BATCH
        ):
            x = clip.visual.embed(images.train(task.train[0][batch]))
            for block in clip.visual.blocks:
                x = block(x)
            clip.visual.ln_post(x[:, 0])
        for hook in hooks:
            hook.remove()
        for block in clip.visual.blocks:
            block.handwritten = written
        for name, gram in new.items():
            gram /= gram.norm()
            if name in self.sums:
                if name == "visual.proj":
                    self.sums[name] /= self.sums[name].norm()
                self.sums[name] += gram
            else:
                self.sums[name] = gram

    def bases(self):
        found = {}
        for name, matrix in self.sums.items():
            values, vectors = torch.linalg.eigh(matrix)
            values = values.clamp(min=0).double()
            # Ascending: the smallest eigenvalues that sum to less than the share are free.
            free = int((values.cumsum(0) / values.sum() < TAIL_SHARE).sum())
            found[name] = vectors[:, free:].contiguous()
        return found


def train(clip, teacher, task, first, gnsp, reference, bases, images):
    """Trains one task and returns the last loss.

    With GNSP after the first task only the parameters in `bases` are trained, and the text tower is
    frozen.
    """
    later = gnsp and not first
    trained = []
    for name, parameter in clip.parameters():
        parameter.requires_grad_(name in bases if later else True)
        if parameter.requires_grad:
            trained.append(parameter)
    projected = (
        [(name, parameter, bases[name]) for name, parameter in clip.parameters() if name in bases]
        if later
        else []
    )
    lr = LR_LATER if later else LR
    optimizer = torch.optim.AdamW(
        trained, lr=lr, eps=1e-8, weight_decay=0.0, fused=not clip.published
    )
    if clip.published:
        projected = [
            (name, parameter, torch.eye(len(u)) - u @ u.T) for name, parameter, u in projected
        ]
    prompts = clip.tokens(task.prompts(1))
    if gnsp:
        drawn = torch.randperm(len(reference[0]), generator=images.generator)[:REFERENCE_PAIRS]
        captions = [reference[1][i] for i in drawn.tolist()]
        numbers = {}
        labels = torch.tensor([numbers.setdefault(caption, len(numbers)) for caption in captions])
        targets = [alignment_targets(part) for part in labels.split(REFERENCE_BATCH)]
        pixels = images.eval(reference[0][drawn]).split(REFERENCE_BATCH)
        tokens = [
            clip.tokens(captions[i : i + REFERENCE_BATCH])
            for i in range(0, len(captions), REFERENCE_BATCH)
        ]
        if not clip.published:
            with torch.no_grad():
                texts = teacher.texts(captions).split(REFERENCE_BATCH)
                taught = [
                    clip.scale * normalize(teacher.visual(x)) @ t.T for x, t in zip(pixels, texts)
                ]
        if later and not clip.published:
            with torch.no_grad():
                own_texts = clip.texts(captions).split(REFERENCE_BATCH)
        elif not clip.published:
            # One pass of the text tower encodes the class prompts and the captions.
            pad = lambda x, width: torch.nn.functional.pad(x, (0, width - x.shape[1]))
            width = max(x.shape[1] for x in [prompts, *tokens])
            tokens = [torch.cat([pad(prompts, width), pad(x, width)]) for x in tokens]
    if later:
        with torch.no_grad():
            classes = normalize(clip.text(prompts))
    batches = order(len(task.train[0]), images.generator)
    for step in range(STEPS):
        batch = next(batches)
        own = images.train(task.train[0][batch])
        at = step % len(pixels) if gnsp else None
        kept = student_text = None
        if clip.published:
            classes = normalize(clip.text(prompts))
            features = normalize(clip.visual(own))
            if gnsp:
                with torch.no_grad():
                    kept = (
                        clip.scale
                        * normalize(teacher.visual(pixels[at]))
                        @ normalize(teacher.text(tokens[at])).T
                    )
                student_text = normalize(clip.text(tokens[at]))
                features = torch.cat([features, normalize(clip.visual(pixels[at]))])
        else:
            if gnsp:
                kept = taught[at]
            if later:
                student_text = own_texts[at]
            elif gnsp:
                classes, student_text = normalize(clip.text(tokens[at])).split(
                    [len(prompts), REFERENCE_BATCH]
                )
            else:
                classes = normalize(clip.text(prompts))
            features = normalize(clip.visual(torch.cat([own, pixels[at]]) if gnsp else own))
        loss = task_loss(features[: len(own)], classes, task.train[1][batch], clip.scale)
        if gnsp:
            loss = loss + reference_loss(
                kept, clip.scale * features[len(own) :] @ student_text.T, targets[at]
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for name, parameter, u in projected:
            g = parameter.grad
            if clip.published:
                parameter.grad.copy_(u @ g if name == "visual.proj" else g @ u.T)
            elif name == "visual.proj":
                g.addmm_(u, u.T @ g, alpha=-1)
            else:
                g.addmm_(g @ u, u.T, alpha=-1)
        for group in optimizer.param_groups:
            group["lr"] = lr * schedule(step)
        optimizer.step()
    return loss.item()


def run(method, folder, suite, seed, published):
    tasks, reference, held_out = suite
    gnsp = method == "gnsp"
    images = Images(seed)
    clip, teacher = Clip(folder, published), Clip(folder, published)
    evaluator = Evaluator(tasks, held_out, images)
    training = evaluating = 0.0
    memory, rows, gaps, recalls, losses = Memory(), [], [], [], []
    for stage in [None, *range(len(tasks))]:
        start = time.perf_counter()
        if stage is not None:
            losses.append(
                train(
                    clip,
                    teacher,
                    tasks[stage],
                    stage == 0,
                    gnsp,
                    reference,
                    memory.bases() if gnsp else {},
                    images,
                )
            )
            if gnsp and stage + 1 < len(tasks):
                memory.remember(clip, tasks[stage], images)
            if not gnsp or stage == 0:
                evaluator.text_changed()
        trained = time.perf_counter()
        accuracies, gap, recall = evaluator(clip, stage)
        rows.append(accuracies)
        gaps.append(gap)
        recalls.append(recall)
        training += trained - start
        evaluating += time.perf_counter() - trained
        print(
            f"{method}, {'before' if stage is None else tasks[stage].name}: "
            f"{np.mean(accuracies):.1f} %",
            file=sys.stderr,
        )
    matrix = np.array(rows[1:])
    return {
        "zero_shot": rows[0],
        "accuracies": rows[1:],
        "transfer": float(np.mean([matrix[:c, c].mean() for c in range(1, len(tasks))])),
        "average": float(matrix.mean()),
        "last": float(matrix[-1].mean()),
        "gap": gaps[-1],
        "r1": float(np.mean([side[0] for side in recalls[-1]])),
        "losses": losses,
        "training_seconds": training,
        "evaluation_seconds": evaluating,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite")
    parser.add_argument("model")
    parser.add_argument("--methods", default="finetune,gnsp")
    parser.add_argument(
        "--tasks", type=lambda text: text.split(","), help="run only these, in the suite's order"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--published",
        action="store_true",
        help="cache nothing that the published code computes again",
    )
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    start = time.perf_counter()
    root = Path(options.suite)
    config = tomllib.loads((root / "suite.toml").read_text())
    tasks = [
        Task(root, task)
        for task in config["task"]
        if not options.tasks or task["name"] in options.tasks
    ]
    suite = tasks, pairs(root / "reference"), pairs(root / "held_out")
    reading = time.perf_counter() - start
    methods = {}
    for method in options.methods.split(","):
        if method not in ("finetune", "gnsp"):
            parser.error(f"{method}: finetune or gnsp")
        methods[method] = run(method, options.model, suite, options.seed, options.published)
    line = {
        "methods": methods,
        "training_seconds": sum(m["training_seconds"] for m in methods.values()),
        "evaluation_seconds": sum(m["evaluation_seconds"] for m in methods.values()),
        "reading_seconds": reading,
        "processor_seconds": time.process_time(),
    }
    report(line, [time.perf_counter() - start, time.perf_counter() - start])


if __name__ == "__main__":
    main()
