"""The sample dataset: its 12 cases, its folder in nnU-Net v2 layout, and its README."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from segment.data.phantom_anatomy import WHITE
from segment.data.phantom_lesions import GAP_VOXELS, MIN_LESION_VOXELS, TOUCHING
from segment.data.phantoms import (
    BIAS,
    FLAIR_SIGNAL,
    LESION_FLAIR,
    LESION_MM3,
    LESION_T1,
    NOISE,
    T1_SIGNAL,
    Phantom,
    PhantomSpec,
    make_phantom,
)
from segment.data.scan import Grid
from segment.files import atomic_path, claim_folder, write_json, write_text
from segment.progress import progress_bar

AXIAL = (0.0, 0.0, 0.0)
FRONT_TO_BACK = (0.0, 0.0, 1.0)  # half a turn about the z axis: axes run to the left and to the back, as in DICOM
HALF_TURN = (0.0, 1.0, 0.0)  # half a turn about the y axis; with `mirrored`, only the first axis is flipped
SAGITTAL = (0.5, 0.5, 0.5)  # axes run to the front, up, and to the right
TILTED = (0.11, -0.06, 0.08)  # about 17 degrees, about none of the axes
TILTED_BACK = (0.07, 0.05, 0.985)  # as FRONT_TO_BACK, tilted by about 11 degrees

ISO, THICK = (2, 2, 2), (2, 2, 4)

SPECS = (
    PhantomSpec("phantom_001", False, (80, 98, 74), (1.2, 1.2, 1.2), AXIAL, False, ISO, 9, 4, 1.0),
    PhantomSpec("phantom_002", False, (96, 114, 30), (1.0, 1.0, 3.0), AXIAL, False, THICK, 7, 4, 1.0),
    PhantomSpec("phantom_003", False, (80, 98, 74), (1.2, 1.2, 1.2), HALF_TURN, True, ISO, 19, 6, 1.02),
    PhantomSpec("phantom_004", False, (106, 80, 60), (1.1, 1.1, 1.5), SAGITTAL, False, ISO, 10, 4, 0.98),
    PhantomSpec("phantom_005", False, (84, 98, 76), (1.2, 1.2, 1.2), TILTED, False, ISO, 8, 5, 0.96),
    PhantomSpec("phantom_006", False, (92, 112, 36), (1.0, 1.0, 2.5), FRONT_TO_BACK, False, THICK, 2, 1, 0.98),
    PhantomSpec("phantom_007", False, (80, 98, 74), (1.2, 1.2, 1.2), AXIAL, False, ISO, 0, 0, 1.0),
    PhantomSpec("phantom_008", False, (84, 102, 76), (1.0, 1.0, 1.0), AXIAL, False, ISO, 14, 4, 0.88),
    PhantomSpec("phantom_009", True, (80, 98, 74), (1.2, 1.2, 1.2), AXIAL, False, ISO, 9, 4, 1.0),
    PhantomSpec("phantom_010", True, (96, 114, 30), (1.0, 1.0, 3.0), HALF_TURN, True, THICK, 6, 4, 1.0),
    PhantomSpec("phantom_011", True, (92, 106, 56), (1.1, 1.1, 1.5), TILTED_BACK, False, ISO, 8, 4, 0.96),
    PhantomSpec("phantom_012", True, (80, 98, 74), (1.2, 1.2, 1.2), AXIAL, False, ISO, 0, 0, 0.98),
)
CHANNELS = ("FLAIR", "T1")
ENDING = ".nii.gz"
NO_EXTENSION = bytes(4)  # stands between a NIfTI header and the voxels


@dataclass(frozen=True)
class CaseSummary:
    """A written case as its README row needs it: `volumes_mm3` of its lesions, rising."""

    spec: PhantomSpec
    axes: str
    volumes_mm3: tuple[float, ...]


def write_sample_data(output: Path, *, seed: int, force: bool, bin_edges_mm3: tuple[float, ...]) -> list[CaseSummary]:
    """Generates all cases into a folder; the same seed gives the same bytes.

    Args:
        output: Made if it is missing.
        seed: Of all random numbers.
        force: Replace a folder that an earlier call made.
        bin_edges_mm3: Of the README's table of lesion sizes.

    Raises:
        InputError: The folder holds files and `force` is off, it was not made here, or it cannot be written.
    """
    claim_folder(output, force=force, kind="data")
    summaries = []
    with progress_bar("sample data", len(SPECS)) as bar:
        for number, spec in enumerate(SPECS):
            phantom = make_phantom(spec, seed=seed, number=number)
            write_case(output, spec, phantom)
            summaries.append(_summary(spec, phantom))
            bar.advance(note=spec.case_id)
    write_json(output / "dataset.json", dataset_json())
    write_text(output / "README.md", readme(summaries, seed=seed, bin_edges_mm3=bin_edges_mm3))
    return summaries


def case_files(output: Path, spec: PhantomSpec) -> tuple[Path, Path, Path]:
    """The paths of a case's FLAIR, T1 and label in the dataset folder."""
    part = "Ts" if spec.held_out else "Tr"
    images, labels = output / f"images{part}", output / f"labels{part}"
    case = spec.case_id
    return images / f"{case}_0000{ENDING}", images / f"{case}_0001{ENDING}", labels / f"{case}{ENDING}"


def write_case(output: Path, spec: PhantomSpec, phantom: Phantom) -> None:
    """Writes a case's three files. Raises InputError when one cannot be written."""
    for path, values in zip(case_files(output, spec), (phantom.flair, phantom.t1, phantom.label), strict=True):
        header = phantom.header.copy()
        header.set_data_dtype(values.dtype)
        header.set_slope_inter(1, 0)
        header["vox_offset"] = len(header.binaryblock) + len(NO_EXTENSION)
        # No name and no time in the gzip header, and the level that no other writer's speed depends on: the same bytes.
        with (
            atomic_path(path) as temporary,
            temporary.open("wb") as raw,
            gzip.GzipFile("", "wb", 9, raw, mtime=0) as file,
        ):
            file.write(header.binaryblock + NO_EXTENSION + values.tobytes(order="F"))


def dataset_json() -> dict[str, object]:
    """The content of `dataset.json`."""
    return {
        "name": "Phantoms",
        "description": "Made-up FLAIR and T1 scans of brains with lesions; no person was scanned",
        "licence": "Apache-2.0",
        "channel_names": {str(number): name for number, name in enumerate(CHANNELS)},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": sum(not spec.held_out for spec in SPECS),
        "file_ending": ENDING,
    }


def _summary(spec: PhantomSpec, phantom: Phantom) -> CaseSummary:
    grid = Grid(spec.shape, phantom.header.get_best_affine())
    pieces, count = ndimage.label(phantom.label, structure=TOUCHING)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
    axes = "".join(nib.aff2axcodes(grid.affine))
    return CaseSummary(spec, axes, tuple(sorted(float(size) * grid.voxel_mm3 for size in sizes)))


def readme(summaries: list[CaseSummary], *, seed: int, bin_edges_mm3: tuple[float, ...]) -> str:
    """The dataset's README: how it was made, and a table of its cases with their lesions by size in mm3."""
    edges = [f"{edge:g}" for edge in bin_edges_mm3]
    names = [f"<={edges[0]}", *(f"{low}-{high}" for low, high in pairwise(edges)), f">{edges[-1]}"]
    head = ["case", "part", "shape", "spacing mm", "axes", "lesions", *(f"{name} mm3" for name in names), "total mm3"]
    rows = [head, ["---"] * len(head), *(_row(summary, bin_edges_mm3) for summary in summaries)]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return README.format(
        seed=seed,
        table=table,
        lesion_flair="{} to {}".format(*LESION_FLAIR),
        lesion_t1="{} to {}".format(*LESION_T1),
        voxels=MIN_LESION_VOXELS,
        volume="{:g} to {:g}".format(*LESION_MM3),
        gap=GAP_VOXELS,
        bias=f"{BIAS:.0%}",
        noise=f"{NOISE:g}",
        flair=f"{FLAIR_SIGNAL[WHITE]:g}",
        t1=f"{T1_SIGNAL[WHITE]:g}",
    )


def _row(summary: CaseSummary, bin_edges_mm3: tuple[float, ...]) -> list[str]:
    spec = summary.spec
    edges = np.array(bin_edges_mm3) * (1 + 1e-6)  # a lesion exactly on an edge counts below it
    bins = np.bincount(np.searchsorted(edges, summary.volumes_mm3), minlength=len(edges) + 1)
    return [
        spec.case_id,
        "test" if spec.held_out else "train",
        "x".join(str(size) for size in spec.shape),
        "x".join(f"{step:g}" for step in spec.spacing_mm),
        summary.axes + (" oblique" if spec.rotation in (TILTED, TILTED_BACK) else ""),
        str(len(summary.volumes_mm3)),
        *(str(count) for count in bins.tolist()),
        f"{sum(summary.volumes_mm3):.0f}",
    ]


README = """# Sample data: made-up brains with lesions

Twelve small phantoms in nnU-Net v2 layout, 8 to train on (`imagesTr`, `labelsTr`) and 4 held out (`imagesTs`,
`labelsTs`), each with FLAIR (`_0000`) and T1 (`_0001`). No person was scanned. They show that the software works, not
how well it does on patients.

Made by `python scripts/make_sample_data.py --output sample_data --seed {seed}`; the same seed gives the same bytes.

- **Anatomy**: grey matter, white matter and CSF of a head of about 0.6 times an adult's size, from distance functions
  in mm with soft borders: folded cortex, ventricles, deep nuclei, cerebellum, brainstem. Computed on a grid at least
  twice as fine and averaged down, so border voxels hold mixtures. Outside the extracted brain everything is 0.
- **Lesions**: bumpy ellipsoids in white matter, {lesion_flair} times as bright as it on FLAIR and {lesion_t1} times
  on T1 (about as grey matter). A voxel is lesion when at least half of it is covered. Each has at least {voxels}
  voxels, {volume} mm3, and is one 26-connected component with at least {gap} free voxels around it. Some scans have
  none.
- **Look-alikes**: vessels, and patches of skull that brain extraction left over: as bright as lesions on FLAIR, and
  brighter than white matter on T1.
- **Scanner**: bias field of up to {bias} in each direction, another for each channel, a gain, faint texture, and
  Rician noise of standard deviation {noise} where white matter is {flair} (FLAIR) and {t1} (T1). Stored as int16.
- **Geometry**: thick slices in some, flipped or permuted axes or an oblique affine in others; qform and sform agree.

Lesions by volume (number of voxels times a voxel's volume):

{table}
"""
