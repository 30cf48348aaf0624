"""A case: the files that belong to one scan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segment.data.orientation import Half


@dataclass(frozen=True)
class Case:
    """The files of one scan; nothing says that they are there or can be read.

    Attributes:
        case_id: Unique in its dataset, and a file name without ending.
        patient_id: Cases of one patient never fall on both sides of a split.
        image_paths: One a channel, in the order of the dataset's channels.
        label_path: None where there is no label.
        image_volumes: For channels that are volumes of 4D files: which volume of its file each one is, from 0; a file
            that several channels name must hold these and no others. Empty: every file is one 3D channel.
        half: The half of the subject that the case consists of; image and label are 0 in the other. None: all of it.
    """

    case_id: str
    patient_id: str
    image_paths: tuple[Path, ...]
    label_path: Path | None
    image_volumes: tuple[int, ...] = ()
    half: Half | None = None
