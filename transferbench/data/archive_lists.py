"""What the lists of the official archives say; one reader a layout."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from transferbench.data.listing import Listing, Reader
from transferbench.errors import UserError

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
CHESTX_CLASSES = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumothorax",
)  # fmt: skip
CALTECH_TRAIN = 30


def _guarded(read: Callable[[Path, str], Listing]) -> Callable[[Path, str], Listing]:
    """Turn whatever a damaged list makes a reader raise into one sentence."""

    def guarded(place: Path, form: str) -> Listing:
        try:
            return read(place, form)
        except UserError:
            raise
        except FileNotFoundError as error:
            what = f"{error.filename} is missing" if error.filename else str(error)
            raise UserError(f"{what}; unpack the archive again, whole") from error
        except Exception as error:
            said = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"the lists of the archive in {place} cannot be read ({type(error).__name__}: "
                f"{said}); unpack it again, whole"
            ) from error

    return guarded


def _below(place: Path, paths: Any) -> list[str]:
    return [Path(path).relative_to(place).as_posix() for path in paths]


def _vision(place: Path, splits: dict[str, Any], files: str) -> Listing:
    """Collect what torchvision's data sets of several splits know."""
    first = next(iter(splits.values()))
    return Listing(
        tuple(map(str, first.classes)),
        {name: _below(place, getattr(found, files)) for name, found in splits.items()},
        {name: [int(k) for k in found._labels] for name, found in splits.items()},
    )


def _aircraft(place: Path, form: str) -> Listing:
    from torchvision.datasets import FGVCAircraft

    splits = {name: FGVCAircraft(place, split=name) for name in ("train", "val", "test")}
    return _vision(place, splits, "_image_files")


def _dtd(place: Path, form: str) -> Listing:
    from torchvision.datasets import DTD

    splits = {name: DTD(place, split=name, partition=1) for name in ("train", "val", "test")}
    if len({tuple(found.classes) for found in splits.values()}) > 1:
        raise UserError(f"{place}: the splits of DTD have other classes than each other")
    return _vision(place, splits, "_image_files")


def _flowers(place: Path, form: str) -> Listing:
    from torchvision.datasets import Flowers102

    if not (place / "flowers-102" / "jpg").is_dir():
        raise UserError(f"{place / 'flowers-102/jpg'} is missing; unpack 102flowers.tgz again")
    try:
        splits = {name: Flowers102(place, split=name) for name in ("train", "val", "test")}
    except RuntimeError as error:
        raise UserError(
            f"{place / 'flowers-102'}: imagelabels.mat and setid.mat are not the official files "
            "(other checksums); download them again"
        ) from error
    return _vision(place, splits, "_image_files")


def _food(place: Path, form: str) -> Listing:
    from torchvision.datasets import Food101

    splits = {name: Food101(place, split=name) for name in ("train", "test")}
    if splits["train"].classes != splits["test"].classes:
        raise UserError(f"{place}: train and test of Food-101 have other classes than each other")
    return _vision(place, splits, "_image_files")


def _pets(place: Path, form: str) -> Listing:
    from torchvision.datasets import OxfordIIITPet

    # The folder of images also holds files that are no images; only what is listed is read.
    splits = {"train": OxfordIIITPet(place), "test": OxfordIIITPet(place, split="test")}
    return _vision(place, splits, "_images")


def _cars(place: Path, form: str) -> Listing:
    from torchvision.datasets import StanfordCars

    base = place / "stanford_cars"
    annotations = "cars_test_annos_withlabels.mat"
    if not (base / annotations).is_file():
        inside = (base / "devkit" / annotations).is_file()
        what = f"{base / 'devkit' / annotations} must lie beside devkit, not in it"
        raise UserError(what if inside else f"{base / annotations}, the test labels, is missing")
    for split in ("cars_train", "cars_test"):
        if (base / split / split).is_dir():
            raise UserError(
                f"{base / split / split}: the images must lie one folder higher, in {base / split}"
            )
    splits = {name: StanfordCars(place, split=name) for name in ("train", "test")}
    return Listing(
        tuple(splits["train"].classes),
        {n: _below(place, (path for path, _ in s._samples)) for n, s in splits.items()},
        {n: [int(k) for _, k in s._samples] for n, s in splits.items()},
    )


def cifar(layout: str, place: Path, split: str) -> Any:
    """Return torchvision's CIFAR data set of a split; it unpickles official files alone.

    Raises
    ------
    UserError
        If a batch has another checksum than the official one; nothing of it is read then.
    """
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = {"cifar10": CIFAR10, "cifar100": CIFAR100}[layout]
    try:
        return kind(place, train=split == "train")
    except RuntimeError as error:
        raise UserError(
            f"{place / kind.base_folder}: a batch is missing or not the official file (another "
            "checksum); unpack the archive again, whole"
        ) from error


def _cifar(layout: str) -> Callable[[Path, str], Listing]:
    def read(place: Path, form: str) -> Listing:
        splits = {name: cifar(layout, place, name) for name in ("train", "test")}
        batches = {"train": splits["train"].train_list, "test": splits["test"].test_list}
        return Listing(
            tuple(splits["train"].classes),
            {n: [str(i) for i in range(len(s.targets))] for n, s in splits.items()},
            {n: [int(k) for k in s.targets] for n, s in splits.items()},
            {n: [f"{splits[n].base_folder}/{b[0]}" for b in bs] for n, bs in batches.items()},
        )

    return read


def _sun397(place: Path, form: str) -> Listing:
    """Read partition 01; torchvision knows the classes and the images, but no split."""
    from torchvision.datasets import SUN397

    found = SUN397(place)
    base = place / "SUN397"
    label = dict(zip(_below(base, found._image_files), found._labels, strict=True))
    files: dict[str, list[str]] = {}
    for split, name in (("train", "Training_01.txt"), ("test", "Testing_01.txt")):
        around = (
            base / name,
            base / "Partitions" / name,
            place / name,
            place / "Partitions" / name,
        )
        lists = next((p for p in around if p.is_file()), None)
        if lists is None:
            raise UserError(
                f"{base / name} is missing; unpack Partitions.zip, an archive of its own, into "
                f"{base}"
            )
        files[split] = [line.strip().lstrip("/") for line in lists.read_text().splitlines() if line]
    for split, names in files.items():
        if missing := [name for name in names if name not in label]:
            raise UserError(
                f"{base}: {len(missing)} of the {len(names)} images of {split} are missing, "
                f"{missing[0]} for one; unpack the archive again, whole"
            )
    return Listing(
        tuple(found.classes),
        {split: [f"SUN397/{name}" for name in names] for split, names in files.items()},
        {split: [int(label[name]) for name in names] for split, names in files.items()},
    )


def _voc2007(place: Path, form: str) -> Listing:
    """Read the classification lists; torchvision has the detection task's images alone."""
    from torchvision.datasets import VOCDetection

    base = place / "VOCdevkit" / "VOC2007"
    # As `measures.metrics` has it: 0 among -1 and 1 is difficult.
    absent = -1 if form == "ignored" else 0
    files, labels = {}, {}
    for split in ("train", "val", "test"):
        images = VOCDetection(place, year="2007", image_set=split).images
        files[split] = _below(place, images)
        rows = {Path(name).stem: [absent] * len(VOC_CLASSES) for name in images}
        for k, name in enumerate(VOC_CLASSES):
            lists = base / "ImageSets" / "Main" / f"{name}_{split}.txt"
            flags = dict(line.split() for line in lists.read_text().splitlines() if line.strip())
            if flags.keys() != rows.keys():
                raise UserError(f"{lists} names other images than {split}.txt beside it")
            for image, flag in flags.items():
                if flag not in ("-1", "0", "1"):
                    raise UserError(f"{lists}: the flag of {image} is {flag}, not -1, 0 or 1")
                rows[image][k] = {"1": 1, "0": 0, "-1": absent}[flag]
        labels[split] = list(rows.values())
    return Listing(VOC_CLASSES, files, labels)


def _caltech101(place: Path, form: str) -> Listing:
    """Draw the split lists, which the archive lacks, from all folders, the clutter class included.

    Form "paper": 30 images a class drawn with replacement by NumPy's legacy generator from seed 0,
    class after class, as in the lists of linusericsson/ssl-transfer; what is never drawn is for
    testing. Form "usual": 30 a class without replacement.
    """
    from torchvision.datasets import ImageFolder

    base = next(place / b for b in CALTECH if (place / b).is_dir())
    found = ImageFolder(base)
    if "BACKGROUND_Google" not in found.classes:
        raise UserError(f"{base / 'BACKGROUND_Google'} is missing; it counts as a class")
    random = np.random.RandomState(0)
    by_class: dict[int, list[str]] = {k: [] for k in range(len(found.classes))}
    for path, k in found.samples:
        by_class[k].append(Path(path).relative_to(place).as_posix())
    files: dict[str, list[str]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    for k, names in by_class.items():
        again = form != "usual"
        if not again and len(names) <= CALTECH_TRAIN:
            raise UserError(
                f"{base / found.classes[k]} holds {len(names)} images; the split needs "
                f"{CALTECH_TRAIN} for training and one for testing"
            )
        drawn = random.choice(len(names), CALTECH_TRAIN, replace=again).tolist()
        rest = sorted(set(range(len(names))) - set(drawn))
        for split, rows in (("train", drawn), ("test", rest)):
            files[split] += [names[i] for i in rows]
            labels[split] += [k] * len(rows)
    return Listing(tuple(found.classes), files, labels)


CALTECH = (
    "caltech101/101_ObjectCategories",
    "101_ObjectCategories",
    "caltech-101/101_ObjectCategories",
)


def _imagenet(place: Path, form: str) -> Listing:
    """Read train and val (the test split of everyone); a class is its wnid's rank."""
    from torchvision.datasets import ImageFolder

    train, test = ImageFolder(place / "imagenet/train"), ImageFolder(place / "imagenet/val")
    if train.classes != test.classes:
        different = sorted(set(train.classes) ^ set(test.classes))[0]
        raise UserError(
            f"{place / 'imagenet'}: the class '{different}' is in only one of train and val; val's "
            "images must be sorted into one folder a class"
        )
    return Listing(
        tuple(train.classes),
        {
            n: _below(place, (p for p, _ in s.samples))
            for n, s in (("train", train), ("test", test))
        },
        {"train": list(train.targets), "test": list(test.targets)},
    )


def _one_folder(*bases: str) -> Callable[[Path, str], Listing]:
    def read(place: Path, form: str) -> Listing:
        from torchvision.datasets import ImageFolder

        found = ImageFolder(next(place / base for base in bases if (place / base).is_dir()))
        files = {"train": _below(place, (path for path, _ in found.samples))}
        return Listing(tuple(found.classes), files, {"train": list(found.targets)})

    return read


def _rows(path: Path) -> Iterator[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.reader(file)


def _isic(place: Path, form: str) -> Listing:
    truth = place / "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv"
    header, *rows = list(_rows(truth))
    files, labels = [], []
    for row in rows:
        shares = [float(value) for value in row[1:]]
        if len(row) != len(header) or sorted(shares) != [0.0] * (len(shares) - 1) + [1.0]:
            raise UserError(f"{truth}: the row of {row[0]} does not have one class")
        files.append(f"ISIC2018_Task3_Training_Input/{row[0]}.jpg")
        labels.append(shares.index(1.0))
    return Listing(tuple(header[1:]), {"train": files}, {"train": labels})


def _chestx(place: Path, form: str) -> Listing:
    """Read the images with one of seven findings and no other."""
    table = place / "Data_Entry_2017.csv"
    files, labels = [], []
    for name, findings, *_ in list(_rows(table))[1:]:
        if findings in CHESTX_CLASSES:
            files.append(f"images/{name}")
            labels.append(CHESTX_CLASSES.index(findings))
    return Listing(CHESTX_CLASSES, {"train": files}, {"train": labels})


def _reader(
    read: Callable[[Path, str], Listing], *bases: str, marks: str = "", listed: str = ""
) -> Reader:
    return Reader(bases, tuple(marks.split()), tuple(listed.split()), _guarded(read))


# The marks keep a folder of one's own that has an archive's name from being taken for it.
READERS: dict[str, Reader] = {
    "aircraft": _reader(
        _aircraft, "fgvc-aircraft-2013b", marks="data/variants.txt", listed="data/*.txt"
    ),
    "caltech101": _reader(_caltech101, *CALTECH, marks="*", listed="*"),
    "cars": _reader(_cars, "stanford_cars", marks="devkit", listed="*.mat devkit/*.mat"),
    "cifar10": _reader(_cifar("cifar10"), "cifar-10-batches-py", listed="*"),
    "cifar100": _reader(_cifar("cifar100"), "cifar-100-python", listed="*"),
    "dtd": _reader(_dtd, "dtd/dtd", marks="labels/train1.txt", listed="labels/*1.txt"),
    "flowers": _reader(_flowers, "flowers-102", marks="*.mat", listed="*.mat"),
    "food": _reader(_food, "food-101", marks="meta", listed="meta/*.json"),
    "pets": _reader(_pets, "oxford-iiit-pet", marks="annotations", listed="annotations/*.txt"),
    "sun397": _reader(
        _sun397,
        "SUN397",
        marks="ClassName.txt",
        listed="*.txt Partitions/*.txt ../*.txt ../Partitions/*.txt ? ?/* ?/*/*/",
    ),
    "voc2007": _reader(
        _voc2007, "VOCdevkit/VOC2007", marks="ImageSets/Main", listed="ImageSets/Main/*.txt"
    ),
    "imagenet": _reader(_imagenet, "imagenet", marks="train/n* val", listed="*/ */*/"),
    "eurosat": _reader(_one_folder("eurosat/2750", "2750"), "eurosat/2750", "2750", listed="*"),
    "cropdiseases": _reader(
        _one_folder("dataset/train"), "dataset/train", marks="*___*", listed="*"
    ),
    "isic": _reader(_isic, "ISIC2018_Task3_Training_GroundTruth", marks="*.csv", listed="*.csv"),
    "chestx": _reader(_chestx, "images", marks="../Data_Entry_2017*.csv", listed=""),
}
