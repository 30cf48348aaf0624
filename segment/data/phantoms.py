"""Made-up scans with lesions of known place and size: FLAIR and T1 of the heads of `phantom_anatomy`.

A case is a pure function of (seed, its number, its description). Lesions are bright on FLAIR and grey on T1. Vessels
and residual skull are as bright on FLAIR but bright on T1 as well, grey matter is between, and a bias field moves
everything, so that no threshold tells lesions apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import ndimage

from segment.data.phantom_anatomy import OUTSIDE, WHITE, Head, tissue_shares
from segment.data.phantom_lesions import MIN_LESION_VOXELS, LesionSite, vessel_cover
from segment.data.scan import Grid

# Signal of each tissue, in the order of `phantom_anatomy`: integers this small keep the noise, and so the files, small.
FLAIR_SIGNAL = (0.0, 42.0, 158.0, 148.0, 130.0, 215.0)
T1_SIGNAL = (0.0, 62.0, 150.0, 172.0, 208.0, 262.0)
LESION_FLAIR, LESION_T1 = (1.65, 2.05), (0.64, 0.8)  # range of a lesion's signal as a multiple of white matter's
VESSEL_FLAIR, VESSEL_T1 = (1.6, 2.05), (1.15, 1.35)
NOISE = 4.5  # standard deviation of each channel of the receiver, so the magnitude is Rician
BIAS = 0.16  # about the largest change of a tissue's signal through the field
TEXTURE = 0.02

LESION_MM3 = (4.0, 2000.0)
SMALL_MM3 = 50.0


@dataclass(frozen=True)
class PhantomSpec:
    """What one case looks like.

    Attributes:
        case_id: Name of its files.
        held_out: In imagesTs and labelsTs instead of imagesTr and labelsTr.
        shape: Voxels per axis of the file.
        spacing_mm: Per axis of the file.
        rotation: The last three parts of the unit quaternion that turns the file's axes into right, anterior, superior,
            as in the NIfTI header's qform.
        mirrored: The file's last axis points the other way (the header's qfac is -1).
        subsamples: Points per voxel and axis at which the anatomy is computed.
        small: Lesions of at most 50 mm3.
        large: Lesions above 50 mm3.
        scale: Size of the head, about 0.6 of an adult's at 1.
    """

    case_id: str
    held_out: bool
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    rotation: tuple[float, float, float]
    mirrored: bool
    subsamples: tuple[int, int, int]
    small: int
    large: int
    scale: float


@dataclass(frozen=True, eq=False)
class Phantom:
    """A generated case.

    Attributes:
        flair: int16 [x, y, z], 0 outside the extracted brain and at least 1 inside.
        t1: As `flair`.
        label: uint8 [x, y, z], 1 where at least half of the voxel is lesion.
        header: Carries the grid; qform and sform agree.
    """

    flair: np.ndarray
    t1: np.ndarray
    label: np.ndarray
    header: nib.Nifti1Header


def make_phantom(spec: PhantomSpec, *, seed: int, number: int) -> Phantom:
    """Generates a case; the same arguments give the same arrays.

    Args:
        spec: The case.
        seed: Of the whole dataset.
        number: The case's place in the dataset; each has random numbers of its own.

    Raises:
        ValueError: The lesions that `spec` asks for do not fit into the brain.
    """
    rng = np.random.default_rng([seed, number])
    header = phantom_header(spec)
    grid = Grid(spec.shape, header.get_best_affine().astype(np.float64))
    head = Head.draw(rng, scale=spec.scale)
    shares = tissue_shares(head, grid, spec.subsamples)
    signals = np.stack([shares @ np.array(FLAIR_SIGNAL), shares @ np.array(T1_SIGNAL)])
    vessels = np.zeros(spec.shape)
    for _ in range(int(rng.integers(7, 11))):
        cover = vessel_cover(rng, head, grid) * (shares[..., OUTSIDE] < 0.5)
        vessels = np.maximum(vessels, cover)
        _blend(signals, cover, _draw_signal(rng, VESSEL_FLAIR, VESSEL_T1))
    label = np.zeros(spec.shape, np.uint8)
    site = LesionSite(grid, shares, vessels, label)
    for low_mm3, high_mm3 in _lesion_ranges(rng, spec, grid.voxel_mm3):
        place, cover = site.add(rng, low_mm3, high_mm3)
        _blend(signals[(slice(None), *place)], cover, _draw_signal(rng, LESION_FLAIR, LESION_T1))
    inside = shares[..., OUTSIDE] < 0.5
    flair, t1 = (_acquire(rng, signal, grid, inside) for signal in signals)
    return Phantom(flair, t1, label, header)


def phantom_header(spec: PhantomSpec) -> nib.Nifti1Header:
    """The header of a case's files: millimetres, scanner coordinates, the grid's centre near world coordinate 0.

    The affine follows from the quaternion as stored, in float32, not the other way round, so it is the same everywhere.
    """
    header = nib.Nifti1Header()
    header.set_data_shape(spec.shape)
    header.set_xyzt_units("mm", "sec")
    header["pixdim"][:4] = (-1 if spec.mirrored else 1, *spec.spacing_mm)
    header["quatern_b"], header["quatern_c"], header["quatern_d"] = spec.rotation
    header["qform_code"] = 1
    turned = header.get_qform()[:3, :3] @ ((np.array(spec.shape) - 1) / 2)
    for axis, value, shift in zip("xyz", turned, (0.0, 0.0, 2.0), strict=True):
        header[f"qoffset_{axis}"] = np.round((shift - value) * 8) / 8  # eighths are exact in float32
    header.set_sform(header.get_qform(), code=1)
    return header


def _draw_signal(rng: np.random.Generator, flair: tuple[float, float], t1: tuple[float, float]) -> np.ndarray:
    """Signals [2] of one object, FLAIR and T1, from ranges given as multiples of white matter's."""
    return np.array([FLAIR_SIGNAL[WHITE] * rng.uniform(*flair), T1_SIGNAL[WHITE] * rng.uniform(*t1)])


def _blend(signals: np.ndarray, cover: np.ndarray, values: np.ndarray) -> None:
    """Puts an object of the given share of each voxel [x, y, z] into signals [2, x, y, z], in place."""
    signals += cover * (values[:, None, None, None] - signals)


def _lesion_ranges(rng: np.random.Generator, spec: PhantomSpec, voxel_mm3: float) -> list[tuple[float, float]]:
    """The allowed volume of each lesion, low to high in mm3; largest first, because small ones fit in beside them."""
    smallest = max(LESION_MM3[0], MIN_LESION_VOXELS * voxel_mm3)
    large = np.exp(rng.uniform(np.log(1.2 * SMALL_MM3), np.log(0.6 * LESION_MM3[1]), size=spec.large))
    small = np.exp(rng.uniform(np.log(smallest), np.log(0.9 * SMALL_MM3), size=spec.small))
    ranges = [(max(0.8 * volume, 1.01 * SMALL_MM3), 1.25 * volume) for volume in np.sort(large)[::-1].tolist()]
    for volume in np.sort(small)[::-1].tolist():
        ranges.append((max(0.8 * volume, smallest), min(1.25 * volume, SMALL_MM3)))
    return ranges


def _acquire(rng: np.random.Generator, signal: np.ndarray, grid: Grid, inside: np.ndarray) -> np.ndarray:
    """The int16 scan of a signal: gain, texture, bias field, Rician noise, and 0 outside the extracted brain."""
    smooth = ndimage.gaussian_filter(rng.normal(size=grid.shape), [2.5 / step for step in grid.spacing_mm])
    texture = 1 + TEXTURE * smooth / smooth.std()
    x, y, z = np.ix_(*(np.linspace(-1, 1, size) for size in grid.shape))
    a, b, c, d, e, f = rng.uniform(-1, 1, size=6)
    field = a * x + b * y + c * z + d * x * y + e * y * z + f * (z * z - 0.5)
    gain = rng.uniform(0.9, 1.15) * np.exp(BIAS * field / np.abs(field[inside]).max())
    real, imaginary = rng.normal(scale=NOISE, size=(2, *grid.shape))
    magnitude = np.sqrt((signal * texture * gain + real) ** 2 + imaginary**2)
    return np.where(inside, np.maximum(np.round(magnitude), 1), 0).astype(np.int16)
