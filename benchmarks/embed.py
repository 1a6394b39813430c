"""Pictures embedded, interrupted once, resumed: ``python -m benchmarks.embed``.

    python -m benchmarks.embed [--n 10000] [--side 224] [--checkpoint FOLDER] [--literal 500]

Draws n JPEGs, starts ``entityclip embed``, interrupts it half way, starts it again, and counts in
the cache that each picture was embedded exactly once. A sample then runs in this process, through
plain open_clip one picture after the other and through `entityclip.embed`: vectors must be the
same, and the ratio of the times is printed. Without a checkpoint: newsroom-tiny, random weights.
"""

from __future__ import annotations

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

from benchmarks.turns import options, timed
from entityclip.checkpoints import read_meta
from entityclip.models.clip import create_backbone
from entityclip.models.encoder import load_encoder
from entityclip.search.embedding import Vectors, embed


def draw(folder: Path, n: int, side: int) -> None:
    """n pictures, no two alike: noise as coarse as a photograph's detail."""
    folder.mkdir()
    for number in range(n):
        pixels = np.random.default_rng(number).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
        picture = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:06d}.jpg", quality=85)


def cached_keys(cache: Path) -> list[str]:
    return [key for path in cache.rglob("*.safetensors") for key in read_meta(path)["keys"]]


def run(command: list[str], stop_at: int | None, cache: Path) -> int:
    """Run the command, interrupted once `stop_at` pictures are kept; its exit status."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while stop_at is not None and process.poll() is None:
        if len(cached_keys(cache)) >= stop_at:
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.5)
    return process.wait()


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
    args = options(__doc__, n=10_000, side=224, checkpoint=None, model=None, literal=500)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint, model = args.checkpoint, args.model
        if checkpoint is None:
            checkpoint, model = str(folder / "tiny.safetensors"), "newsroom-tiny"
            save_file(create_backbone(model).clip.state_dict(), checkpoint)
        draw(folder / "in", args.n, args.side)
        cache, out = folder / "cache", folder / "out.npy"
        command = [sys.executable, "-m", "entityclip", "embed", checkpoint, "--quiet"]
        command += ["--images", str(folder / "in"), "--cache", str(cache), "--out", str(out)]
        command += ["--model", model] if model else []
        status, first = timed(run, command, args.n // 2, cache)
        kept = len(cached_keys(cache))
        again, second = timed(run, command, None, cache)
        counts = Counter(cached_keys(cache))
        report = json.loads(out.with_suffix(".report.json").read_text())
        assert (status, again) == (130, 0), f"exit {status} when interrupted, {again} at the end"
        assert len(counts) == args.n, f"{len(counts)} of {args.n} pictures in the cache"
        assert set(counts.values()) == {1}, "a picture was embedded twice"
        assert kept + report["embedded"] == args.n
        print(
            f"{args.n} pictures of {args.side} px: {kept} embedded in {first.wall:.1f} s, then "
            f"interrupted; the other {report['embedded']} in {second.wall:.1f} s; each once. "
            f"{args.n / (first.wall + second.wall):.0f} a second, start-up included"
        )
        paths = sorted((folder / "in").iterdir())[: args.literal]
        expected, literal = timed(plain_open_clip, checkpoint, model, paths)
        _, ours = timed(lambda: embed(load_encoder(checkpoint, model), paths, progress=False))
        found = Vectors.load(out).values[: len(paths)]
        print(
            f"{len(paths)} of them in one process: plain open_clip, one by one, "
            f"{len(paths) / literal.wall:.0f} a second, ours {len(paths) / ours.wall:.0f}, "
            f"ratio {literal.wall / ours.wall:.2f}; largest difference "
            f"{np.abs(found - expected).max():.1e}"
        )
        assert np.allclose(found, expected, atol=1e-5)


if __name__ == "__main__":
    main()
