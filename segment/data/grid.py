"""Where the voxels of a file lie in the world."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np

AFFINE_TOLERANCE = 1e-3  # mm; headers that went through float32 or quaternions differ by less
AFFINE_RELATIVE_TOLERANCE = 1e-6  # float32 rounding of far-off origins


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of a file lie.

    Attributes:
        shape: Voxels per axis, in the file's own order.
        affine: float64 [4, 4], voxel index -> world mm (x to the right, y to the front, z up).
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels per axis: the column norms, right for oblique and flipped affines too."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel, also where the axes are sheared."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def matches(self, other: Grid) -> bool:
        """Whether both have the same shape and their voxels lie in the same places, up to rounding in headers."""
        return self.shape == other.shape and np.allclose(
            self.affine, other.affine, rtol=AFFINE_RELATIVE_TOLERANCE, atol=AFFINE_TOLERANCE
        )

    def describe(self) -> str:
        """Shape, spacing and origin in one short line, for messages."""
        shape = "x".join(str(length) for length in self.shape)
        spacing = "x".join(f"{length:.4g}" for length in self.spacing_mm)
        origin = ", ".join(f"{value:.2f}" for value in self.affine[:3, 3])
        axes = "".join(nib.aff2axcodes(self.affine))
        return f"{shape} voxels of {spacing} mm, axes {axes}, origin ({origin})"
