"""Small random checkpoints of every supported family of image-text models, in every container.

The original packages write the checkpoints and compute the expected values.

Run:   python tests/reference/clip_zoo.py tests/data/zoo
Made with: Python 3.11, torch 2.15.0, transformers 5.24.0, open_clip_torch 3.3.0, openai-clip 1.0.1,
timm 1.0.31, safetensors 0.8.0 (CPU, one thread). `manifest.json` lists every case and the versions
of the run that wrote it.

Folders by package:

    clip          openai_vit, openai_rn
    open_clip     open_clip_gelu, open_clip_quickgelu, open_clip_custom_text, open_clip_rn,
                  clip_interpolated; siglip_open_clip and siglip2_open_clip with a trunk of `timm`
    transformers  siglip_hf, siglip_hf_sharded, hf_clip, hf_clip_sharded, hf_clip_sharded_bin

Every `expected*.safetensors` belongs to one set of stored weights:

    pixels              u8  [2,3,S,S]  inputs of the image tower are x = (pixels - 127.5) / 64,
                                       exact in float32
    input_ids           i64 [3,L]      token rows as padded by the original tokenizer; the last row
                                       is full
    lengths             i64 [3]        ids of each row up to and including its end token; L for
                                       SigLIP, which also reads the padding
    image_features      f32 [2,e]      not normalised
    text_features       f32 [3,e]      not normalised
    logit_scale         f32 []         the parameter itself, a logarithm
    logit_bias          f32 []         SigLIP only
    logits              f32 [2,3]      exp(logit_scale) * normalised image features @ normalised
                                       text features^T (+ logit_bias)
    loss                f32 []         of the 2 images with the first 2 texts: symmetric
                                       cross-entropy, or the sigmoid loss of SigLIP (sum over all
                                       pairs, divided by the number of images)
    grad.NAME           f32            gradient of that loss for the parameter of that name in the
                                       checkpoint, in its layout
    image_features_bf16 f32            the same features computed by the original in bfloat16
    text_features_bf16  f32            throughout (weights, inputs and activations); not for the two
                                       OpenAI models, whose layer norm does not support it

All but the bfloat16 values are computed in float64 from the stored weights (as rounded to the dtype
of the file) and rounded once. `clip.model.LayerNorm` casts its input to float32; the script removes
that cast for float64 and checks the result against the unmodified module in float32. Modules are in
evaluation mode: batch norm uses its running statistics.

Every parameter and buffer is random, at a scale that keeps activations near one, so that a missing
term shows.
"""

import argparse
import collections
import importlib.metadata
import importlib.util
import json
import os
import pickle
import platform
import shutil
import struct
import sys
import types
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import open_clip
import safetensors
import timm
import torch
import torch.nn.functional as F
import transformers
from open_clip.loss import SigLipLoss
from open_clip.model import CLIP as OpenClip, CustomTextCLIP, resize_pos_embed
from safetensors.torch import load_file, save_file
from timm.models import register_model
from timm.models.vision_transformer import _create_vision_transformer

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")


def openai_module():
    """`clip.model`, without running `clip/__init__.py`.

    `clip/__init__.py` needs modules that newer versions of setuptools lack.
    """
    package = types.ModuleType("clip")
    package.__path__ = list(importlib.util.find_spec("clip").submodule_search_locations)
    sys.modules["clip"] = package
    return importlib.import_module("clip.model")


openai = openai_module()

# ------------------------------------------------------------------------------------------ weights


def randomise(model, seed, logit_scale=2.5, logit_bias=-2.0):
    """Draws every parameter and every running statistic."""
    g = torch.Generator().manual_seed(seed)
    norms = (torch.nn.LayerNorm, torch.nn.BatchNorm2d)
    of_norm = {
        f"{n}.{k}"
        for n, m in model.named_modules()
        if isinstance(m, norms)
        for k in ("weight", "bias")
    }
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=g)
            leaf = name.rsplit(".", 1)[-1]
            if name == "logit_scale":
                p.fill_(logit_scale)
            elif name == "logit_bias":
                p.fill_(logit_bias)
            elif name in of_norm:
                p.copy_(1 + 0.2 * noise if leaf == "weight" else 0.2 * noise)
            elif leaf.endswith("bias"):
                p.copy_(0.2 * noise)
            elif any(
                s in name
                for s in (
                    "token_embedding",
                    "position_embedding",
                    "positional_embedding",
                    "class_embedding",
                )
            ):
                p.copy_(0.5 * noise)
            elif any(s in name for s in ("pos_embed", "latent", "probe")):
                p.copy_(0.5 * noise)
            elif leaf in ("proj", "text_projection"):
                p.copy_(noise * p.shape[0] ** -0.5)
            else:
                # Convolutions that feed a ReLU need the factor 2 to keep their scale.
                gain = 2.0 if p.ndim == 4 and p.shape[-1] <= 3 else 1.0
                p.copy_(noise * (gain / p[0].numel()) ** 0.5)
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b.copy_(0.2 * torch.randn(b.shape, generator=g))
            elif name.endswith("running_var"):
                b.copy_(0.5 + torch.rand(b.shape, generator=g))
            elif name.endswith("num_batches_tracked"):
                b.fill_(1000)
    return model.eval()


def clip_rows(vocab, context):
    """Rows of start token, ids, end token and zeros; the end token has the largest id."""
    start, end = vocab - 2, vocab - 1
    g = torch.Generator().manual_seed(11)
    rows = []
    for length in (5, 8, context):
        ids = torch.randint(1, vocab - 2, (length - 2,), generator=g).tolist()
        rows.append([start, *ids, end])
    ids = torch.zeros(3, context, dtype=torch.int64)
    for i, r in enumerate(rows):
        ids[i, : len(r)] = torch.tensor(r)
    return ids, torch.tensor([len(r) for r in rows])


def siglip_rows(vocab, context):
    """Rows of ids, end token (1) and padding (1 too)."""
    g = torch.Generator().manual_seed(12)
    ids = torch.ones(3, context, dtype=torch.int64)
    for i, length in enumerate((4, 9, context)):
        ids[i, : length - 1] = torch.randint(3, vocab, (length - 1,), generator=g)
    return ids, torch.full((3,), context)


def pixels(size):
    """A colour, its gradient and noise.

    With noise alone, networks with pooling would give all images the same feature.
    """
    g = torch.Generator().manual_seed(7)
    colour = torch.tensor([[1.0, -0.5, -1.0], [-1.0, 0.75, 0.5]])[:, :, None, None]
    ramp = torch.linspace(-1, 1, size)
    x = colour * (
        1 + torch.stack([ramp[:, None].expand(size, size), ramp.expand(size, size)])[:, None]
    )
    return (
        ((x + 0.75 * torch.randn(2, 3, size, size, generator=g)) * 64 + 127.5)
        .clamp(0, 255)
        .to(torch.uint8)
    )


# ----------------------------------------------------------------------------------------- expected


def encode(model, x, ids):
    if isinstance(model, transformers.CLIPModel):
        image = model.visual_projection(model.vision_model(pixel_values=x).pooler_output)
        return image, model.text_projection(model.text_model(input_ids=ids).pooler_output)
    if isinstance(model, transformers.SiglipModel):
        return model.vision_model(pixel_values=x).pooler_output, model.text_model(
            input_ids=ids
        ).pooler_output
    return model.encode_image(x), model.encode_text(ids)


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def logits_of(model, image, text):
    z = model.logit_scale.exp() * unit(image) @ unit(text).T
    bias = getattr(model, "logit_bias", None)
    return z if bias is None else z + bias


def loss_of(model, image, text):
    n = len(image)
    z = logits_of(model, image, text[:n])
    if getattr(model, "logit_bias", None) is None:
        target = torch.arange(n)
        return (F.cross_entropy(z, target) + F.cross_entropy(z.T, target)) / 2
    return -F.logsigmoid(z * (2 * torch.eye(n, dtype=z.dtype) - 1)).sum() / n


def original_loss(model, x, image, text, ids):
    """The loss as the package computes it, to check `loss_of`; `clip` has none."""
    if isinstance(model, (transformers.CLIPModel, transformers.SiglipModel)):
        return model(pixel_values=x, input_ids=ids[: len(x)], return_loss=True).loss
    if isinstance(model, (OpenClip, CustomTextCLIP)):
        i, t, s = (
            F.normalize(image, dim=-1),
            F.normalize(text[: len(x)], dim=-1),
            model.logit_scale.exp(),
        )
        if model.logit_bias is not None:
            return SigLipLoss()(i, t, s, model.logit_bias)
        return open_clip.ClipLoss()(i, t, s)
    return None


def expected(path, make, size, rows, gradients=(), bf16=True):
    """Writes the outputs of the model. `make()` returns a fresh copy with the stored weights."""
    ids, lengths = rows
    bytes_ = pixels(size)
    x = (bytes_.double() - 127.5) / 64
    single = make().float().eval()
    with torch.no_grad():
        image32, text32 = encode(single, x.float(), ids)
    layer_norm = openai.LayerNorm.forward
    openai.LayerNorm.forward = torch.nn.LayerNorm.forward
    model = make().double().eval()
    image, text = encode(model, x, ids)
    openai.LayerNorm.forward = layer_norm
    assert torch.allclose(image.float(), image32, atol=2e-4), (path, (image - image32).abs().max())
    assert torch.allclose(text.float(), text32, atol=2e-4), (path, (text - text32).abs().max())
    loss = loss_of(model, image, text)
    theirs = original_loss(model, x, image, text, ids)
    assert theirs is None or torch.allclose(theirs, loss, atol=1e-10), (path, theirs, loss)
    loss.backward()
    out = dict(
        pixels=bytes_,
        input_ids=ids,
        lengths=lengths,
        image_features=image,
        text_features=text,
        logit_scale=model.logit_scale.reshape([]),
        logits=logits_of(model, image, text),
        loss=loss,
    )
    if getattr(model, "logit_bias", None) is not None:
        out["logit_bias"] = model.logit_bias.reshape([])
    params = dict(model.named_parameters())
    for name in gradients:
        grad = params[name].grad
        assert grad.abs().max() > 1e-7, (path, name)
        out["grad." + name] = grad
    if bf16:
        half = make().bfloat16().eval()
        with torch.no_grad():
            out["image_features_bf16"], out["text_features_bf16"] = encode(half, x.bfloat16(), ids)
    out = {
        k: (v.detach().float() if v.is_floating_point() else v).contiguous().clone()
        for k, v in out.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(out, path)
    cos = (unit(image) @ unit(image).T)[0, 1].item(), (unit(text) @ unit(text).T)[0, 1].item()
    note = ""
    if bf16:
        off = max(
            (unit(out[k + "_bf16"]) - unit(out[k])).abs().max().item()
            for k in ("image_features", "text_features")
        )
        note = f"bf16 off by {off:.4f}"
    print(
        f"{path.parent.name + '/' + path.name:46} loss {loss.item():.4f}  "
        f"cosines {cos[0]:+.2f} {cos[1]:+.2f}  {note}"
    )


# --------------------------------------------------------------------------------------- containers


def as_saved(model, values, prefix=""):
    """The values in the form of `model.state_dict()`.

    This is an ordered dictionary with the versions of the modules as an attribute.
    """
    own = model.state_dict()
    assert list(own) == list(values)
    state = collections.OrderedDict((prefix + k, v) for k, v in values.items())
    state._metadata = collections.OrderedDict(
        (prefix + k if k else prefix.rstrip("."), v) for k, v in own._metadata.items()
    )
    return state


def save_legacy(obj, path):
    """`torch.save(obj, path, _use_new_zipfile_serialization=False)` with numbered storage keys.

    PyTorch takes memory addresses as keys, which differ in every run.
    """
    keys = {}

    def key(address):
        return f"{keys.setdefault(address, len(keys)):08}"

    torch.serialization.str = key
    try:
        with open(path, "wb") as f:
            torch.serialization._legacy_save(obj, f, pickle, 2)
    finally:
        del torch.serialization.str


def drop_debug_files(path):
    """Removes the `*.debug_pkl` entries of an archive, which contain paths of the tracing machine.

    All other entries keep their bytes and their alignment to 64 bytes. `torch.jit.load` reads the
    result as before.
    """
    data = path.read_bytes()
    end = data.rindex(b"PK\x05\x06")
    count, _, start = struct.unpack_from("<HII", data, end + 10)
    entries, at = [], start
    for _ in range(count):
        name_len, extra_len, comment_len = struct.unpack_from("<HHH", data, at + 28)
        length = 46 + name_len + extra_len + comment_len
        entries.append(
            (
                struct.unpack_from("<I", data, at + 42)[0],
                data[at + 46 : at + 46 + name_len],
                bytearray(data[at : at + length]),
            )
        )
        at += length
    # A zip64 end record may lie between the directory and the end record. Every offset here is
    # small, so it is not needed.
    bounds = sorted(offset for offset, _, _ in entries) + [start]
    out, directory, kept = bytearray(), bytearray(), 0
    for offset, name, record in sorted(entries, key=lambda e: e[0]):
        if name.endswith(b".debug_pkl"):
            continue
        following = bounds[bounds.index(offset) + 1]
        out += bytes((offset - len(out)) % 64)
        struct.pack_into("<I", record, 42, len(out))
        out += data[offset:following]
        directory += record
        kept += 1
    last = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, kept, kept, len(directory), len(out), 0)
    path.write_bytes(out + directory + last)


def save_torchscript(model, size, context, vocab, path):
    """Saves in the form of OpenAI's published archives.

    The weights are in half precision, the model has three methods, and the state dict holds the
    three numbers as tensors.
    """
    for name in ("context_length", "vocab_size"):
        delattr(model, name)
    for name, value in (
        ("input_resolution", size),
        ("context_length", context),
        ("vocab_size", vocab),
    ):
        model.register_buffer(name, torch.tensor(value))
    image, text = torch.zeros(1, 3, size, size).half(), torch.zeros(1, context, dtype=torch.int64)
    inputs = dict(forward=(image, text), encode_image=(image,), encode_text=(text,))
    traced = torch.jit.trace_module(model.eval(), inputs, check_trace=False)
    torch.jit.save(traced, str(path))
    drop_debug_files(path)
    return torch.jit.load(str(path)).state_dict()


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def manifest_case(family, file, container, dtype, expected, size, context, **facts):
    return dict(
        family=family,
        file=file,
        container=container,
        dtype=dtype,
        expected=expected,
        image_size=size,
        context=context,
        **facts,
    )


# ----------------------------------------------------------------------------------- package `clip`

OPENAI = {
    "openai_vit": dict(
        embed_dim=20,
        image_resolution=16,
        vision_layers=1,
        vision_width=64,
        vision_patch_size=4,
        context_length=10,
        vocab_size=48,
        transformer_width=64,
        transformer_heads=1,
        transformer_layers=1,
    ),
    "openai_rn": dict(
        embed_dim=20,
        image_resolution=64,
        vision_layers=(1, 2, 1, 1),
        vision_width=2,
        vision_patch_size=None,
        context_length=10,
        vocab_size=48,
        transformer_width=64,
        transformer_heads=1,
        transformer_layers=1,
    ),
}
MATRICES = ["attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"]
TEXT_GRADIENTS = [
    "token_embedding.weight",
    "positional_embedding",
    "ln_final.weight",
    "text_projection",
    "transformer.resblocks.0.attn.in_proj_bias",
    "transformer.resblocks.0.attn.out_proj.bias",
    "transformer.resblocks.0.ln_1.weight",
    "transformer.resblocks.0.mlp.c_fc.bias",
]
VIT_GRADIENTS = [
    "logit_scale",
    "visual.conv1.weight",
    "visual.class_embedding",
    "visual.positional_embedding",
    "visual.ln_pre.weight",
    "visual.ln_post.bias",
    "visual.proj",
    "visual.transformer.resblocks.0.attn.in_proj_bias",
    "visual.transformer.resblocks.0.ln_2.bias",
    "visual.transformer.resblocks.0.mlp.c_proj.bias",
]
VIT_MATRICES = [
    "visual.transformer.resblocks.1.attn.in_proj_weight",
    "visual.transformer.resblocks.1.mlp.c_fc.weight",
    "transformer.resblocks.0.attn.in_proj_weight",
    "transformer.resblocks.0.mlp.c_proj.weight",
]
RN_GRADIENTS = [
    "logit_scale",
    "visual.conv1.weight",
    "visual.conv3.weight",
    "visual.bn1.weight",
    "visual.layer1.0.downsample.0.weight",
    "visual.layer2.0.conv2.weight",
    "visual.layer2.1.conv1.weight",
    "visual.layer2.0.bn3.weight",
    "visual.layer2.0.bn2.bias",
    "visual.layer2.0.downsample.1.weight",
    "visual.layer4.0.conv3.weight",
    "visual.attnpool.positional_embedding",
    "visual.attnpool.q_proj.weight",
    "visual.attnpool.k_proj.weight",
    "visual.attnpool.v_proj.weight",
    "visual.attnpool.v_proj.bias",
    "visual.attnpool.c_proj.weight",
    "visual.attnpool.c_proj.bias",
]


def openai_family(root, name, seed):
    spec, path = OPENAI[name], root / name
    size, context, vocab = spec["image_resolution"], spec["context_length"], spec["vocab_size"]
    path.mkdir()

    def fresh():
        model = randomise(openai.CLIP(**spec), seed)
        if name == "openai_vit":
            # The matrices of the text tower are those of the image tower without the first row and
            # with another last row; see `finetuned.pth`.
            params = dict(model.named_parameters())
            for leaf in MATRICES:
                image, text = (
                    params["visual.transformer.resblocks.0." + leaf],
                    params["transformer.resblocks.0." + leaf],
                )
                text.data[:-1] = image.data[1:]
        openai.convert_weights(model)
        return model

    state = fresh().state_dict()
    archived = save_torchscript(fresh(), size, context, vocab, path / "torchscript.pt")
    assert set(archived) - set(state) == {"input_resolution", "context_length", "vocab_size"}
    # The package's own loader derives every dimension from the shapes.
    rebuilt = openai.build_model(dict(archived)).state_dict()
    for key, value in state.items():
        assert torch.equal(archived[key], value) and torch.equal(rebuilt[key], value), key

    def make():
        model = openai.CLIP(**spec)
        model.load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
        )
        return model

    vit = name == "openai_vit"
    expected(
        path / "expected.safetensors",
        make,
        size,
        clip_rows(vocab, context),
        TEXT_GRADIENTS + (VIT_GRADIENTS if vit else RN_GRADIENTS),
        bf16=False,
    )
    facts = dict(activation="quick_gelu", layer_norm_eps=1e-5, pool_text="largest id", config=spec)
    cases = [
        manifest_case(
            name,
            f"{name}/torchscript.pt",
            "TorchScript zip",
            "f16, embeddings and norms f32",
            f"{name}/expected.safetensors",
            size,
            context,
            **facts,
        )
    ]
    if vit:
        # Views into shared storages, as with flattened parameters: one storage holds a matrix of
        # both towers, at different offsets. This also keeps the file small: towers of the package
        # have a width of at least 64.
        single = {k: v.float() for k, v in state.items()}
        for leaf in MATRICES:
            keys = "visual.transformer.resblocks.0." + leaf, "transformer.resblocks.0." + leaf
            both = torch.cat([single[keys[0]], single[keys[1]][-1:]])
            for key, view in zip(keys, (both[:-1], both[1:])):
                assert torch.equal(view, single[key])
                single[key] = view
        torch.save({"state_dict": as_saved(fresh(), single)}, path / "finetuned.pth")
        cases.append(
            manifest_case(
                name,
                f"{name}/finetuned.pth",
                'torch.save zip of {"state_dict": …}, as GNSP and ZSCL write',
                "f32",
                f"{name}/expected.safetensors",
                size,
                context,
                **facts,
            )
        )
    return cases


# ------------------------------------------------------------------------------ package `open_clip`

PREPROCESS = dict(
    clip=dict(mean=[0.48145466, 0.4578275, 0.40821073], std=[0.26862954, 0.26130258, 0.27577711]),
    siglip=dict(
        mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5], interpolation="bicubic", resize_mode="squash"
    ),
)
CLIP_TEXT = dict(context_length=10, vocab_size=48, width=16, heads=2, layers=1, mlp_ratio=2.0)
CLIP_VIT = dict(image_size=16, layers=2, width=16, head_width=8, patch_size=4, mlp_ratio=1.5)
SIGLIP_TEXT = dict(
    context_length=16,
    vocab_size=48,
    hf_tokenizer_name="timm/ViT-B-16-SigLIP",
    tokenizer_kwargs={"clean": "canonicalize"},
    width=12,
    heads=3,
    layers=2,
    mlp_ratio=1.7,
    no_causal_mask=True,
    proj_bias=True,
    pool_type="last",
    norm_kwargs={"eps": 1e-6},
)
# The dimensions are fields of `CLIPVisionCfg` that open_clip ignores if `timm_model_name` is set.
SIGLIP_VISION = dict(
    image_size=16,
    timm_model_name="vit_tiny_patch4_siglip_16",
    timm_model_pretrained=False,
    timm_pool="map",
    timm_proj="none",
    width=16,
    layers=2,
    head_width=8,
    patch_size=4,
    mlp_ratio=1.8,
    norm_kwargs={"eps": 1e-6},
)


TINY_TRUNK = dict(
    img_size=16,
    patch_size=4,
    embed_dim=16,
    depth=2,
    num_heads=2,
    mlp_ratio=1.8,
    class_token=False,
    global_pool="map",
)


@register_model
def vit_tiny_patch4_siglip_16(pretrained=False, **kwargs):
    """`vit_base_patch16_siglip_224` at a reduced size."""
    return _create_vision_transformer(
        "vit_base_patch16_siglip_224", pretrained=pretrained, **dict(TINY_TRUNK, **kwargs)
    )


@register_model
def vit_tiny_patch4_siglip_tanh_16(pretrained=False, **kwargs):
    """`vit_base_patch32_siglip_256` at a reduced size: the same with tanh GELU."""
    return _create_vision_transformer(
        "vit_base_patch32_siglip_256",
        pretrained=pretrained,
        **dict(TINY_TRUNK, act_layer="gelu_tanh", **kwargs),
    )


def open_clip_model(config):
    config = {k: v for k, v in config.items()}
    cls = CustomTextCLIP if config.pop("custom_text", False) else OpenClip
    return cls(**config)


def open_clip_dir(path, config, kind="clip"):
    path.mkdir(exist_ok=True)
    size = config["vision_cfg"]["image_size"]
    write_json(
        path / "open_clip_config.json",
        {
            "model_cfg": config,
            "preprocess_cfg": dict(size=[size, size], mode="RGB", **PREPROCESS[kind]),
        },
    )


def loaded(config, state):
    def make():
        model = open_clip_model(config)
        model.load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
        )
        return model

    return make


def contiguous(state, dtype=None):
    return {
        k: (v.to(dtype) if dtype and v.is_floating_point() else v).contiguous().clone()
        for k, v in state.items()
    }


def facts_of(config):
    act = "quick_gelu" if config.get("quick_gelu") else "gelu"
    if "timm_model_name" in config["vision_cfg"]:
        tanh = "tanh" in config["vision_cfg"]["timm_model_name"]
        text = "gelu_tanh" if config["text_cfg"].get("act_kwargs") else "gelu"
        act = {
            "vision": "gelu_tanh" if tanh else "gelu",
            "attention_pool": "gelu_tanh" if tanh else "gelu",
            "text": text,
        }
    elif isinstance(config["vision_cfg"]["layers"], list):
        act = {"vision": "relu", "text": act}
    eps = config["text_cfg"].get("norm_kwargs", {}).get("eps", 1e-5)
    return dict(
        activation=act,
        layer_norm_eps=eps,
        pool_text="last position"
        if config["text_cfg"].get("pool_type") == "last"
        else "largest id",
        config=config,
    )


def open_clip_family(root):
    cases = []

    def case(family, file, container, dtype, expected_file, config):
        size, context = config["vision_cfg"]["image_size"], config["text_cfg"]["context_length"]
        cases.append(
            manifest_case(
                family, file, container, dtype, expected_file, size, context, **facts_of(config)
            )
        )

    # Exact GELU, the default of open_clip.
    config = dict(embed_dim=12, vision_cfg=CLIP_VIT, text_cfg=CLIP_TEXT)
    rows = clip_rows(48, 10)
    path = root / "open_clip_gelu"
    open_clip_dir(path, config)
    model = randomise(open_clip_model(config), 21)
    state = contiguous(model.state_dict())
    save_file(state, path / "open_clip_model.safetensors")
    torch.save(as_saved(model, state), path / "open_clip_pytorch_model.bin")
    save_legacy(as_saved(model, state), path / "legacy.pt")
    wrapped = as_saved(model, state, "module.")
    moments = {
        0: {"step": torch.tensor(7.0), "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}
    }
    optimizer = {
        "state": moments,
        "param_groups": [
            {"lr": 1e-3, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.2, "params": [0]}
        ],
    }
    torch.save(
        {"epoch": 3, "name": "tiny", "state_dict": wrapped, "optimizer": optimizer},
        path / "epoch_3.pt",
    )
    expected(
        path / "expected.safetensors",
        loaded(config, state),
        16,
        rows,
        VIT_GRADIENTS + TEXT_GRADIENTS + VIT_MATRICES,
    )
    name = "open_clip_gelu"
    for file, container in (
        ("open_clip_model.safetensors", "safetensors"),
        ("open_clip_pytorch_model.bin", "torch.save zip"),
        ("legacy.pt", "torch.save before zip"),
        (
            "epoch_3.pt",
            'torch.save zip of {"epoch", "name", "state_dict" with prefix "module.", "optimizer"}',
        ),
    ):
        case(name, f"{name}/{file}", container, "f32", f"{name}/expected.safetensors", config)
        with_open_clip = open_clip_model(config)
        open_clip.load_checkpoint(with_open_clip, str(path / file))
        assert all(torch.equal(v, state[k]) for k, v in with_open_clip.state_dict().items()), file
    for tag, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16)):
        half = contiguous(state, dtype)
        save_file(half, path / f"open_clip_model_{tag}.safetensors")
        expected(path / f"expected_{tag}.safetensors", loaded(config, half), 16, rows)
        case(
            name,
            f"{name}/open_clip_model_{tag}.safetensors",
            "safetensors",
            tag,
            f"{name}/expected_{tag}.safetensors",
            config,
        )

    # The same weights read as QuickGELU: the cases differ in the configuration only.
    quick = dict(config, quick_gelu=True)
    path = root / "open_clip_quickgelu"
    open_clip_dir(path, quick)
    expected(
        path / "expected.safetensors",
        loaded(quick, state),
        16,
        rows,
        ["visual.conv1.weight", "token_embedding.weight"],
    )
    case(
        "open_clip_quickgelu",
        "open_clip_gelu/open_clip_model.safetensors",
        "safetensors",
        "f32",
        "open_clip_quickgelu/expected.safetensors",
        quick,
    )

    # An image size that differs from the checkpoint's.
    path = root / "clip_interpolated"
    for size in (24, 12):
        other = dict(config, vision_cfg=dict(CLIP_VIT, image_size=size))
        resized = {k: v.clone() for k, v in state.items()}
        resize_pos_embed(resized, open_clip_model(other))
        via_loader = open_clip_model(other)
        open_clip.load_checkpoint(
            via_loader, str(root / "open_clip_gelu/open_clip_model.safetensors")
        )
        assert torch.equal(
            via_loader.visual.positional_embedding, resized["visual.positional_embedding"]
        )
        expected(
            path / f"expected_{size}.safetensors", loaded(other, resized), size, rows, bf16=False
        )
        write_json(
            path / f"open_clip_config_{size}.json",
            {
                "model_cfg": other,
                "preprocess_cfg": dict(size=[size, size], mode="RGB", **PREPROCESS["clip"]),
            },
        )
        save_file(
            {"visual.positional_embedding": resized["visual.positional_embedding"].contiguous()},
            path / f"positions_{size}.safetensors",
        )
        case(
            "clip_interpolated",
            "open_clip_gelu/open_clip_model.safetensors",
            "safetensors",
            "f32",
            f"clip_interpolated/expected_{size}.safetensors",
            other,
        )
        cases[-1]["positions"] = f"clip_interpolated/positions_{size}.safetensors"

    # Text tower under `text.`.
    config = dict(
        embed_dim=12,
        custom_text=True,
        vision_cfg=dict(CLIP_VIT, mlp_ratio=2.0),
        text_cfg=dict(CLIP_TEXT, width=24, heads=3),
    )
    name, path = "open_clip_custom_text", root / "open_clip_custom_text"
    open_clip_dir(path, config)
    model = randomise(open_clip_model(config), 22)
    state = contiguous(model.state_dict())
    save_file(state, path / "open_clip_model.safetensors")
    torch.save(
        {"epoch": 1, "name": "tiny", "state_dict": as_saved(model, state, "module.")},
        path / "epoch_1.pt",
    )
    text = ["text." + n for n in TEXT_GRADIENTS + ["transformer.resblocks.0.attn.in_proj_weight"]]
    expected(path / "expected.safetensors", loaded(config, state), 16, rows, VIT_GRADIENTS + text)
    case(
        name,
        f"{name}/open_clip_model.safetensors",
        "safetensors",
        "f32",
        f"{name}/expected.safetensors",
        config,
    )
    case(
        name,
        f"{name}/epoch_1.pt",
        'torch.save zip of {"epoch", "name", "state_dict" with prefix "module."}',
        "f32",
        f"{name}/expected.safetensors",
        config,
    )

    # ResNet.
    config = dict(
        embed_dim=12,
        vision_cfg=dict(
            image_size=64, layers=[1, 2, 1, 1], width=2, head_width=16, patch_size=None
        ),
        text_cfg=CLIP_TEXT,
    )
    name, path = "open_clip_rn", root / "open_clip_rn"
    open_clip_dir(path, config)
    model = randomise(open_clip_model(config), 23)
    state = contiguous(model.state_dict(), torch.float16)
    save_file(state, path / "open_clip_model.safetensors")
    torch.save(as_saved(model, state), path / "state_dict.pt")
    large = ("q_proj.weight", "k_proj.weight", "v_proj.weight")
    expected(
        path / "expected.safetensors",
        loaded(config, state),
        64,
        rows,
        [n for n in RN_GRADIENTS if not n.endswith(large)]
        + ["visual.attnpool.q_proj.bias"]
        + TEXT_GRADIENTS,
    )
    case(
        name,
        f"{name}/open_clip_model.safetensors",
        "safetensors",
        "f16",
        f"{name}/expected.safetensors",
        config,
    )
    case(
        name,
        f"{name}/state_dict.pt",
        "torch.save zip",
        "f16",
        f"{name}/expected.safetensors",
        config,
    )

    # SigLIP with a trunk of timm.
    config = dict(
        embed_dim=16,
        init_logit_bias=-10,
        custom_text=True,
        vision_cfg=SIGLIP_VISION,
        text_cfg=SIGLIP_TEXT,
    )
    name, path = "siglip_open_clip", root / "siglip_open_clip"
    open_clip_dir(path, config, "siglip")
    model = randomise(open_clip_model(config), 24)
    assert {m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-6}
    state = contiguous(model.state_dict())
    save_file(state, path / "open_clip_model.safetensors")
    gradients = [
        "logit_scale",
        "logit_bias",
        "visual.trunk.patch_embed.proj.weight",
        "visual.trunk.patch_embed.proj.bias",
        "visual.trunk.pos_embed",
        "visual.trunk.blocks.0.norm1.weight",
        "visual.trunk.blocks.0.attn.qkv.weight",
        "visual.trunk.blocks.1.attn.qkv.bias",
        "visual.trunk.blocks.1.mlp.fc1.weight",
        "visual.trunk.norm.bias",
        "visual.trunk.attn_pool.latent",
        "visual.trunk.attn_pool.q.weight",
        "visual.trunk.attn_pool.kv.weight",
        "visual.trunk.attn_pool.kv.bias",
        "visual.trunk.attn_pool.proj.bias",
        "visual.trunk.attn_pool.norm.weight",
        "visual.trunk.attn_pool.mlp.fc1.bias",
        "visual.trunk.attn_pool.mlp.fc2.weight",
        "text.token_embedding.weight",
        "text.positional_embedding",
        "text.transformer.resblocks.0.attn.in_proj_weight",
        "text.transformer.resblocks.0.mlp.c_fc.weight",
        "text.ln_final.weight",
        "text.text_projection.weight",
        "text.text_projection.bias",
    ]
    rows = siglip_rows(48, 16)
    expected(path / "expected.safetensors", loaded(config, state), 16, rows, gradients)
    case(
        name,
        f"{name}/open_clip_model.safetensors",
        "safetensors",
        "f32",
        f"{name}/expected.safetensors",
        config,
    )
    # The same weights with tanh GELU in both towers, as in the SigLIP2 configurations with a tanh
    # trunk.
    tanh = dict(
        config,
        vision_cfg=dict(
            SIGLIP_VISION,
            timm_model_name="vit_tiny_patch4_siglip_tanh_16",
            act_kwargs={"approximate": "tanh"},
        ),
        text_cfg=dict(
            SIGLIP_TEXT,
            hf_tokenizer_name="timm/ViT-B-32-SigLIP2-256",
            act_kwargs={"approximate": "tanh"},
        ),
    )
    open_clip_dir(root / "siglip2_open_clip", tanh, "siglip")
    expected(
        root / "siglip2_open_clip/expected.safetensors",
        loaded(tanh, state),
        16,
        rows,
        ["visual.trunk.attn_pool.mlp.fc1.bias", "text.token_embedding.weight"],
    )
    case(
        "siglip2_open_clip",
        f"{name}/open_clip_model.safetensors",
        "safetensors",
        "f32",
        "siglip2_open_clip/expected.safetensors",
        tanh,
    )
    return cases


# --------------------------------------------------------------------------- package `transformers`


def shards_of(path):
    files = sorted(p.name for p in path.glob("*.safetensors") if p.name.startswith("model-"))
    assert len(files) >= 2, files
    return files


def hugging_face_family(root):
    cases = []
    # SigLIP.
    name, path = "siglip_hf", root / "siglip_hf"
    vision = dict(
        hidden_size=16,
        intermediate_size=28,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
    )
    text = dict(
        vocab_size=48,
        hidden_size=12,
        intermediate_size=28,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=16,
        projection_size=16,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=1,
    )
    model = randomise(
        transformers.SiglipModel(transformers.SiglipConfig(vision_config=vision, text_config=text)),
        31,
    )
    model.save_pretrained(path)
    model.save_pretrained(root / "siglip_hf_sharded", max_shard_size="24KB")
    shards_of(root / "siglip_hf_sharded")
    layer, text_layer = "encoder.layers.1.", "encoder.layers.0."
    gradients = (
        ["logit_scale", "logit_bias"]
        + [
            "vision_model." + n
            for n in (
                "embeddings.patch_embedding.weight",
                "embeddings.patch_embedding.bias",
                "embeddings.position_embedding.weight",
                layer + "self_attn.q_proj.weight",
                layer + "self_attn.v_proj.bias",
                layer + "mlp.fc1.weight",
                layer + "layer_norm1.weight",
                "post_layernorm.bias",
                "head.probe",
                "head.attention.in_proj_weight",
                "head.attention.in_proj_bias",
                "head.attention.out_proj.weight",
                "head.layernorm.weight",
                "head.mlp.fc1.weight",
                "head.mlp.fc2.bias",
            )
        ]
        + [
            "text_model." + n
            for n in (
                "embeddings.token_embedding.weight",
                "embeddings.position_embedding.weight",
                text_layer + "self_attn.k_proj.weight",
                text_layer + "mlp.fc2.weight",
                "final_layer_norm.weight",
                "head.weight",
                "head.bias",
            )
        ]
    )

    def reload(cls, folder):
        return lambda: cls.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")

    rows = siglip_rows(48, 16)
    expected(
        path / "expected.safetensors", reload(transformers.SiglipModel, path), 16, rows, gradients
    )
    facts = dict(
        activation="gelu_tanh",
        layer_norm_eps=1e-6,
        pool_text="last position",
        config=dict(vision_config=vision, text_config=text),
    )
    for folder, container in (
        (name, "safetensors"),
        ("siglip_hf_sharded", "safetensors shards with an index"),
    ):
        file = f"{folder}/model.safetensors" + ("" if folder == name else ".index.json")
        cases.append(
            manifest_case(
                name, file, container, "f32", f"{name}/expected.safetensors", 16, 16, **facts
            )
        )

    # CLIP with exact GELU.
    name, path = "hf_clip", root / "hf_clip"
    vision = dict(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
        hidden_act="gelu",
    )
    text = dict(
        vocab_size=48,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=1,
        num_attention_heads=3,
        max_position_embeddings=10,
        hidden_act="gelu",
        bos_token_id=46,
        eos_token_id=47,
        pad_token_id=0,
    )
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=12)
    model = randomise(transformers.CLIPModel(config), 32)
    state = contiguous(model.state_dict())
    config.architectures = ["CLIPModel"]
    config.save_pretrained(path)
    torch.save(as_saved(model, state), path / "pytorch_model.bin")
    sharded = root / "hf_clip_sharded"
    model.save_pretrained(sharded, max_shard_size="30KB")
    shards_of(sharded)
    # `transformers` 5 does not write shards of this type any more; same split as the other set.
    binary = root / "hf_clip_sharded_bin"
    config.save_pretrained(binary)
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    names = {
        n: n.replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
        for n in set(index["weight_map"].values())
    }
    for old, new in sorted(names.items()):
        torch.save({k: state[k] for k, f in index["weight_map"].items() if f == old}, binary / new)
    index["weight_map"] = {k: names[v] for k, v in index["weight_map"].items()}
    write_json(binary / "pytorch_model.bin.index.json", index)
    layer = "encoder.layers.0."
    gradients = (
        ["logit_scale", "visual_projection.weight", "text_projection.weight"]
        + [
            "vision_model." + n
            for n in (
                "embeddings.class_embedding",
                "embeddings.patch_embedding.weight",
                "embeddings.position_embedding.weight",
                "pre_layrnorm.weight",
                layer + "self_attn.q_proj.weight",
                layer + "mlp.fc1.weight",
                layer + "layer_norm2.bias",
                "post_layernorm.weight",
            )
        ]
        + [
            "text_model." + n
            for n in (
                "embeddings.token_embedding.weight",
                "embeddings.position_embedding.weight",
                layer + "self_attn.v_proj.weight",
                layer + "mlp.fc2.bias",
                "final_layer_norm.weight",
            )
        ]
    )

    def from_state():
        fresh = transformers.CLIPModel(config)
        fresh.load_state_dict(state)
        return fresh

    expected(path / "expected.safetensors", from_state, 16, clip_rows(48, 10), gradients)
    for folder in (sharded, binary):
        again = transformers.CLIPModel.from_pretrained(folder).state_dict()
        assert all(torch.equal(v, state[k]) for k, v in again.items()), folder
    facts = dict(
        activation="gelu",
        layer_norm_eps=1e-5,
        pool_text="first end token",
        config=dict(vision_config=vision, text_config=text, projection_dim=12),
    )
    for file, container in (
        ("hf_clip/pytorch_model.bin", "torch.save zip"),
        ("hf_clip_sharded/model.safetensors.index.json", "safetensors shards with an index"),
        ("hf_clip_sharded_bin/pytorch_model.bin.index.json", "torch.save zip shards with an index"),
    ):
        cases.append(
            manifest_case(
                name, file, container, "f32", "hf_clip/expected.safetensors", 16, 10, **facts
            )
        )
    return cases


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    root = parser.parse_args().out
    root.mkdir(parents=True, exist_ok=True)
    versions = dict(
        python=platform.python_version(),
        torch=torch.__version__.split("+")[0],
        transformers=transformers.__version__,
        open_clip_torch=open_clip.__version__,
        openai_clip=importlib.metadata.version("openai-clip"),
        timm=timm.__version__,
        safetensors=safetensors.__version__,
    )
    print(", ".join(f"{k} {v}" for k, v in versions.items()))
    for name in (
        "openai_vit",
        "openai_rn",
        "open_clip_gelu",
        "open_clip_quickgelu",
        "open_clip_custom_text",
        "open_clip_rn",
        "siglip_open_clip",
        "siglip2_open_clip",
        "clip_interpolated",
        "siglip_hf",
        "siglip_hf_sharded",
        "hf_clip",
        "hf_clip_sharded",
        "hf_clip_sharded_bin",
    ):
        shutil.rmtree(root / name, ignore_errors=True)
    cases = (
        openai_family(root, "openai_vit", 1)
        + openai_family(root, "openai_rn", 2)
        + open_clip_family(root)
        + hugging_face_family(root)
    )
    lines = ",\n".join("    " + json.dumps(c, ensure_ascii=False) for c in cases)
    (root / "manifest.json").write_text(
        f'{{\n  "versions": {json.dumps(versions)},\n  "cases": [\n{lines}\n  ]\n}}\n',
        encoding="utf-8",
    )
    total = 0
    for f in sorted(p for p in root.rglob("*") if p.is_file()):
        total += f.stat().st_size
        print(f"{f.stat().st_size:8} {f.relative_to(root)}")
    print(f"{total:8} in all")


if __name__ == "__main__":
    main()
