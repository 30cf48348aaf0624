"""Where the expert masks of predicted cases lie: in a folder of their own, or in a dataset in any of the layouts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from segment.config_data import BidsConfig
from segment.data.bids import is_bids
from segment.data.cases import find_dataset
from segment.data.folder_names import nearest, stems
from segment.errors import InputError


@dataclass(frozen=True)
class LabelFiles:
    """The expert masks that there are.

    Attributes:
        source: Where they were looked for.
        files: By case id.
    """

    source: Path
    files: Mapping[str, Path]

    def of(self, case_id: str) -> Path:
        """The label of a case. Raises InputError where there is none; names the most similar one."""
        if case_id not in self.files:
            raise InputError(
                f"case {case_id}: expected its label in {self.source}, found none{nearest(case_id, self.files)}"
            )
        return self.files[case_id]


def find_labels(source: Path, *, bids: BidsConfig | None = None) -> LabelFiles:
    """Finds expert masks.

    Args:
        source: A folder of CASE.nii.gz or CASE.nii files, or what `find_dataset` takes, whose labels are taken, with
            those of labelsTs where there are any.
        bids: Which files a BIDS dataset is made of; None takes the defaults.

    Raises:
        InputError: There is nothing, two files are of one case, or it is a dataset that cannot be read.
    """
    if not os.path.exists(source):
        raise InputError(f"labels {source}: expected a folder of masks CASE.nii.gz or a dataset, found nothing")
    source = source.parent if source.name == "dataset.json" else source
    own = stems(source) if os.path.isdir(source) else {}
    if own:  # whatever lies beside them, as nnU-Net's dataset.json beside its predictions
        return LabelFiles(source, {stem: source / name for stem, name in own.items()})
    if os.path.isfile(source) or os.path.isfile(source / "dataset.json") or is_bids(source):
        cases = find_dataset(source, layout="auto", bids=bids).cases
        found = {case.case_id: case.label_path for case in cases if case.label_path is not None}
        tested = source / "labelsTs"  # of the scans that an nnU-Net dataset keeps for prediction
        held_out = stems(tested) if os.path.isdir(tested) else {}
        found |= {stem: tested / name for stem, name in held_out.items()}
        return LabelFiles(source, {case_id: path for case_id, path in found.items() if os.path.lexists(path)})
    return LabelFiles(source, {})
