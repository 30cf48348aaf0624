"""Training samples by number, without TensorFlow: where a patch lies, what is done to it, what its label is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segment.config import Config
from segment.data.augmentation import Augmenter
from segment.data.lesion_paste import LesionPaster
from segment.data.lesion_shapes import read_shapes
from segment.data.planning import Plan
from segment.data.preprocessing import PreparedCase
from segment.data.sampling import PatchSampler

# Streams of random numbers that never meet, whatever seed, step and index are.
_STEP, _SAMPLE = 0, 1

Sample = tuple[np.ndarray, np.ndarray, np.int32]  # image, label, index of the case


class PatchSource:
    """Builds any training sample from its number alone; safe to call from several threads at once.

    Holds the lesion tables, and the lesion shapes of `augmentation.copy_paste_shapes`; scans stay in their files.

    Args:
        prepared: At least one case.
        plan: Patch size, slices, classes and spacing.
        config: Seed, patches a step, share of lesion patches, size bins and augmentation.

    Raises:
        InputError: `augmentation.copy_paste_shapes` cannot be read; names the folder or file.
    """

    def __init__(self, prepared: Sequence[PreparedCase], plan: Plan, config: Config) -> None:
        self._prepared = prepared
        self._plan = plan
        self._config = config
        edges = config.evaluation.bin_edges_mm3
        self._sampler = PatchSampler(prepared, plan.patch_size, bin_edges_mm3=edges)
        paster, options = None, config.augmentation
        if options.copy_paste_share:
            folder = options.copy_paste_shapes
            shapes = [] if folder is None else read_shapes(folder, plan, workers=config.data.workers)
            paster = LesionPaster(prepared, plan, bin_edges_mm3=edges, shapes=shapes)
        self._augmenter = Augmenter(options, plan, paster)
        self._values = np.array(list(plan.label_values.values()), np.uint8)

    def lesion_patches(self, step: int) -> int:
        """How many samples of a step are lesion patches: the first ones.

        Where share times patches is no whole number, each step rounds up or down at random, right on average.
        """
        config = self._config
        rng = np.random.default_rng(np.random.SeedSequence([config.seed, _STEP, step]))
        return int(config.data.lesion_patch_share * config.train.patches_per_step + rng.random())

    def sample(self, index: int) -> Sample:
        """Builds a sample of step `index // train.patches_per_step`, a pure function of seed and index.

        Returns:
            image float32 [*patch, network channels]; label uint8 [*patch, classes], 0 or 1, one channel per foreground
            class; and the index of the case. The patch has 2 axes for a 2D plan. Outside the volume both are 0.
        """
        step, position = divmod(index, self._config.train.patches_per_step)
        place, change = np.random.SeedSequence([self._config.seed, _SAMPLE, index]).spawn(2)
        location = self._sampler.draw(np.random.default_rng(place), lesion=position < self.lesion_patches(step))
        image, label = self._augmenter.cut(self._prepared[location.case], location, change)
        return image, (label[..., None] == self._values).view(np.uint8), np.int32(location.case)
