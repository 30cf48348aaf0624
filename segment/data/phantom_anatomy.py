"""A made-up head in world coordinates: which share of each voxel is CSF, grey matter, white matter or residual skull.

Nothing here is measured on a person. Distances are implicit functions in mm, positive inside; a border between two
tissues is a sigmoid of the distance to it. Everything is float64 and elementwise, so that two machines differ by
rounding errors far below the step of the integers that are written in the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segment.data.scan import Grid

Points = tuple[np.ndarray, np.ndarray, np.ndarray]  # x (right), y (anterior), z (superior) in mm, of one shape
OUTSIDE, CSF, GREY, DEEP_GREY, WHITE, SKULL = range(6)  # the last axis of `tissue_shares`

BORDER_MM = 0.35  # softness of a border between tissues
CSF_MM, CORTEX_MM = 0.55, 2.2  # half width of a sulcus, and thickness of the cortex beside it
SULCUS_DEPTH_MM, SULCUS_WAVELENGTH_MM = 10.0, 16.0
FISSURE_DEPTH_MM = 20.0  # the gap between the hemispheres ends above the corpus callosum
SKULL_MM = (0.2, 1.7)  # what brain extraction leaves of the skull lies this far outside the brain's surface

# Lateral ventricles of the right side: (start, end, radius at start, radius at end); the left side is the mirror image.
VENTRICLES = (
    ((5.0, 17.0, 3.0), (6.0, 1.0, 10.0), 3.4, 3.2),
    ((6.0, 1.0, 10.0), (12.0, -16.0, 6.0), 3.2, 3.8),
    ((12.0, -16.0, 6.0), (11.0, -25.0, 3.0), 3.8, 1.4),
    ((12.0, -16.0, 6.0), (19.0, -8.0, -8.0), 2.8, 1.2),
    ((0.0, 6.0, -5.0), (0.0, -8.0, 1.0), 1.3, 1.3),
)
# Caudate, thalamus, putamen of the right side: (centre, semi-axes).
NUCLEI = (
    ((10.5, 11.0, 5.0), (3.2, 8.0, 5.0)),
    ((7.5, -6.0, 1.0), (5.0, 8.0, 5.5)),
    ((19.0, 3.0, -2.0), (3.6, 11.0, 6.5)),
)


@dataclass(frozen=True, eq=False)
class Waves:
    """A smooth random function of the place: a sum of plane waves of about one wavelength.

    Attributes:
        vectors: float64 [waves, 3], radians per mm.
        phases: float64 [waves], radians.
    """

    vectors: np.ndarray
    phases: np.ndarray

    @staticmethod
    def draw(rng: np.random.Generator, *, count: int, wavelength_mm: float) -> Waves:
        """Random directions, phases, and wavelengths within 20% of `wavelength_mm`."""
        directions = rng.normal(size=(count, 3))
        directions /= np.sqrt((directions**2).sum(axis=1, keepdims=True))
        lengths = wavelength_mm * rng.uniform(0.8, 1.2, size=(count, 1))
        return Waves(2 * np.pi * directions / lengths, rng.uniform(0, 2 * np.pi, size=count))

    def value(self, points: Points) -> np.ndarray:
        """The function at the points, float64 of their shape; mean 0 and standard deviation about 1 over the space."""
        return sum((np.cos(phase) for phase in self._phases_at(points)), np.zeros(points[0].shape)) * self._norm

    def value_and_slope(self, points: Points) -> tuple[np.ndarray, np.ndarray]:
        """The function, and the length of its gradient per mm."""
        value, slopes = np.zeros(points[0].shape), [np.zeros(points[0].shape) for _ in range(3)]
        for vector, phase in zip(self.vectors, self._phases_at(points), strict=True):
            value += np.cos(phase)
            sine = np.sin(phase)
            for slope, component in zip(slopes, vector, strict=True):
                slope += component * sine
        return value * self._norm, length(*slopes) * self._norm

    @property
    def _norm(self) -> float:
        return float(np.sqrt(2 / len(self.phases)))

    def _phases_at(self, points: Points) -> list[np.ndarray]:
        x, y, z = points
        return [u * x + v * y + w * z + phase for (u, v, w), phase in zip(self.vectors, self.phases, strict=True)]


@dataclass(frozen=True, eq=False)
class Head:
    """One made-up person.

    Attributes:
        semi_axes_mm: of the cerebrum: right, anterior, superior.
        scale: size of the inner structures, 1 for semi-axes of about 43, 53 and 38 mm.
        folds: the sulci are where this function is 0 on the brain's surface.
        swell: moves the surface and the hemispheric fissure, so that no brain is an ellipsoid or symmetric.
        remnants: residual skull is where this function is large.
    """

    semi_axes_mm: tuple[float, float, float]
    scale: float
    folds: Waves
    swell: Waves
    remnants: Waves

    @staticmethod
    def draw(rng: np.random.Generator, *, scale: float) -> Head:
        """A head whose semi-axes vary by 4% around `scale` times 43, 53 and 38 mm."""
        right, anterior, superior = scale * np.array([43.0, 53.0, 38.0]) * rng.uniform(0.96, 1.04, size=3)
        return Head(
            semi_axes_mm=(float(right), float(anterior), float(superior)),
            scale=scale,
            folds=Waves.draw(rng, count=12, wavelength_mm=SULCUS_WAVELENGTH_MM),
            swell=Waves.draw(rng, count=5, wavelength_mm=45.0),
            remnants=Waves.draw(rng, count=6, wavelength_mm=30.0),
        )


def tissue_shares(head: Head, grid: Grid, subsamples: tuple[int, int, int]) -> np.ndarray:
    """The share of every voxel that each tissue takes: partial volume by averaging a finer grid.

    Args:
        head: World coordinate 0 lies between the hemispheres, where the fissure ends.
        grid: The scan's grid.
        subsamples: Points per voxel along each of its axes, evenly spaced.

    Returns:
        float64 [x, y, z, 6] in the order OUTSIDE, CSF, GREY, DEEP_GREY, WHITE, SKULL; sums to 1.
    """
    shares = np.empty((*grid.shape, 6))
    steps = [(np.arange(n * s) + 0.5) / s - 0.5 for n, s in zip(grid.shape, subsamples, strict=True)]
    blocks = [(size, sub) for size, sub in zip(grid.shape, subsamples, strict=True)]
    for index in range(grid.shape[0]):  # plane by plane: the temporary arrays then stay small and fast
        first = steps[0][index * subsamples[0] : (index + 1) * subsamples[0]]
        tissues = _tissues_at(head, world_points(grid.affine, (first, steps[1], steps[2])))
        for tissue, values in enumerate(tissues):
            split = values.reshape(subsamples[0], *blocks[1], *blocks[2])
            shares[index, :, :, tissue] = split.mean(axis=(0, 2, 4))
    return shares


def world_points(affine: np.ndarray, steps: tuple[np.ndarray, ...]) -> Points:
    """World coordinates in mm of a lattice of voxel indices, float64 with one axis for each of the `steps`."""
    i, j, k = np.ix_(*steps)
    x, y, z = (row[0] * i + row[1] * j + row[2] * k + row[3] for row in affine[:3])
    return x, y, z


def _tissues_at(head: Head, points: Points) -> list[np.ndarray]:
    """Shares 0 to 1 of the six tissues at points, by distances to their borders."""
    surface, cortex = _cerebrum(head, points)
    for depth, folded in (_cerebellum(head, points), _brainstem(head, points)):
        surface = np.maximum(surface, depth)
        cortex = np.maximum(cortex, folded)
    ventricle = _ventricles(head, points)
    nucleus = _nuclei(head, points)
    brain = soft(surface + 0.8)  # a film of CSF belongs to the brain mask
    skull = _skull(head, points, surface)
    inside = soft(cortex - CSF_MM) * soft(-ventricle)
    white = inside * soft(cortex - CSF_MM - CORTEX_MM) * (1 - soft(nucleus))
    deep = inside * soft(nucleus)
    brain = np.maximum(brain, inside)
    rest = 1 - skull
    return [
        rest * (1 - brain),
        rest * (brain - inside),
        rest * (inside - white - deep),
        rest * deep,
        rest * white,
        skull,
    ]


def _skull(head: Head, points: Points, surface: np.ndarray) -> np.ndarray:
    """Share of residual skull: patches of a thin shell around the brain's surface."""
    share = np.zeros(surface.shape)
    near = (surface > -SKULL_MM[1] - 3) & (surface < -SKULL_MM[0] + 3)
    x, y, z = (axis[near] for axis in points)
    patches = soft(8 * (head.remnants.value((x, y, z)) - 1.0))
    share[near] = soft(surface[near] + SKULL_MM[1]) * soft(-surface[near] - SKULL_MM[0]) * patches
    return share


def _cerebrum(head: Head, points: Points) -> tuple[np.ndarray, np.ndarray]:
    """Depth below the brain's hull, and below the folded surface (hull, sulci and the fissure), in mm."""
    x, y, z = points
    right, anterior, superior = head.semi_axes_mm
    below = np.where(z < 0, 0.72 * superior, superior)  # the base of the brain is flatter than its top
    radius = (np.abs(x / right) ** 2.3 + np.abs(y / anterior) ** 2.3 + np.abs(z / below) ** 2.3) ** (1 / 2.3)
    swell = head.swell.value(points)
    depth = (1 - radius) * superior + 0.8 * swell
    folded = np.minimum(depth, length(np.abs(x + 0.6 * swell), np.maximum(depth - FISSURE_DEPTH_MM * head.scale, 0)))
    near = (depth > -4) & (depth < SULCUS_DEPTH_MM + 6)
    inner = [axis[near] / np.maximum(radius[near], 0.3) for axis in points]
    wobble = 2.5 * swell[near]
    # The folds depend on the direction from the centre, hardly on the depth, so that sulci run inwards.
    value, slope = head.folds.value_and_slope((inner[0], inner[1], inner[2] + wobble))
    across = np.abs(value) / np.maximum(slope, 0.3) * radius[near]
    sulcus_end = np.maximum(depth[near] - SULCUS_DEPTH_MM * (1 + 0.35 * np.sin(wobble)), 0)
    folded[near] = np.minimum(folded[near], length(across, sulcus_end))
    return depth, folded


def _cerebellum(head: Head, points: Points) -> tuple[np.ndarray, np.ndarray]:
    """As `_cerebrum`: an ellipsoid at the back below, with fine folds in its outer part."""
    x, y, z = (axis / head.scale for axis in points)
    depth = (1 - length(x / 28, (y + 27) / 18, (z + 25) / 14)) * 14
    angle = np.arctan2(z + 25, y + 12)
    folds = np.abs(np.sin(16 * angle)) * 2.2 + np.maximum(depth - 3.5, 0)
    return depth, np.minimum(depth, folds)


def _brainstem(head: Head, points: Points) -> tuple[np.ndarray, np.ndarray]:
    """As `_cerebrum`: a smooth stalk; its surface counts as lying deep enough to have hardly any cortex."""
    depth = capsule(points, (0.0, -6.0, -12.0), (0.0, -12.0, -60.0), 8.5, 6.5, head.scale)
    return depth, depth * 1.6


def _ventricles(head: Head, points: Points) -> np.ndarray:
    """Distance in mm to the ventricles' wall, positive inside."""
    mirrored = (np.abs(points[0]), points[1], points[2])
    distance = np.full(points[0].shape, -np.inf)
    for start, end, first, last in VENTRICLES:
        distance = np.maximum(distance, capsule(mirrored, start, end, first, last, head.scale))
    return distance + 0.4 * head.swell.value(points)


def _nuclei(head: Head, points: Points) -> np.ndarray:
    """Distance in mm (exact on the border only) to the deep grey nuclei, positive inside."""
    x, y, z = np.abs(points[0]) / head.scale, points[1] / head.scale, points[2] / head.scale
    distance = np.full(x.shape, -np.inf)
    for centre, axes in NUCLEI:
        radius = length(*((value - c) / a for value, c, a in zip((x, y, z), centre, axes, strict=True)))
        distance = np.maximum(distance, (1 - radius) * min(axes))
    return distance


def capsule(
    points: Points, start: tuple[float, ...], end: tuple[float, ...], first: float, last: float, scale: float
) -> np.ndarray:
    """Distance in mm to the wall of a round-ended tube with a radius from `first` to `last`, positive inside."""
    offsets = [axis - scale * s for axis, s in zip(points, start, strict=True)]
    along = [scale * (e - s) for s, e in zip(start, end, strict=True)]
    share = sum(o * a for o, a in zip(offsets, along, strict=True)) / sum(a * a for a in along)
    share = np.clip(share, 0, 1)
    radius = scale * (first + (last - first) * share)
    return radius - length(*(o - a * share for o, a in zip(offsets, along, strict=True)))


def soft(distance_mm: np.ndarray) -> np.ndarray:
    """0 far outside, 0.5 on the border, 1 far inside."""
    return 0.5 * (1 + np.tanh(distance_mm / (2 * BORDER_MM)))


def length(*components: np.ndarray) -> np.ndarray:
    return np.sqrt(sum(component * component for component in components))
