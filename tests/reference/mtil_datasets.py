"""Miniatures of the datasets of MTIL in their original archives, and torchvision's view of them.

Run:   python tests/reference/mtil_datasets.py crates/mtil-data/datasets tests/data/datasets [UNPACKED]
Made with: Python 3.11, torch 2.15.0, torchvision 0.29.2, scipy 1.17.1, numpy 2.4.6, Pillow 12.

The second argument becomes a data root with the archives under their original names where
torchvision would download them to, the few files that come without an archive, and split files in
CoOp's format. UNPACKED (by default a temporary folder) gets the same data unpacked, which
torchvision reads. `expected.json` contains, for each dataset, the samples of both halves in order:

    [path below the root, label]                               for image files
    [SHA-256 of the RGB or grey bytes, first 16 digits, label] for CIFAR10, CIFAR100 and MNIST

The class lists are complete, with the real names and label numbers, but there are few images.
Datasets whose labels torchvision derives from folders or lists have every class. The images are
noise of 8 x 8 pixels.

The script removes torchvision's checks of the MD5 sums of CIFAR10, CIFAR100 and Flowers102, which
no miniature can pass. torchvision lists the files of SUN397 in the order of the file system; the
script sorts the list before it is split.
"""

import gzip
import hashlib
import io
import json
import shutil
import struct
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import scipy.io
import torch
import torchvision.datasets as tv
from PIL import Image

RNG = np.random.Generator(np.random.PCG64(20240607))


def jpeg(grey=False):
    pixels = RNG.integers(0, 256, (8, 8) if grey else (8, 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=20, optimize=True)
    return out.getvalue()


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


# Archives, the same bytes each time ---------------------------------------------------------------


def members(folder, names):
    for name in names:
        top = folder / name
        for path in [top] + sorted(top.rglob("*")) if top.is_dir() else [top]:
            yield path, path.relative_to(folder).as_posix()


def tar_bytes(folder, names):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path, name in members(folder, names):
            info = tar.gettarinfo(path, name)
            info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode = (
                0,
                0,
                0,
                "",
                "",
                0o755 if path.is_dir() else 0o644,
            )
            with open(path, "rb") if path.is_file() else io.BytesIO() as file:
                tar.addfile(info, file)
    return out.getvalue()


def gz(data):
    return gzip.compress(data, 9, mtime=0)


def zip_bytes(entries):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for name, data in entries:
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, data)
    return out.getvalue()


def zip_folder(folder, names):
    return zip_bytes(
        [
            (name + "/", b"") if path.is_dir() else (name, path.read_bytes())
            for path, name in members(folder, names)
        ]
    )


# Pickles in the form of Python 2 (protocol 2, byte strings, numpy.core) ---------------------------


def py2(value):
    return b"\x80\x02" + py2_value(value) + b"."


def py2_value(value):
    if isinstance(value, (str, bytes)):
        data = value.encode() if isinstance(value, str) else value
        return (
            b"U" + bytes([len(data)]) if len(data) < 256 else b"T" + struct.pack("<i", len(data))
        ) + data
    if isinstance(value, bool) or value is None:
        raise TypeError("not in these files")
    if isinstance(value, int):
        return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(py2_value, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(py2_value(k) + py2_value(v) for k, v in value.items()) + b"u"
    assert value.dtype == np.uint8 and value.flags.c_contiguous
    dtype = (
        b"cnumpy\ndtype\n"
        + py2_value("u1")
        + b"K\x00K\x01\x87R"
        + b"(K\x03"
        + py2_value("|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    made = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        + py2_value("b")
        + b"\x87R"
    )
    shape = b"".join(map(py2_value, value.shape)) + {1: b"\x85", 2: b"\x86"}[value.ndim]
    # BUILD with (version, shape, dtype, Fortran order, bytes); Python 2 writes NEWFALSE for the
    # order.
    return made + b"(K\x01" + shape + dtype + b"\x89" + py2_value(value.tobytes()) + b"tb"


# Datasets: each writes its files below `root` and its archives below `out` ------------------------


def aircraft(root, out, spec):
    base = root / "fgvc-aircraft-2013b" / "data"
    put(base / "variants.txt", "".join(f"{c}\n" for c in spec["classes"]))
    number = 34000
    for split in ["train", "val", "test"]:
        rows = ""
        for name in ["Boeing 717", "707-320", "F-16A/B", "Yak-42"]:
            number += 7
            put(base / "images" / f"{number:07}.jpg", jpeg())
            rows += f"{number:07} {name}\n"
        put(base / f"images_variant_{split}.txt", rows)
    put(out / "fgvc-aircraft-2013b.tar.gz", gz(tar_bytes(root, ["fgvc-aircraft-2013b"])))


def caltech(root, out, spec):
    base = root / "caltech101"
    for i, name in enumerate(["BACKGROUND_Google"] + spec["raw"]):
        for n in range(1, 3):
            put(base / "101_ObjectCategories" / name / f"image_{n:04}.jpg", jpeg(grey=i % 10 == 5))
    inner = gz(tar_bytes(base, ["101_ObjectCategories"]))
    put(
        out / "caltech101" / "caltech-101.zip",
        zip_bytes(
            [
                ("caltech-101/", b""),
                ("caltech-101/101_ObjectCategories.tar.gz", inner),
                ("__MACOSX/caltech-101/._x", b"x"),
            ]
        ),
    )
    split = {"train": [], "val": [], "test": []}
    names = [n for n in sorted(spec["raw"], key=str.lower) if n != "Faces_easy"]
    for label, name in enumerate(names):
        for n, half in [(1, "train"), (2, "test" if label % 20 else "val")]:
            split[half].append(
                [f"{name}/image_{n:04}.jpg", label, "face" if name == "Faces" else name.lower()]
            )
    write_coop(out, "caltech-101/split_zhou_Caltech101.json", split)


def cifar(root, out, spec, hundred):
    base = root / ("cifar-100-python" if hundred else "cifar-10-batches-py")
    for name in (
        ["train", "test"] if hundred else [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    ):
        n = 4 if hundred else 2
        data = RNG.integers(0, 4, (n, 3072), dtype=np.uint8) * 85
        labels = [int(x) for x in RNG.integers(0, len(spec["classes"]), n)]
        batch = {
            "filenames": [f"{name}_{i}.png" for i in range(n)],
            "batch_label": f"{name} batch",
            "data": data,
        }
        put(
            base / name,
            py2(
                batch
                | (
                    {"fine_labels": labels, "coarse_labels": [0] * n}
                    if hundred
                    else {"labels": labels}
                )
            ),
        )
    names = spec.get("raw", spec["classes"])
    meta = (
        {"fine_label_names": names, "coarse_label_names": ["fish"]}
        if hundred
        else {"num_cases_per_batch": 2, "label_names": names}
    )
    put(base / ("meta" if hundred else "batches.meta"), py2(meta))
    put(out / f"cifar-{100 if hundred else 10}-python.tar.gz", gz(tar_bytes(root, [base.name])))


def dtd(root, out, spec):
    base = root / "dtd" / "dtd"
    for i, split in enumerate(["train", "val", "test"]):
        rows = [f"{name}/{name}_{i + 1:04}.jpg" for name in spec["classes"]]
        for row in rows:
            put(base / "images" / row, jpeg())
        put(base / "labels" / f"{split}1.txt", "".join(f"{row}\n" for row in rows))
    put(out / "dtd" / "dtd-r1.0.1.tar.gz", gz(tar_bytes(root / "dtd", ["dtd"])))
    split = {
        half: [[f"{c}/{c}_{n:04}.jpg", i, c] for i, c in enumerate(spec["classes"])]
        for half, n in [("train", 1), ("val", 2), ("test", 3)]
    }
    write_coop(out, "dtd/split_zhou_DescribableTextures.json", split)


def eurosat(root, out, spec):
    base = root / "eurosat"
    for name in spec["raw"]:
        for n in [1, 2, 10]:
            put(base / "2750" / name / f"{name}_{n}.jpg", jpeg())
    put(out / "eurosat" / "EuroSAT.zip", zip_folder(base, ["2750"]))
    split = {
        half: [[f"{c}/{c}_{n}.jpg", i, c] for i, c in enumerate(spec["raw"])]
        for half, n in [("train", 2), ("val", 10), ("test", 1)]
    }
    write_coop(out, "eurosat/split_zhou_EuroSAT.json", split)


def flowers(root, out, spec):
    base = root / "flowers-102"
    numbers = RNG.permutation(30) + 1
    for n in numbers:
        put(base / "jpg" / f"image_{n:05}.jpg", jpeg())
    labels = RNG.integers(1, 103, (1, 30)).astype(np.uint8)
    labels[0, :2] = [1, 102]
    ids = {"trnid": numbers[:10], "valid": numbers[10:15], "tstid": numbers[15:]}
    for name, values in [
        ("imagelabels.mat", {"labels": labels}),
        ("setid.mat", {k: v.astype(np.uint16)[None] for k, v in ids.items()}),
    ]:
        save_mat(base / name, values, compress=True)
        put(out / "flowers-102" / name, (base / name).read_bytes())
    put(out / "flowers-102" / "102flowers.tgz", gz(tar_bytes(base, ["jpg"])))
    label = {n: int(labels[0, n - 1]) - 1 for n in numbers.tolist()}
    split = {
        half: [[f"image_{n:05}.jpg", label[n], spec["classes"][label[n]]] for n in ids[key].tolist()]
        for half, key in [("train", "trnid"), ("test", "tstid")]
    }
    write_coop(out, "flowers-102/split_zhou_OxfordFlowers.json", renumbered(split))


def save_mat(path, values, compress=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, values, do_compression=compress)
    # The first 116 bytes are free text that includes the date.
    data = path.read_bytes()
    path.write_bytes(b"MATLAB 5.0 MAT-file, a miniature".ljust(116) + data[116:])


def food(root, out, spec):
    base = root / "food-101"
    number = 5000
    all_lists = {}
    for split, count in [("train", 2), ("test", 1)]:
        lists = all_lists[split] = {}
        for i in RNG.permutation(101):
            name = spec["raw"][i]
            lists[name] = []
            for _ in range(count if i % 4 == 0 else 1):
                number += int(RNG.integers(1, 90))
                put(base / "images" / name / f"{number}.jpg", jpeg())
                lists[name].append(f"{name}/{number}")
        put(base / "meta" / f"{split}.json", json.dumps(lists))
    put(out / "food-101.tar.gz", gz(tar_bytes(root, ["food-101"])))
    split = {
        half: [[f"{n}.jpg", i, c] for i, c in enumerate(spec["raw"]) for n in all_lists[half][c]]
        for half in ["train", "test"]
    }
    write_coop(out, "food-101/split_zhou_Food101.json", split | {"val": []})


def mnist(root, out, spec):
    base = root / "MNIST" / "raw"
    for name, n in [("train", 10), ("t10k", 6)]:
        images = RNG.integers(0, 2, (n, 28, 28), dtype=np.uint8) * 200
        labels = RNG.integers(0, 10, n).astype(np.uint8)
        for kind, array in [("images-idx3", images), ("labels-idx1", labels)]:
            data = (
                bytes([0, 0, 8, array.ndim])
                + b"".join(struct.pack(">I", d) for d in array.shape)
                + array.tobytes()
            )
            put(base / f"{name}-{kind}-ubyte", data)
            put(out / "MNIST" / "raw" / f"{name}-{kind}-ubyte.gz", gz(data))


def pets(root, out, spec):
    base = root / "oxford-iiit-pet"
    cats = {
        "Abyssinian",
        "Bengal",
        "Birman",
        "Bombay",
        "British Shorthair",
        "Egyptian Mau",
        "Maine Coon",
        "Persian",
        "Ragdoll",
        "Russian Blue",
        "Siamese",
        "Sphynx",
    }
    for split, n in [("trainval", 100), ("test", 9)]:
        rows = ""
        for i, name in enumerate(spec["classes"]):
            stem = name.replace(" ", "_")
            image = f"{stem if name in cats else stem.lower()}_{n}"
            put(base / "images" / f"{image}.jpg", jpeg())
            rows += f"{image} {i + 1} {1 if name in cats else 2} {i + 1}\n"
        put(base / "annotations" / f"{split}.txt", rows)
    put(base / "annotations" / "list.txt", "#Image CLASS-ID SPECIES BREED ID\n")
    split = {"train": [], "val": [], "test": []}
    for half, n in [("train", 100), ("test", 9)]:
        for i, name in enumerate(spec["classes"]):
            stem = name.replace(" ", "_")
            image = stem if name in cats else stem.lower()
            split[half].append([f"{image}_{n}.jpg", i, stem.lower()])
    write_coop(out, "oxford-iiit-pet/split_zhou_OxfordPets.json", split)
    for name in ["images", "annotations"]:
        put(out / "oxford-iiit-pet" / f"{name}.tar.gz", gz(tar_bytes(base, [name])))


def cars(root, out, spec):
    base = root / "stanford_cars"
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
    coop = {"train": [], "test": []}

    def annotations(split, n):
        array = np.empty((1, n), dtype=[(f, object) for f in fields])
        for i in range(n):
            file = f"{i + 1:05}.jpg"
            put(base / f"cars_{split}" / file, jpeg())
            label = 196 if i == 0 else int(RNG.integers(1, 197))
            coop[split].append([f"cars_{split}/{file}", label - 1, spec["classes"][label - 1]])
            array[0, i] = tuple(np.uint16([[v]]) for v in (39, 116, 569, 375)) + (
                np.uint8([[label]]),
                file,
            )
        return {"annotations": array}

    names = np.empty((1, 196), dtype=object)
    names[0] = spec["classes"]
    save_mat(base / "devkit" / "cars_meta.mat", {"class_names": names})
    save_mat(base / "devkit" / "cars_train_annos.mat", annotations("train", 8))
    save_mat(base / "cars_test_annos_withlabels.mat", annotations("test", 6), compress=True)
    put(base / "devkit" / "README.txt", "Cars\n")
    for name, file in [
        ("devkit", "car_devkit"),
        ("cars_train", "cars_train"),
        ("cars_test", "cars_test"),
    ]:
        put(out / "stanford_cars" / f"{file}.tgz", gz(tar_bytes(base, [name])))
    name = "cars_test_annos_withlabels.mat"
    put(out / "stanford_cars" / name, (base / name).read_bytes())
    write_coop(out, "stanford_cars/split_zhou_StanfordCars.json", renumbered(coop))


def sun(root, out, spec):
    base = root / "SUN397"
    put(base / "ClassName.txt", "".join(f"/{name[0]}/{name}\n" for name in spec["raw"]))
    put(base / "README.txt", "SUN\n")
    split = {"train": [], "val": [], "test": []}
    some = [0, 3, 18, 19, 20, 100, 200, 300, 396] + [
        i for i, n in enumerate(spec["raw"]) if "/" in n
    ][5:12]
    for label, i in enumerate(dict.fromkeys(some)):
        name = spec["raw"][i]
        for half in split:
            letters = "".join(chr(97 + int(x)) for x in RNG.integers(0, 26, 16))
            file = f"{name[0]}/{name}/sun_{letters}.jpg"
            put(base / file, jpeg())
            split[half].append([file, label, " ".join(name.split("/")[::-1])])
    put(base / "a" / "abbey" / "not_counted.jpg", jpeg())
    put(out / "SUN397.tar.gz", gz(tar_bytes(root, ["SUN397"])))
    write_coop(out, "sun397/split_zhou_SUN397.json", split)


def renumbered(split):
    """The split with the labels that it has as 0, 1, …, and without validation images."""
    labels = sorted({label for half in split.values() for _, label, _ in half})
    number = {label: i for i, label in enumerate(labels)}
    halves = {
        half: [[file, number[label], name] for file, label, name in samples]
        for half, samples in split.items()
    }
    return halves | {"val": []}


def write_coop(out, path, split):
    put(out / path, json.dumps(split))


def imagenet(root, out, spec):
    base = root / "ImageNet1K"
    lemmas = dict(zip(spec["raw"], spec["lemmas"]))
    # Two kinds of crane, and an upper-case vowel.
    synsets = ["n03126707", "n01440764", "n02504458", "n02012849"]
    inner = []
    for synset in synsets:
        for n in [3, 12, 104]:
            put(base / "ILSVRC2012_img_train" / synset / f"{synset}_{n}.JPEG", jpeg())
        put(
            base
            / "ILSVRC2012_img_val"
            / synset
            / f"ILSVRC2012_val_{synsets.index(synset) + 1:08}.JPEG",
            jpeg(),
        )
        folder = base / "ILSVRC2012_img_train" / synset
        inner.append((f"{synset}.tar", tar_bytes(folder, sorted(p.name for p in folder.iterdir()))))
    scratch = Path(tempfile.mkdtemp())
    for name, data in inner:
        put(scratch / name, data)
    put(out / "ImageNet1K" / "ILSVRC2012_img_train.tar", tar_bytes(scratch, [n for n, _ in inner]))
    shutil.rmtree(scratch)
    # All validation images in one archive without folders; their synsets are in Kaggle's table.
    table = "ImageId,PredictionString\n"
    for path in sorted((base / "ILSVRC2012_img_val").rglob("*.JPEG")):
        put(scratch / path.name, path.read_bytes())
        table += f"{path.stem},{path.parent.name} 1 2 3 4 {path.parent.name} 1 1 5 5 \n"
    names = sorted(p.name for p in scratch.iterdir())
    put(out / "ImageNet1K" / "ILSVRC2012_img_val.tar", tar_bytes(scratch, names))
    put(out / "ImageNet1K" / "LOC_val_solution.csv", table)
    shutil.rmtree(scratch)
    labels = "".join(f"{s}\t{lemmas[s]}, something else\n" for s in synsets)
    put(base / "labels.txt", labels)
    put(out / "ImageNet1K" / "labels.txt", labels)


CAPTIONS = [
    "A {} stands, quietly.",
    "One {} | and no other",
    " the {} again ",
    '"Two" of {}',
    "{} as seen from afar",
]


def coco(root, out, spec):
    base = root / "coco"
    images, annotations, karpathy = [], [], []
    things = ["dog", "kite", "red bus", "café"]
    for i, (number, thing) in enumerate(zip([581929, 42, 73, 391895], things)):
        file = f"COCO_val2014_{number:012}.jpg"
        put(base / "val2014" / file, jpeg())
        images.append({"id": number, "file_name": file, "height": 8, "width": 8})
        sentences = [c.format(thing) for c in CAPTIONS]
        annotations += [
            {"image_id": number, "id": 10 * j + i, "caption": s} for j, s in enumerate(sentences)
        ]
        karpathy.append(
            {
                "filepath": "val2014",
                "filename": file,
                "cocoid": number,
                "imgid": i,
                "sentids": [],
                "split": ["test", "val", "test", "restval"][i],
                "sentences": [{"raw": s, "imgid": i, "tokens": []} for s in sentences],
            }
        )
    annotations.sort(key=lambda a: a["id"])
    put(
        base / "annotations" / "captions_val2014.json",
        json.dumps({"info": {}, "images": images, "licenses": [], "annotations": annotations}),
    )
    put(
        root / "karpathy" / "dataset_coco.json", json.dumps({"images": karpathy, "dataset": "coco"})
    )
    put(out / "coco" / "val2014.zip", zip_folder(base, ["val2014"]))
    put(out / "coco" / "annotations_trainval2014.zip", zip_folder(base, ["annotations"]))


def flickr(root, out, spec):
    base = root / "flickr30k"
    token, table, karpathy = "", "image_name| comment_number| comment\n", []
    for i, (number, thing) in enumerate(
        zip([1000092795, 36979, 4995, 10002456], ["girl", "guitar", "market", "jump"])
    ):
        file = f"{number}.jpg"
        put(base / "flickr30k-images" / file, jpeg())
        sentences = [c.format(thing).strip() for c in CAPTIONS]
        for j, s in enumerate(sentences):
            token += f"{file}#{j}\t{s}\n"
            table += f"{file}| {j}| {s}\n"
        karpathy.append(
            {
                "filename": file,
                "imgid": i,
                "split": ["test", "train", "test", "val"][i],
                "sentences": [{"raw": s, "imgid": i, "tokens": []} for s in sentences],
            }
        )
    put(base / "results_20130124.token", token)
    put(root / "karpathy" / "results.csv", table)
    put(
        root / "karpathy" / "dataset_flickr30k.json",
        json.dumps({"images": karpathy, "dataset": "flickr30k"}),
    )
    put(out / "flickr30k" / "flickr30k.tar.gz", gz(tar_bytes(base, ["results_20130124.token"])))
    put(out / "flickr30k" / "flickr30k-images.tar.gz", gz(tar_bytes(base, ["flickr30k-images"])))
    put(
        out / "caption_datasets.zip",
        zip_bytes(
            [
                (f"{n}", (root / "karpathy" / n).read_bytes())
                for n in ["dataset_coco.json", "dataset_flickr30k.json"]
            ]
        ),
    )
    put(out / "karpathy" / "results.csv", table)


# Samples read by torchvision ---------------------------------------------------------------------


def files(paths, labels, root):
    return [
        [Path(p).relative_to(root).as_posix(), int(label)]
        for p, label in zip(paths, labels, strict=True)
    ]


def pixels(arrays, labels):
    return [
        [hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest()[:16], int(label)]
        for a, label in zip(arrays, labels, strict=True)
    ]


def halves(samples):
    """As collections.py:122-130 of GNSP."""
    n = int(0.8 * len(samples))
    split = torch.utils.data.random_split(
        samples, [n, len(samples) - n], generator=torch.Generator().manual_seed(42)
    )
    return {
        name: [samples[i] for i in part.indices] for name, part in zip(["train", "test"], split)
    }


def expected(root):
    for module in [tv.cifar, tv.flowers102]:
        module.check_integrity = lambda path, md5=None: Path(path).is_file()
    want = {}

    def official(key, read, train, test):
        want[key] = {"train": read(train), "test": read(test)}

    def listed(make, attributes):
        def read(split):
            data = make(split)
            paths, labels = (getattr(data, a) for a in attributes)
            return files(paths, labels, root)

        return read

    official(
        "Aircraft",
        listed(lambda s: tv.FGVCAircraft(root, split=s), ["_image_files", "_labels"]),
        "train",
        "test",
    )
    official(
        "DTD", listed(lambda s: tv.DTD(root, split=s), ["_image_files", "_labels"]), "train", "test"
    )
    official(
        "Flowers",
        listed(lambda s: tv.Flowers102(root, split=s), ["_image_files", "_labels"]),
        "train",
        "test",
    )
    official(
        "Food",
        listed(lambda s: tv.Food101(root, split=s), ["_image_files", "_labels"]),
        "train",
        "test",
    )
    official(
        "OxfordPet",
        listed(lambda s: tv.OxfordIIITPet(root, split=s), ["_images", "_labels"]),
        "trainval",
        "test",
    )

    def cars_samples(split):
        samples = tv.StanfordCars(root, split=split)._samples
        return files([p for p, _ in samples], [label for _, label in samples], root)

    official("StanfordCars", cars_samples, "train", "test")
    for key, make in [("CIFAR10", tv.CIFAR10), ("CIFAR100", tv.CIFAR100)]:

        def read(train):
            data = make(root, train=train)
            return pixels(data.data, data.targets)

        official(key, read, True, False)

    def digits(train):
        data = tv.MNIST(root, train=train)
        return pixels(data.data.numpy(), data.targets)

    official("MNIST", digits, True, False)

    data = tv.Caltech101(root)
    paths = [
        Path(data.root) / "101_ObjectCategories" / data.categories[y] / f"image_{i:04d}.jpg"
        for y, i in zip(data.y, data.index)
    ]
    want["Caltech101"] = halves(files(paths, data.y, root))
    data = tv.EuroSAT(root)
    want["EuroSAT"] = halves(
        files([p for p, _ in data.samples], [y for _, y in data.samples], root)
    )
    data = tv.SUN397(root)
    want["SUN397"] = halves(
        sorted(files(data._image_files, data._labels, root), key=lambda s: s[0].encode())
    )

    base = root / "ImageNet1K"
    data = tv.ImageFolder(base / "ILSVRC2012_img_train")
    lemmas = dict(row.split("\t") for row in (base / "labels.txt").read_text().splitlines())
    pairs = []
    for path, y in data.samples:
        name = lemmas[data.classes[y]].split(",")[0]
        pairs.append(
            [
                Path(path).relative_to(root).as_posix(),
                f"a photo of a{'n' if name[0].lower() in 'aeiou' else ''} {name}",
            ]
        )
    want["ImageNet"] = {"reference": pairs, "classes": data.classes}

    annotations = json.loads((root / "coco" / "annotations" / "captions_val2014.json").read_text())
    names = {i["id"]: i["file_name"] for i in annotations["images"]}
    captions = {}
    for a in annotations["annotations"]:
        captions.setdefault(a["image_id"], []).append(a["caption"])
    # Images by id, captions of an image in file order: torchvision's CocoCaptions.
    want["COCO"] = [[f"coco/val2014/{names[i]}", captions[i]] for i in sorted(names)]
    data = tv.Flickr30k(
        str(root / "flickr30k" / "flickr30k-images"),
        str(root / "flickr30k" / "results_20130124.token"),
    )
    want["Flickr30k"] = [[f"flickr30k/flickr30k-images/{i}", data.annotations[i]] for i in data.ids]
    return want


def main():
    specs, out = Path(sys.argv[1]), Path(sys.argv[2])
    unpacked = Path(sys.argv[3] if len(sys.argv) > 3 else tempfile.mkdtemp())
    for folder in [out, unpacked]:
        shutil.rmtree(folder, ignore_errors=True)
    makers = {
        "aircraft": aircraft,
        "caltech101": caltech,
        "cifar100": lambda r, o, s: cifar(r, o, s, True),
        "dtd": dtd,
        "eurosat": eurosat,
        "flowers": flowers,
        "food": food,
        "mnist": mnist,
        "oxfordpet": pets,
        "stanfordcars": cars,
        "sun397": sun,
        "cifar10": lambda r, o, s: cifar(r, o, s, False),
        "imagenet": imagenet,
        "coco": coco,
        "flickr30k": flickr,
    }
    for key, make in makers.items():
        make(unpacked, out, tomllib.loads((specs / f"{key}.toml").read_text(encoding="utf-8")))
    rows = []
    for key, value in expected(unpacked).items():
        rows.append(f"{json.dumps(key)}: {json.dumps(value)}")
    put(out / "expected.json", "{\n" + ",\n".join(rows) + "\n}\n")


main()
