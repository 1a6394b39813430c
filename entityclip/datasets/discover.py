"""Which of the data sets lie below a folder, told by the layouts in ``data_manifest.yaml``."""

from __future__ import annotations

from pathlib import Path

from entityclip.datasets.manifest import Manifest, expand, load_manifest


def find_datasets(folder: str | Path | None, manifest: Manifest | None = None) -> dict[str, Path]:
    """The downloaded data sets in `folder` itself, else in folders directly below it: name → root.

    A data set is there if every required line of its layout fits at least one file; whether it is
    whole is for ``verify`` to say. None, as `data_root` is by default, holds none.

    Raises FileNotFoundError for a folder that does not exist, and ValueError where two folders hold
    the same data set.
    """
    if folder is None:
        return {}
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; set `data_root` to where the data lie")
    manifest = manifest or load_manifest()
    found = _in(folder, manifest)
    if found:
        return dict.fromkeys(found, folder)
    roots: dict[str, Path] = {}
    for below in sorted(path for path in folder.iterdir() if path.is_dir()):
        for name in _in(below, manifest):
            if name in roots:
                raise ValueError(
                    f"{roots[name]} and {below} both hold {name}; set `data_root` to one of them"
                )
            roots[name] = below
    return {name: roots[name] for name in manifest.datasets if name in roots}


def _in(root: Path, manifest: Manifest) -> list[str]:
    return [
        name
        for name, entry in manifest.datasets.items()
        if entry.layout and all(_fits(root, x.path) for x in entry.layout if x.required)
    ]


def _fits(root: Path, pattern: str) -> bool:
    # the first match is enough: a folder may hold a million pictures
    return any(next(root.glob(plain), None) is not None for plain in expand(pattern))
