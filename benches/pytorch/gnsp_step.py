"""GNSP training steps after the first task, and Gram accumulation, in PyTorch.

Run:   step make DIR        # target/release/step: the model, the inputs, the protected directions
       python benches/pytorch/gnsp_step.py reference|tuned|compiled DIR [--steps N] [--threads T]
                                           [--device cuda --dtype tf32 …]
       python benches/pytorch/gnsp_step.py gram|gram-streamed DIR [--steps N]
       python benches/pytorch/gnsp_step.py check DIR        # checks that the results are the same
Needs: torch, safetensors, openai-clip

reference      The reference implementation: the operations of the published code (GNSP
               src/models/finetune_gnsp.py:245-448) in their order, on OpenAI's module. Every step
               encodes the class prompts, the teacher's images and texts and the student's reference
               texts in rows of 77, and multiplies gradients by dense projectors. The optimizer is
               torch.optim.AdamW.
tuned          The same training step without repeated computation. Features of frozen texts and of
               the teacher are cached; the last block computes the class token only; attention is
               scaled_dot_product_attention. QuickGELU is SiLU with its factor inside the matrix
               products, and a handwritten backward pass of the MLP keeps one hidden tensor instead
               of three. Gradients are projected as g - (g U) Uᵀ; AdamW is fused. On a CPU, task
               and reference images have separate passes, so that one tape is alive at a time, and
               the allocator keeps its pages.
compiled       tuned, with torch.compile instead of the handwritten MLP.
gram           Gram accumulation (GNSP src/models/get_data_matrix.py:86-92): the inputs of all
               layers stacked, batched products.
gram-streamed  The same matrices layer by layer, without stacking.

Each run except `check` ends with one JSON line. The first of its `losses` is that of the initial
weights.
"""

import argparse
import copy
import ctypes
import importlib.util
import json
import os
import resource
import subprocess
import sys
import time

TUNED = ("tuned", "compiled", "gram-streamed")


def keep_pages():
    """Makes glibc keep freed memory, so that the kernel clears no pages for each large tensor."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, -1)
    mallopt(m_arena_max, 1)


# This must precede the first allocation of torch.
if (
    __name__ == "__main__"
    and len(sys.argv) > 1
    and sys.argv[1] in TUNED
    and "--default-allocator" not in sys.argv
):
    keep_pages()

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn

SMOOTHING, TEMPERATURE, MAP, LR = 0.2, 2.0, 0.75, 1e-5
QUICK = 1.702


# ---- Files ---------------------------------------------------------------------------------------


# A model is a folder in the layout of `transformers`. `folder` was written by `step make` and holds
# the model in `hugging-face`.
def model_of(folder):
    return f"{folder}/hugging-face"


def configuration(model):
    with open(f"{model}/config.json") as file:
        return json.load(file)


def openai_name(name):
    """Returns the name in OpenAI's module of a tensor of `transformers`."""
    fixed = {
        "logit_scale": "logit_scale",
        "visual_projection.weight": "visual.proj",
        "text_projection.weight": "text_projection",
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    }
    if name in fixed:
        return fixed[name]
    for old, new in (
        ("vision_model.pre_layrnorm", "visual.ln_pre"),
        ("vision_model.post_layernorm", "visual.ln_post"),
        ("text_model.final_layer_norm", "ln_final"),
        ("vision_model.encoder.layers", "visual.transformer.resblocks"),
        ("text_model.encoder.layers", "transformer.resblocks"),
        ("layer_norm1", "ln_1"),
        ("layer_norm2", "ln_2"),
        ("self_attn", "attn"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
    ):
        name = name.replace(old, new)
    return name


def weights(model, tower=None):
    """Returns copies of the tensors under OpenAI's names; of one tower if `tower` is given.

    A tower is `visual` or `text`.
    """
    found, fused = {}, {}
    with safe_open(f"{model}/model.safetensors", framework="pt") as file:
        for key in file.keys():
            name = openai_name(key)
            visual = name.startswith("visual.")
            if (
                key.endswith("position_ids")
                or tower == "visual"
                and not visual
                or tower == "text"
                and visual
            ):
                continue
            value = file.get_tensor(key).float()
            if name in ("visual.proj", "text_projection"):
                value = value.T
            part = next((p for p in ("q", "k", "v") if f"attn.{p}_proj." in name), None)
            if part:
                fused.setdefault(name.replace(f"attn.{part}_proj.", "attn.in_proj_"), {})[part] = (
                    value
                )
            else:
                found[name] = value.clone(memory_format=torch.contiguous_format)
    found.update({name: torch.cat([parts[p] for p in "qkv"]) for name, parts in fused.items()})
    return found


def inputs(folder, options):
    """Returns images, labels and tokens of a step. Additional images repeat those with noise."""

    def repeated(stored, count, seed, noise=0.1):
        value = stored[torch.arange(count) % len(stored)].clone()
        if value.is_floating_point() and count > len(stored):
            generator = torch.Generator().manual_seed(seed)
            value[len(stored) :] += noise * torch.randn(
                value[len(stored) :].shape, generator=generator
            )
        return value.to(options.device)

    with safe_open(f"{folder}/step.safetensors", framework="pt") as file:
        own = {
            name: repeated(file.get_tensor(name), options.batch, 1) for name in ("pixels", "labels")
        }
        names = ("reference_pixels", "reference_tokens", "reference_labels")
        own.update(
            {name: repeated(file.get_tensor(name), options.reference_batch, 2) for name in names}
        )
        own["class_tokens"] = file.get_tensor("class_tokens").to(options.device)
    return own


def bases(folder, device):
    """Returns the protected directions `[n, k]` by parameter name in OpenAI's module."""
    with safe_open(f"{folder}/step.safetensors", framework="pt") as file:
        names = [name for name in file.keys() if name.startswith("basis.")]
        paths = {
            name: name.removeprefix("basis.").replace(
                "visual.blocks.", "visual.transformer.resblocks."
            )
            for name in names
        }
        return {paths[name]: file.get_tensor(name).clone().to(device) for name in names}


# ---- OpenAI's module -----------------------------------------------------------------------------


def package_module(name):
    """Imports one file of the package `openai-clip`.

    The whole package imports `pkg_resources`, which setuptools no longer has.
    """
    found = importlib.util.find_spec("clip")
    if found is None:
        sys.exit("pip install openai-clip")
    path = os.path.join(next(iter(found.submodule_search_locations)), f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"openai_clip_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def openai_model(path):
    config = configuration(path)
    v, t = config["vision_config"], config["text_config"]
    model = package_module("model").CLIP(
        embed_dim=config["projection_dim"],
        image_resolution=v["image_size"],
        vision_layers=v["num_hidden_layers"],
        vision_width=v["hidden_size"],
        vision_patch_size=v["patch_size"],
        context_length=t["max_position_embeddings"],
        vocab_size=t["vocab_size"],
        transformer_width=t["hidden_size"],
        transformer_heads=t["num_attention_heads"],
        transformer_layers=t["num_hidden_layers"],
    )
    if v["hidden_size"] != 64 * v["num_attention_heads"]:
        sys.exit("OpenAI's module supports only heads of 64 values")
    model.load_state_dict(weights(path))
    return model


def normalize(x):
    return x / x.norm(dim=-1, keepdim=True)


# ---- Losses --------------------------------------------------------------------------------------


def task_loss(features, classes, labels, scale):
    return F.cross_entropy(scale * features @ classes.T, labels, label_smoothing=SMOOTHING)


def distillation(teacher, student):
    """Returns the cross-entropy of the softened rows, times T²."""
    soft = F.softmax(teacher / TEMPERATURE, dim=1)
    return -(soft * F.log_softmax(student / TEMPERATURE, dim=1)).sum(1).mean() * TEMPERATURE**2


def alignment_targets(labels):
    same = (labels[:, None] == labels[None, :]).float()
    return same / same.sum(1, keepdim=True)


def reference_loss(teacher, student, targets):
    """Returns distillation and alignment losses of logits `[R, R]` in both directions."""
    cd = distillation(teacher, student) + distillation(teacher.T, student.T)
    soft = {"label_smoothing": SMOOTHING}
    return cd + MAP * (
        F.cross_entropy(student, targets, **soft) + F.cross_entropy(student.T, targets, **soft)
    )


# ---- The reference implementation ----------------------------------------------------------------


class Reference:
    def __init__(self, folder, options):
        self.student = openai_model(model_of(folder)).to(options.device)
        self.teacher = copy.deepcopy(self.student).eval()
        self.inputs = inputs(folder, options)
        self.autocast = options.autocast
        self.projectors = {}
        for name, basis in bases(folder, options.device).items():
            self.projectors[name] = torch.eye(len(basis), device=options.device) - basis @ basis.T
        self.student.train()
        for name, parameter in self.student.named_parameters():
            parameter.requires_grad_(name in self.projectors)
        self.trained = {n: p for n, p in self.student.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=LR, eps=1e-8, weight_decay=0.0)

    def step(self):
        x, student, teacher = self.inputs, self.student, self.teacher
        with self.autocast():
            classes = normalize(student.encode_text(x["class_tokens"]))
            features = normalize(student.encode_image(x["pixels"]))
            scale = student.logit_scale.exp()
            loss = task_loss(features.float(), classes.float(), x["labels"], scale)
            with torch.no_grad():
                image = normalize(teacher.encode_image(x["reference_pixels"])).float()
                text = normalize(teacher.encode_text(x["reference_tokens"])).float()
                taught = scale * image @ text.T
            image = normalize(student.encode_image(x["reference_pixels"])).float()
            text = normalize(student.encode_text(x["reference_tokens"])).float()
            loss = loss + reference_loss(
                taught, scale * image @ text.T, alignment_targets(x["reference_labels"])
            )
        self.optimizer.zero_grad()
        loss.backward()
        for name, parameter in self.trained.items():
            p = self.projectors[name]
            parameter.grad.copy_(
                p @ parameter.grad if name == "visual.proj" else parameter.grad @ p.T
            )
        self.optimizer.step()
        return loss.item()


# ---- The tuned towers and step -------------------------------------------------------------------


class QuickMlp(torch.autograd.Function):
    """The MLP `W₂·φ(W₁·x + b₁) + b₂` with QuickGELU, which keeps x and 1.702·z only.

    `φ(z) = z·σ(1.702·z) = silu(1.702·z)/1.702`
    """

    @staticmethod
    def forward(ctx, x, w1, b1, w2, b2):
        rows = x.reshape(-1, x.shape[-1])
        hidden = torch.addmm(b1 * QUICK, rows, w1.T, alpha=QUICK)
        ctx.save_for_backward(rows, hidden, w1, w2)
        return torch.addmm(b2, F.silu(hidden), w2.T, alpha=1 / QUICK).view(x.shape)

    @staticmethod
    def backward(ctx, gradient):
        rows, hidden, w1, w2 = ctx.saved_tensors
        x_, w1_, b1_, w2_, b2_ = ctx.needs_input_grad
        g = gradient.reshape(-1, gradient.shape[-1])
        gw2 = (g.T @ F.silu(hidden)).div_(QUICK) if w2_ else None
        inner = torch.ops.aten.silu_backward(g @ w2, hidden)
        gw1 = inner.T @ rows if w1_ else None
        gx = (inner @ w1).view(gradient.shape) if x_ else None
        return gx, gw1, inner.sum(0) if b1_ else None, gw2, g.sum(0) if b2_ else None


class Block(nn.Module):
    def __init__(self, width, hidden, heads, handwritten):
        super().__init__()
        self.heads, self.handwritten = heads, handwritten
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.c_proj = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x, causal=False, only=None):
        """Computes the block on `[batch, tokens, width]`.

        With positions `only` `[batch]` it returns their outputs only, `[batch, 1, width]`.
        """
        batch, tokens, width = x.shape
        y = self.ln_1(x)
        split = lambda z: z.view(batch, -1, self.heads, width // self.heads).transpose(1, 2)
        if only is None:
            q, k, v = map(split, self.qkv(y).chunk(3, dim=-1))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        else:
            w, b = self.qkv.weight, self.qkv.bias
            row = torch.arange(batch, device=x.device)
            q = split(F.linear(y[row, only], w[:width], b[:width])[:, None])
            k, v = map(split, F.linear(y, w[width:], b[width:]).chunk(2, dim=-1))
            mask = None
            if causal:
                mask = (torch.arange(tokens, device=x.device) <= only[:, None])[:, None, None]
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            x = x[row, only][:, None]
        x = x + self.out(y.transpose(1, 2).reshape(x.shape))
        y = self.ln_2(x)
        if self.handwritten and not torch.is_autocast_enabled(x.device.type):
            return x + QuickMlp.apply(
                y, self.c_fc.weight, self.c_fc.bias, self.c_proj.weight, self.c_proj.bias
            )
        y = self.c_fc(y)
        return x + self.c_proj(y * torch.sigmoid(QUICK * y))


class Tower(nn.Module):
    # As in the published code: every block computes all positions, although only one is used, and
    # texts are padded to the context length.
    everything = False

    def __init__(self, config, handwritten):
        super().__init__()
        width, hidden = config["hidden_size"], config["intermediate_size"]
        heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
        self.blocks = nn.ModuleList(Block(width, hidden, heads, handwritten) for _ in range(layers))

    def load(self, found, prefix):
        """Loads the tensors of the tower under OpenAI's names."""
        names = {
            "attn.in_proj_": "qkv.",
            "attn.out_proj.": "out.",
            "mlp.": "",
            "transformer.resblocks.": "blocks.",
        }
        own = {}
        for name, value in found.items():
            name = name.removeprefix(prefix)
            for old, new in names.items():
                name = name.replace(old, new)
            own[name] = value
        own.pop("logit_scale", None)
        self.load_state_dict(own, assign=True)
        return self


class Vision(Tower):
    def __init__(self, config, embed, handwritten=True):
        super().__init__(config, handwritten)
        width, patch = config["hidden_size"], config["patch_size"]
        tokens = (config["image_size"] // patch) ** 2 + 1
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(tokens, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, embed))

    def embed(self, pixels):
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1).to(x.dtype), x], dim=1)
        return self.ln_pre(x + self.positional_embedding)

    def forward(self, pixels):
        x = self.embed(pixels)
        for block in self.blocks[:-1]:
            x = block(x)
        only = None if self.everything else torch.zeros(len(x), dtype=torch.long, device=x.device)
        x = self.blocks[-1](x, only=only)
        return self.ln_post(x[:, 0]) @ self.proj


class Text(Tower):
    def __init__(self, config, embed, handwritten=True):
        super().__init__(config, handwritten)
        width = config["hidden_size"]
        self.token_embedding = nn.Embedding(config["vocab_size"], width)
        self.positional_embedding = nn.Parameter(
            torch.empty(config["max_position_embeddings"], width)
        )
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embed))

    def forward(self, tokens):
        """Encodes rows of ids with the end token as the largest id, without padding after it."""
        end = tokens.argmax(dim=-1)
        if self.everything:
            tokens = F.pad(tokens, (0, len(self.positional_embedding) - tokens.shape[1]))
        else:
            tokens = tokens[:, : int(end.max()) + 1]
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        for block in self.blocks[:-1]:
            x = block(x, causal=True)
        x = self.blocks[-1](x, causal=True, only=None if self.everything else end)
        x = x[torch.arange(len(x), device=x.device), end] if self.everything else x[:, 0]
        return self.ln_final(x) @ self.text_projection


def tower_of(model, which, handwritten=True):
    """Returns the tower `visual` or `text`, and `logit_scale` with the latter, otherwise None."""
    config = configuration(model)
    build, section, prefix = {
        "visual": (Vision, "vision_config", "visual."),
        "text": (Text, "text_config", ""),
    }[which]
    with torch.device("meta"):
        tower = build(config[section], config["projection_dim"], handwritten)
    found = weights(model, which)
    scale = found.get("logit_scale")
    return tower.load(found, prefix), scale


class Tuned:
    def __init__(self, folder, options, compiled=False):
        device = options.device
        self.inputs, self.autocast, self.passes = (
            inputs(folder, options),
            options.autocast,
            options.passes,
        )
        x = self.inputs
        with torch.no_grad(), self.autocast():
            # The text tower is frozen, so both models have these features for the whole task. The
            # teacher is not needed afterwards.
            text, scale = tower_of(model_of(folder), "text")
            text.to(device)
            self.scale = scale.exp().to(device)
            self.classes = normalize(text(x.pop("class_tokens"))).float()
            self.texts = normalize(text(x.pop("reference_tokens"))).float()
            del text
            teacher = tower_of(model_of(folder), "visual")[0].to(device)
            image = normalize(teacher(x["reference_pixels"])).float()
            self.taught = self.scale * image @ self.texts.T
            del teacher
        self.targets = alignment_targets(x.pop("reference_labels"))
        self.student = tower_of(model_of(folder), "visual", handwritten=not compiled)[0].to(device)
        names = dict(self.student.named_parameters())
        own = lambda name: (
            name.removeprefix("visual.")
            .replace("transformer.resblocks.", "blocks.")
            .replace("mlp.", "")
        )
        self.bases = {own(name): basis for name, basis in bases(folder, device).items()}
        for name, parameter in names.items():
            parameter.requires_grad_(name in self.bases)
        self.trained = {name: names[name] for name in self.bases}
        self.optimizer = torch.optim.AdamW(
            self.trained.values(), lr=LR, eps=1e-8, weight_decay=0.0, fused=True
        )
        self.encode = torch.compile(self.student) if compiled else self.student

    def losses(self, own, reference):
        if own is not None:
            yield task_loss(normalize(own.float()), self.classes, self.inputs["labels"], self.scale)
        if reference is not None:
            yield reference_loss(
                self.taught, self.scale * normalize(reference.float()) @ self.texts.T, self.targets
            )

    def step(self):
        x = self.inputs
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        if self.passes == 1:
            with self.autocast():
                features = self.encode(torch.cat([x["pixels"], x["reference_pixels"]]))
            loss = sum(self.losses(features[: len(x["pixels"])], features[len(x["pixels"]) :]))
            loss.backward()
            total = loss.detach()
        else:
            for name in ("pixels", "reference_pixels"):
                with self.autocast():
                    features = self.encode(x[name])
                loss = sum(
                    self.losses(*((features, None) if name == "pixels" else (None, features)))
                )
                loss.backward()
                total = total + loss.detach()
        for name, parameter in self.trained.items():
            u, g = self.bases[name], parameter.grad
            if name == "proj":
                g.addmm_(u, u.T @ g, alpha=-1)
            else:
                g.addmm_(g @ u, u.T, alpha=-1)
        self.optimizer.step()
        return float(total)


# ---- Gram accumulation ---------------------------------------------------------------------------


class Gram:
    """Gram matrices of the stacked inputs of all MLP matrices, divided by their Frobenius norms."""

    def __init__(self, folder, options):
        self.model = openai_model(model_of(folder)).to(options.device).eval()
        with safe_open(f"{folder}/step.safetensors", framework="pt") as file:
            self.pixels = file.get_tensor("gram_pixels").clone().to(options.device)
        self.rows = {"c_fc": [], "c_proj": [], "proj": []}
        self.sums = {}
        for block in self.model.visual.transformer.resblocks:
            block.mlp.c_fc.register_forward_pre_hook(
                lambda _, args: self.rows["c_fc"].append(args[0].flatten(0, 1))
            )
            block.mlp.c_proj.register_forward_pre_hook(
                lambda _, args: self.rows["c_proj"].append(args[0].flatten(0, 1))
            )
        self.model.visual.ln_post.register_forward_hook(
            lambda _, args, out: self.rows["proj"].append(out)
        )

    @torch.no_grad()
    def step(self):
        self.model.encode_image(self.pixels)
        for kind, rows in self.rows.items():
            x = torch.stack(rows)
            rows.clear()
            gram = x.transpose(1, 2) @ x
            gram = gram / torch.linalg.matrix_norm(gram, keepdim=True)
            self.sums[kind] = self.sums[kind] + gram if kind in self.sums else gram

    def traces(self):
        """Returns the traces of the sums, each divided by its Frobenius norm."""
        found = {}
        for kind, sums in self.sums.items():
            for i, sum_ in enumerate(sums):
                name = "visual.proj" if kind == "proj" else f"visual.blocks.{i}.mlp.{kind}.weight"
                found[name] = float(
                    torch.trace(sum_.double()) / torch.linalg.matrix_norm(sum_.double())
                )
        return found


class StreamedGram(Gram):
    """The same sums, accumulated in place as soon as each input is computed."""

    def __init__(self, folder, options):
        self.model = (
            tower_of(model_of(folder), "visual")[0].to(options.device).requires_grad_(False)
        )
        with safe_open(f"{folder}/step.safetensors", framework="pt") as file:
            self.pixels = file.get_tensor("gram_pixels").clone().to(options.device)
        self.sums = {}

    def add(self, kind, index, rows):
        gram = rows.T @ rows
        gram /= torch.linalg.matrix_norm(gram)
        if (kind, index) in self.sums:
            self.sums[kind, index] += gram
        else:
            self.sums[kind, index] = gram

    @torch.no_grad()
    def step(self):
        x = self.model.embed(self.pixels)
        last = len(self.model.blocks) - 1
        for i, block in enumerate(self.model.blocks):
            batch, tokens, width = x.shape
            heads = [
                z.view(batch, tokens, block.heads, -1).transpose(1, 2)
                for z in block.qkv(block.ln_1(x)).chunk(3, dim=-1)
            ]
            x += block.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(x.shape))
            rows = block.ln_2(x).flatten(0, 1)
            self.add("c_fc", i, rows)
            # QuickGELU is SiLU of 1.702·x divided by 1.702, a factor that the division by the
            # Frobenius norm cancels.
            rows = F.silu(
                torch.addmm(block.c_fc.bias * QUICK, rows, block.c_fc.weight.T, alpha=QUICK),
                inplace=True,
            )
            self.add("c_proj", i, rows)
            if i == last:
                # The last MLP product is needed for the class token only.
                x, rows = x[:, 0], rows.view(batch, tokens, -1)[:, 0]
            x += torch.addmm(block.c_proj.bias, rows, block.c_proj.weight.T, alpha=1 / QUICK).view(
                x.shape
            )
        self.add("proj", 0, self.model.ln_post(x))

    def traces(self):
        sums, self.sums = self.sums, {}
        for kind in ("c_fc", "c_proj", "proj"):
            self.sums[kind] = [value for (k, _), value in sorted(sums.items()) if k == kind]
        return super().traces()


# ---- Measuring -----------------------------------------------------------------------------------


def report(line, seconds):
    """Prints one JSON line with the times, the first separately, and the peak memory.

    Memory is in MB of 10^6 bytes.
    """
    line["first_seconds"], line["seconds"] = seconds[0], seconds[1:]
    line["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    if torch.cuda.is_initialized():
        line["peak_device_mb"] = torch.cuda.max_memory_allocated() / 1e6
    print(json.dumps(line), flush=True)


def timed(f, times, device="cpu"):
    """Returns the wall seconds of each call, CPU seconds per call without the first, and results.

    Other work on the machine disturbs CPU time less than wall time.
    """
    seconds, results = [], []
    used = time.process_time()
    for i in range(times):
        if i == 1:
            used = time.process_time()
        start = time.perf_counter()
        results.append(f())
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds, (time.process_time() - used) / max(times - 1, 1), results


def last_line(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"failed: {' '.join(command)}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def check(options):
    """Asserts that all variants have the same losses and Gram traces, each in its own process."""
    arguments = (options.folder, "--steps", "1", "--device", options.device)

    def one_step(verb):
        return last_line(sys.executable, __file__, verb, *arguments)

    found = {}
    for verb in ("reference", "tuned", "compiled"):
        found[verb] = one_step(verb)["losses"]
        print(f"{verb}: {found[verb]}")
    for verb, losses in found.items():
        worst = max(abs(a - b) / abs(b) for a, b in zip(losses, found["reference"]))
        assert worst < 1e-4, f"{verb} differs from the reference by {worst:.1e}"
    for verb in ("gram", "gram-streamed"):
        found[verb] = one_step(verb)["traces"]
    worst = max(
        abs(found["gram-streamed"][name] / trace - 1) for name, trace in found["gram"].items()
    )
    assert worst < 1e-4, f"the traces differ by {worst:.1e}"
    print("the same losses and Gram matrices")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "verb", choices=["reference", "tuned", "compiled", "gram", "gram-streamed", "check"]
    )
    parser.add_argument("folder")
    parser.add_argument(
        "--steps", type=int, default=2, help="timed steps or passes, after an untimed one"
    )
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--dtype", choices=["f32", "tf32", "bf16"], default="f32", help="type of matrix products"
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--reference-batch", type=int, default=8)
    parser.add_argument(
        "--passes",
        type=int,
        choices=[1, 2],
        help="passes through the image tower; default: 2 on a CPU, otherwise 1",
    )
    parser.add_argument(
        "--default-allocator", action="store_true", help="do not change glibc's settings"
    )
    options = parser.parse_args()
    if options.verb == "check":
        return check(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    cpu = options.device == "cpu"
    options.passes = options.passes or (2 if cpu else 1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = (
        options.dtype == "tf32"
    )
    bf16 = options.dtype == "bf16"
    options.autocast = lambda: torch.autocast(
        torch.device(options.device).type, dtype=torch.bfloat16, enabled=bf16
    )
    torch.manual_seed(0)
    measured = {
        "reference": Reference,
        "tuned": Tuned,
        "compiled": lambda *given: Tuned(*given, compiled=True),
        "gram": Gram,
        "gram-streamed": StreamedGram,
    }[options.verb](options.folder, options)
    seconds, processor, results = timed(measured.step, options.steps + 1, options.device)
    if options.verb.startswith("gram"):
        line = {
            "per_second": len(measured.pixels) / sorted(seconds[1:])[options.steps // 2],
            "traces": measured.traces(),
        }
    else:
        line = {"losses": results}
    report({**line, "processor_seconds": processor}, seconds)


if __name__ == "__main__":
    main()
