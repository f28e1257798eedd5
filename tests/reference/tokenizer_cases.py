#!/usr/bin/env python3
"""Token ids of the full-size CLIP vocabulary, from `transformers`, for the tokenizer's parity test.

Writes, below OUT (crates/clip-model/tests/data):
  ../../assets/openai_merges.txt.gz
                         header + the 48,894 merges that CLIP uses: the first 48,895 lines of
                         OpenAI's `bpe_simple_vocab_16e6.txt` (MIT licence, copyright (c) 2021
                         OpenAI)
  tokenizer_cases.json   {"context_length": 77, "tokenizer_sha256": of the tokenizer.json saved by
                         transformers, "cases": [{"text", "ids"}, ...]}
  tokenizer_mtil.json    the prompts of the eleven MTIL tasks and the SHA-256 of their token rows
                         (padded with 0 to 77, int32 little endian)
and, with --tokenizer DIR, the tokenizer.json saved by transformers (not committed, 3 MB).

Run:  python tests/reference/tokenizer_cases.py MERGES.gz OUT [--mtil PROMPTS.json GOLDEN.json]
          [--tokenizer DIR]
MERGES.gz is OpenAI's bpe_simple_vocab_16e6.txt.gz, which the open_clip package contains.
PROMPTS.json and GOLDEN.json hold the class names and templates of the tasks and the hashes of the
reference implementation's own tokenizer. The script recomputes the eleven hashes with transformers;
they must agree.
Made with Python 3.11, transformers 5.23.0, tokenizers 0.23.3.
"""

import argparse
import gzip
import hashlib
import json
import os
import struct
import sys
import tempfile

SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"


def vocabulary(text):
    lines = text.split("\n")[1:48895]
    alphabet = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    symbols = [chr(b) for b in alphabet] + [chr(256 + n) for n in range(256 - len(alphabet))]
    merges = [tuple(line.split()) for line in lines]
    tokens = symbols + [s + "</w>" for s in symbols] + ["".join(m) for m in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {t: i for i, t in enumerate(tokens)}, merges


def cases():
    c = []
    # Typical prompts of CLIP.
    templates = [
        "a photo of a {}.",
        "a bad photo of the {}.",
        "a centered satellite photo of {}.",
        "itap of a {}.",
        "a {} in a video game.",
        'a photo of the number: "{}".',
        "a photo of my {}.",
        "{} texture",
    ]
    names = [
        "cat",
        "Boeing 737-800",
        "F-16A/B",
        "jack-o'-lantern",
        "off-center face",
        "AM General Hummer SUV 2000",
        "annual crop land",
        "0 - zero",
        "bird-of-paradise",
    ]
    c += [t.format(n) for t in templates for n in names]
    # Empty texts, white space, control characters.
    c += [
        "",
        " ",
        "   ",
        "\t",
        "\n",
        "\r\n",
        " a ",
        "a\tb",
        "a\nb",
        "a\r\nb",
        "a\u00a0b",
        "a\u2003b",
        "a\u3000b",
        "a\u200bb",
        "a\u200db",
        "a\ufeffb",
        "\ufeffa",
        "a\u2028b",
        "a\u2029b",
        "a\u0085b",
        "a\x1cb",
        "a\x1fb",
        "a\x0bb",
        "a\x0cb",
        "a\x00b",
        "a\x01b",
        "a\x7fb",
        "a\u180eb",
        "a\u00adb",
        "a\u202eb",
        "\u2060",
        "  two  spaces  ",
        "trailing\n\n",
        "\u00a0",
        "\u2007figure",
    ]
    # Contractions and quotes.
    c += [
        "it's",
        "IT'S",
        "It'S",
        "don't",
        "DON'T",
        "we're",
        "WE'RE",
        "I've",
        "i'm",
        "I'M",
        "they'll",
        "he'd",
        "it\u2019s",
        "don\u2019t",
        "'s",
        "'",
        "''",
        "'sx",
        "s's's",
        "o'clock",
        "rock'n'roll",
        "y'all'd've",
        "\u201cquoted\u201d",
        "\u00abguillemets\u00bb",
        "`back`",
        "'''",
        "dogs'",
        "'tis",
        "'llama",
    ]
    # Punctuation, symbols, markup.
    c += [
        "!",
        "!!!",
        "...",
        "\u2026",
        "a.b.c",
        "hello,world",
        "e-mail: a@b.co",
        "https://example.org/?q=1&r=2#x",
        "50%",
        "$5.00",
        "\u20ac99",
        "a/b\\c",
        "C++",
        "C#",
        "#hashtag",
        "@user",
        "(parens)",
        "[x]{y}",
        "<b>bold</b>",
        "a_b__c",
        "~tilde~",
        "^_^",
        ":-)",
        "\u2014 dash \u2013",
        "1+1=2",
        "x\u00b2 + y\u00b3",
        "\u00bd cup",
        "\u2122 \u00ae \u00a9",
        "&amp;",
        "&lt;b&gt;",
        "&amp;lt;",
        "&eacute;t\u00e9",
        "&#39;",
        "&nbsp;",
        "\u2192\u2190\u2194",
        "\u2713\u2717",
        "\u2588\u2588",
        "\u00b0C",
        "\u00b5m",
        "\u2126",
        "\u212b",
        "\u2103",
        "\u2460\u2461",
        "\u00a7 5",
        "\u00b6",
        "A&B",
        'w/ 2" pipe',
    ]
    # Numbers.
    c += [
        "0",
        "7",
        "42",
        "12345",
        "3.14159",
        "1,000,000",
        "2012!",
        "1st 2nd",
        "a1b2",
        "x86_64",
        "\u0661\u0662\u0663",
        "\u0967\u0968\u0969",
        "\u2167",
        "\u216b",
        "\uff11\uff12\uff13",
        "\u4e00\u4e8c\u4e09",
        "\u00bc\u00be",
        "10\u00b2",
        "\u0e51\u0e52",
        "\U0001d7d8\U0001d7d9",
        "\u3007",
        "0x1F",
    ]
    # Letters: accents composed and decomposed, ligatures, case rules.
    c += [
        "caf\u00e9",
        "cafe\u0301",
        "CAF\u00c9",
        "na\u00efve",
        "nai\u0308ve",
        "\u00c5ngstr\u00f6m",
        "A\u030angstro\u0308m",
        "\u1e9b\u0323",
        "stra\u00dfe",
        "STRASSE",
        "STRA\u1e9eE",
        "\u0130stanbul",
        "I\u0307",
        "\u0131",
        "D\u0130YARBAKIR",
        "\ufb01ne",
        "\ufb03",
        "\ufb00ect",
        "\u00c6on",
        "\u0152uvre",
        "\u00d8re",
        "\u0141\u00f3d\u017a",
        "\u00f1and\u00fa",
        "n\u0303",
        "\u01c4",
        "\u01c5",
        "\u0133",
        "\u017fong",
        "\u212aelvin",
        "\u03a3\u0399\u03a3\u03a5\u03a6\u039f\u03a3",
        "\u039f\u0394\u039f\u03a3",
        "\u03c2",
        "\u1fb3",
        "\u1f88",
        "\u0391\u0301",
        "\u041c\u043e\u0441\u043a\u0432\u0430",
        "\u0439",
        "\u0438\u0306",
        "\u0401\u043b\u043a\u0430",
        "\u0548\u0582",
        "\u10d7\u10d1\u10d8\u10da\u10d8\u10e1\u10d8",
        "\u13a0\u13b3",
        "\uab70",
        "Z\u0351\u0343\u0350a\u0300\u0301lgo",
        "\uff26\uff55\uff4c\uff4c\uff37\uff49\uff44\uff54\uff48",
        "\uff76\uff9e",
        "\U0001d400\U0001d401",
        "\U00010400\U00010428",
        "\u02bb\u02bc",
        "d\u2019\u00c9tat",
    ]
    # Other scripts.
    c += [
        "\u65e5\u672c\u8a9e",
        "\u4e2d\u6587\u5b57\u7b26",
        "\u3072\u3089\u304c\u306a \u30ab\u30bf\u30ab\u30ca",
        "\u304b\u3099",
        "\ud55c\uad6d\uc5b4",
        "\u1112\u1161\u11ab",
        "\u4e00\u53ea\u732b\u7684\u7167\u7247\u3002",
        "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
        "\u0645\u064e\u0631\u0652\u062d\u064e\u0628\u064b\u0627",
        "\ufefb",
        "\u0628\u0640\u0640\u0640",
        "\u05e9\u05dc\u05d5\u05dd",
        "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd",
        "\ufb2a",
        "\u0928\u092e\u0938\u094d\u0924\u0947",
        "\u0915\u094d\u0937",
        "\u0958",
        "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
        "\u0bb5\u0ba3\u0b95\u0bcd\u0b95\u0bae\u0bcd",
        "\u1ea4n t\u01b0\u1ee3ng",
        "\u1780\u1798\u17d2\u1796\u17bb\u1787\u17b6",
        "\u1019\u103c\u1014\u103a\u1019\u102c",
        "\u12a0\u121b\u122d\u129b",
        "\u0f56\u0f7c\u0f51",
        "\u0c24\u0c46\u0c32\u0c41\u0c17\u0c41",
        "\u16a0\u16a2",
        "\U00012000",
        "\U00020000",
        "\ufa0e",
        "\ufa10",
    ]
    # Emoji.
    c += [
        "\U0001f600",
        "I \u2764\ufe0f NY",
        "\u2764",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
        "\U0001f44d\U0001f3fd",
        "\U0001f1ec\U0001f1e7",
        "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
        "1\ufe0f\u20e3",
        "\U0001f3f3\ufe0f\u200d\U0001f308",
        "\U0001f9d1\u200d\U0001f680 in space",
        "cat\U0001f431dog\U0001f436",
        "\u2600\ufe0e",
        "\U0001faf6",
        "\U0001f600\U0001f600\U0001f600",
    ]
    # Private use, unassigned, non-characters.
    c += ["\ue000", "\U000f0000", "\ufffd", "\ufffe", "\u0378", "\U0010ffff"]
    # The special tokens written out.
    c += [
        "<|endoftext|>",
        "<|startoftext|>",
        "a <|endoftext|> b",
        "a<|endoftext|>b",
        "<|ENDOFTEXT|>",
        "<|endoftext|",
        "<|startoftext|>a photo<|endoftext|>",
        "<start_of_text> x",
        "</w>",
        "a</w>",
        "<|endoftext|><|endoftext|>",
        " <|endoftext|> ",
    ]
    # Up to, at and over the context length.
    c += ["cat " * n for n in (74, 75, 76, 77, 200)]
    c += [
        "a" * 500,
        "\u65e5" * 100,
        "\U0001f600" * 60,
        "!" * 300,
        "1" * 75,
        "1" * 76,
        "word, " * 60,
        "<|endoftext|>" * 80,
        "a photo of " + "very " * 90 + "large dog",
        "Supercalifragilisticexpialidocious",
        "pneumonoultramicroscopicsilicovolcanoconiosis",
    ]
    seen, out = set(), []
    for s in c:
        if s not in seen:
            seen.add(s)
            out.append(s)
    return out


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("merges")
    parser.add_argument("out")
    parser.add_argument("--mtil", nargs=2, metavar=("PROMPTS", "GOLDEN"))
    parser.add_argument("--tokenizer", metavar="DIR")
    args = parser.parse_args()

    from transformers import CLIPTokenizerFast

    raw = open(args.merges, "rb").read()
    if hashlib.sha256(raw).hexdigest() != SHA256:
        sys.exit("this is not OpenAI's bpe_simple_vocab_16e6.txt.gz")
    text = gzip.decompress(raw).decode("utf-8")
    used = "\n".join(text.split("\n")[:48895]) + "\n"
    with open(os.path.join(args.out, "..", "..", "assets", "openai_merges.txt.gz"), "wb") as f:
        f.write(gzip.compress(used.encode("utf-8"), 9, mtime=0))

    vocab, merges = vocabulary(text)
    assert len(vocab) == 49408 and vocab["<|endoftext|>"] == 49407
    tokenizer = CLIPTokenizerFast(vocab=vocab, merges=merges)
    with tempfile.TemporaryDirectory() as temporary:
        where = args.tokenizer or temporary
        tokenizer.save_pretrained(where)
        saved = hashlib.sha256(open(os.path.join(where, "tokenizer.json"), "rb").read()).hexdigest()

    rows = []
    for s in cases():
        ids = tokenizer(s, truncation=True, max_length=77)["input_ids"]
        rows.append(json.dumps({"text": s, "ids": ids}, separators=(",", ":")))
    print(len(rows), "cases")
    with open(os.path.join(args.out, "tokenizer_cases.json"), "w") as f:
        f.write(
            '{"context_length":77,"tokenizer_sha256":"'
            + saved
            + '","cases":[\n'
            + ",\n".join(rows)
            + "\n]}\n"
        )

    if args.mtil:
        prompts = json.load(open(args.mtil[0]))
        golden = json.load(open(args.mtil[1]))["tokenizer"]["per_dataset"]
        out = []
        for name, want in golden.items():
            p = prompts[name]
            for kind, templates in (("first", p["templates"][:1]), ("ensemble", p["templates"])):
                texts = [t.replace("{}", c) for c in p["classnames"] for t in templates]
                data = b""
                for ids in tokenizer(texts, truncation=True, max_length=77)["input_ids"]:
                    data += struct.pack("<77i", *(ids + [0] * (77 - len(ids))))
                got = hashlib.sha256(data).hexdigest()
                assert got == want["sha256_" + kind], (name, kind)
            out.append(
                json.dumps(
                    {
                        "name": name,
                        "templates": p["templates"],
                        "classnames": p["classnames"],
                        "sha256_first": want["sha256_first"],
                        "sha256_ensemble": want["sha256_ensemble"],
                    },
                    separators=(",", ":"),
                )
            )
        print(len(out), "tasks agree with the reference's tokenizer")
        with open(os.path.join(args.out, "tokenizer_mtil.json"), "w") as f:
            f.write("[\n" + ",\n".join(out) + "\n]\n")


if __name__ == "__main__":
    main()
