"""Fixtures of the dataset formats: archives, pickles, MAT-files and IDX files.

Writes the folder given as argument (crates/mtil-data/src/datasets/testdata), about 135 KB, the same
bytes each time:

    python tests/reference/dataset_formats.py crates/mtil-data/src/datasets/testdata

Versions: Python 3.11, numpy 2.4, scipy 1.17. `archives.json` lists, for each archive, the entries
that Python's tarfile or zipfile reads from it: path -> [size, CRC-32].
"""

import gzip
import io
import json
import pickle
import struct
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import scipy.io


def content(name: str, size: int) -> bytes:
    """Half noise, half repetitive, so that deflate writes literals as well as copies."""
    state, out = zlib.crc32(name.encode()), bytearray()
    for i in range(size):
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        out.append((state >> 16) & (0xFF if i // 64 % 2 else 0x03))
    return bytes(out)


LONG = "images/" + "long" * 30 + "/" + "name" * 30 + ".jpg"
FILES = {
    "meta/train.txt": 300,
    "images/a/1.jpg": 5000,
    "images/a/10.jpg": 0,
    "images/a/2.jpg": 512,
    "images/b c/3.jpg": 1500,
}


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", **fields) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(data))


def tar(format: int, files: dict[str, int], extra=lambda archive: None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        add(archive, "set", type=tarfile.DIRTYPE)
        for name, size in files.items():
            add(archive, f"set/{name}", content(name, size))
        extra(archive)
    # Less padding than the 10 KiB records of tarfile.
    return out.getvalue().rstrip(b"\0") + bytes(1024 + -len(out.getvalue().rstrip(b"\0")) % 512)


def links(archive: tarfile.TarFile) -> None:
    add(archive, "set/images/hard.jpg", type=tarfile.LNKTYPE, linkname="set/images/a/1.jpg")
    add(archive, "set/images/soft.jpg", type=tarfile.SYMTYPE, linkname="a/../a/2.jpg")
    add(archive, "set/images/chain.jpg", type=tarfile.SYMTYPE, linkname="soft.jpg")
    add(archive, "set/images/loop.jpg", type=tarfile.SYMTYPE, linkname="loop.jpg")
    add(archive, "set/images/out.jpg", type=tarfile.SYMTYPE, linkname="../../../../etc/passwd")
    add(archive, "set/images/absolute.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")
    add(archive, "set/images/dangling.jpg", type=tarfile.SYMTYPE, linkname="nothing.jpg")
    add(archive, "set/images/null", type=tarfile.CHRTYPE)
    add(archive, "set/images/pipe", type=tarfile.FIFOTYPE)


def zipped(files: dict[str, tuple[bytes, int]], link: bool = False) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(zipfile.ZipInfo("set/"), b"")
        for name, (data, method) in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=method)
        if link:
            info = zipfile.ZipInfo("set/images/soft.jpg")
            info.external_attr = 0o120777 << 16
            archive.writestr(info, "a/2.jpg")
    return out.getvalue()


def read_tar(data: bytes) -> dict[str, list[int]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        found = {}
        for member in archive.getmembers():
            if member.isreg() or member.islnk() or member.name.endswith(("soft.jpg", "chain.jpg")):
                data = archive.extractfile(member).read()
                found[member.name] = [len(data), zlib.crc32(data)]
        return found


def read_zip(data: bytes) -> dict[str, list[int]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [n for n in archive.namelist() if not n.endswith("/")]
        found = {n: archive.read(n) for n in names}
        if "set/images/soft.jpg" in found:
            found["set/images/soft.jpg"] = found["set/images/a/2.jpg"]
        return {n: [len(d), zlib.crc32(d)] for n, d in found.items()}


def archives(out: Path) -> None:
    long = FILES | {LONG: 700}
    pack = lambda data: gzip.compress(data, mtime=0)
    ustar = tar(tarfile.USTAR_FORMAT, FILES, links)
    half = len(ustar) // 2
    made = {
        "ustar.tar": ustar,
        "gnu.tar": tar(tarfile.GNU_FORMAT, long),
        "pax.tar": tar(tarfile.PAX_FORMAT, long | {"images/Grüße.jpg": 40}),
        "one.tgz": pack(ustar),
        # Two gzip members with the boundary within a file, a name, a comment, and trailing zeros.
        "two.tgz": pack(ustar[:half])
        + b"\x1f\x8b\x08\x1c\0\0\0\0\0\x03\x03\0ABCname\0comment\0"
        + pack(ustar[half:])[10:]
        + bytes(100),
        "big.tgz": pack(
            tar(tarfile.GNU_FORMAT, {f"images/{i}.jpg": 3000 + 100 * i for i in range(12)})
        ),
        "some.zip": zipped(
            {
                f"set/{n}": (
                    content(n, s),
                    zipfile.ZIP_STORED if n.endswith("1.jpg") else zipfile.ZIP_DEFLATED,
                )
                for n, s in FILES.items()
            },
            link=True,
        ),
    }
    manifest = {n: (read_zip if n.endswith("zip") else read_tar)(d) for n, d in made.items()}
    for method, name in [(zipfile.ZIP_STORED, "stored"), (zipfile.ZIP_DEFLATED, "deflated")]:
        made[f"nested-{name}.zip"] = zipped(
            {
                "outer/inner.tar.gz": (made["one.tgz"], method),
                "outer/readme.txt": (b"hello", method),
            }
        )
        manifest[f"nested-{name}.zip"] = manifest["one.tgz"]
    for name, data in made.items():
        (out / name).write_bytes(data)
    (out / "archives.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=True) + "\n")


def python2(rows: int) -> bytes:
    """A pickle as cPickle of Python 2 writes it with protocol 2, the format of CIFAR.

    Python 3 has no writer for it.
    """
    text = lambda s: b"U" + bytes([len(s)]) + s.encode()
    number = lambda n: b"K" + bytes([n]) if n < 256 else b"M" + struct.pack("<H", n)
    pixels = bytes(i * 7 % 251 for i in range(rows * 3072))
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x04cnumpy\nndarray\nq\x05"
        b"K\x00\x85U\x01b\x87Rq\x06(K\x01"
        + number(rows)
        + number(3072)
        + b"\x86cnumpy\ndtype\nq\x07U\x02u1K\x00K\x01\x87Rq\x08"
        + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<I", len(pixels))
        + pixels
        + b"tb"
    )
    labels = b"]q\x09(" + b"".join(number(i * 13 % 100) for i in range(rows)) + b"e"
    names = b"]q\x0a(" + b"".join(text(f"image_{i}.png") for i in range(rows)) + b"e"
    data = (
        b"\x80\x02}q\x01("
        + text("data")
        + array
        + text("fine_labels")
        + labels
        + text("filenames")
        + names
    )
    data += text("batch_label") + text("training batch 1 of 1") + b"u."
    back = pickle.loads(data, encoding="bytes")
    assert (
        back[b"data"].shape == (rows, 3072)
        and back[b"data"].tobytes() == pixels
        and len(back[b"filenames"]) == rows
    )
    return data


def pickles(out: Path) -> None:
    (out / "cifar-python2.pkl").write_bytes(python2(2))
    values = {
        "none": None,
        "true": True,
        "int": -(2**40),
        "small": 7,
        "float": 0.1,
        "text": "Grüße",
        b"bytes": b"\x00\xff",
        "list": [1, [2, (3,)]],
        "dict": {1: "one"},
        "scalars": [np.uint8(200), np.int16(-3), np.float32(0.5), np.bool_(True)],
        "array": np.arange(6, dtype="u1").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(24, dtype="<i2").reshape(2, 3, 4)),
        "big": np.arange(4, dtype=">i4"),
        "floats": np.array([0.5, -1.5], dtype="<f4"),
        "empty": np.zeros((0, 3), "u1"),
    }
    for protocol in (2, 3, 4, 5):
        (out / f"values-{protocol}.pkl").write_bytes(pickle.dumps(values, protocol))


def big_endian() -> bytes:
    """Swaps the byte order, because scipy writes only that of the machine."""

    def element(kind: int, data: bytes) -> bytes:
        if 0 < len(data) <= 4:
            return struct.pack(">HH", len(data), kind) + data.ljust(4, b"\0")
        return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)

    def array(cls: int, dims: tuple[int, ...], name: str, body: bytes) -> bytes:
        parts = element(6, struct.pack(">II", cls, 0)) + element(
            5, struct.pack(f">{len(dims)}i", *dims)
        )
        return element(14, parts + element(1, name.encode()) + body)

    data = b"MATLAB 5.0 MAT-file, big-endian".ljust(124) + b"\x01\x00MI"
    data += array(6, (2, 2), "numbers", element(9, struct.pack(">4d", 1, 2.5, -3, 4e9)))
    # Doubles stored in fewer bytes, as MATLAB stores whole numbers.
    data += array(6, (1, 3), "whole", element(4, struct.pack(">3H", 1, 300, 65535)))
    packed = array(4, (1, 4), "text", element(16, "Grüß".encode()))
    data += struct.pack(">II", 15, len(zlib.compress(packed))) + zlib.compress(packed)
    back = scipy.io.loadmat(io.BytesIO(data))
    assert (back["numbers"] == [[1, -3], [2.5, 4e9]]).all() and (
        back["whole"] == [[1, 300, 65535]]
    ).all()
    assert back["text"][0] == "Grüß"
    return data


def matlab(out: Path) -> None:
    annotations = np.zeros(
        (1, 3), dtype=[("bbox_x1", object), ("class", object), ("fname", object)]
    )
    for i, (x, label, name) in enumerate(
        [(39, 14, "00001.jpg"), (300, 3, "00002.jpg"), (70000, 196, "00003.jpg")]
    ):
        annotations[0, i] = (x, label, name)
    values = {
        "annotations": annotations,
        "class_names": np.array(
            ["AM General Hummer SUV 2000", "Ram C/V", "Grüße"], dtype=object
        ).reshape(1, 3),
        "matrix": np.arange(6, dtype="f8").reshape(2, 3),
        "letters": np.array(["abc", "xyz"]),
        "empty": np.zeros((0, 0)),
        "nested": {"inner": {"deep": np.int32(5)}},
    }
    for kind in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", "?"):
        values["kind_" + kind.replace("?", "b")] = np.array([[0, 1, 100]], dtype=kind)
    for compressed in (False, True):
        file = io.BytesIO()
        scipy.io.savemat(file, values, do_compression=compressed)
        data = file.getvalue()
        # The header contains the date.
        data = b"MATLAB 5.0 MAT-file, fixture".ljust(116) + data[116:]
        (out / f"values-{'compressed' if compressed else 'plain'}.mat").write_bytes(data)
    (out / "big-endian.mat").write_bytes(big_endian())
    for name, value in {
        "complex": np.array([[1j]]),
        "sparse": scipy.sparse.csc_matrix(np.eye(2)),
    }.items():
        file = io.BytesIO()
        scipy.io.savemat(file, {name: value})
        (out / f"{name}.mat").write_bytes(
            b"MATLAB 5.0 MAT-file, fixture".ljust(116) + file.getvalue()[116:]
        )
    file = io.BytesIO()
    scipy.io.savemat(file, {"labels": np.arange(3.0)}, format="4")
    (out / "level-4.mat").write_bytes(file.getvalue())


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    archives(out)
    pickles(out)
    matlab(out)
    idx = b"\0\0\x08\x02" + struct.pack(">2I", 2, 3) + b"abcdef"
    (out / "images-idx2-ubyte.gz").write_bytes(gzip.compress(idx, mtime=0))


if __name__ == "__main__":
    main()
