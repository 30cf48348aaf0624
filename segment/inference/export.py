"""A run's network with its normalisation, for other programs: TensorFlow SavedModel or ONNX, computed in float32.

Both take windows of raw intensities on the network's grid. What the normalisation takes from the whole scan comes in
as an input, since no window can know it; what else is needed stands in the metadata.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import tensorflow as tf

import segment
from segment.data.planning import Plan
from segment.errors import InputError
from segment.files import atomic_path, jsonable, write_json
from segment.inference.model_file import in_float32, load_model, network_shape
from segment.inference.point_in_use import point_in_use
from segment.inference.predictor import Member, load_member

Format = Literal["savedmodel", "onnx"]
NAMES = {"savedmodel": "saved_model", "onnx": "model.onnx"}
METADATA = "segment.json"  # in the SavedModel's assets.extra, where TensorFlow keeps what is not its own
KEY = "segment"  # of the ONNX file's metadata
OPSET = 17
INPUTS = {
    "image": "float32 [batch, *patch, channels]: intensities of the scan's file (slope and intercept applied), axes "
    "turned to RAS, resampled to plan.spacing_mm; 0 outside the scan. In 2D the channels are those of the first of "
    "plan.slices, then of the second, and so on",
    "inside": "float32 of the same shape: 1 in the subject, 0 outside, by channel: all voxels but zeros connected "
    "through zeros (6 neighbours) with the border of the box around the non-zero voxels of the scan",
    "scale": "float32 [channels, 4], for each channel of `image` low, high, centre, unit of the whole scan's subject: "
    "(clip(image, low, high) - centre) / unit. zscore: no clipping, mean, standard deviation; percentile: both after "
    "clipping at the 0.5th and 99.5th percentile, where plan.ct_windows has the channel these four numbers instead; "
    "tissue: segment.data.normalization.tissue_scale. A constant channel: low, high and centre its value, unit 1",
}
OUTPUTS = {
    "logits": "float32 [batch, *patch, outputs]; probabilities are the sigmoid, with plan.softmax the softmax over the "
    "last axis, whose first entry is the background"
}


def export_run(run_dir: Path, output: Path | None, *, form: Format, force: bool) -> Path:
    """Writes a run's network, with plan, operating point and the meaning of inputs and outputs as metadata.

    Args:
        run_dir: A run folder.
        output: The file (ONNX) or folder (SavedModel); None takes a name in the run folder.
        form: Of the export.
        force: Replace an earlier export.

    Returns:
        The path that was written.

    Raises:
        InputError: The run cannot be loaded, the output exists or cannot be written, or ONNX is asked for without the
            packages that write it.
    """
    member = load_member(run_dir, {})
    plan = member.plan
    path = run_dir / NAMES[form] if output is None else output
    _require_free(path, form, force)
    network = Network(in_float32(load_model(run_dir / "model.keras", plan), plan), plan)
    metadata = _metadata(member)
    if form == "onnx":
        _write_onnx(path, network, metadata)
    else:
        _write_saved_model(path, network, metadata)
    return path


class Network(tf.Module):
    """Normalisation and network as one function, the finest output alone."""

    def __init__(self, model: tf.keras.Model, plan: Plan) -> None:
        super().__init__()
        self.model = model
        shape = network_shape(plan)
        windows = (None, *shape)
        self.logits = tf.function(
            self._logits,
            input_signature=[
                tf.TensorSpec(windows, tf.float32, name="image"),
                tf.TensorSpec(windows, tf.float32, name="inside"),
                tf.TensorSpec((shape[-1], 4), tf.float32, name="scale"),
            ],
            autograph=False,
        )

    def _logits(self, image: tf.Tensor, inside: tf.Tensor, scale: tf.Tensor) -> dict[str, tf.Tensor]:
        low, high, centre, unit = tf.unstack(scale, axis=-1)
        normalised = (tf.minimum(tf.maximum(image, low), high) - centre) / unit * inside
        outputs = self.model(normalised, training=False)
        return {"logits": tf.identity(outputs[0] if isinstance(outputs, (list, tuple)) else outputs, name="logits")}


def _metadata(member: Member) -> dict[str, Any]:
    point = point_in_use([member.run_dir], [member.model_sha256], member.config, threshold=None)
    return {
        "segment": segment.__version__,
        "model_sha256": member.model_sha256,
        "plan": member.plan.to_json(),
        "operating_point": point.to_json() | {"notes": list(point.notes)},
        "overlap": member.config.inference.overlap,
        "inputs": INPUTS,
        "outputs": OUTPUTS,
    }


def _require_free(path: Path, form: Format, force: bool) -> None:
    if form == "onnx":
        if path.is_dir():
            raise InputError(f"output {path} is a folder, expected a file name such as model.onnx")
        if path.exists() and not force:
            raise InputError(f"output {path} is there already; pass --force to replace it")
    elif path.exists():
        ours = (path / "assets.extra" / METADATA).is_file()
        if not ours or not force:
            way = "pass --force to replace it" if ours else "choose another path"
            raise InputError(f"output {path} is there already; {way}")


def _write_saved_model(path: Path, network: Network, metadata: Mapping[str, Any]) -> None:
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        tf.saved_model.save(network, str(temporary), signatures={"serving_default": network.logits})
        write_json(temporary / "assets.extra" / METADATA, metadata)
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
    except (OSError, tf.errors.OpError) as cause:
        reason = getattr(cause, "strerror", None) or cause
        raise InputError(f"cannot write {path}: {reason}; free space or choose another path") from cause
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_onnx(path: Path, network: Network, metadata: Mapping[str, Any]) -> None:
    try:
        import tf2onnx
    except ImportError as cause:
        raise InputError(f"ONNX export needs tf2onnx ({cause}); install it with: pip install -e '.[export]'") from cause
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    function = network.logits
    proto, _ = tf2onnx.convert.from_function(function, input_signature=function.input_signature, opset=OPSET)
    entry = proto.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(jsonable(metadata), ensure_ascii=False)
    with atomic_path(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())
