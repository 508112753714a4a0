"""Images in folders, a sub-folder a class: found, split, decoded, augmented and put into batches.

A batch is a pure function of the seed and the number of its step, whoever loads it and when: a run that goes on in the
middle of an epoch sees what an unbroken one would have seen. The held-out part is chosen by a hash of each name, so
that it hardly changes when files come or go.
"""

from __future__ import annotations

import functools
import os
import shutil
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels, from 0 to 1, as torchvision's
GREY_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601 luma, as Pillow's "L"
CACHE_BYTES = 2**29  # decoded images are kept in memory up to here; larger folders are decoded in every epoch

T = TypeVar("T")
S = TypeVar("S")


class CannotTrain(Exception):
    """Training cannot start or go on; the message names the file or option, and says what to do."""


class ImageError(CannotTrain):
    """A file is no image that can be read."""


class Images(NamedTuple):
    """Files, the class of each, and the names of the classes."""

    files: tuple[Path, ...]
    labels: np.ndarray
    classes: tuple[str, ...]


class Augmentation(NamedTuple):
    """What is done to a training image at random.

    Attributes:
      pad: black pixels added on every side before a crop to the old size.
      flip: mirror every second image, left to right.
      jitter: brightness, contrast and, in colour, saturation change by factors from 1 - jitter to 1 + jitter.
    """

    pad: int = 4
    flip: bool = True
    jitter: float = 0.1


def open_folder(root: Path, held_out: float, seed: int) -> tuple[Images, Images]:
    """The images to train on and the held-out ones: `train/` and `val/` where both exist, else a share of each class.

    Raises:
      CannotTrain: no such folder, no classes in it, a class without images or with too few to hold one out.
    """
    if not root.is_dir():
        raise CannotTrain(f"--data {root}: there is no such folder. Name one that has a sub-folder for each class.")
    if (root / "train").is_dir() and (root / "val").is_dir():
        train, val = (_scan(root / part) for part in ("train", "val"))
        if train.classes != val.classes:
            odd = ", ".join(sorted(set(train.classes) ^ set(val.classes)))
            raise CannotTrain(f"--data {root}: train/ and val/ must have the same classes; only one of them has {odd}.")
        return train, val
    images = _scan(root)
    names = [f"{seed}/{file.relative_to(root).as_posix()}".encode() for file in images.files]
    drawn = np.array([zlib.crc32(name) for name in names])
    val_rows: list[int] = []
    for label, name in enumerate(images.classes):
        rows = np.flatnonzero(images.labels == label)
        if len(rows) < 2:
            raise CannotTrain(f"{root / name}: has one image, but one is held out. Add more, or make train/ and val/.")
        count = min(len(rows) - 1, max(1, round(held_out * len(rows))))
        val_rows += rows[np.argsort(drawn[rows], kind="stable")[:count]].tolist()
    chosen = np.zeros(len(names), bool)
    chosen[val_rows] = True
    train, val = (
        Images(tuple(images.files[i] for i in np.flatnonzero(part)), images.labels[part], images.classes)
        for part in (~chosen, chosen)
    )
    return train, val


def _scan(root: Path) -> Images:
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(folders) < 2:
        raise CannotTrain(f"{root}: has {len(folders)} sub-folders, but each class needs one, and there must be two.")
    files: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
        if not found:
            raise CannotTrain(f"{folder}: this class has no images ({' '.join(SUFFIXES)}). Add some or remove it.")
        files += found
        labels += [label] * len(found)
    return Images(tuple(files), np.array(labels, np.int32), tuple(folder.name for folder in folders))


class Decoder:
    """Reads image i as uint8 of shape `(size, size, channels)`: scaled, then cropped at the centre.

    Keeps what it has read where all of it fits into `CACHE_BYTES`. Threads may share it.

    Raises:
      ImageError: when called, for a file that is no whole image.
    """

    def __init__(self, images: Images, size: int, channels: int):
        self.images, self.size, self.channels = images, size, channels
        self.keep = len(images.files) * size * size * channels <= CACHE_BYTES
        self.kept: dict[int, np.ndarray] = {}

    def __call__(self, i: int) -> np.ndarray:
        if i in self.kept:
            return self.kept[i]
        file = self.images.files[i]
        try:
            with Image.open(file) as image:
                fitted = ImageOps.fit(
                    ImageOps.exif_transpose(image).convert("L" if self.channels == 1 else "RGB"),
                    (self.size, self.size),
                    Image.Resampling.BILINEAR,
                )
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow raises
            raise ImageError(
                f"{file}: cannot be read as an image ({error}). Replace or remove the file, then run the same again."
            ) from error
        pixels = np.asarray(fitted).reshape(self.size, self.size, self.channels)
        if self.keep:
            self.kept[i] = pixels
        return pixels


def train_batch(decoder: Decoder, batch: int, seed: int, augmentation: Augmentation, step: int) -> tuple:
    """Images `(batch, size, size, channels)`, normalised, and labels `(batch,)` of one step.

    Every epoch has its own order, and leaves out what does not fill a batch.
    """
    count = len(decoder.images.files)
    epoch, position = divmod(step, count // batch)
    rows = epoch_order(count, seed, epoch)[position * batch : (position + 1) * batch]
    images = [augment(decoder(int(i)), augmentation, np.random.default_rng((seed, epoch, int(i)))) for i in rows]
    return normalise(np.stack(images)), decoder.images.labels[rows]


@functools.lru_cache(maxsize=2)
def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The numbers below `count`, shuffled."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def held_out_batch(decoder: Decoder, batch: int, number: int) -> tuple:
    """Images, labels, and weights that are 0 for what fills up the last batch."""
    rows = np.arange(number * batch, (number + 1) * batch)
    weights = (rows < len(decoder.images.files)).astype(np.float32)
    rows = np.minimum(rows, len(decoder.images.files) - 1)
    return (
        normalise(np.stack([decoder(int(i)) for i in rows]).astype(np.float32) / 255),
        decoder.images.labels[rows],
        weights,
    )


def augment(pixels: np.ndarray, how: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """One uint8 image to float32 from 0 to 1: cropped at a random place, mirrored, brightened and so on."""
    size = pixels.shape[0]
    top, left = rng.integers(0, 2 * how.pad + 1, 2)
    image = np.pad(pixels, ((how.pad, how.pad), (how.pad, how.pad), (0, 0)))[top : top + size, left : left + size]
    if how.flip and rng.random() < 0.5:
        image = image[:, ::-1]
    image = image.astype(np.float32) / 255
    brightness, contrast, saturation = rng.uniform(1 - how.jitter, 1 + how.jitter, 3).astype(np.float32)
    image = brightness * image
    image = contrast * image + (1 - contrast) * image.mean()
    if image.shape[-1] == 3:
        image = saturation * image + (1 - saturation) * (image @ GREY_WEIGHTS)[..., None]
    return np.clip(image, 0, 1)


def normalise(images: np.ndarray) -> np.ndarray:
    """Values from 0 to 1 to about zero mean and unit deviation."""
    mean, deviation = np.array(MEAN, np.float32), np.array(DEVIATION, np.float32)
    if images.shape[-1] == 1:
        mean, deviation = mean.mean(keepdims=True), deviation.mean(keepdims=True)
    return (images - mean) / deviation


def prefetch(load: Callable[[T], S], items: Iterable[T], workers: int) -> Generator[S, None, None]:
    """`map(load, items)` in order, computed ahead by threads (Pillow decodes outside the interpreter's lock)."""
    pool = ThreadPoolExecutor(workers)
    ahead: deque[Future[S]] = deque()
    try:
        for item in items:
            ahead.append(pool.submit(load, item))
            if len(ahead) > workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def write_digits(folder: Path) -> Path:
    """scikit-learn's 1,797 handwritten digits as PNG files of 8x8 pixels; once, and as a whole or not at all."""
    from sklearn.datasets import load_digits

    if not folder.is_dir():
        data = load_digits()
        unfinished = folder.with_name(f"{folder.name}.unfinished-{os.getpid()}")
        for i, (image, label) in enumerate(zip(data.images, data.target, strict=True)):
            file = unfinished / str(label) / f"{i:04}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8)).save(file)
        try:
            unfinished.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(unfinished)
    return folder
