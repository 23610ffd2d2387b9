"""Rendered scenes on disk: memory-mapped pictures, label maps and captions, drawn by several processes."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from .picture_scenes import render, sample_scene

CHUNK = 2000


class Dataset:
    """Scenes that `draw_dataset` has rendered.

    Args:
        folder: where they lie.

    Attributes:
        pictures: uint8 [n, size, size, 3].
        labels: uint8 [n, size, size, 2], see `picture_scenes.render`.
        captions: one text per scene.
        facts: caption, items, background and relation of each scene.
    """

    def __init__(self, folder: Path) -> None:
        self.pictures = np.load(folder / "pictures.npy", mmap_mode="r")
        self.labels = np.load(folder / "labels.npy", mmap_mode="r")
        records = json.loads((folder / "scenes.json").read_text())
        self.captions: list[str] = [record["caption"] for record in records]
        self.facts: list[dict] = records

    def __len__(self) -> int:
        return len(self.captions)


def _draw_chunk(start: int, folder: Path, count: int, size: int, seed: int) -> list[dict]:
    rng = np.random.default_rng((seed, start))
    pictures = np.load(folder / "pictures.npy", mmap_mode="r+")
    labels = np.load(folder / "labels.npy", mmap_mode="r+")
    records = []
    for i in range(start, min(start + CHUNK, count)):
        scene = sample_scene(rng)
        pictures[i], labels[i] = render(scene, rng, size)
        records.append(
            {
                "caption": scene.caption,
                "items": [(item.thing, item.style) for item in scene.items],
                "background": scene.background,
                "relation": scene.relation,
            }
        )
    return records


def draw_dataset(folder: Path, count: int, size: int, seed: int, workers: int) -> Dataset:
    """Render `count` training scenes into `folder`; open them when they are there already."""
    from tqdm import tqdm

    finished = folder / "scenes.json"
    if not finished.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for name, channels in (("pictures", 3), ("labels", 2)):
            shape = (count, size, size, channels)
            np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.uint8, shape=shape).flush()
        draw = partial(_draw_chunk, folder=folder, count=count, size=size, seed=seed)
        starts = range(0, count, CHUNK)
        with ProcessPoolExecutor(workers) as pool:
            records = [r for chunk in tqdm(pool.map(draw, starts), "scenes", len(starts)) for r in chunk]
        finished.write_text(json.dumps(records))
    return Dataset(folder)
