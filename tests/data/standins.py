"""Official archives in small: the real directory structures with a few tiny images each.

A builder returns what a loaded set must say: its classes, and by split the labels and the numbers
of the images (`picture(number)` drew them; None where they are stored with a loss).
"""

from __future__ import annotations

import csv
import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from PIL import Image

from tests.data.makers import picture
from transferbench.data.catalogue import CatalogueSource
from transferbench.data.dataset import packaged_card


def save(path: Path, number: int, form: str = "PNG") -> None:
    """A picture under any name: what a file holds is told by its content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(number).save(path, form)


def source(name: str, root: Path, **changes: Any) -> CatalogueSource:
    """The catalogue's set with the counts of a stand-in, its card beside the data root."""
    card = packaged_card(name).model_dump(mode="json", exclude_none=True) | changes
    card_file = root.parent / f"{name}-card.toml"
    card_file.write_text(tomli_w.dumps(card))
    return CatalogueSource(name, card_file=card_file, data_root=root)


def aircraft(root: Path) -> dict[str, Any]:
    data = root / "fgvc-aircraft-2013b" / "data"
    names = ["A310", "F/A-18", "Boeing 737-700"]
    for i in range(12):
        save(data / "images" / f"{i:07}.jpg", i)
    (data / "variants.txt").write_text("".join(f"{n}\n" for n in names))
    for split, rows in {"train": range(3), "val": range(3, 6), "test": range(6, 12)}.items():
        lines = "".join(f"{i:07} {names[i % 3]}\n" for i in rows)
        (data / f"images_variant_{split}.txt").write_text(lines)
    # Lists of other levels and the read-me must not confuse.
    (data / "images_family_train.txt").write_text("0000000 Airbus A310\n")
    (root / "fgvc-aircraft-2013b" / "README").write_text("10,200 images")
    return {
        "classes": tuple(names),
        "train": ([0, 1, 2], [0, 1, 2]),
        "val": ([0, 1, 2], [3, 4, 5]),
        "test": ([0, 1, 2, 0, 1, 2], list(range(6, 12))),
    }


def caltech101(root: Path) -> dict[str, Any]:
    base = root / "caltech101" / "101_ObjectCategories"
    sizes = {"BACKGROUND_Google": 34, "Faces": 31, "Faces_easy": 33, "accordion": 32}
    for k, (name, count) in enumerate(sizes.items()):
        for i in range(count):
            save(base / name / f"image_{i + 1:04}.jpg", 100 * k + i)
    (base / "BACKGROUND_Google" / "tmp").write_text("a file that the archive holds as well")
    return {"classes": tuple(sizes)}


def cars(root: Path) -> dict[str, Any]:
    from numpy.lib.recfunctions import repack_fields
    from scipy.io import savemat

    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    names = np.array(["AM General Hummer SUV 2000", "Acura RL Sedan 2012"], dtype=object)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": names})
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
    for split, labels, path in (
        ("train", [1, 2, 2], base / "devkit" / "cars_train_annos.mat"),
        ("test", [2, 1], base / "cars_test_annos_withlabels.mat"),
    ):
        rows = np.zeros(len(labels), dtype=[(f, object) for f in fields])
        for i, label in enumerate(labels):
            rows[i] = (1, 1, 5, 5, label, f"{i + 1:05}.jpg")
            save(base / f"cars_{split}" / f"{i + 1:05}.jpg", i + 10 * (split == "test"), "JPEG")
        savemat(path, {"annotations": rows})
        if split == "test":
            nameless = repack_fields(rows[[f for f in fields if f != "class"]])
            savemat(base / "devkit" / "cars_test_annos.mat", {"annotations": nameless})
    return {
        "classes": tuple(names),
        "train": ([0, 1, 1], None),
        "test": ([1, 0], None),
    }


def _batch(numbers: list[int], **labels: list[int]) -> bytes:
    pixels = np.stack([np.asarray(picture(n, 32, 32)) for n in numbers])
    data = pixels.transpose(0, 3, 1, 2).reshape(len(numbers), 3072)
    return pickle.dumps({"data": data, **labels})


def _official(monkeypatch: pytest.MonkeyPatch, kind: Any, base: Path) -> None:
    """Make torchvision take the stand-in's checksums for the official ones."""

    def stamped(name: str) -> str:
        return hashlib.md5((base / name).read_bytes()).hexdigest()

    for part in ("train_list", "test_list"):
        monkeypatch.setattr(kind, part, [[n, stamped(n)] for n, _ in getattr(kind, part)])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": stamped(kind.meta["filename"])})


def cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    from torchvision.datasets import CIFAR10

    base = root / "cifar-10-batches-py"
    base.mkdir(parents=True)
    for k in range(5):
        (base / f"data_batch_{k + 1}").write_bytes(_batch([2 * k, 2 * k + 1], labels=[k, 9 - k]))
    (base / "test_batch").write_bytes(_batch([20, 21], labels=[3, 4]))
    names = [f"thing {k}" for k in range(10)]
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    (base / "readme.html").write_text("")
    _official(monkeypatch, CIFAR10, base)
    return {
        "classes": tuple(names),
        "train": ([0, 9, 1, 8, 2, 7, 3, 6, 4, 5], list(range(10))),
        "test": ([3, 4], [20, 21]),
        "side": 32,
    }


def cifar100(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    from torchvision.datasets import CIFAR100

    base = root / "cifar-100-python"
    base.mkdir(parents=True)
    labels = {"fine_labels": [1, 0, 2], "coarse_labels": [0, 0, 0]}
    (base / "train").write_bytes(_batch([0, 1, 2], **labels))
    (base / "test").write_bytes(_batch([5], fine_labels=[2], coarse_labels=[0]))
    (base / "meta").write_bytes(
        pickle.dumps({"fine_label_names": ["a", "b", "c"], "coarse_label_names": ["z"]})
    )
    _official(monkeypatch, CIFAR100, base)
    return {
        "classes": ("a", "b", "c"),
        "train": ([1, 0, 2], [0, 1, 2]),
        "test": ([2], [5]),
        "side": 32,
    }


def dtd(root: Path) -> dict[str, Any]:
    base = root / "dtd" / "dtd"
    names = ["banded", "zigzagged"]
    for part in (1, 2):
        for number, split in enumerate(("train", "val", "test")):
            rows = [(k, 1 + (number + part) % 3) for k in (0, 1)]
            lines = "".join(f"{names[k]}/{names[k]}_{i:04}.jpg\n" for k, i in rows)
            (base / "labels").mkdir(parents=True, exist_ok=True)
            (base / "labels" / f"{split}{part}.txt").write_text(lines)
    for k, name in enumerate(names):
        for i in (1, 2, 3):
            save(base / "images" / name / f"{name}_{i:04}.jpg", 10 * k + i, "JPEG")
        (base / "images" / name / ".directory").write_text("")
    (base / "labels" / "labels_joint_anno.txt").write_text("banded/banded_0001.jpg banded\n")
    return {split: ([0, 1], None) for split in ("train", "val", "test")} | {"classes": tuple(names)}


def flowers(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    from scipy.io import savemat
    from torchvision.datasets import Flowers102

    base = root / "flowers-102"
    for i in range(1, 9):
        save(base / "jpg" / f"image_{i:05}.jpg", i)
    # 1-based classes of all images, 1-based numbers of images; test is the largest.
    savemat(base / "imagelabels.mat", {"labels": np.array([[1, 2, 3, 1, 2, 3, 1, 2]])})
    ids = {"trnid": [[4, 2]], "valid": [[3, 1]], "tstid": [[8, 5, 6, 7]]}
    savemat(base / "setid.mat", {name: np.array(rows) for name, rows in ids.items()})
    files = {
        key: (name, hashlib.md5((base / name).read_bytes()).hexdigest() if "mat" in name else "")
        for key, (name, _) in Flowers102._file_dict.items()
    }
    monkeypatch.setattr(Flowers102, "_file_dict", files)
    return {
        "classes": tuple(Flowers102.classes),
        "train": ([0, 1], [4, 2]),
        "val": ([2, 0], [3, 1]),
        "test": ([1, 1, 2, 0], [8, 5, 6, 7]),
    }


def food(root: Path) -> dict[str, Any]:
    base = root / "food-101"
    lists: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    for k, name in enumerate(("apple_pie", "waffles")):
        for split, ids in (("train", (0, 1)), ("test", (2,))):
            lists[split][name] = [f"{name}/{1000 * k + i}" for i in ids]
            for i in ids:
                save(base / "images" / name / f"{1000 * k + i}.jpg", 10 * k + i)
    for split, content in lists.items():
        (base / "meta").mkdir(exist_ok=True)
        (base / "meta" / f"{split}.json").write_text(json.dumps(content))
        lines = "".join(f"{each}\n" for rows in content.values() for each in rows)
        (base / "meta" / f"{split}.txt").write_text(lines)
    (base / "meta" / "classes.txt").write_text("apple_pie\nwaffles\n")
    (base / "license_agreement.txt").write_text("")
    return {
        "classes": ("apple_pie", "waffles"),
        "train": ([0, 0, 1, 1], [0, 1, 10, 11]),
        "test": ([0, 1], [2, 12]),
    }


def pets(root: Path) -> dict[str, Any]:
    base = root / "oxford-iiit-pet"
    rows = [("Abyssinian", 1, 1), ("american_bulldog", 2, 2), ("Birman", 3, 1)]
    (base / "annotations" / "trimaps").mkdir(parents=True)
    forms = {("Abyssinian", 1): "GIF", ("Birman", 2): "PNG"}
    (base / "annotations" / "list.txt").write_text("#Image CLASS-ID SPECIES BREED ID\n")
    for split, ids in (("trainval", (1, 2)), ("test", (3,))):
        lines = []
        for k, (name, label, species) in enumerate(rows):
            for i in ids:
                form = forms.get((name, i), "JPEG")
                save(base / "images" / f"{name}_{i}.jpg", 10 * k + i, form)
                lines.append(f"{name}_{i} {label} {species} {i}\n")
        (base / "annotations" / f"{split}.txt").write_text("".join(lines))
    cmyk = Image.new("CMYK", (9, 7), (0, 255, 255, 0))
    cmyk.save(base / "images" / "american_bulldog_1.jpg", "JPEG")
    for i in (100, 101, 102):
        (base / "images" / f"Abyssinian_{i}.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    (base / "images" / "._Abyssinian_1.jpg").write_bytes(b"\0\5\x16\7")
    return {
        "classes": ("Abyssinian", "American Bulldog", "Birman"),
        "train": ([0, 0, 1, 1, 2, 2], None),
        "test": ([0, 1, 2], None),
    }


def sun397(root: Path) -> dict[str, Any]:
    base = root / "SUN397"
    classes = ["/a/abbey", "/c/church/indoor", "/c/church/outdoor"]
    forms = ["JPEG", "PNG", "BMP"]
    lists: dict[str, list[str]] = {"Training": [], "Testing": []}
    for k, name in enumerate(classes):
        for i, which in enumerate(("Training", "Testing", "")):
            path = f"{name}/sun_{'abc'[i]}{k}.jpg"
            save(base / path[1:], 10 * k + i, forms[i])
            if which:
                lists[which].append(path)
    (base / "ClassName.txt").write_text("".join(f"{n}\n" for n in classes))
    for which, lines in lists.items():
        for part in ("01", "02"):
            rows = lines if part == "01" else lines[:1]
            (base / f"{which}_{part}.txt").write_text("".join(f"{n}\n" for n in rows))
    return {
        "classes": ("abbey", "church/indoor", "church/outdoor"),
        "train": ([0, 1, 2], None),
        "test": ([0, 1, 2], [1, 11, 21]),
    }


def voc2007(root: Path) -> dict[str, Any]:
    from transferbench.data.archive_lists import VOC_CLASSES

    base = root / "VOCdevkit" / "VOC2007"
    shown = {"000001": {"dog": 1, "train": 1}, "000002": {"dog": 0}, "000003": {"cat": 1, "car": 0}}
    ids = {
        "train": ["000001", "000002", "000003"],
        "val": ["000004"],
        "test": ["000005", "000006"],
    }
    shown |= {"000004": {"cat": 1}, "000005": {"tvmonitor": 1}, "000006": {"dog": 0, "cat": 1}}
    main = base / "ImageSets" / "Main"
    main.mkdir(parents=True)
    for split, names in {**ids, "trainval": ids["train"] + ids["val"]}.items():
        (main / f"{split}.txt").write_text("".join(f"{n}\n" for n in names))
        for name in VOC_CLASSES:
            flags = [(n, shown[n].get(name, -1)) for n in names]
            (main / f"{name}_{split}.txt").write_text("".join(f"{n} {f:2}\n" for n, f in flags))
    for number, name in enumerate(shown):
        save(base / "JPEGImages" / f"{name}.jpg", number)
        (base / "Annotations").mkdir(exist_ok=True)
        (base / "Annotations" / f"{name}.xml").write_text("<annotation/>")
    return {"classes": VOC_CLASSES, "shown": shown, "ids": ids}


def imagenet(root: Path) -> dict[str, Any]:
    for k, wnid in enumerate(("n01440764", "n01443537")):
        for i in range(3):
            save(root / "imagenet" / "train" / wnid / f"{wnid}_{i}.JPEG", 10 * k + i)
        save(root / "imagenet" / "val" / wnid / f"ILSVRC2012_val_0000000{k}.JPEG", 50 + k)
    return {
        "classes": ("n01440764", "n01443537"),
        "train": ([0, 0, 0, 1, 1, 1], [0, 1, 2, 10, 11, 12]),
        "test": ([0, 1], [50, 51]),
    }


def eurosat(root: Path) -> dict[str, Any]:
    for k, name in enumerate(("AnnualCrop", "Forest")):
        for i in range(5):
            save(root / "eurosat" / "2750" / name / f"{name}_{i + 1}.jpg", 10 * k + i)
    return {"classes": ("AnnualCrop", "Forest"), "pool": 10}


def cropdiseases(root: Path) -> dict[str, Any]:
    names = ("Apple___Apple_scab", "Tomato___healthy")
    for k, name in enumerate(names):
        for i in range(5):
            save(root / "cropdiseases" / "dataset" / "train" / name / f"{i}.JPG", 10 * k + i)
    save(root / "cropdiseases" / "dataset" / "test" / names[0] / "9.JPG", 99)
    return {"classes": names, "pool": 10}


def isic(root: Path) -> dict[str, Any]:
    base = root / "isic"
    truth = base / "ISIC2018_Task3_Training_GroundTruth"
    truth.mkdir(parents=True)
    names = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
    with (truth / "ISIC2018_Task3_Training_GroundTruth.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", *names])
        for i in range(14):
            table.writerow([f"ISIC_{i:07}", *(float(k == i % 7) for k in range(7))])
            save(base / "ISIC2018_Task3_Training_Input" / f"ISIC_{i:07}.jpg", i)
    (base / "ISIC2018_Task3_Training_Input" / "LICENSE.txt").write_text("")
    return {"classes": tuple(names), "pool": 14}


def chestx(root: Path) -> dict[str, Any]:
    from transferbench.data.archive_lists import CHESTX_CLASSES

    base = root / "chestx"
    findings = [*CHESTX_CLASSES, *CHESTX_CLASSES, "No Finding", "Pneumonia", "Mass|Nodule", "Edema"]
    base.mkdir(parents=True)
    with (base / "Data_Entry_2017.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["Image Index", "Finding Labels", "Follow-up #"])
        for i, finding in enumerate(findings):
            table.writerow([f"{i:08}_000.png", finding, 0])
            save(base / "images" / f"{i:08}_000.png", i)
    return {"classes": CHESTX_CLASSES, "pool": 14}
