#!/usr/bin/env python3
"""Small images of every kind, and their pixels in Pillow + torchvision and in transformers.

Writes, below OUT (crates/clip-model/tests/data/preprocess):
  src/*                 the source images (JPEG, PNG, WebP, BMP, GIF, TIFF)
  expected/*.png        8-bit RGB results
  cases.json            one entry per result: {"source", "pipeline", "size", "expected", "exact"}
  processor_*.json      preprocessor_config.json as transformers writes it, and an old form

pipeline
  before   image.convert("RGB"), then torchvision's Resize(size, BICUBIC) and CenterCrop(size) on
           the Pillow image, with the crop's offset rounded down as in transformers
  white    transformers' CLIPImageProcessor with its Pillow backend (transparency over white)
  after    torchvision's Compose([Resize(size, BICUBIC), CenterCrop(size)]), then convert("RGB")
  pillow12 as before, with the order of passes of Pillow up to version 12
  pad      torchvision's CenterCrop alone, larger than the image
  crop     image.convert("RGB"), crop of a fixed box, resize to size x size (the geometry of
           RandomResizedCrop)
"exact" is false where the decoders of lossy formats may differ.

Run:  python tests/reference/preprocess_cases.py OUT
Made with Python 3.11, Pillow 13.0.0, torchvision 0.29.2, transformers 5.24.0, numpy 2.4.6.

The script also prints the difference between transformers' default backend (torchvision on tensors)
and its Pillow backend.
"""

import io
import json
import os
import shutil
import struct
import sys
import zlib

import numpy as np
import torch
from PIL import Image, features
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

torch.set_num_threads(1)
out = sys.argv[1]
for sub in ("src", "expected"):
    shutil.rmtree(os.path.join(out, sub), ignore_errors=True)
    os.makedirs(os.path.join(out, sub))
rng = np.random.default_rng(20240611)


def picture(width, height, channels=3, noise=5):
    """Gradients, discs and a little noise: edges for the filter, small when compressed."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    planes = []
    for c in range(channels):
        v = 128 + 80 * np.sin(x / (5 + 3 * c) + c) + 60 * np.cos(y / (7 - c) + 2 * c)
        cx, cy, r = (
            width * (0.3 + 0.2 * c),
            height * (0.6 - 0.1 * c),
            max(2, min(width, height) * 0.25),
        )
        v = np.where((x - cx) ** 2 + (y - cy) ** 2 < r * r, 255 - v + 20 * c, v)
        planes.append(v + rng.normal(0, noise, v.shape))
    return np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)


def save(name, image, **options):
    image.save(os.path.join(out, "src", name), **options)


def write_png(name, width, height, depth, kind, rows, chunks=()):
    """Writes a PNG of a kind that Pillow cannot write."""

    def chunk(tag, data):
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    raw = b"".join(b"\0" + r for r in rows)
    with open(os.path.join(out, "src", name), "wb") as f:
        f.write(
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
        )
        for tag, data in chunks:
            f.write(chunk(tag, data))
        f.write(chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b""))


def interlaced_png(name, array):
    """Adam7: the seven passes one after the other."""
    height, width, _ = array.shape
    rows = []
    for x0, y0, dx, dy in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        part = array[y0::dy, x0::dx]
        if part.size:
            rows += [row.tobytes() for row in part]

    def chunk(tag, data):
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    raw = b"".join(b"\0" + r for r in rows)
    with open(os.path.join(out, "src", name), "wb") as f:
        f.write(
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1))
        )
        f.write(chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b""))


def grey(w, h, **k):
    return Image.fromarray(picture(w, h, 1, **k)[:, :, 0])


# Lossless: RGB of many shapes.
save("rgb_wide.png", Image.fromarray(picture(91, 40)))
save("rgb_tall.png", Image.fromarray(picture(41, 83)))
save("rgb_odd.png", Image.fromarray(picture(67, 59)))
save("rgb_small.png", Image.fromarray(picture(11, 9)))
save("rgb_exact.png", Image.fromarray(picture(56, 56)))
save("rgb_exact_side.png", Image.fromarray(picture(75, 56)))
save("rgb_one_wide.png", Image.fromarray(picture(1, 50)))
save("rgb_one_high.png", Image.fromarray(picture(70, 1)))
save("rgb_one_pixel.png", Image.fromarray(picture(1, 1)))
save("rgb_extreme.png", Image.fromarray(picture(700, 4)))
save("rgb_big.png", Image.fromarray(picture(311, 207, noise=0) // 16 * 16))
save("rgb_noise.png", Image.fromarray(rng.integers(0, 256, (64, 90, 3), dtype=np.uint8)))
save("rgb_edges.png", Image.fromarray((rng.integers(0, 2, (70, 57, 3)) * 255).astype(np.uint8)))
interlaced_png("rgb_interlaced.png", picture(45, 61))
write_png(
    "rgb_key.png",
    30,
    26,
    8,
    2,
    [
        r.tobytes()
        for r in np.repeat(np.repeat(rng.integers(0, 3, (13, 15, 3)) * 100, 2, 0), 2, 1).astype(
            np.uint8
        )
    ],
    [(b"tRNS", struct.pack(">HHH", 0, 100, 200))],
)
# Grey.
save("grey.png", grey(70, 63))
save("bit1.png", grey(75, 61).convert("1"))
write_png(
    "grey2.png",
    40,
    31,
    2,
    0,
    [rng.integers(0, 256, 10, dtype=np.uint8).tobytes() for _ in range(31)],
)
write_png(
    "grey4.png",
    41,
    33,
    4,
    0,
    [rng.integers(0, 256, 21, dtype=np.uint8).tobytes() for _ in range(33)],
)
ga = np.dstack([picture(60, 66, 1), picture(60, 66, 1)])
ga[:20, :, 1] = 0
ga[40:, :, 1] = 255
save("grey_alpha.png", Image.fromarray(ga, "LA"))
key = (picture(52, 47, 1, noise=0)[:, :, 0] // 64 * 64).astype(np.uint8)
write_png(
    "grey_key.png", 52, 47, 8, 0, [r.tobytes() for r in key], [(b"tRNS", struct.pack(">H", 128))]
)
# Sixteen bits.
deep = (
    picture(58, 49, 1)[:, :, 0].astype(np.uint16) * 257
    + rng.integers(0, 200, (49, 58)).astype(np.uint16)
    - 100
).astype(np.uint16)
write_png("grey16.png", 58, 49, 16, 0, [r.astype(">u2").tobytes() for r in deep])
write_png("grey16_dark.png", 58, 49, 16, 0, [(r // 200).astype(">u2").tobytes() for r in deep])
deep3 = rng.integers(0, 65536, (37, 43, 3)).astype(">u2")
write_png("rgb16.png", 43, 37, 16, 2, [r.tobytes() for r in deep3])
deep4 = np.dstack(
    [rng.integers(0, 65536, (30, 35, 3)), rng.integers(0, 65536, (30, 35, 1))]
).astype(">u2")
write_png("rgba16.png", 35, 30, 16, 6, [r.tobytes() for r in deep4])
deep2 = rng.integers(0, 65536, (33, 36, 2)).astype(">u2")
write_png("grey_alpha16.png", 36, 33, 16, 4, [r.tobytes() for r in deep2])
# Alpha and palettes.
rgba = picture(72, 65, 4)
rgba[:15, :, 3] = 0
rgba[50:, :, 3] = 255
save("rgba.png", Image.fromarray(rgba))
palette = Image.fromarray(picture(77, 68, noise=0)).quantize(23)
save("palette.png", palette)
palette.info["transparency"] = bytes([0, 60, 120, 255, 200])
save("palette_alpha.png", palette, transparency=palette.info["transparency"])
palette4 = Image.fromarray(picture(50, 71, noise=0)).quantize(7)
save("palette4.png", palette4, bits=4)
# WebP.
save("lossless.webp", Image.fromarray(picture(63, 80)), lossless=True, quality=100)
save("lossless_alpha.webp", Image.fromarray(rgba), lossless=True, exact=True)
save("lossy.webp", Image.fromarray(picture(81, 60)), quality=80)
save("lossy_alpha.webp", Image.fromarray(rgba), quality=80)
# JPEG.
photo = Image.fromarray(picture(120, 90, noise=6))
save("photo_420.jpg", photo, quality=88)
save("photo_422.jpg", photo, quality=88, subsampling=1)
save("photo_444.jpg", photo, quality=95, subsampling=0)
save("photo_low.jpg", photo, quality=25)
save("progressive.jpg", photo, quality=85, progressive=True)
save("odd.jpg", Image.fromarray(picture(61, 83, noise=6)), quality=90)
save("grey.jpg", grey(80, 64, noise=6), quality=90)
save("noise.jpg", Image.fromarray(rng.integers(0, 256, (60, 70, 3), dtype=np.uint8)), quality=75)
save("big.jpg", Image.fromarray(picture(320, 240, noise=3)), quality=80)
exif = Image.Exif()
exif[0x0112] = 6
save("exif_rotated.jpg", Image.fromarray(picture(90, 50, noise=6)), quality=90, exif=exif)
save("cmyk.jpg", Image.fromarray(picture(66, 60, 4, noise=6), "CMYK"), quality=92)


def adobe_ycck(name, source):
    """The same data declared as YCCK.

    libjpeg writes CMYK untransformed, so this converts the four planes to YCCK and sets the
    transform byte of the Adobe marker to 2.
    """
    planes = Image.fromarray(source, "RGB").convert("YCbCr")
    k = picture(source.shape[1], source.shape[0], 1, noise=6)
    four = np.dstack([np.asarray(planes), k])
    buffer = io.BytesIO()
    # Pillow inverts CMYK when writing.
    Image.fromarray(255 - four, "CMYK").save(buffer, "JPEG", quality=92)
    data = bytearray(buffer.getvalue())
    at = data.find(b"Adobe")
    if at < 0:
        adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x02"
        data[2:2] = adobe
    else:
        data[at + 11] = 2
    with open(os.path.join(out, "src", name), "wb") as f:
        f.write(data)


adobe_ycck("ycck.jpg", picture(60, 64, noise=6))
for p in ("cmyk.jpg", "ycck.jpg"):
    im = Image.open(os.path.join(out, "src", p))
    print(p, im.mode, im.info)


def rewritten(name, source, change):
    """Writes a copy of a source image with other bytes."""
    with open(os.path.join(out, "src", source), "rb") as f:
        data = f.read()
    with open(os.path.join(out, "src", name), "wb") as f:
        f.write(change(data))


# Damage that Pillow overlooks, and the restart markers of cameras.
def wrong_checksum(png):
    at = png.index(b"IDAT")
    end = at + 4 + struct.unpack(">I", png[at - 4 : at])[0]
    return png[:end] + bytes(b ^ 0xFF for b in png[end : end + 4]) + png[end + 4 :]


rewritten("rgb_odd_no_end.png", "rgb_odd.png", lambda png: png[:-12])
rewritten("palette4_no_checksum.png", "palette4.png", lambda png: png[:-16])
rewritten("rgb_odd_wrong_checksum.png", "rgb_odd.png", wrong_checksum)
save("restart.jpg", photo, quality=85, restart_marker_blocks=3)

# One picture in colour, with few colours and in grey, for all formats below.
shot = picture(45, 38, noise=0) // 8 * 8
height, width, _ = shot.shape
few = Image.fromarray(shot).quantize(23)
few16 = Image.fromarray(shot).quantize(16)
few2 = Image.fromarray(shot).quantize(2)
shade = shot[:, :, 0]
faded = np.dstack([shot, np.clip(np.arange(width) * 8, 0, 255)[None].repeat(height, 0)])
faded = faded.astype(np.uint8)


def packed(indices, bits):
    """Rows of indices with `bits` each, the first one in the highest bits."""
    planes = (indices[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1
    return [np.packbits(row.reshape(-1)).tobytes() for row in planes.astype(np.uint8)]


def colours(image, count):
    return np.asarray(image.getpalette()[: 3 * count], np.uint8).reshape(-1, 3)


def write_bmp(name, bits, data, palette=None, compression=0, extra=b"", header=40, down=False):
    """Writes a BMP; `data` is a list of rows from the top, or the compressed bytes.

    `extra` are the bytes of the header after the first 40, and the masks.
    """
    if isinstance(data, list):
        rows = [r + bytes(-len(r) % 4) for r in data]
        data = b"".join(rows if down else rows[::-1])
    table = b""
    if palette is not None:
        padding = b"" if header == 12 else b"\0"
        table = b"".join(c[::-1].tobytes() + padding for c in palette)
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        used = 0 if palette is None else len(palette)
        lines = -height if down else height
        info = struct.pack(
            "<IiiHHIIiiII", header, width, lines, 1, bits, compression, len(data), 0, 0, used, 0
        )
    start = 14 + len(info) + len(extra) + len(table)
    with open(os.path.join(out, "src", name), "wb") as f:
        f.write(b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start))
        f.write(info + extra + table + data)


def run_lengths(indices, bits):
    """Run-length encodes indices with every kind of code, with skipped pixels in the first rows."""
    code = b""
    for y, row in enumerate(indices[::-1].tolist()):
        if y == 0:
            code += bytes([0, 2, 3, 2])  # 3 pixels to the right, 2 rows up
            row = row[3:]
        elif y in (1, 2):
            continue
        x = 0
        while x < len(row):
            run = 1
            while x + run < len(row) and run < 200 and row[x + run] == row[x]:
                run += 1
            if run < 3 and x + 5 <= len(row):
                part = row[x : x + 5]
                if bits == 8:
                    code += bytes([0, 5] + part + [0])
                else:
                    a, b, c, d, e = part
                    code += bytes([0, 5, a << 4 | b, c << 4 | d, e << 4, 0])
                x += 5
                continue
            value = row[x] if bits == 8 else row[x] << 4 | row[x]
            code += bytes([run, value])
            x += run
        code += b"\0\0"
    return code[:-2] + b"\0\1"


def fields(red, green, blue, alpha=None):
    masks = (red, green, blue) if alpha is None else (red, green, blue, alpha)
    return struct.pack(f"<{len(masks)}I", *masks)


bgr = shot[:, :, ::-1]
rows = [r.tobytes() for r in bgr]
write_bmp("bmp24.bmp", 24, rows)
write_bmp("bmp24_down.bmp", 24, rows, down=True)
write_bmp("bmp24_core.bmp", 24, rows, header=12)
write_bmp("bmp24_os2.bmp", 24, rows, extra=bytes(24), header=64)
full = np.full((height, width, 1), 77, np.uint8)
write_bmp("bmp32.bmp", 32, [r.tobytes() for r in np.dstack([bgr, full])])
write_bmp(
    "bmp32_fields.bmp",
    32,
    [r.tobytes() for r in np.dstack([full, bgr])],
    compression=3,
    extra=fields(0xFF000000, 0xFF0000, 0xFF00),
)
write_bmp(
    "bmp32_alpha.bmp",
    32,
    [r.tobytes() for r in np.dstack([bgr, faded[:, :, 3:]])],
    compression=3,
    extra=fields(0xFF0000, 0xFF00, 0xFF, 0xFF000000) + bytes(52),
    header=108,
)
wide = shot.astype(np.uint16)
r5, g5, g6, b5 = wide[:, :, 0] >> 3, wide[:, :, 1] >> 3, wide[:, :, 1] >> 2, wide[:, :, 2] >> 3
write_bmp("bmp16_555.bmp", 16, [r.tobytes() for r in (r5 << 10 | g5 << 5 | b5).astype("<u2")])
write_bmp(
    "bmp16_565.bmp",
    16,
    [r.tobytes() for r in (r5 << 11 | g6 << 5 | b5).astype("<u2")],
    compression=3,
    extra=fields(0xF800, 0x7E0, 0x1F),
)
index, index16, index2 = np.asarray(few), np.asarray(few16), np.asarray(few2)
write_bmp("bmp8.bmp", 8, packed(index, 8), colours(few, 23))
write_bmp("bmp8_core.bmp", 8, packed(index, 8), np.resize(colours(few, 23), (256, 3)), header=12)
write_bmp("bmp8_v5.bmp", 8, packed(index, 8), colours(few, 23), extra=bytes(84), header=124)
write_bmp("bmp8_grey.bmp", 8, packed(shade, 8), np.arange(256)[:, None].repeat(3, 1).astype("u1"))
write_bmp("bmp8_rle.bmp", 8, run_lengths(index, 8), colours(few, 23), compression=1)
write_bmp("bmp4.bmp", 4, packed(index16, 4), colours(few16, 16))
write_bmp("bmp4_rle.bmp", 4, run_lengths(index16, 4), colours(few16, 16), compression=2)
write_bmp("bmp1.bmp", 1, packed(index2, 1), colours(few2, 2))
black = np.asarray([[0] * 3, [255] * 3], np.uint8)
write_bmp("bmp1_grey.bmp", 1, packed(index2, 1), black)


def without_offset(bmp):
    return bmp[:10] + bytes(4) + bmp[14:]


def short_ramp(bmp):
    """Leaves 3 of the 256 colours: Pillow reads the indices as grey, also those beyond them."""
    start, used = struct.pack("<I", 54 + 4 * 3), struct.pack("<I", 3)
    return bmp[:10] + start + bmp[14:46] + used + bmp[50 : 54 + 4 * 3] + bmp[54 + 4 * 256 :]


rewritten("bmp24_offset0.bmp", "bmp24.bmp", without_offset)
rewritten("bmp8_offset0.bmp", "bmp8.bmp", without_offset)
rewritten("bmp16_565_offset0.bmp", "bmp16_565.bmp", without_offset)
rewritten("bmp8_short_ramp.bmp", "bmp8_grey.bmp", short_ramp)

# GIF: the first frame; frames smaller and larger than the screen.
save("gif.gif", few, interlace=False)
save("gif_interlaced.gif", few, interlace=True)
save("gif_transparent.gif", few, transparency=3)
ramp = Image.fromarray(shade)
save("gif_grey.gif", ramp, optimize=False)
save("gif_grey_transparent.gif", ramp, optimize=False, transparency=int(shade[10, 10]))
save("gif_animated.gif", few, save_all=True, append_images=[few16, few2], duration=100)
save("gif_bit1.gif", few2)


def at_offset(left, top, screen):
    """Moves the only frame of a GIF on a screen of another size."""

    def change(gif):
        at = gif.index(b",\0\0\0\0" + struct.pack("<HH", width, height))
        gif = gif[:6] + struct.pack("<HH", *screen) + gif[10:]
        return gif[: at + 1] + struct.pack("<HH", left, top) + gif[at + 5 :]

    return change


rewritten("gif_offset.gif", "gif.gif", at_offset(9, 4, (60, 50)))
rewritten("gif_offset_transparent.gif", "gif_transparent.gif", at_offset(9, 4, (60, 50)))
rewritten("gif_larger.gif", "gif.gif", at_offset(5, 7, (30, 30)))


def with_colours(flags, count):
    """Leaves `count` of the 256 colours of a GIF."""

    def change(gif):
        assert gif[10] & 0x87 == 0x87
        gif = gif[:10] + bytes([gif[10] & 0x78 | flags]) + gif[11:]
        return gif[: 13 + 3 * count] + gif[13 + 3 * 256 :]

    return change


rewritten("gif_short_ramp.gif", "gif_grey.gif", with_colours(0x81, 4))
rewritten("gif_without_table.gif", "gif_grey_transparent.gif", with_colours(0, 0))


# TIFF.
def write_tiff(name, samples, order="<", photometric=2, bits=8, planar=1, more=(), side=None):
    """Writes an uncompressed TIFF of one strip, one strip a plane, or tiles of `side` pixels."""
    height, width = samples.shape[:2]
    count = samples.shape[2] if samples.ndim == 3 else 1
    if bits < 8:
        parts = [b"".join(packed(samples, bits))]
    else:
        values = samples.reshape(height, width, count).astype(f"{order}u{bits // 8}")
        parts = [values.tobytes()]
        if planar == 2:
            parts = [values[:, :, c].tobytes() for c in range(count)]
        if side:
            padded = np.zeros((-(-height // side) * side, -(-width // side) * side, count), "u1")
            padded[:height, :width] = values
            parts = [
                padded[y : y + side, x : x + side].tobytes()
                for y in range(0, height, side)
                for x in range(0, width, side)
            ]
    tags = {
        256: ("H", [width]),
        257: ("H", [height]),
        258: ("H", [bits] * count),
        259: ("H", [1]),
        262: ("H", [photometric]),
        277: ("H", [count]),
        284: ("H", [planar]),
    }
    if side:
        tags |= {322: ("H", [side]), 323: ("H", [side])}
        tags |= {324: ("I", [0] * len(parts)), 325: ("I", [len(p) for p in parts])}
    else:
        tags |= {273: ("I", [0] * len(parts)), 278: ("H", [height])}
        tags |= {279: ("I", [len(p) for p in parts])}
    tags |= dict(more)

    def directory():
        body, extra = struct.pack(order + "H", len(tags)), b""
        after = 8 + 2 + 12 * len(tags) + 4
        for tag, (kind, values) in sorted(tags.items()):
            raw = struct.pack(f"{order}{len(values)}{kind}", *values)
            body += struct.pack(order + "HHI", tag, {"H": 3, "I": 4}[kind], len(values))
            if len(raw) <= 4:
                body += raw.ljust(4, b"\0")
            else:
                body += struct.pack(order + "I", after + len(extra))
                extra += raw + bytes(len(raw) % 2)
        return body + bytes(4) + extra

    begin, offsets = 8 + len(directory()), []
    for part in parts:
        offsets.append(begin)
        begin += len(part)
    tags[324 if side else 273] = ("I", offsets)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    with open(os.path.join(out, "src", name), "wb") as f:
        f.write(magic + struct.pack(order + "I", 8) + directory() + b"".join(parts))


def colour_map(image, count):
    table = np.zeros((256 if count > 16 else 16, 3), int)
    table[:count] = colours(image, count).astype(int) * 257
    return {320: ("H", table.T.reshape(-1).tolist())}


write_tiff("tif.tif", shot)
write_tiff("tif_big_endian.tif", shot, ">")
write_tiff("tif_planar.tif", shot, planar=2)
write_tiff("tif_tiled.tif", shot, side=16)
write_tiff("tif_rotated.tif", shot, more={274: ("H", [6])})
write_tiff("tif_grey.tif", shade, photometric=1)
write_tiff("tif_white_is_zero.tif", 255 - shade, photometric=0)
write_tiff("tif_grey4.tif", shade >> 4, photometric=1, bits=4)
write_tiff("tif_grey2.tif", shade >> 6, photometric=1, bits=2)
write_tiff("tif_bit1.tif", index2, photometric=1, bits=1)
write_tiff("tif_grey16.tif", shade.astype(int) * 9, photometric=1, bits=16)
write_tiff("tif_grey16_big_endian.tif", shade.astype(int) * 9, ">", photometric=1, bits=16)
write_tiff("tif_rgb16.tif", shot.astype(int) * 256 + 201, bits=16)
write_tiff("tif_rgb16_big_endian.tif", shot.astype(int) * 256 + 201, ">", bits=16)
write_tiff("tif_rgba.tif", faded, more={338: ("H", [2])})
write_tiff("tif_rgbx.tif", faded, more={338: ("H", [0])})
opaque = faded.astype(int)
opaque[:, :, :3] = opaque[:, :, :3] * opaque[:, :, 3:] // 255
write_tiff("tif_premultiplied.tif", opaque.astype(np.uint8), more={338: ("H", [1])})
write_tiff("tif_grey_alpha.tif", faded[:, :, 2:], photometric=1, more={338: ("H", [2])})
write_tiff("tif_palette.tif", index, photometric=3, more=colour_map(few, 23))
write_tiff("tif_palette4.tif", index16, photometric=3, bits=4, more=colour_map(few16, 16))
write_tiff("cmyk16.tif", picture(40, 36, 4).astype(int) * 256 + 99, photometric=5, bits=16)
inks = Image.fromarray(picture(40, 36, 4, noise=0) // 8 * 8, "CMYK")
save("cmyk.tif", inks, compression="tiff_lzw")
save("tif_lzw.tif", Image.fromarray(shot), compression="tiff_lzw", tiffinfo={317: 2})
save("tif_deflate.tif", Image.fromarray(shot), compression="tiff_adobe_deflate")
save("tif_packbits.tif", Image.fromarray(shot), compression="packbits")
save("tif_palette_lzw.tif", few, compression="tiff_lzw")
save("tif_group4.tif", Image.fromarray(index2 * 255).convert("1"), compression="group4")


def floor_crop(image, size):
    return image.crop(
        (
            (image.width - size) // 2,
            (image.height - size) // 2,
            (image.width - size) // 2 + size,
            (image.height - size) // 2 + size,
        )
    )


cases = []
written = {}


def emit(source, pipeline, size, image, **more):
    stem = "%s_%s_%d" % (source.replace(".", "_"), pipeline, size)
    arr = np.asarray(image)
    assert arr.shape == (size, size, 3), (source, arr.shape)
    # Pipelines that agree share a file.
    name = written.setdefault(arr.tobytes(), stem + ".png")
    if name == stem + ".png":
        Image.fromarray(arr).save(os.path.join(out, "expected", name), optimize=True)
    # CMYK images are converted to RGB before resizing here, and after it in Pillow.
    early = source.endswith(".tif") and source.startswith("cmyk") and pipeline == "after"
    lossy = source.endswith(".jpg") or source.startswith("lossy") or early
    cases.append(
        {
            "source": source,
            "pipeline": pipeline,
            "size": size,
            "expected": name,
            "exact": not lossy,
            **more,
        }
    )


def before(image, size):
    return floor_crop(
        transforms.Resize(size, InterpolationMode.BICUBIC)(image.convert("RGB")), size
    )


def after(image, size):
    compose = transforms.Compose(
        [transforms.Resize(size, InterpolationMode.BICUBIC), transforms.CenterCrop(size)]
    )
    return compose(image).convert("RGB")


def processor(cls, size):
    return cls(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        do_normalize=False,
        do_rescale=False,
    )


drift = []
for source in sorted(os.listdir(os.path.join(out, "src"))):
    path = os.path.join(out, "src", source)
    size = (
        29
        if source
        in (
            "rgb_small.png",
            "rgb_one_wide.png",
            "rgb_one_high.png",
            "rgb_extreme.png",
            "rgb_one_pixel.png",
        )
        else 32
    )
    if source in ("rgb_exact.png", "rgb_exact_side.png"):
        size = 56
    image = Image.open(path)
    image.load()
    emit(source, "before", size, before(image, size))
    # Pillow 13 resizes big-endian 16-bit grey (`I;16B`) with its bytes in the wrong order.
    if image.mode != "I;16B":
        emit(source, "after", size, after(image, size))
    made = processor(CLIPImageProcessorPil, size)(images=image, return_tensors="np")[
        "pixel_values"
    ][0]
    made = made.astype(np.uint8).transpose(1, 2, 0)
    emit(source, "white", size, made)
    default = processor(CLIPImageProcessor, size)(images=image, return_tensors="np")[
        "pixel_values"
    ][0]
    difference = np.abs(default.astype(int).transpose(1, 2, 0) - made.astype(int))
    drift.append((source, int(difference.max()), float((difference > 0).mean())))
for source in ("rgb_big.png", "palette4.png", "big.jpg"):
    image = Image.open(os.path.join(out, "src", source))
    emit(source, "after", 224, after(image, 224))
for source, box in (
    ("rgb_wide.png", (3, 5, 77, 33)),
    ("rgb_big.png", (10, 20, 300, 200)),
    ("rgb_tall.png", (0, 0, 41, 50)),
):
    image = Image.open(os.path.join(out, "src", source)).convert("RGB").crop(box)
    emit(source, "crop", 40, image.resize((40, 40), Image.BICUBIC), box=list(box))
# Pillow up to version 12 always resized the width first: equal to two calls, one per axis.
for source in ("rgb_tall.png", "rgb_wide.png"):
    image = Image.open(os.path.join(out, "src", source))
    short = min(image.size)
    width, height = (32 * side // short for side in image.size)
    twice = image.resize((width, image.height), Image.BICUBIC).resize(
        (width, height), Image.BICUBIC
    )
    emit(source, "pillow12", 32, floor_crop(twice, 32))
# A crop larger than the image is padded with zeros.
pad = Image.open(os.path.join(out, "src", "rgb_small.png"))
emit("rgb_small.png", "pad", 20, transforms.CenterCrop(20)(pad))

with open(os.path.join(out, "cases.json"), "w") as f:
    f.write("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")
CLIPImageProcessor(
    size={"shortest_edge": 96}, crop_size={"height": 96, "width": 96}
).save_pretrained(out)
os.replace(
    os.path.join(out, "preprocessor_config.json"), os.path.join(out, "processor_current.json")
)
with open(os.path.join(out, "processor_old.json"), "w") as f:
    json.dump(
        {
            "crop_size": 96,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "resample": 3,
            "size": 96,
        },
        f,
        indent=2,
    )
print(
    len(os.listdir(os.path.join(out, "src"))),
    "sources,",
    len(cases),
    "cases; libjpeg-turbo",
    features.version("libjpeg_turbo"),
    "webp",
    features.version("webp"),
)
print(
    "transformers' default backend against its Pillow backend: max",
    max(d[1] for d in drift),
    "share of bytes that differ",
    round(sum(d[2] for d in drift) / len(drift), 4),
)
