"""Full-size CLIP checkpoints against `transformers`, in both directions. Nothing is committed.

1.  python tests/reference/clip_full_size.py make OUT [--bpe bpe_simple_vocab_16e6.txt.gz]
    writes OUT/vit-b-32 and OUT/vit-b-16: random weights at the published sizes, a CLIP tokenizer of
    49,408 entries, and `expected.safetensors` with the keys of `clip_checkpoints.py` (2 images, 4
    texts, no gradients). The merge file is OpenAI's; without --bpe it is the copy inside the
    `open_clip` package. Then
        GNSP_FULL_SIZE=OUT cargo test --release --workspace -- --ignored full_size
    compares the features of clip-model with them and writes OUT/<name>-saved.
2.  python tests/reference/clip_full_size.py check ORIGINAL SAVED
    loads SAVED, a directory written by clip-model, with `transformers`. It prints missing and
    unexpected keys, differing token ids and the largest difference of normalised features from
    those of ORIGINAL. The exit status is 1 if anything differs.

Made with: Python 3.11, torch 2.15.0, transformers 5.23.0, open_clip 3.3.0 (CPU).
"""

import argparse
import gzip
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from clip_checkpoints import byte_symbols, randomise

torch.set_num_threads(1)
TEXTS = [
    "a photo of a cat.",
    'a photo of the number: "0 - zero".',
    "a photo of a F-16A/B, a type of aircraft.",
    "",
]


def make(out, bpe):
    if bpe is None:
        import open_clip

        bpe = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    with gzip.open(bpe, "rt", encoding="utf-8") as f:
        merges = [tuple(line.split()) for line in f.read().split("\n")[1:48895]]
    symbols = byte_symbols()
    entries = (
        symbols
        + [s + "</w>" for s in symbols]
        + ["".join(m) for m in merges]
        + ["<|startoftext|>", "<|endoftext|>"]
    )
    tok = CLIPTokenizer(
        vocab={s: i for i, s in enumerate(entries)}, merges=merges, model_max_length=77
    )
    assert len(tok) == 49408
    for patch in (32, 16):
        path = out / f"vit-b-{patch}"
        # CLIPConfig defaults to ViT-B/32.
        model = CLIPModel(CLIPConfig(vision_config=dict(patch_size=patch)))
        randomise(model, patch, 4.6051702)
        model.save_pretrained(path)
        tok.save_pretrained(path)
        CLIPImageProcessor().save_pretrained(path)
        save_file(
            features(path, None),
            path / "expected.safetensors",
            metadata={"texts": json.dumps(TEXTS)},
        )
        print("wrote", path)


def features(path, want):
    model = CLIPModel.from_pretrained(path, attn_implementation="sdpa").eval()
    if want is None:
        tok = AutoTokenizer.from_pretrained(path)
        rows = [tok(t)["input_ids"] for t in TEXTS]
        lengths = torch.tensor([len(r) for r in rows])
        ids = torch.tensor([r + [0] * (int(lengths.max()) - len(r)) for r in rows])
        g = torch.Generator().manual_seed(7)
        size = model.config.vision_config.image_size
        pixels = (
            (torch.randn(2, 3, size, size, generator=g) * 64 + 127.5).clamp(0, 255).to(torch.uint8)
        )
    else:
        ids, lengths, pixels = want["input_ids"], want["lengths"], want["pixels"]
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values=(pixels.float() - 127.5) / 64)
    return dict(
        pixels=pixels,
        input_ids=ids,
        lengths=lengths,
        image_embeds=out.image_embeds.contiguous(),
        text_embeds=out.text_embeds.contiguous(),
        logits=out.logits_per_image.contiguous(),
    )


def check(original, saved):
    want = load_file(original / "expected.safetensors")
    model, info = CLIPModel.from_pretrained(saved, output_loading_info=True)
    del model
    problems = {k: sorted(v) for k, v in info.items() if v}
    print("missing, unexpected or mismatched keys:", problems or "none")
    got = features(saved, want)
    error = max(
        (got[k].float() - want[k]).abs().max().item() for k in ("image_embeds", "text_embeds")
    )
    print(f"largest difference of normalised features: {error:.2e}")
    a, b = (AutoTokenizer.from_pretrained(p) for p in (original, saved))
    texts = TEXTS + ["Caf\u00e9 \u00fcber \u6f22\u5b57 \U0001f600!", "  Don't   SHOUT 123  "]
    differing = [t for t in texts if a(t)["input_ids"] != b(t)["input_ids"]]
    print("texts with other token ids:", differing or "none")
    ours, theirs = (CLIPImageProcessor.from_pretrained(p).to_dict() for p in (saved, original))
    keys = (
        "size",
        "crop_size",
        "image_mean",
        "image_std",
        "resample",
        "rescale_factor",
        "do_resize",
        "do_center_crop",
        "do_normalize",
        "do_rescale",
    )
    settings = {k: (theirs[k], ours[k]) for k in keys if theirs[k] != ours[k]}
    print("differing preprocessing settings:", settings or "none")
    # A directory saved in half precision differs by its rounding.
    half = any(t.dtype != torch.float32 for t in load_file(saved / "model.safetensors").values())
    return not problems and error < (1e-1 if half else 1e-4) and not differing and not settings


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sub = parser.add_subparsers(dest="command", required=True)
    p = sub.add_parser("make")
    p.add_argument("out", type=Path)
    p.add_argument("--bpe", type=Path)
    p = sub.add_parser("check")
    p.add_argument("original", type=Path)
    p.add_argument("saved", type=Path)
    args = parser.parse_args()
    if args.command == "make":
        make(args.out, args.bpe)
    elif not check(args.original, args.saved):
        sys.exit(1)


if __name__ == "__main__":
    main()
