"""Masks to the network's grid and back, on random affines and odd shapes."""

from __future__ import annotations

import numpy as np
from builders import oblique
from data_helpers import axis_orders, make_scan, make_test_plan
from hypothesis import given, settings
from hypothesis import strategies as st

from segment.data.preprocessing import label_to_network, place, to_network, to_original

SHAPES = st.tuples(*[st.integers(1, 13)] * 3)
SPACINGS = st.tuples(*[st.floats(0.4, 3.5)] * 3)
AFFINES = st.builds(
    lambda degrees, spacing, origin, order: oblique(degrees, spacing, origin) @ axis_orders()[order],
    st.floats(-40, 40),
    SPACINGS,
    st.tuples(*[st.floats(-150, 150)] * 3),
    st.integers(0, 47),
)


def random_mask(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Single voxels and clumps, at the border too."""
    rng = np.random.default_rng(seed)
    return (rng.random(shape) < rng.choice([0.02, 0.2, 0.6])).astype(np.uint8)


def there_and_back(mask: np.ndarray, affine: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    scan = make_scan(np.ones(mask.shape), affine, mask)
    placement = place(scan, spacing_mm)
    network = label_to_network(mask, placement)
    return (to_original(network[..., None].astype(np.float32), placement)[..., 0] >= 0.5).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(SHAPES, AFFINES, st.tuples(*[st.floats(0.15, 0.5)] * 3), st.integers(0, 999))
def test_every_mask_survives_a_grid_twice_as_fine(shape: tuple, affine: np.ndarray, parts: tuple, seed: int) -> None:
    """Both network voxels around a centre of the scan then lie in its own voxel, so single voxels survive, too."""
    mask = random_mask(shape, seed)
    spacing = place(make_scan(np.ones(shape), affine), (1.0, 1.0, 1.0)).canonical_affine[:3, :3]
    fine = tuple(float(side * part) for side, part in zip(np.linalg.norm(spacing, axis=0), parts, strict=True))
    np.testing.assert_array_equal(there_and_back(mask, affine, fine), mask)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(SHAPES, AFFINES, st.integers(0, 999))
def test_every_mask_survives_its_own_spacing(shape: tuple, affine: np.ndarray, seed: int) -> None:
    mask = random_mask(shape, seed)
    own = np.linalg.norm(place(make_scan(np.ones(shape), affine), (1.0, 1.0, 1.0)).canonical_affine[:3, :3], axis=0)
    np.testing.assert_array_equal(there_and_back(mask, affine, tuple(own)), mask)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(SHAPES, AFFINES, SPACINGS, st.integers(0, 999))
def test_on_any_grid_nothing_moves_farther_than_a_voxel(
    shape: tuple, affine: np.ndarray, spacing: tuple, seed: int
) -> None:
    """A voxel that comes back has a lesion voxel within one network voxel and half one of its own, along each axis."""
    mask = random_mask(shape, seed)
    back = there_and_back(mask, affine, spacing)
    placement = place(make_scan(np.ones(shape), affine), spacing)
    to_canonical = np.linalg.inv(placement.canonical_affine) @ affine
    reach = np.divide(placement.crop_shape, placement.shape) + 0.5 + 1e-6
    positions = [np.argwhere(found) @ to_canonical[:3, :3].T + to_canonical[:3, 3] for found in (back, mask)]
    for position in positions[0]:
        assert (np.abs(positions[1] - position) <= reach).all(axis=1).any()


@settings(max_examples=30, deadline=None)
@given(SHAPES, AFFINES, SPACINGS, st.integers(0, 999))
def test_the_label_of_a_prepared_case_is_the_audits(
    shape: tuple, affine: np.ndarray, spacing: tuple, seed: int
) -> None:
    """What the resampling audit judges is what the network is trained on."""
    mask = random_mask(shape, seed)
    image = np.random.default_rng(seed).normal(100, 10, shape)
    image[:1] = 0
    scan = make_scan(image, affine, mask)
    _, label, placement = to_network(scan, make_test_plan(spacing_mm=spacing))
    found = place(scan, spacing)
    assert (found.crop, found.shape) == (placement.crop, placement.shape)
    np.testing.assert_array_equal(label_to_network(mask, found), label)
