"""metrics.csv without gaps or doubles, means without poison, and TensorBoard's scalars."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from segment.errors import InputError
from segment.files import jsonable
from segment.training.metrics_log import MetricsLog, StepMeans, Table


class TestTable:
    def test_rows_are_written_as_they_come(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.csv"
        table = Table(path, step=0)
        assert not path.exists()
        table.append({"step": 10, "loss": 0.5, "note": "a, b"})
        table.append({"step": 20, "loss": math.nan, "scale": 3})
        assert path.read_text() == 'step,loss,note\n10,0.5,"a, b"\n20,,\n'

    def test_opening_drops_later_rows_and_a_torn_one(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.csv"
        path.write_text("step,loss\n10,0.5\n20,0.4\n30,0.3\n40,0.")
        Table(path, step=20).append({"step": 30, "loss": 0.25})
        assert path.read_text() == "step,loss\n10,0.5\n20,0.4\n30,0.25\n"

    def test_nothing_is_dropped_when_all_rows_are_earlier(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.csv"
        path.write_text("step,loss\n10,0.5\n20,0.4\n")
        Table(path, step=25)
        assert path.read_text() == "step,loss\n10,0.5\n20,0.4\n"

    def test_a_file_of_which_only_half_a_header_is_left(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.csv"
        path.write_text("step,lo")
        Table(path, step=20).append({"step": 30, "loss": 0.25})
        assert path.read_text() == "step,loss\n30,0.25\n"

    def test_unwritable_is_an_input_error(self, tmp_path: Path) -> None:
        table = Table(tmp_path / "gone" / "metrics.csv", step=0)
        with pytest.raises(InputError, match=r"cannot write .*metrics\.csv"):
            table.append({"step": 1})


def step_values(loss: float, *, good: bool = True, skipped: int = 0) -> dict[str, tf.Tensor]:
    values = {"loss": loss, "loss/dice": loss / 2, "gradient_norm": loss * 10, "loss_scale": 8.0}
    counters = {"good": tf.constant(good), "skipped": tf.constant(skipped), "skipped_in_row": tf.constant(skipped)}
    return {name: tf.constant(value) for name, value in values.items()} | counters


class TestStepMeans:
    def test_means_of_good_steps_and_last_counters(self) -> None:
        means = StepMeans()
        means.add(step_values(1.0))
        means.add(step_values(math.nan, good=False, skipped=1))
        means.add(step_values(3.0, skipped=1))
        expected = {
            "loss": 2.0,
            "loss/dice": 1.0,
            "gradient_norm": 20.0,
            "loss_scale": 8.0,
            "skipped": 1.0,
        }
        assert means.row() == expected
        means.add(step_values(5.0))
        assert means.row()["loss"] == 5.0

    def test_only_bad_steps_give_no_mean(self) -> None:
        means = StepMeans()
        means.add(step_values(math.inf, good=False, skipped=1))
        row = means.row()
        assert math.isnan(row["loss"])
        assert row["skipped"] == 1

    def test_pending_goes_through_a_checkpoint(self) -> None:
        means = StepMeans()
        means.add(step_values(1 / 3))
        means.add(step_values(math.nan, good=False, skipped=1))
        again = StepMeans(json.loads(json.dumps(jsonable(means.pending()))))
        for one in (means, again):
            one.add(step_values(2 / 3, skipped=1))
        assert again.row() == means.row()


class TestMetricsLog:
    def test_a_picture_is_a_file_and_in_tensorboard(self, tmp_path: Path) -> None:
        picture = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
        with MetricsLog(tmp_path, step=0, validated=0) as log:
            log.picture(20, "case1", picture)
        written = tf.io.decode_png((tmp_path / "slices" / "step_0000020_case1.png").read_bytes())
        np.testing.assert_array_equal(written, picture)
        (events,) = (tmp_path / "tensorboard").iterdir()
        values = [
            value
            for record in tf.data.TFRecordDataset(str(events))
            for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value
        ]
        (image,) = [value for value in values if value.tag == "slices/case1"]
        width, height, encoded = tf.make_ndarray(image.tensor)
        assert (int(width), int(height)) == (5, 6)
        np.testing.assert_array_equal(tf.io.decode_png(encoded), picture)

    def test_files_and_tensorboard_scalars(self, tmp_path: Path) -> None:
        with MetricsLog(tmp_path, step=0, validated=0) as log:
            log.metrics(10, {"loss": 0.5, "loss/dice": math.nan})
            log.validation(10, {"dice": 0.25}, note="weights kept")
        assert (tmp_path / "metrics.csv").read_text() == "step,loss,loss/dice\n10,0.5,\n"
        assert (tmp_path / "validation.csv").read_text() == "step,dice,note\n10,0.25,weights kept\n"
        (events,) = (tmp_path / "tensorboard").iterdir()
        found = {}
        for record in tf.data.TFRecordDataset(str(events)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                found[value.tag] = (event.step, float(tf.make_ndarray(value.tensor)))
        assert found == {"train/loss": (10, 0.5), "validation/dice": (10, 0.25)}
