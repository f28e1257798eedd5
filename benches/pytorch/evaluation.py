"""The zero-shot classifiers of an evaluation from class prompts, in PyTorch.

Run:   step make DIR                                        # target/release/step
       python benches/pytorch/evaluation.py reference|batched DIR [--repeat N] [--sample K]
                                            [--threads T]
Needs: torch, safetensors, openai-clip (with ftfy, regex); `batched` also tokenizers

The input is DIR/prompts.json: the classes of MTIL, each with the prompts of all its templates. The
classifier row of a class is the normalized mean of the normalized features of its prompts.

reference   class by class in rows of 77, as published (GNSP src/models/evaluation.py:36-44), with
            OpenAI's module and tokenizer.
batched     all prompts tokenized at once by a compiled tokenizer, sorted by length, in groups of
            128 truncated to their longest row, with the tuned tower of `gnsp_step.py`.

Each run ends with one JSON line; `check` is the first value of each classifier row. --sample K
encodes every K-th class only.
"""

import argparse
import json
import sys

from gnsp_step import keep_pages

if __name__ == "__main__" and len(sys.argv) > 1 and sys.argv[1] == "batched":
    keep_pages()

import torch

from gnsp_step import model_of, normalize, openai_model, package_module, report, timed, tower_of

CONTEXT, GROUP = 77, 128
START, END = 49406, 49407


class Reference:
    def __init__(self, folder):
        self.model = openai_model(model_of(folder)).eval()
        self.tokenizer = package_module("simple_tokenizer").SimpleTokenizer()

    def tokenize(self, prompts):
        rows = torch.zeros(len(prompts), CONTEXT, dtype=torch.long)
        for row, prompt in zip(rows, prompts):
            ids = [START, *self.tokenizer.encode(prompt), END]
            row[: len(ids)] = torch.tensor(ids)
        return rows

    @torch.no_grad()
    def heads(self, classes):
        rows = []
        for prompts in classes:
            features = normalize(self.model.encode_text(self.tokenize(prompts)))
            rows.append(normalize(features.mean(dim=0)))
        return torch.stack(rows)


class Batched:
    def __init__(self, folder):
        from tokenizers import Tokenizer

        self.text, _ = tower_of(model_of(folder), "text")
        self.tokenizer = Tokenizer.from_file(f"{model_of(folder)}/tokenizer.json")
        self.tokenizer.no_padding()

    @torch.inference_mode()
    def heads(self, classes):
        texts = [prompt for prompts in classes for prompt in prompts]
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        features = torch.empty(len(ids), self.text.text_projection.shape[1])
        for start in range(0, len(order), GROUP):
            group = order[start : start + GROUP]
            longest = len(ids[group[-1]])
            rows = torch.tensor([ids[i] + [0] * (longest - len(ids[i])) for i in group])
            features[group] = normalize(self.text(rows))
        counts = torch.tensor([len(prompts) for prompts in classes])
        owner = torch.repeat_interleave(torch.arange(len(classes)), counts)
        sums = torch.zeros(len(classes), features.shape[1]).index_add_(0, owner, features)
        return normalize(sums)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verb", choices=["reference", "batched"])
    parser.add_argument("folder")
    parser.add_argument("--repeat", type=int, default=2, help="timed passes, after an untimed one")
    parser.add_argument("--sample", type=int, default=1)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    with open(f"{options.folder}/prompts.json") as file:
        classes = [prompts for _, _, prompts in json.load(file)][:: options.sample]
    made = {"reference": Reference, "batched": Batched}[options.verb](options.folder)
    seconds, processor, heads = timed(lambda: made.heads(classes), options.repeat + 1)
    prompts = sum(map(len, classes))
    middle = sorted(seconds[1:])[options.repeat // 2]
    line = {
        "per_second": prompts / middle,
        "prompts": prompts,
        "check": heads[-1][:, 0].tolist(),
        "processor_seconds": processor,
    }
    report(line, seconds)


if __name__ == "__main__":
    main()
