"""Pictures embedded, interrupted once, resumed: ``python -m benchmarks.embed``.

    python -m benchmarks.embed [--n 10000] [--side 224] [--checkpoint FOLDER] [--literal 500]

Draws n JPEGs, starts ``entityclip embed``, interrupts it half way, starts it
again, and counts in the cache that each picture was embedded exactly once. A sample then runs in
this process, through plain open_clip one picture after the other and through `entityclip.embed`:
vectors must be the same, and the ratio of the times is printed.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.turns import timed
from entityclip.checkpoints import read_meta
from entityclip.models.clip import create_backbone
from entityclip.search.embedding import Vectors, embed
from entityclip.search.encoder import load_encoder


def draw(folder: Path, n: int, side: int) -> None:
    """n pictures, no two alike: noise as coarse as a photograph's detail."""
    folder.mkdir()
    for number in range(n):
        pixels = np.random.default_rng(number).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
        picture = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:06d}.jpg", quality=85)


def cached_keys(cache: Path) -> list[str]:
    return [key for path in cache.rglob("*.safetensors") for key in read_meta(path)["keys"]]


def run(command: list[str], stop_at: int | None, cache: Path) -> tuple[int, float]:
    """Run the command, interrupted once `stop_at` pictures are kept: exit status and seconds."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while stop_at is not None and process.poll() is None:
        if len(cached_keys(cache)) >= stop_at:
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.5)
    return process.wait(), time.perf_counter() - start


@torch.inference_mode()
def plain_open_clip(checkpoint: str, model: str | None, paths: list[Path]) -> np.ndarray:
    backbone = load_encoder(checkpoint, model)
    clip, preprocess = backbone.clip, backbone.preprocess
    rows = [
        clip.encode_image(preprocess(Image.open(path).convert("RGB"))[None], normalize=True)[0]
        for path in paths
    ]
    return torch.stack(rows).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--n", type=int, default=10_000, help="pictures")
    parser.add_argument("--side", type=int, default=224, help="of a picture, in pixels")
    parser.add_argument("--checkpoint", help="default: newsroom-tiny with random weights")
    parser.add_argument("--model", help="open_clip's name, where the checkpoint does not tell it")
    parser.add_argument("--literal", type=int, default=500, help="pictures for plain open_clip")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint, model = options.checkpoint, options.model
        if checkpoint is None:
            checkpoint, model = str(folder / "tiny.safetensors"), "newsroom-tiny"
            save_file(create_backbone(model).clip.state_dict(), checkpoint)
        draw(folder / "in", options.n, options.side)
        cache, out = folder / "cache", folder / "out.npy"
        command = [sys.executable, "-m", "entityclip", "embed", checkpoint, "--quiet"]
        command += ["--images", str(folder / "in"), "--cache", str(cache), "--out", str(out)]
        command += ["--model", model] if model else []
        status, first = run(command, options.n // 2, cache)
        kept = len(cached_keys(cache))
        again, second = run(command, None, cache)
        counts = Counter(cached_keys(cache))
        report = json.loads(out.with_suffix(".report.json").read_text())
        assert (status, again) == (130, 0), f"exit {status} when interrupted, {again} at the end"
        assert len(counts) == options.n, f"{len(counts)} of {options.n} pictures in the cache"
        assert set(counts.values()) == {1}, "a picture was embedded twice"
        assert kept + report["embedded"] == options.n
        print(
            f"{options.n} pictures of {options.side} px: {kept} embedded in {first:.1f} s, then "
            f"interrupted; the other {report['embedded']} in {second:.1f} s; each once. "
            f"{options.n / (first + second):.0f} a second, start-up included"
        )
        paths = sorted((folder / "in").iterdir())[: options.literal]
        expected, literal = timed(plain_open_clip, checkpoint, model, paths)
        _, ours = timed(lambda: embed(load_encoder(checkpoint, model), paths, progress=False))
        found = Vectors.load(out).values[: len(paths)]
        print(
            f"{len(paths)} of them in one process: plain open_clip, one by one, "
            f"{len(paths) / literal:.0f} a second, ours {len(paths) / ours:.0f}, ratio "
            f"{literal / ours:.2f}; largest difference {np.abs(found - expected).max():.1e}"
        )
        assert np.allclose(found, expected, atol=1e-5)


if __name__ == "__main__":
    main()
