"""Architecture files of `clip-model` and parameter counts of the original implementations.

Run:   python tests/reference/clip_parameter_counts.py crates/clip-model/architectures
Made with: Python 3.11, torch 2.15.0, open_clip_torch 3.3.0, timm 1.0.31.

`NAME.json` is open_clip's `model_configs/NAME.json`, with added fields for vision towers of `timm`:
see the README beside them. `parameters.json` counts `parameters()` (no buffers) of the open_clip
module, built on the meta device from the original file: all parameters, those of the image tower
(`visual`), and those of the text tower with its embeddings and projection. The rest is the
temperature and, for SigLIP, the bias of the logits.
"""

import argparse
import json
import math
from pathlib import Path

import open_clip
import timm
import torch
from open_clip.model import CLIP, CustomTextCLIP
from timm.layers import AttentionPoolLatent, GELUTanh

RESNETS = ["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"]
TRANSFORMERS = [
    "ViT-B-32",
    "ViT-B-32-256",
    "ViT-B-16",
    "ViT-L-14",
    "ViT-L-14-336",
    "ViT-H-14",
    "ViT-H-14-378",
    "ViT-g-14",
    "ViT-bigG-14",
]
# OpenAI's published models: all parameters, and those of the image tower.
KNOWN = {
    "ViT-B-32": (151277313, 87849216),
    "ViT-B-16": (149620737, 86192640),
    "ViT-L-14": (427616513, 303966208),
    "ViT-L-14-336": (427944193, 304293888),
}


def names():
    have = set(open_clip.list_models())
    quick = [n + "-quickgelu" for n in RESNETS + TRANSFORMERS if n + "-quickgelu" in have]
    # One of them has no text projection; `clip-model` does not build such a model.
    siglip = [
        n
        for n in open_clip.list_models()
        if n.startswith("ViT-") and "SigLIP" in n and n != "ViT-SO400M-16-SigLIP-i18n-256"
    ]
    return RESNETS + TRANSFORMERS + quick + siglip


def only(values):
    """The single value that all elements share."""
    values = set(values)
    assert len(values) == 1, values
    return values.pop()


def activation(modules):
    kind = only(type(m) for m in modules)
    if kind is GELUTanh or (
        kind is torch.nn.GELU and only(m.approximate for m in modules) == "tanh"
    ):
        return "gelu_tanh"
    assert kind in (torch.nn.GELU, timm.layers.GELU), kind
    return "gelu"


def trunk_fields(trunk, config):
    """The fields that `timm` defines by the name of the model."""
    block, size = trunk.blocks[0], config["image_size"]
    width, hidden = trunk.embed_dim, block.mlp.fc1.out_features
    pool = trunk.attn_pool
    assert (
        isinstance(pool, AttentionPoolLatent)
        and trunk.cls_token is None
        and isinstance(trunk.norm_pre, torch.nn.Identity)
    )
    assert (
        pool.num_heads == block.attn.num_heads
        and pool.mlp.fc1.out_features == hidden
        and pool.latent_len == 1
    )
    assert only(m.eps for m in trunk.modules() if isinstance(m, torch.nn.LayerNorm)) == 1e-6
    assert trunk.patch_embed.img_size == (size, size), (trunk.patch_embed.img_size, size)
    patch = trunk.patch_embed.patch_size[0]
    assert trunk.pos_embed.shape[1] == (size // patch) ** 2
    fields = dict(
        layers=len(trunk.blocks), width=width, head_width=block.attn.head_dim, patch_size=patch
    )
    # Four decimals, rounded up, as `timm` and open_clip write fractional ratios; both truncate the
    # product to an integer.
    fields["mlp_ratio"] = math.ceil(hidden / width * 1e4) / 1e4
    assert int(width * fields["mlp_ratio"]) == hidden
    fields["mlp_width"] = hidden
    act = activation([b.mlp.act for b in trunk.blocks] + [pool.mlp.act])
    more = {"act_kwargs": {"approximate": "tanh"}} if act == "gelu_tanh" else {}
    return dict(fields, norm_kwargs={"eps": 1e-6}, act=act, **more)


def check_text(model, config):
    text = getattr(model, "text", model)
    expected = "gelu_tanh" if config.get("act_kwargs") else "gelu"
    acts = [b.mlp.gelu for b in text.transformer.resblocks]
    if isinstance(acts[0], torch.nn.GELU):
        assert activation(acts) == expected
    eps = config.get("norm_kwargs", {}).get("eps", 1e-5)
    assert (
        only(
            m.eps
            for m in list(text.transformer.modules()) + [text.ln_final]
            if isinstance(m, torch.nn.LayerNorm)
        )
        == eps
    )


def count(parameters):
    return sum(p.numel() for p in parameters)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    print(
        f"torch {torch.__version__}, open_clip_torch {open_clip.__version__}, "
        f"timm {timm.__version__}"
    )
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.json"):
        old.unlink()
    counts = {}
    for name in names():
        config = open_clip.get_model_config(name)
        arguments = {k: v for k, v in config.items() if k != "custom_text"}
        cls = CustomTextCLIP if config.get("custom_text") else CLIP
        with torch.device("meta"):
            model = cls(**arguments)
        image = count(model.visual.parameters())
        other = [p for n, p in model.named_parameters() if n in ("logit_scale", "logit_bias")]
        total = count(model.parameters())
        counts[name] = dict(
            parameters=total, image_parameters=image, text_parameters=total - image - count(other)
        )
        if name in KNOWN:
            assert KNOWN[name] == (total, image), name
        check_text(model, config["text_cfg"])
        if "timm_model_name" in config["vision_cfg"]:
            config["vision_cfg"].update(trunk_fields(model.visual.trunk, config["vision_cfg"]))
            ratio = config["text_cfg"].get("mlp_ratio")
            if ratio:
                config["text_cfg"]["mlp_width"] = model.text.transformer.resblocks[
                    0
                ].mlp.c_fc.out_features
        elif "mlp_ratio" in config["vision_cfg"]:
            config["vision_cfg"]["mlp_width"] = model.visual.transformer.resblocks[
                0
            ].mlp.c_fc.out_features
        (out / f"{name}.json").write_text(json.dumps(config, indent=2) + "\n")
        vision = config["vision_cfg"]
        print(
            f"{name:32} {total:13,} {image:13,} {total - image:13,}  "
            f"{vision.get('timm_model_name', '')} {vision.get('act', '')} "
            f"{config['text_cfg'].get('act_kwargs', '')}"
        )
    (out / "parameters.json").write_text(json.dumps(counts, indent=2) + "\n")


if __name__ == "__main__":
    main()
