"""The towers of ViT-B/16 in PyTorch in eager mode, compared with ours.

Run:   cargo build --release --workspace --bins
       target/release/towers make DIR
       python benches/pytorch/towers.py target/release/towers DIR [ROUNDS [VERB,...]]
Needs: torch, transformers, open_clip_torch

    image        images of 224 x 224, batches of 8
    image-bf16   the same in bf16 (autocast in PyTorch)
    text         256 class-name prompts, batches of 64 in PyTorch, whose packages pad rows to 77
    train        forward and backward pass of the contrastive loss on 8 pairs
    load         loading of the weights

Each measurement is a process of its own, ours and PyTorch's in turn on the same processors. The
script prints medians, and the median and range of the ratio over the rounds.
"""

import json
import resource
import statistics
import subprocess
import sys
import time

BATCH = 8


def seconds(f):
    f()
    start, calls = time.perf_counter(), 0
    while calls < 2 or time.perf_counter() - start < 5.0:
        f()
        calls += 1
    return (time.perf_counter() - start) / calls


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def transformers_model(folder):
    from transformers import CLIPModel, CLIPTokenizerFast

    model = CLIPModel.from_pretrained(f"{folder}/hugging-face").eval()
    tokenizer = CLIPTokenizerFast.from_pretrained(f"{folder}/hugging-face")

    def feature(output):
        return output if not hasattr(output, "pooler_output") else output.pooler_output

    def tokens(prompts):
        return tokenizer(prompts, padding="max_length", max_length=77, return_tensors="pt")[
            "input_ids"
        ]

    return (
        model,
        lambda x: feature(model.get_image_features(pixel_values=x)),
        lambda ids: feature(model.get_text_features(input_ids=ids)),
        tokens,
    )


def open_clip_model(folder):
    import open_clip

    model = open_clip.create_model(f"local-dir:{folder}/open-clip", force_quick_gelu=True).eval()
    tokenizer = open_clip.SimpleTokenizer()
    return (
        model,
        model.encode_image,
        model.encode_text,
        lambda prompts: tokenizer(prompts, context_length=77),
    )


def one(package, verb, folder):
    """Prints the JSON line of one measurement in this process."""
    import torch

    torch.manual_seed(0)
    start = time.perf_counter()
    before = peak_mb()
    made = {"transformers": transformers_model, "open_clip": open_clip_model}[package](folder)
    loading = time.perf_counter() - start
    model, image, text, tokenize = made
    if verb == "load":
        print(
            json.dumps({"seconds": loading, "peak_mb": peak_mb(), "grown_mb": peak_mb() - before})
        )
        return
    pixels = torch.sin(torch.arange(BATCH * 3 * 224 * 224).float() * 0.618).reshape(
        BATCH, 3, 224, 224
    )
    prompts = json.load(open(f"{folder}/prompts.json"))
    ids = tokenize(prompts)
    norm = lambda x: x / x.norm(dim=-1, keepdim=True)
    if verb == "train":

        def step():
            i, t = norm(image(pixels)), norm(text(ids[:BATCH]))
            logits = model.logit_scale.exp() * i @ t.T
            target = torch.arange(BATCH)
            loss = (
                torch.nn.functional.cross_entropy(logits, target)
                + torch.nn.functional.cross_entropy(logits.T, target)
            ) / 2
            loss.backward()
            model.zero_grad(set_to_none=True)

        line = {"per_second": BATCH / seconds(step)}
    else:
        with torch.no_grad():
            if verb == "image":
                line = {"per_second": BATCH / seconds(lambda: norm(image(pixels)))}
            elif verb == "image-bf16":

                def run():
                    with torch.autocast("cpu", dtype=torch.bfloat16):
                        return norm(image(pixels))

                line = {"per_second": BATCH / seconds(run)}
            else:
                line = {
                    "per_second": len(ids)
                    / seconds(lambda: torch.cat([norm(text(part)) for part in ids.split(64)]))
                }
    line["peak_mb"] = peak_mb()
    print(json.dumps(line))


def run(*command):
    return json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True)
        .stdout.strip()
        .splitlines()[-1]
    )


def main():
    if sys.argv[1] == "one":
        return one(*sys.argv[2:5])
    binary, folder = sys.argv[1:3]
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 3
    verbs = sys.argv[4].split(",") if len(sys.argv) > 4 else ["image", "text", "train", "load"]
    packages = ["transformers", "open_clip"]
    for verb in verbs:
        ours, theirs = [], {p: [] for p in packages}
        sides = [(ours, (binary, verb, folder))]
        sides += [(theirs[p], (sys.executable, __file__, "one", p, verb, folder)) for p in packages]
        for turn in range(rounds):
            for lines, command in sides if turn % 2 == 0 else reversed(sides):
                lines.append(run(*command))
        middle = lambda lines, key: statistics.median(line[key] for line in lines)
        key = "seconds" if verb == "load" else "per_second"
        print(
            f"{verb}: ours {middle(ours, key):.2f} {key}, peak {middle(ours, 'peak_mb'):.0f} MB"
            + (f", {middle(ours, 'times_the_file'):.2f} x the file" if verb == "load" else "")
            + (f", {ours[0]['positions']:.1f} positions a prompt" if verb == "text" else "")
        )
        for package, lines in theirs.items():
            ratios = [o[key] / t[key] for o, t in zip(ours, lines)]
            print(
                f"  {package}: {middle(lines, key):.2f} {key}, "
                f"peak {middle(lines, 'peak_mb'):.0f} MB; "
                f"ours / theirs {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f}), "
                f"memory {middle(ours, 'peak_mb') / middle(lines, 'peak_mb'):.2f}"
            )


if __name__ == "__main__":
    main()
