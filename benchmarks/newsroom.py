"""How fast the newsroom draws: ``python -m benchmarks.newsroom``.

Prints pictures a second on one core at 64 and 224 pixels, and the ratio against drawing flags and
scenes afresh for every picture, which is what the caches save.
"""

from __future__ import annotations

import time

from entityclip.datasets.newsroom import scenes
from entityclip.datasets.newsroom.outlet_a import NewsroomPicture, newsroom_pairs

_CACHED = (scenes.backdrop, scenes.flagpole)


def rate(pictures: list[NewsroomPicture], afresh: bool) -> float:
    """Pictures drawn a second, with full caches or with none."""
    start = time.perf_counter()
    for picture in pictures:
        if afresh:
            for function in _CACHED:
                function.cache_clear()
        picture.load()
    return len(pictures) / (time.perf_counter() - start)


def main() -> None:
    for size, count in ((64, 3000), (224, 600)):
        pictures = [pair.image for pair in newsroom_pairs("train", count, image_size=size)]
        rate(pictures, afresh=False)  # fills the caches
        cached = max(rate(pictures, afresh=False) for _ in range(3))
        fresh = rate(pictures[: count // 20], afresh=True)
        print(f"{size:3d} px: {cached:7.0f} pictures/s, {cached / fresh:5.1f} x drawing all afresh")


if __name__ == "__main__":
    main()
