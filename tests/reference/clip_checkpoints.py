"""Small random CLIP checkpoints saved by `transformers`, and its outputs for them.

Run:   python tests/reference/clip_checkpoints.py tests/data/clip
Made with: Python 3.11, torch 2.15.0, transformers 5.23.0, tokenizers 0.23.3, safetensors 0.8.0
(CPU, one thread).

Every folder is a complete Hugging Face directory (`CLIPModel.save_pretrained` plus
`CLIPProcessor.save_pretrained`) with one more file, `expected.safetensors`:

    pixels         u8  [4,3,S,S]   inputs of the image tower are x = (pixels - 127.5) / 64, exact
                                   in float32
    input_ids      i64 [R,L]       token rows, padded with 0 after `lengths`
    lengths        i64 [R]         number of ids of each row without padding
    image_embeds   f32 [4,e]       L2-normalised image features
    text_embeds    f32 [R,e]       L2-normalised text features
    image_features f32 [4,e]       the same before normalisation
    text_features  f32 [R,e]
    logits         f32 [4,R]       exp(logit_scale) * image_embeds @ text_embeds^T
    loss           f32 [1]         symmetric contrastive loss of the 4 images with rows 0..4
                                   (mean of both directions)
    grad.NAME      f32             gradient of that loss for parameter NAME (Hugging Face name and
                                   layout); not in tiny-f16, tiny-bf16

All of it is computed in float64 from the stored weights and rounded once. Biases, LayerNorm weights
and the temperature are random, so that a missing term shows.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

torch.set_num_threads(1)

CORPUS = """a photo of a red circle. a photo of a blue square. a drawing of a green triangle. a \
picture of the number zero.
a photo of a dog. a photo of a cat. a photo of a bird. a satellite view of a river. \
a satellite view of a forest.
a close-up photo of a flower, a type of plant. the letter a. the letter b. striped \
texture. dotted texture. one two three
four five six seven eight nine ten large small left right above below photo of food. \
an aircraft, a type of vehicle."""


def byte_symbols():
    """The 256 byte symbols of byte-level BPE, in the order of CLIP's vocabulary."""
    kept = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    rest = [b for b in range(256) if b not in kept]
    return [chr(b) for b in kept] + [chr(256 + i) for i in range(len(rest))]


def learn_merges(count):
    """Learns `count` BPE merges of CORPUS, most frequent pair first (ties by the pair itself)."""
    words = [
        list(w[:-1]) + [w[-1] + "</w>"]
        for w in CORPUS.replace(".", " .").replace(",", " ,").split()
    ]
    merges = []
    for _ in range(count):
        pairs = {}
        for w in words:
            for p in zip(w, w[1:]):
                pairs[p] = pairs.get(p, 0) + 1
        best = max(pairs, key=lambda p: (pairs[p], p))
        merges.append(best)
        for w in words:
            i = 0
            while i + 1 < len(w):
                if (w[i], w[i + 1]) == best:
                    w[i : i + 2] = ["".join(best)]
                i += 1
    return merges


def tokenizer(context, merges=86, swap_specials=False):
    """A CLIP tokenizer of 512 + merges + 2 entries.

    `swap_specials` gives the end token a lower id than the start token.
    """
    merges = learn_merges(merges)
    symbols = byte_symbols()
    entries = symbols + [s + "</w>" for s in symbols] + ["".join(m) for m in merges]
    entries += (
        ["<|endoftext|>", "<|startoftext|>"]
        if swap_specials
        else ["<|startoftext|>", "<|endoftext|>"]
    )
    vocab = {s: i for i, s in enumerate(entries)}
    assert len(vocab) == len(entries)
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=context)


def randomise(model, seed, logit_scale):
    """Draws every parameter so that no term is trivially zero or one."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=g)
            if name == "logit_scale":
                p.fill_(logit_scale)
            elif "norm" in name or "layrnorm" in name:
                p.copy_(1 + 0.2 * noise if name.endswith("weight") else 0.2 * noise)
            elif name.endswith("bias"):
                p.copy_(0.1 * noise)
            elif "embedding" in name and "patch" not in name:
                p.copy_(0.5 * noise)
            else:
                p.copy_(noise * p[0].numel() ** -0.5)


SHAPES = {
    # name: (vision, text, projection, act, dtype, eos rule)
    "tiny": dict(
        vision=dict(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        ),
        text=dict(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
        ),
        projection=32,
        act="quick_gelu",
        logit_scale=3.0,
    ),
    "gelu": dict(
        vision=dict(
            hidden_size=24,
            intermediate_size=96,
            num_hidden_layers=1,
            num_attention_heads=3,
            image_size=24,
            patch_size=8,
        ),
        text=dict(
            hidden_size=24,
            intermediate_size=96,
            num_hidden_layers=1,
            num_attention_heads=3,
            max_position_embeddings=12,
        ),
        projection=16,
        act="gelu",
        logit_scale=2.5,
    ),
    "odd": dict(
        vision=dict(
            hidden_size=30,
            intermediate_size=45,
            num_hidden_layers=2,
            num_attention_heads=3,
            image_size=40,
            patch_size=10,
            layer_norm_eps=1e-3,
        ),
        text=dict(
            hidden_size=20,
            intermediate_size=70,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=20,
            layer_norm_eps=1e-2,
        ),
        projection=20,
        act="quick_gelu",
        logit_scale=1.75,
        swap_specials=True,
    ),
    # The config of the original conversions has eos_token_id 2; the feature is then read at the
    # largest id.
    "legacy-eos": dict(
        vision=dict(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        ),
        text=dict(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
        ),
        projection=16,
        act="quick_gelu",
        logit_scale=2.0,
        legacy_eos=True,
    ),
}
VARIANTS = {"tiny-f16": ("tiny", torch.float16), "tiny-bf16": ("tiny", torch.bfloat16)}

TEXTS = [
    "a photo of a cat.",
    "red",
    "the number 7 of 10!",
    "a satellite view of a river",
    "",
    "a drawing of a caf\u00e9",
]


def token_rows(tok, context, legacy):
    rows = [tok(t, truncation=True, max_length=context)["input_ids"] for t in TEXTS]
    bos, eos = tok.bos_token_id, tok.eos_token_id
    a, b, c = (tok(w)["input_ids"][1] for w in ("cat", "dog", "red"))
    # Two end tokens: the feature is read at the first one.
    rows.append([bos, a, eos, b, c, eos])
    # A full row.
    rows.append([bos] + [a, b, c] * context)
    rows[-1] = rows[-1][: context - 1] + [eos]
    if legacy:
        # No end token: the feature is read at the largest id (here the start token).
        rows.append([bos, b, c, a])
    return rows


def expected(path, legacy=False, gradients=True):
    """Loads `path` with the defaults and computes the fixture in float64."""
    # Not "eager": its softmax is in float32 for every dtype of the model.
    model = (
        CLIPModel.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa")
        .double()
        .eval()
    )
    tok = CLIPTokenizer.from_pretrained(path)
    text, vision = model.config.text_config, model.config.vision_config
    rows = token_rows(tok, text.max_position_embeddings, legacy)
    lengths = torch.tensor([len(r) for r in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    for i, r in enumerate(rows):
        ids[i, : len(r)] = torch.tensor(r)
    g = torch.Generator().manual_seed(7)
    bytes_ = (
        (torch.randn(4, 3, vision.image_size, vision.image_size, generator=g) * 64 + 127.5)
        .clamp(0, 255)
        .to(torch.uint8)
    )
    pixels = (bytes_.double() - 127.5) / 64

    def features(ids):
        return model.text_projection(model.text_model(input_ids=ids).pooler_output)

    f = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    t = features(ids)
    # Padding must not matter: each unpadded row alone gives the same feature.
    for i, r in enumerate(rows):
        alone = features(torch.tensor([r]))[0]
        assert torch.allclose(alone, t[i], atol=1e-12), (path, i, r, (alone - t[i]).abs().max())
    fn, tn = f / f.norm(dim=-1, keepdim=True), t / t.norm(dim=-1, keepdim=True)
    logits = model.logit_scale.exp() * fn @ tn.T
    out = model(input_ids=ids, pixel_values=pixels)
    assert torch.allclose(out.logits_per_image, logits, atol=1e-10)
    z = logits[:, :4]
    target = torch.arange(4)
    loss = (
        torch.nn.functional.cross_entropy(z, target)
        + torch.nn.functional.cross_entropy(z.T, target)
    ) / 2
    loss.backward()
    tensors = dict(
        pixels=bytes_,
        input_ids=ids,
        lengths=lengths,
        image_embeds=fn,
        text_embeds=tn,
        image_features=f,
        text_features=t,
        logits=logits,
        loss=loss[None],
    )
    last_v, last_t = vision.num_hidden_layers - 1, text.num_hidden_layers - 1
    names = [
        "logit_scale",
        "visual_projection.weight",
        "text_projection.weight",
        "vision_model.embeddings.class_embedding",
        "vision_model.embeddings.patch_embedding.weight",
        "vision_model.embeddings.position_embedding.weight",
        "text_model.embeddings.position_embedding.weight",
        "vision_model.pre_layrnorm.weight",
        "vision_model.pre_layrnorm.bias",
        "vision_model.post_layernorm.weight",
        "text_model.final_layer_norm.bias",
    ]
    for tower, last in (("vision_model", last_v), ("text_model", last_t)):
        for leaf in (
            "self_attn.q_proj.weight",
            "self_attn.v_proj.bias",
            "self_attn.out_proj.weight",
            "layer_norm1.weight",
            "mlp.fc1.weight",
            "mlp.fc2.bias",
        ):
            names.append(f"{tower}.encoder.layers.0.{leaf}")
        names.append(f"{tower}.encoder.layers.{last}.mlp.fc2.weight")
    params = dict(model.named_parameters())
    for n in names if gradients else []:
        tensors["grad." + n] = params[n].grad
    tensors = {
        k: (v.detach().to(torch.float32) if v.is_floating_point() else v).contiguous().clone()
        for k, v in tensors.items()
    }
    save_file(tensors, path / "expected.safetensors", metadata={"texts": json.dumps(TEXTS)})
    cos = (fn @ fn.T).detach()
    print(
        f"{path.name:12} loss {loss.item():.4f}  image cosines {cos[0, 1]:.3f} {cos[0, 2]:.3f}"
        f"  largest |image feature| {f.abs().max():.2f}"
    )


def build(root, name, spec, seed):
    path = root / name
    shutil.rmtree(path, ignore_errors=True)
    context = spec["text"]["max_position_embeddings"]
    tok = tokenizer(context, swap_specials=spec.get("swap_specials", False))
    bos, eos = tok.bos_token_id, tok.eos_token_id
    text = dict(
        spec["text"],
        vocab_size=len(tok),
        hidden_act=spec["act"],
        projection_dim=spec["projection"],
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    if spec.get("legacy_eos"):
        text.update(bos_token_id=0, eos_token_id=2, pad_token_id=1)
    vision = dict(spec["vision"], hidden_act=spec["act"], projection_dim=spec["projection"])
    torch.manual_seed(seed)
    model = CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=spec["projection"])
    )
    randomise(model, seed, spec["logit_scale"])
    model.save_pretrained(path)
    size = vision["image_size"]
    images = CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )
    CLIPProcessor(images, tok).save_pretrained(path)
    if not (path / "preprocessor_config.json").exists():
        # transformers 5 nests the processor's settings in processor_config.json; published
        # checkpoints have this layout.
        images.save_pretrained(path)
    expected(path, spec.get("legacy_eos", False))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    root = parser.parse_args().out
    for seed, (name, spec) in enumerate(SHAPES.items(), start=1):
        build(root, name, spec, seed)
    for name, (base, dtype) in VARIANTS.items():
        path = root / name
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(
            root / base,
            path,
            ignore=shutil.ignore_patterns("expected.safetensors", "model.safetensors"),
        )
        CLIPModel.from_pretrained(root / base).to(dtype).save_pretrained(path)
        expected(path, gradients=False)
    for f in sorted(root.glob("*/*")):
        print(f"{f.stat().st_size:8} {f.relative_to(root)}")


if __name__ == "__main__":
    main()
