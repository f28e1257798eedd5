"""Generator of crates/mtil-data/datasets/*.toml: the datasets of MTIL, CIFAR10, ImageNet and the caption sets.

Run:   python tests/reference/mtil_toml.py PROMPTS.json crates/mtil-data/datasets
Made with: Python 3.11, open_clip_torch 3.3.0, timm 1.0.31, torchvision 0.29.2.

PROMPTS.json has, for each of the eleven datasets, `classnames` (in label order, as used in
prompts), `raw_classnames` (as in the files of the dataset, if they contain names), `templates`,
`n_train` and `n_test`, collected from ZSCL's mtil/src/datasets/collections.py (MIT). CIFAR10's
names are those of torchvision (BSD-3-Clause). ImageNet's names and templates are OpenAI's (MIT),
taken from open_clip; its synsets and their WordNet lemmas are taken from timm. Counts of the CoOp
splits: Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022, appendix A.
"""

import json
import sys
from pathlib import Path

import timm
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

VGG = "https://www.robots.ox.ac.uk/~vgg/data"
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def archive(file, mount="", inner=None):
    return {"file": file, "mount": mount} | ({"inner": inner} if inner else {})


def coop(split, folders, images, train, val, test, classes):
    """`folders`: candidate folders of the split file; `images`: candidate base folders of its
    paths.
    """
    return dict(
        files=[f"{f}/{split}" for f in folders],
        images=images,
        train=train,
        val=val,
        test=test,
        classes=classes,
    )


# crates/mtil-data/src/datasets/spec.rs documents the keys of an entry.
DATASETS = {
    "Aircraft": dict(
        title="FGVC-Aircraft 2013b, variants",
        get=[f"{VGG}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz"],
        terms="non-commercial research only; the photographers keep their copyright",
        layout="data/variants.txt, data/images_variant_{train,test}.txt, data/images/ID.jpg",
        split="official train and test; val is not used",
        bases=["fgvc-aircraft-2013b/data", "fgvc_aircraft"],
        marker="variants.txt",
        archives=[archive("fgvc-aircraft-2013b.tar.gz")],
    ),
    "Caltech101": dict(
        title="Caltech 101",
        get=["https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip"],
        terms="CC BY 4.0",
        layout="101_ObjectCategories/CATEGORY/image_NNNN.jpg; BACKGROUND_Google is left out",
        split="80/20 by torch.randperm with seed 42",
        bases=["caltech101/101_ObjectCategories", "caltech-101/101_ObjectCategories"],
        archives=[
            archive("101_ObjectCategories.tar.gz", "caltech101"),
            archive("101_ObjectCategories.tar.gz", "caltech-101"),
            archive("caltech-101.zip", "caltech101", "caltech-101/101_ObjectCategories.tar.gz"),
        ],
        coop=coop(
            "split_zhou_Caltech101.json",
            ["caltech-101", "caltech101"],
            ["caltech-101/101_ObjectCategories", "caltech101/101_ObjectCategories"],
            4128,
            1649,
            2465,
            100,
        ),
    ),
    "CIFAR100": dict(
        title="CIFAR-100, fine labels",
        get=["https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"],
        terms="not stated on its page, which asks to cite the technical report",
        layout="cifar-100-python/{train,test,meta}",
        split="official train and test",
        bases=["cifar-100-python"],
        marker="meta",
        archives=[archive("cifar-100-python.tar.gz")],
    ),
    "DTD": dict(
        title="Describable Textures Dataset r1.0.1",
        get=[f"{VGG}/dtd/download/dtd-r1.0.1.tar.gz"],
        terms="made available for research purposes",
        layout="labels/{train,test}1.txt, images/CLASS/FILE.jpg",
        split="official train and test of partition 1; val is not used",
        bases=["dtd/dtd", "dtd"],
        marker="labels/train1.txt",
        archives=[archive("dtd-r1.0.1.tar.gz", "dtd")],
        coop=coop(
            "split_zhou_DescribableTextures.json",
            ["dtd", "dtd/dtd"],
            ["dtd/images", "dtd/dtd/images"],
            2820,
            1128,
            1692,
            47,
        ),
    ),
    "EuroSAT": dict(
        title="EuroSAT, RGB",
        get=[
            "https://madm.dfki.de/files/sentinel/EuroSAT.zip",
            "https://zenodo.org/records/7711810/files/EuroSAT_RGB.zip",
        ],
        terms="MIT; the Sentinel-2 data are free to use under the Copernicus terms",
        layout="2750/CLASS/CLASS_N.jpg",
        split="80/20 by torch.randperm with seed 42",
        bases=["eurosat/2750", "eurosat/EuroSAT_RGB", "EuroSAT_RGB"],
        archives=[archive("EuroSAT.zip", "eurosat"), archive("EuroSAT_RGB.zip", "eurosat")],
        coop=coop(
            "split_zhou_EuroSAT.json",
            ["eurosat"],
            ["eurosat/2750", "eurosat/EuroSAT_RGB"],
            13500,
            5400,
            8100,
            10,
        ),
    ),
    "Flowers": dict(
        title="Oxford 102 Flowers",
        get=[
            f"{VGG}/flowers/102/102flowers.tgz",
            f"{VGG}/flowers/102/imagelabels.mat",
            f"{VGG}/flowers/102/setid.mat",
        ],
        terms="not stated on its page",
        layout="imagelabels.mat, setid.mat, jpg/image_NNNNN.jpg",
        split="official train and test; valid is not used",
        bases=["flowers-102", "oxford_flowers"],
        marker="setid.mat",
        archives=[
            archive("102flowers.tgz", "flowers-102"),
            archive("102flowers.tgz", "oxford_flowers"),
        ],
        coop=coop(
            "split_zhou_OxfordFlowers.json",
            ["oxford_flowers", "flowers-102"],
            ["oxford_flowers/jpg", "flowers-102/jpg"],
            4093,
            1633,
            2463,
            102,
        ),
    ),
    "Food": dict(
        title="Food-101",
        get=["http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz"],
        terms=(
            "images of Foodspotting users; scientific fair use only (license_agreement.txt "
            "in the archive)"
        ),
        layout="food-101/meta/{train,test}.json, food-101/images/CLASS/ID.jpg",
        split="official train and test",
        bases=["food-101"],
        marker="meta/train.json",
        archives=[archive("food-101.tar.gz")],
        coop=coop(
            "split_zhou_Food101.json", ["food-101"], ["food-101/images"], 50500, 20200, 30300, 101
        ),
    ),
    "MNIST": dict(
        title="MNIST",
        get=["https://ossci-datasets.s3.amazonaws.com/mnist/"],
        terms="CC BY-SA 3.0",
        layout="MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte, each as it is or with .gz",
        split="official train and test",
        bases=["MNIST/raw", "MNIST", "mnist"],
    ),
    "OxfordPet": dict(
        title="Oxford-IIIT Pet",
        get=[f"{VGG}/pets/data/images.tar.gz", f"{VGG}/pets/data/annotations.tar.gz"],
        terms="CC BY-SA 4.0; the images keep their owners' copyright",
        layout="annotations/{trainval,test}.txt, images/ID.jpg",
        split="official trainval and test",
        bases=["oxford-iiit-pet", "oxford_pets"],
        marker="annotations/trainval.txt",
        archives=[
            archive(f"{name}.tar.gz", mount)
            for mount in ["oxford-iiit-pet", "oxford_pets"]
            for name in ["annotations", "images"]
        ],
        coop=coop(
            "split_zhou_OxfordPets.json",
            ["oxford_pets", "oxford-iiit-pet"],
            ["oxford_pets/images", "oxford-iiit-pet/images"],
            2944,
            736,
            3669,
            37,
        ),
    ),
    "StanfordCars": dict(
        title="Stanford Cars",
        get=[
            "https://ai.stanford.edu/~jkrause/cars/car_dataset.html (offline; the files are "
            "car_devkit.tgz, cars_train.tgz, "
            "cars_test.tgz and cars_test_annos_withlabels.mat)"
        ],
        terms="the page is offline; distributed for research",
        layout=(
            "devkit/{cars_meta,cars_train_annos}.mat, cars_test_annos_withlabels.mat, "
            "cars_{train,test}/NNNNN.jpg"
        ),
        split="official train and test",
        bases=["stanford_cars"],
        marker="devkit/cars_meta.mat",
        archives=[
            archive(name, "stanford_cars")
            for name in ["car_devkit.tgz", "cars_train.tgz", "cars_test.tgz"]
        ],
        coop=coop(
            "split_zhou_StanfordCars.json",
            ["stanford_cars"],
            ["stanford_cars"],
            6509,
            1635,
            8041,
            196,
        ),
    ),
    "SUN397": dict(
        title="SUN397",
        get=["http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz"],
        terms="not stated on its page; the images were collected from the web",
        layout="SUN397/ClassName.txt, SUN397/LETTER/CLASS[/PLACE]/sun_*.jpg",
        split="80/20 by torch.randperm with seed 42",
        bases=["SUN397", "sun397/SUN397"],
        marker="ClassName.txt",
        archives=[archive("SUN397.tar.gz"), archive("SUN397.tar.gz", "sun397")],
        coop=coop(
            "split_zhou_SUN397.json",
            ["sun397", "SUN397"],
            ["sun397/SUN397", "SUN397"],
            15880,
            3970,
            19850,
            397,
        ),
    ),
    "CIFAR10": dict(
        title="CIFAR-10",
        get=["https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"],
        terms="not stated on its page, which asks to cite the technical report",
        layout="cifar-10-batches-py/{data_batch_1,…,data_batch_5,test_batch,batches.meta}",
        split="official train and test",
        bases=["cifar-10-batches-py"],
        marker="batches.meta",
        archives=[archive("cifar-10-python.tar.gz")],
    ),
    "ImageNet": dict(
        title="ImageNet-1k (ILSVRC 2012)",
        get=[
            "https://image-net.org/download-images.php (after registration)",
            "https://www.kaggle.com/c/imagenet-object-localization-challenge",
        ],
        terms="non-commercial research and education, by agreement with the ImageNet team",
        layout=(
            "ImageNet1K/ILSVRC2012_img_train/SYNSET/*.JPEG, and the same below ILSVRC2012_img_val"
        ),
        split="official train and val",
        bases=[
            f"{base}{half}"
            for base, half in [
                ("ImageNet1K/ILSVRC2012_img_", "train"),
                ("ImageNet1K/", "train"),
                ("imagenet/images/", "train"),
                ("imagenet/", "train"),
                ("ILSVRC/Data/CLS-LOC/", "train"),
                ("ILSVRC2012_img_", "train"),
                ("", "train"),
            ]
        ],
    ),
    "COCO": dict(
        title=(
            "MS COCO captions, 2014 validation (5 captions an image); 2017 where only that is there"
        ),
        get=[
            "http://images.cocodataset.org/zips/val2014.zip",
            "http://images.cocodataset.org/annotations/annotations_trainval2014.zip",
        ],
        terms="annotations CC BY 4.0; the images are under the terms their owners chose on Flickr",
        layout=(
            "coco/annotations/captions_val2014.json, coco/val2014/*.jpg; "
            "coco/dataset_coco.json for Karpathy's test split"
        ),
        split="validation, or Karpathy's test split of 5,000 images where its file is there",
        bases=["coco", "COCO", "mscoco"],
        archives=[
            archive(name, mount)
            for mount in ["coco", "COCO", "mscoco"]
            for name in [
                "annotations_trainval2014.zip",
                "val2014.zip",
                "annotations_trainval2017.zip",
                "val2017.zip",
                "caption_datasets.zip",
            ]
        ],
    ),
    "Flickr30k": dict(
        title="Flickr30k captions (5 captions an image)",
        get=["https://shannon.cs.illinois.edu/DenotationGraph/ (by request)"],
        terms="non-commercial research and education; the images are under the terms of Flickr",
        layout=(
            "flickr30k/flickr30k-images/ID.jpg with flickr30k/results_20130124.token, "
            "results.csv or dataset_flickr30k.json"
        ),
        split="all images, or Karpathy's test split of 1,000 where its file is there",
        bases=["flickr30k", "Flickr30k", "flickr30k_images"],
        archives=[
            archive(name, mount)
            for mount in ["flickr30k", "Flickr30k"]
            for name in [
                "flickr30k.tar.gz",
                "flickr30k-images.tar.gz",
                "flickr30k-images.tar",
                "caption_datasets.zip",
            ]
        ],
    ),
    "ConceptualCaptions": dict(
        title="Conceptual Captions, validation",
        get=[
            "https://ai.google.com/research/ConceptualCaptions/download (captions and "
            "addresses of the images)"
        ],
        terms=(
            "the captions are free to use with attribution to Google LLC; the images are "
            "their owners'"
        ),
        layout=(
            "conceptual_captions/: a table of tab-separated caption and file with the images "
            "it names"
        ),
        split="all pairs whose image is there",
        bases=["conceptual_captions", "cc", "CC3M"],
    ),
}


def text(value):
    # A JSON string is a TOML basic string.
    return json.dumps(value, ensure_ascii=False)


def strings(values):
    return "[\n" + "".join(f"    {text(v)},\n" for v in values) + "]"


def line(values):
    return "[" + ", ".join(text(v) for v in values) + "]"


def write(key, entry, out):
    lines = [
        "# Generated by tests/reference/mtil_toml.py. README.md: sources of names and templates."
    ]
    lines += [
        f"{k} = {text(v)}"
        for k, v in [("key", key)] + [(k, entry[k]) for k in ["title", "terms", "layout", "split"]]
    ]
    lines += [f"get = {strings(entry['get'])}", f"bases = {line(entry['bases'])}"]
    if "marker" in entry:
        lines.append(f"marker = {text(entry['marker'])}")
    for name in ["train", "test"]:
        if name in entry:
            lines.append(f"{name} = {entry[name]}")
    for name in ["templates", "classes", "raw", "lemmas"]:
        if entry.get(name):
            lines.append(f"{name} = {strings(entry[name])}")
    for one in entry.get("archives", []):
        lines += ["", "[[archive]]"] + [f"{k} = {text(v)}" for k, v in one.items()]
    if "coop" in entry:
        c = entry["coop"]
        lines += [
            "",
            "# Splits of CoOp: split files, base folders of their paths, and published sizes.",
            "[coop]",
        ]
        lines += [f"{k} = {line(c[k])}" for k in ["files", "images"]] + [
            f"{k} = {c[k]}" for k in ["train", "val", "test", "classes"]
        ]
    (out / f"{key.lower()}.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main():
    prompts = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    out = Path(sys.argv[2])
    for key, given in prompts.items():
        entry = DATASETS[key]
        entry |= dict(
            train=given["n_train"],
            test=given["n_test"],
            templates=given["templates"],
            classes=given["classnames"],
            raw=given.get("raw_classnames"),
        )
        if entry["raw"] == entry["classes"]:
            entry["raw"] = None
    DATASETS["CIFAR10"] |= dict(
        train=50000, test=10000, templates=prompts["CIFAR100"]["templates"], classes=CIFAR10
    )

    info = Path(timm.__file__).parent / "data" / "_info"
    synsets = (info / "imagenet_synsets.txt").read_text().split()
    lemmas = dict(
        row.split("\t") for row in (info / "imagenet_synset_to_lemma.txt").read_text().splitlines()
    )
    DATASETS["ImageNet"] |= dict(
        train=1281167,
        test=50000,
        templates=[t("{}") for t in OPENAI_IMAGENET_TEMPLATES],
        classes=list(IMAGENET_CLASSNAMES),
        raw=synsets,
        lemmas=[lemmas[s].split(",")[0].replace("_", " ").strip() for s in synsets],
    )
    for key, entry in DATASETS.items():
        write(key, entry, out)


main()
