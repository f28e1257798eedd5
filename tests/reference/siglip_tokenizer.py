"""Two small tokenizers in the form of SigLIP's and SigLIP2's, and token ids of the original
packages.

Run:   python tests/reference/siglip_tokenizer.py tests/data/zoo
Made with: Python 3.11, sentencepiece 0.2.3, tokenizers 0.23.3, transformers 5.24.0,
open_clip_torch 3.3.0, ftfy 6.3.1.

    siglip_tokenizer/tokenizer.json    SentencePiece unigram, converted as `transformers` converts
                                       T5's: the form of timm/ViT-B-16-SigLIP
    siglip_tokenizer/spiece.model      the same in SentencePiece's own format: the form of
                                       google/siglip-base-patch16-224
    siglip_tokenizer/cases.json        texts and ids
    siglip2_tokenizer/tokenizer.json   SentencePiece BPE with byte fallback, in the form of Gemma's:
                                       that of SigLIP2
    siglip2_tokenizer/cases.json       texts and ids

`cases.json`:

    context       64, the length of every row
    pad, eos      ids; a text that is too long is cut so that the row still ends in eos
    cleaned       per text: the output of open_clip's `canonicalize` (ftfy, HTML unescaped twice,
                  `_` to space, ASCII punctuation removed, lower case, white space collapsed)
    open_clip     ids of `open_clip.tokenizer.HFTokenizer(folder, context_length=64,
                  clean="canonicalize")`, equal to those of `tokenizer.json` itself (package
                  `tokenizers`) on `cleaned`, with truncation and padding
    transformers  ids of `transformers.SiglipTokenizer("spiece.model")`, or of
                  `transformers.Siglip2Tokenizer` from `tokenizer.json`, with padding="max_length",
                  truncation=True, max_length=64
    differ        indices of the texts for which the two differ

The normaliser of the unigram model is a small table in place of SentencePiece's nmt_nfkc, whose
table has 240 kB: full-width forms, some ligatures, some combining accents, a few kinds of space.
"""

import argparse
import io
import json
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import open_clip
import sentencepiece as spm
import tokenizers
import transformers
from open_clip.tokenizer import HFTokenizer, get_clean_fn
from tokenizers import Tokenizer
from transformers import GemmaTokenizer, Siglip2Tokenizer, SiglipTokenizer
from transformers.convert_slow_tokenizer import T5Converter, import_protobuf
from transformers.tokenization_utils_base import generate_merges

CONTEXT = 64

CORPUS = """a photo of a cat
a photo of a dog
a photo of the large red square
a photo of the small blue circle
a blurry photo of a green triangle
a drawing of a house by the river
a satellite photo of a forest
a centered satellite photo of annual crop land
a close-up photo of a flower, a type of flower
a type of aircraft
a type of pet
a type of food, on a white plate
itap of my sports car
a bad photo of the number seven
a black and white photo of two people riding bicycles
an old painting of a woman with a yellow hat
the quick brown fox jumps over the lazy dog
people walking along the beach at sunset
three cups of coffee and a croissant on the table
café au lait in a small café
a jalapeño and a piñata
über die straße
une photo d'un chat à l'école
一张猫的照片
一张狗的照片
白い猫の写真
a mountain lake in winter
a train passing through the station
children playing football in the park
a glass of orange juice
the texture of a dotted surface
the texture of a striped surface
this is a photo of a city street at night
12 34 56 78 90 2023
"""

TEXTS = [
    "a photo of a cat",
    "A Photo Of A Cat.",
    "a photo of a dog, a type of pet!",
    'a photo of the number: "0 - zero".',
    "a_photo_of_a_flower",
    "close-up",
    "it's a dog's life",
    "(a) [b] {c} <d>",
    "!!!",
    "...",
    "a . b",
    "#hashtag @user 50% $5 & more",
    "C++ / C# \\ backslash",
    "`code` ~tilde^ |pipe|",
    "",
    " ",
    "   ",
    "\t",
    "\n",
    " leading",
    "trailing ",
    "two  spaces   three",
    "tab\tnew\nline\r\nreturn",
    "no\u00a0break",
    "thin\u2009space",
    "ideographic\u3000space",
    "café au lait",
    "CAFÉ",
    "cafe\u0301",
    "jalapeño piñata",
    "über die Straße",
    "ÀÉÎÕÜ",
    "Ångström",
    "Škoda",
    "İstanbul",
    "ΣΊΣΥΦΟΣ",
    "Привет, мир",
    "一张猫的照片",
    "白い猫の写真。",
    "猫",
    "고양이 사진",
    "ｆｕｌｌ ｗｉｄｔｈ",
    "ﬁne ﬂower",
    "ＡＢＣ，１２３！",
    "🐱",
    "a 🐱 and a 🐶",
    "👩‍👩‍👧",
    "🇩🇪",
    "❤️",
    "a\u200bzero width",
    "“quoted” ‘text’ — dash… ellipsis",
    "½ cup of x² + y³",
    "№ 5 ™ ®",
    "&amp; &lt;b&gt; &quot;",
    "caf&eacute;",
    "schÃ¶n",
    "<pad> </s> <unk>",
    "▁photo▁",
    "a\u0000b",
    "1234567890",
    "supercalifragilisticexpialidocious",
    "zzzzzzzz",
    "x" * 100,
    "a photo of a cat " * 20,
    "photo, " * 40,
    "一" * 80,
    "a photo of " * 21 + "x",
]

# Source characters and their replacements (hexadecimal code points).
RULES = [(chr(0xFF01 + i), chr(0x21 + i)) for i in range(94)] + [
    ("\u3000", " "),
    ("\u00a0", " "),
    ("\u2009", " "),
    ("\t", " "),
    ("\n", " "),
    ("\r", " "),
    ("\ufb01", "fi"),
    ("\ufb02", "fl"),
    ("\u2026", "..."),
    ("\u00bd", "1\u20442"),
    ("\u00b2", "2"),
    ("\u00b3", "3"),
    ("\u2122", "TM"),
    ("\u200b", " "),
    ("e\u0301", "\u00e9"),
    ("a\u0301", "\u00e1"),
    ("o\u0308", "\u00f6"),
    ("u\u0308", "\u00fc"),
    ("n\u0303", "\u00f1"),
]


def train(folder, **options):
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        # Repeats every line, because training keeps long pieces only if they are frequent.
        sentence_iterator=iter(CORPUS.strip().split("\n") * 20),
        model_writer=model,
        num_threads=1,
        minloglevel=2,
        character_coverage=1.0,
        shuffle_input_sentence=False,
        **options,
    )
    path = folder / "spiece.model"
    # Removes the path of the file of the normaliser's rules, which is meaningless elsewhere.
    proto = import_protobuf().ModelProto.FromString(model.getvalue())
    proto.normalizer_spec.normalization_rule_tsv = ""
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return path


class T5(dict):
    """The attributes that the converter reads from a tokenizer."""

    _extra_ids = 0
    legacy = False
    add_prefix_space = True
    vocab_file = None

    def convert_tokens_to_ids(self, token):
        return {"</s>": 1}[token]


def write(path, value):
    path.write_text(value + "\n", encoding="utf-8")


def dump_rows(folder, pad, eos, cleaned, ours, theirs):
    rows = {"open_clip": ours, "transformers": theirs}
    differ = [i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b]
    lines = [f'  "context": {CONTEXT},', f'  "pad": {pad},', f'  "eos": {eos},']
    for name, values in (("texts", TEXTS), ("cleaned", cleaned), *rows.items()):
        body = ",\n".join(
            "    " + json.dumps(v, ensure_ascii=True, separators=(",", ":")) for v in values
        )
        lines.append(f'  "{name}": [\n{body}\n  ],')
    lines.append(f'  "differ": {json.dumps(differ)}')
    write(folder / "cases.json", "{\n" + "\n".join(lines) + "\n}")
    print(f"{folder.name}: {len(TEXTS)} texts; open_clip and transformers differ on {len(differ)}:")
    for i in differ:
        strip = lambda row: [
            x for j, x in enumerate(row) if x != pad or any(y != pad for y in row[j:])
        ]
        print(
            "   ",
            json.dumps(TEXTS[i][:40], ensure_ascii=True),
            strip(ours[i])[:12],
            strip(theirs[i])[:12],
        )


def with_tokenizers(file, cleaned, pad):
    tok = Tokenizer.from_file(str(file))
    tok.enable_truncation(CONTEXT)
    tok.enable_padding(length=CONTEXT, pad_id=pad, pad_token="")
    return [tok.encode(t).ids for t in cleaned]


def siglip(folder, scratch):
    rules = scratch / "rules.tsv"
    rules.write_text(
        "".join(
            f"{' '.join(f'{ord(c):X}' for c in a)}\t{' '.join(f'{ord(c):X}' for c in b)}\n"
            for a, b in RULES
        )
    )
    model = train(
        folder,
        model_type="unigram",
        vocab_size=300,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        normalization_rule_tsv=str(rules),
        hard_vocab_limit=False,
    )
    shim = T5()
    shim.vocab_file = str(model)
    tok = T5Converter(shim).converted()
    write(folder / "tokenizer.json", tok.to_str())
    hub = scratch / "siglip"
    hub.mkdir()
    shutil.copy(folder / "tokenizer.json", hub)
    # Pads with the end token, as in the published configuration.
    special = dict(
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        extra_ids=0,
        legacy=False,
        model_max_length=CONTEXT,
    )
    (hub / "tokenizer_config.json").write_text(
        json.dumps(dict(special, tokenizer_class="T5Tokenizer"))
    )
    cleaned = [get_clean_fn("canonicalize")(t) for t in TEXTS]
    ours = HFTokenizer(str(hub), context_length=CONTEXT, clean="canonicalize")(TEXTS).tolist()
    raw = with_tokenizers(folder / "tokenizer.json", cleaned, 1)
    assert ours == raw
    # Published configurations are of version 4, which always removed SentencePiece's dummy prefix:
    # `legacy=False` in version 5.
    theirs = SiglipTokenizer(str(model), legacy=False)(
        TEXTS, padding="max_length", truncation=True, max_length=CONTEXT
    )["input_ids"]
    dump_rows(folder, 1, 1, cleaned, ours, theirs)


def siglip2(folder, scratch):
    model = train(
        scratch,
        model_type="bpe",
        vocab_size=620,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        eos_piece="<eos>",
        bos_piece="<bos>",
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        allow_whitespace_only_pieces=True,
        user_defined_symbols=["<mask>"],
        hard_vocab_limit=False,
    )
    pieces = spm.SentencePieceProcessor(str(model))
    vocab = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    scores = {piece: pieces.get_score(i) for piece, i in vocab.items()}
    merges = generate_merges(vocab, scores)
    # `Siglip2Tokenizer` adds a lower-casing step before Gemma's normaliser when it loads such a
    # file; the file has none.
    gemma = GemmaTokenizer(
        vocab=vocab, merges=merges, add_bos_token=False, add_eos_token=True, padding_side="right"
    )
    gemma.update_post_processor()
    tok = gemma.backend_tokenizer
    tok.no_padding()
    tok.no_truncation()
    write(folder / "tokenizer.json", tok.to_str())
    hub = scratch / "siglip2"
    hub.mkdir()
    shutil.copy(folder / "tokenizer.json", hub)
    config = dict(
        add_bos_token=False,
        add_eos_token=True,
        padding_side="right",
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=CONTEXT,
    )
    (hub / "tokenizer_config.json").write_text(
        json.dumps(dict(config, tokenizer_class="GemmaTokenizer"))
    )
    cleaned = [get_clean_fn("canonicalize")(t) for t in TEXTS]
    ours = HFTokenizer(str(hub), context_length=CONTEXT, clean="canonicalize")(TEXTS).tolist()
    raw = with_tokenizers(folder / "tokenizer.json", cleaned, 0)
    assert ours == raw
    (hub / "tokenizer_config.json").write_text(
        json.dumps(dict(config, tokenizer_class="Siglip2Tokenizer"))
    )
    second = Siglip2Tokenizer.from_pretrained(str(hub))
    theirs = second(TEXTS, padding="max_length", truncation=True, max_length=CONTEXT)["input_ids"]
    dump_rows(folder, 0, 1, cleaned, ours, theirs)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    root = parser.parse_args().out
    print(
        f"sentencepiece {spm.__version__}, tokenizers {tokenizers.__version__}, "
        f"transformers {transformers.__version__}, "
        f"open_clip_torch {open_clip.__version__}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        for name, make in (("siglip_tokenizer", siglip), ("siglip2_tokenizer", siglip2)):
            shutil.rmtree(root / name, ignore_errors=True)
            (root / name).mkdir(parents=True)
            make(root / name, Path(scratch))
    for f in sorted(root.glob("siglip*_tokenizer/*")):
        print(f"{f.stat().st_size:8} {f.relative_to(root)}")


if __name__ == "__main__":
    main()
