"""Check that exports of clip-model load in transformers and open_clip, with equal features.

The example `export` writes the checkpoints. No key may be missing or unexpected, and the features
must be those of clip-model.

Run:   cargo build --release --workspace --examples
       python tests/reference/clip_export_check.py target/release/examples/export
Ran with: Python 3.11, torch 2.15.0, transformers 5.24.0, open_clip_torch 3.3.0, safetensors 0.8.0
(CPU).

Exports, in a temporary folder:

    crates/mini-world/clip-mini          CLIP, whole, in f32, f16 and bf16: model, tokenizer and image
                                     settings
    tests/data/zoo/siglip_hf         SigLIP without a tokenizer: the weights
    tests/data/zoo/siglip_open_clip  SigLIP: the weights, for open_clip
    tests/data/zoo/open_clip_rn      ResNet without a tokenizer: the weights, for open_clip
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import clip_zoo  # noqa: F401, registers the small trunks of the SigLIP fixtures with timm
import numpy as np
import open_clip
import tokenizers
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, CLIPModel, SiglipModel

ROOT = Path(__file__).resolve().parents[2]
# Largest difference of an entry of the features, whose length is 1 to 10.
LARGEST = {"f32": 1e-5, "f16": 2e-2, "bf16": 1e-1}
TEXTS = ["a photo of a red circle.", "the number seven", "two blue squares"]


def export(program, model, out, *options):
    features = out / "features.safetensors"
    out.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [program, model, out, "--features", features, *options],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return load_file(features)


def difference(what, dtype, images, texts, ours):
    found = max(
        (images.float() - ours["image_features"]).abs().max().item(),
        (texts.float() - ours["text_features"]).abs().max().item(),
    )
    print(f"{what:44} {dtype:5} largest difference {found:.1e}")
    assert found <= LARGEST[dtype], f"{what}: more than {LARGEST[dtype]}"


def hugging_face(what, cls, folder, dtype, ours):
    """Loads with `from_pretrained`, checks its report of the keys, and compares features in f32."""
    model, info = cls.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not info[kind], (what, kind, info[kind])
    model.eval()
    with torch.no_grad():
        images = model.get_image_features(pixel_values=ours["pixels"]).pooler_output
        texts = model.get_text_features(input_ids=ours["ids"]).pooler_output
    difference(what, dtype, images, texts, ours)
    return model


def open_clip_model(what, model, dtype, ours):
    model.eval()
    with torch.no_grad():
        difference(
            what, dtype, model.encode_image(ours["pixels"]), model.encode_text(ours["ids"]), ours
        )


def strictly(model, file):
    """Loads the weights into a model of open_clip, with no missing or unexpected name."""
    stored = load_file(file)
    model.load_state_dict({name: value.float() for name, value in stored.items()}, strict=True)
    return model


def open_clip_from(config):
    """A randomly initialised model of an open_clip_config.json."""
    cfg = dict(json.loads(config.read_text())["model_cfg"])
    custom = cfg.pop("custom_text", False)
    cls = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    return cls(**cfg)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("export", type=Path, help="the built example")
    program = parser.parse_args().export.resolve()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)

        mini = ROOT / "crates/mini-world/clip-mini"
        for dtype in LARGEST:
            folder = out / f"mini-{dtype}"
            ours = export(program, mini, folder, "--dtype", dtype)
            hugging_face(
                "clip-mini in transformers", CLIPModel, folder / "hugging_face", dtype, ours
            )
            name = f"local-dir:{folder / 'open_clip'}"
            model, preprocess = open_clip.create_model_from_pretrained(name)
            open_clip_model("clip-mini in open_clip", model, dtype, ours)
            strictly(model, folder / "open_clip/open_clip_model.safetensors")
            stored = load_file(folder / "open_clip/open_clip_model.safetensors")
            expected = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
            assert all(value.dtype == expected for value in stored.values())

        # Compares ids and pixels of the two packages.
        processor = AutoProcessor.from_pretrained(folder / "hugging_face")
        rows = processor(text=TEXTS, padding=True, return_tensors="pt")["input_ids"].tolist()
        config = json.loads((folder / "open_clip/open_clip_config.json").read_text())
        file = tokenizers.Tokenizer.from_file(str(folder / "open_clip/tokenizer.json"))
        theirs = [file.encode(text).ids for text in TEXTS]
        if "hf_tokenizer_name" in config["model_cfg"]["text_cfg"]:
            theirs = open_clip.get_tokenizer(name)(TEXTS).tolist()
        for row, other in zip(rows, theirs):
            length = row.index(max(row)) + 1
            assert row[:length] == other[:length], (row, other)
        # A size with the same centre in both packages: they round half a pixel differently.
        picture = Image.fromarray(
            np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        )
        pixels = processor(images=picture, return_tensors="pt")["pixel_values"][0]
        found = (pixels - preprocess(picture)).abs().max().item()
        print(f"{'tokenizers agree; pixels':44} {'':5} largest difference {found:.1e}")

        siglip = ROOT / "tests/data/zoo/siglip_hf"
        ours = export(program, siglip, out / "siglip")
        model = hugging_face(
            "SigLIP in transformers", SiglipModel, out / "siglip/hugging_face", "f32", ours
        )
        weights = load_file(out / "siglip/hugging_face/model.safetensors")
        original = load_file(siglip / "model.safetensors")
        assert weights.keys() == original.keys() and all(
            torch.equal(weights[k], original[k].float()) for k in weights
        )

        siglip = ROOT / "tests/data/zoo/siglip_open_clip"
        ours = export(program, siglip, out / "siglip_open_clip")
        model = strictly(
            open_clip_from(siglip / "open_clip_config.json"),
            out / "siglip_open_clip/open_clip/open_clip_model.safetensors",
        )
        open_clip_model("SigLIP in open_clip", model, "f32", ours)

        resnet = ROOT / "tests/data/zoo/open_clip_rn"
        ours = export(program, resnet, out / "rn")
        assert not (out / "rn/hugging_face").exists()
        model = open_clip_from(resnet / "open_clip_config.json")
        strictly(model, out / "rn/open_clip/open_clip_model.safetensors")
        open_clip_model("ResNet in open_clip", model, "f32", ours)
    print("all as it should be")


if __name__ == "__main__":
    main()
