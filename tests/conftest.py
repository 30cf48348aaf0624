"""What every test session needs: quiet libraries, no network at import, and four logical CPU devices."""

from __future__ import annotations

import os
import sys

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

LOGICAL_CPUS = 4


def pytest_collection_finish(session: pytest.Session) -> None:
    """Splits the CPU into logical devices, which must come before TensorFlow's first operation.

    By now the test modules have been imported and with them TensorFlow, if any test to be run needs it at all.
    """
    tf = sys.modules.get("tensorflow")
    if tf is None:
        return
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * LOGICAL_CPUS)


@pytest.fixture
def four_cpus() -> list[str]:
    """The names of four logical CPU devices. The test's module must import TensorFlow at its top."""
    import tensorflow as tf

    names = [device.name for device in tf.config.list_logical_devices("CPU")]
    if len(names) != LOGICAL_CPUS:
        pytest.fail(
            f"expected {LOGICAL_CPUS} logical CPU devices, found {names}: import tensorflow at the module's top"
        )
    return names
