"""JPEG decoding and cropping by torchvision on Pillow, compared with ours.

Run:   cargo build --release --workspace --bins
       python benches/pytorch/loader.py target/release/loader DIR [ROUNDS [SECONDS]]
Needs: numpy, pillow, torch, torchvision

If DIR holds no JPEGs, the script writes 200 of 500 x 375 (quality 90, 4:2:0). Each side reads each
file, decodes it, resizes the shorter side to 224 (bicubic, antialiased), crops the centre and
returns 8-bit values. A round runs each side for SECONDS:

  ours     a process of its own with 2 threads (`mtil_data::data::Loader`)
  loop     torchvision's transforms in a plain loop on one thread; its rate is doubled, as if 2
           cores were exactly twice as fast
  loader   the same transforms in a DataLoader with 2 persistent workers, batches of 50

It prints images per second, images per CPU second (which other work on the machine disturbs less),
and the medians over the rounds of ours divided by theirs.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

IMAGES, WIDTH, HEIGHT, BATCH = 200, 500, 375, 50


def picture(rng, width, height):
    """Returns a dead leaves image with smooth light and grain.

    It has edges of all sizes and the file size of a photo.
    """
    out = np.zeros((height, width, 3), np.float32)
    for _ in range(220):
        radius = min(4 / rng.random() ** 0.8, 0.4 * height)
        cx, cy = rng.random() * width, rng.random() * height
        angle, period = rng.random() * 6.28, 3 + 20 * rng.random()
        strength, colour = 18 * rng.random(), rng.random(3) * 200 + 28
        left, top = max(int(cx - radius), 0), max(int(cy - radius), 0)
        part = out[top : int(cy + radius) + 1, left : int(cx + radius) + 1]
        y, x = np.mgrid[top : top + part.shape[0], left : left + part.shape[1]]
        inside = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
        wave = strength * np.sin((x * np.cos(angle) + y * np.sin(angle)) / period)
        part[inside] = (colour + wave[..., None])[inside]
    light = 0.75 + 0.25 * np.sin(np.arange(width) / width * 3 + rng.random() * 6)[:, None]
    out = out * light + rng.normal(0, 4, (height, width, 1))
    return Image.fromarray(out.clip(0, 255).astype(np.uint8))


def make(folder, count=IMAGES, width=WIDTH, height=HEIGHT):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    for i in range(count):
        picture(rng, width, height).save(folder / f"{i:03}.jpg", quality=90, subsampling="4:2:0")


class Files(torch.utils.data.Dataset):
    def __init__(self, files):
        self.files = files
        self.transform = Compose(
            [Resize(224, InterpolationMode.BICUBIC), CenterCrop(224), PILToTensor()]
        )

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return self.transform(Image.open(self.files[index]).convert("RGB"))


def cpu(who):
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def rate(images, start, cpu_seconds):
    return {
        "per_second": images / (time.perf_counter() - start),
        "per_cpu_second": images / cpu_seconds,
    }


def ours(binary, folder, seconds):
    line = subprocess.run(
        [binary, folder, "--threads", "2", "--seconds", str(seconds)],
        check=True,
        capture_output=True,
    )
    return json.loads(line.stdout)


def loop(data, seconds):
    start, used, done = time.perf_counter(), cpu(resource.RUSAGE_SELF), 0
    while time.perf_counter() - start < seconds:
        data[done % len(data)]
        done += 1
    result = rate(done, start, cpu(resource.RUSAGE_SELF) - used)
    return {**result, "per_second": 2 * result["per_second"]}


def processor_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def loader(batches, seconds):
    """Measures whole passes over the files, at least one."""
    workers = [w.pid for w in batches._iterator._workers]

    def used():
        return cpu(resource.RUSAGE_SELF) + sum(map(processor_seconds, workers))

    start, before, done = time.perf_counter(), used(), 0
    while time.perf_counter() - start < seconds:
        for batch in batches:
            done += len(batch)
    return rate(done, start, used() - before)


def main():
    binary, folder = sys.argv[1], Path(sys.argv[2])
    rounds, seconds = (float(a) for a in (sys.argv[3:5] + ["15", "2"][len(sys.argv[3:5]) :]))
    if not any(folder.glob("*.jpg")):
        make(folder)
    torch.set_num_threads(1)
    files = sorted(folder.glob("*.jpg"))
    data = Files(files)
    batches = torch.utils.data.DataLoader(data, BATCH, num_workers=2, persistent_workers=True)
    # Warm up: start the workers and read all files once.
    for _ in batches:
        pass
    size = sum(f.stat().st_size for f in files) / len(files)
    print(
        f"{len(files)} files of {size / 1000:.0f} kB; "
        f"torchvision {torchvision.__version__}, Pillow {Image.__version__}"
    )
    sides = {
        "ours": lambda: ours(binary, folder, seconds),
        "loop": lambda: loop(data, seconds),
        "loader": lambda: loader(batches, seconds),
    }
    results = {name: [] for name in sides}
    for _ in range(int(rounds)):
        for name, side in sides.items():
            results[name].append(side())
    for unit in ("per_second", "per_cpu_second"):
        for name, values in results.items():
            values = [v[unit] for v in values]
            line = f"{unit:15} {name:7} {statistics.median(values):8.1f}"
            if name != "ours":
                ratios = [o[unit] / v for o, v in zip(results["ours"], values)]
                low, high = min(ratios), max(ratios)
                line += f"   ours {statistics.median(ratios):.2f} times ({low:.2f} to {high:.2f})"
            print(line)


if __name__ == "__main__":
    main()
