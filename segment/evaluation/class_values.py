"""Which label values make which class: given, read from a dataset.json beside the masks, or the only value there is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segment.data.dataset_json import values_by_name
from segment.errors import InputError
from segment.files import read_json

ClassValues = Mapping[
    str, tuple[int, ...]
]  # a class made of several values is their union, a region in nnU-Net's words
ONLY_CLASS = "lesion"
_BLOCK = 1 << 20  # voxels at a time


def parse_classes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Reads `NAME=VALUE` or, for a class made of several values, `NAME=VALUE+VALUE`.

    They are put into the order of their values, which is that of the channels of probability maps.

    Raises:
        InputError: A text has another form, a value is no integer from 1 to 255, or a name stands twice.
    """
    classes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        numbers = [int(value) for value in values.split("+") if value.isascii() and value.isdigit()]
        if not name or len(numbers) < values.count("+") + 1 or not all(1 <= number <= 255 for number in numbers):
            raise InputError(f"class {text!r}: expected NAME=VALUE or NAME=VALUE+VALUE with values from 1 to 255")
        if name in classes:
            raise InputError(f"class {name!r} stands twice; expected each name once")
        classes[name] = tuple(numbers)
    return _by_value(classes)


def _by_value(classes: ClassValues) -> dict[str, tuple[int, ...]]:
    return dict(sorted(classes.items(), key=lambda item: item[1]))


def find_class_values(folders: Sequence[Path]) -> tuple[dict[str, tuple[int, ...]], Path] | None:
    """The classes in the first dataset.json of the folders (nnU-Net copies one beside its predictions) and its path.

    None where no folder has one. They are in the order of their values, as the channels of probability maps are.
    Background and nnU-Net's `ignore` label are no classes; a region's list of values is one class. The form of the
    Medical Segmentation Decathlon, names by value, is read too.

    Raises:
        InputError: The file cannot be read, or a label is neither a number nor a list of numbers.
    """
    for folder in folders:
        path = folder / "dataset.json"
        if not path.is_file():
            continue
        table = read_json(path)
        labels = table.get("labels") if isinstance(table, dict) else None
        if not isinstance(labels, dict):
            raise InputError(
                f"{path}: expected labels by name, for example {{'background': 0, 'lesion': 1}}; pass --classes"
            )
        if labels and all(str(key).isdecimal() and isinstance(name, str) for key, name in labels.items()):
            labels = values_by_name(labels, path)
        classes = {str(name): _values(entry, name, path) for name, entry in labels.items() if name != "ignore"}
        return _by_value({name: values for name, values in classes.items() if values != (0,)}), path
    return None


def _values(entry: Any, name: str, path: Path) -> tuple[int, ...]:
    values = entry if isinstance(entry, list) else [entry]
    if not values or not all(isinstance(value, int) and 0 <= value <= 255 for value in values):
        raise InputError(
            f"{path}: label {name!r}: expected an integer from 0 to 255 or a list of them, found {entry!r}"
        )
    return tuple(values)


def require_known(classes: ClassValues, masks: Mapping[str, np.ndarray], source: str) -> None:
    """Raises InputError when a mask (by the words that name it) holds a value that belongs to no class of `source`."""
    known = {0, *(value for values in classes.values() for value in values)}
    for name, mask in masks.items():
        strange = sorted(set(_present(mask)) - known)
        if strange:
            raise InputError(
                f"{name} holds the value {strange[0]}, no class of {source} (an ignore label is not supported); pass "
                "--classes NAME=VALUE to choose"
            )


def values_outside(classes: ClassValues, masks: Iterable[np.ndarray]) -> tuple[int, ...]:
    """The values above 0 in uint8 masks that belong to no class, rising."""
    known = {value for values in classes.values() for value in values}
    return tuple(sorted({value for mask in masks for value in _present(mask)} - known))


def absent_classes(
    classes: ClassValues, present: Iterable[str], outside: Iterable[int], *, source: str = "--classes"
) -> list[str]:
    """A note for each class that no mask holds.

    Args:
        classes: As they were given.
        present: The classes that some mask holds.
        outside: Values in masks that belong to no class.
        source: Where the classes were given.

    Raises:
        InputError: No mask holds any of the classes, and some hold other values, which must be what was meant.
    """
    absent = {name: values for name, values in classes.items() if name not in set(present)}
    others = ", ".join(str(value) for value in sorted(set(outside)))
    if others and len(absent) == len(classes):
        given = " ".join(f"{name}={'+'.join(map(str, values))}" for name, values in classes.items())
        raise InputError(f"{source} {given}: expected these values in the masks, found only {others} in all of them")
    found = f"; values that belong to no class: {others}" if others else ""
    return [
        f"class {name} (value {'+'.join(map(str, values))}) is in no mask, neither a label nor a prediction{found}"
        for name, values in absent.items()
    ]


def only_class(masks: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """The class `lesion` of the only value above 0 in all masks; 1 where they are empty.

    Raises:
        InputError: There are several values.
    """
    present = sorted({value for mask in masks.values() for value in _present(mask)} - {0})
    if len(present) > 1:
        names = " and ".join(masks)
        found = ", ".join(str(value) for value in present)
        raise InputError(
            f"{names}: expected one value above 0, found {found}; pass --classes NAME=VALUE for each class"
        )
    return {ONLY_CLASS: tuple(present) or (1,)}


def _present(mask: np.ndarray) -> list[int]:
    """The values above 0 of a uint8 mask, rising; in blocks, because counting widens what it counts eightfold."""
    flat = mask.ravel(order="K")
    counts = np.zeros(256, np.int64)
    for start in range(0, len(flat), _BLOCK):
        block = flat[start : start + _BLOCK]
        counts += np.bincount(block[block != 0], minlength=256)
    return np.flatnonzero(counts).tolist()
