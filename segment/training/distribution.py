"""Where a step runs: one device, the GPUs of this machine, or those of several, with mirrored weights."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from segment.config import TrainConfig
from segment.errors import InputError
from segment.training.cluster import Cluster
from segment.training.team import ADVICE

CONNECTING_SECONDS = 300.0
_REDUCTIONS = {
    "nccl": tf.distribute.NcclAllReduce,
    "hierarchical_copy": tf.distribute.HierarchicalCopyAllReduce,
    "reduce_to_one": tf.distribute.ReductionToOneDevice,
}
_COMMUNICATIONS = {
    "auto": tf.distribute.experimental.CommunicationImplementation.AUTO,
    "nccl": tf.distribute.experimental.CommunicationImplementation.NCCL,
}
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
)


def choose_gpus(indices: Sequence[int] | None) -> None:
    """Makes only the GPUs of `train.gpus` visible to TensorFlow; comes before its first operation.

    Their memory is taken as it is needed, so that it can be shared with other programs.

    Args:
        indices: As nvidia-smi counts them (those of CUDA_VISIBLE_DEVICES, where that is set); None is all of them,
            none at all is the CPU.

    Raises:
        InputError: There is no such GPU, or TensorFlow already runs with others.
    """
    gpus = tf.config.list_physical_devices("GPU")
    wanted = range(len(gpus)) if indices is None else indices
    absent = [index for index in wanted if index >= len(gpus)]
    if absent:
        there = f"GPUs 0 to {len(gpus) - 1}" if len(gpus) > 1 else "GPU 0 only" if gpus else "no GPU that it can use"
        raise InputError(f"train.gpus: expected GPU {absent[0]}, TensorFlow found {there}")
    chosen = [gpus[index] for index in wanted]
    try:
        if indices is not None:
            tf.config.set_visible_devices(chosen, "GPU")
        for gpu in chosen:
            tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError as cause:
        # TensorFlow has already started (a second training in one process): its settings hold and cannot be changed.
        if indices is not None and tf.config.get_visible_devices("GPU") != chosen:
            raise InputError(f"train.gpus: cannot be changed within one process ({cause})") from cause


def compile_repeatably() -> None:
    """Makes TensorFlow compile a function to the same graph in every process; comes before the first one.

    Its arithmetic optimizer regroups sums in an order that depends on addresses in memory, which differ from process to
    process (seen in TensorFlow 2.21 on a busy machine): a run that goes on would differ in the last bits from one that
    was never interrupted, and so would the workers of a run from each other.
    """
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})


def make_strategy(name: str, *, all_reduce: str, cluster: Cluster | None) -> tf.distribute.Strategy:
    """The strategy for `train.strategy` and `train.all_reduce`, over the visible GPUs.

    `single` is TensorFlow's default strategy (the first GPU if there is one, else the CPU). `mirrored` takes every
    visible GPU or, where there is none, every logical CPU device; there must be two. `auto` is mirrored with two or
    more GPUs, else single. `multi_worker` takes the GPUs, or else the CPU, of every process of the cluster.

    Args:
        cluster: For multi_worker only, whose processes all wait for each other here.

    Raises:
        InputError: There are too few devices, or they cannot be reduced in this way.
    """
    gpus = tf.config.get_visible_devices("GPU")
    if all_reduce == "nccl" and not gpus:
        raise InputError("train.all_reduce: nccl needs GPUs, TensorFlow found none; use auto")
    if name == "multi_worker":
        if cluster is None:
            raise ValueError("expected a cluster for multi_worker, found none")
        return _multi_worker(cluster, gpus=len(gpus), all_reduce=all_reduce)
    if name == "single" or (name == "auto" and len(gpus) < 2):
        return tf.distribute.get_strategy()
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if len(devices) < 2:
        found = "1 GPU" if gpus else "no GPU"
        raise InputError(f"train.strategy: mirrored needs at least 2 GPUs, TensorFlow found {found}; use auto")
    return mirrored_strategy([device.name for device in devices], all_reduce=all_reduce)


def mirrored_strategy(devices: Sequence[str], *, all_reduce: str = "auto") -> tf.distribute.Strategy:
    """One replica on each device, for example ["GPU:0", "GPU:1"].

    GPUs reduce through NCCL unless `all_reduce` says otherwise. CPU devices reduce on the first of them: TensorFlow's
    collective operations for CPUs add up in an order that changes from run to run, and two strategies of different
    size in one process abort each other.
    """
    on_cpus = all("CPU" in device.upper() for device in devices)
    name = "reduce_to_one" if all_reduce == "auto" and on_cpus else all_reduce
    return tf.distribute.MirroredStrategy(devices, _REDUCTIONS[name]() if name in _REDUCTIONS else None)


def _multi_worker(cluster: Cluster, *, gpus: int, all_reduce: str) -> tf.distribute.Strategy:
    if all_reduce not in _COMMUNICATIONS:
        raise InputError(f"train.all_reduce: multi_worker takes auto or nccl, found {all_reduce}")
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(cluster.addresses)}),
        task_type="worker",
        task_id=cluster.rank,
        num_accelerators={"GPU": gpus},
        rpc_layer="grpc",
    )
    options = tf.distribute.experimental.CommunicationOptions(implementation=_COMMUNICATIONS[all_reduce])
    with _bounded(CONNECTING_SECONDS):
        return tf.distribute.MultiWorkerMirroredStrategy(resolver, options)


@contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    """Ends the process when the block takes longer.

    TensorFlow waits up to an hour for processes that have died while it connects, and holds Python's lock meanwhile:
    no thread and no handler of ours would run, only the alarm's own action.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def lost_worker_explained(*, alone: bool) -> Iterator[None]:
    """Turns TensorFlow's errors about a process that is gone into a line of ours.

    TensorFlow notices within about 15 seconds: its connections break, or a heartbeat is missed for 10. A process that
    trains `alone` keeps its errors.

    Raises:
        InputError: The block waited for another process that has stopped or cannot be reached.
    """
    try:
        yield
    except _LOST as cause:
        if alone:
            raise
        told = [line for line in str(cause.message).splitlines() if "aborted by" in line]
        reason = told[0].split("aborted by:")[-1].strip()[:200] if told else type(cause).__name__
        raise InputError(f"another worker has stopped or cannot be reached ({reason}); {ADVICE}") from cause


def several_processes(strategy: tf.distribute.Strategy) -> bool:
    """Whether the strategy spans several processes."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def strategy_name(strategy: tf.distribute.Strategy) -> str:
    """What `train.strategy: auto` came to: single, mirrored or multi_worker."""
    if several_processes(strategy):
        return "multi_worker"
    return "mirrored" if isinstance(strategy, tf.distribute.MirroredStrategy) else "single"


def distributed_batches(
    strategy: tf.distribute.Strategy, make: Callable[[tuple[int, int]], tf.data.Dataset]
) -> Iterator[Any]:
    """The batches of a dataset, each cut into one part for each replica.

    Args:
        strategy: Of the step that takes them.
        make: Called with (worker, workers), gives the dataset of that worker's share of every batch, of static size.
            Only this process's own share is drawn.
    """
    if not several_processes(strategy):
        return iter(strategy.experimental_distribute_dataset(make((0, 1))))

    def share(context: tf.distribute.InputContext) -> tf.data.Dataset:
        dataset = make((context.input_pipeline_id, context.num_input_pipelines))
        size = next(iter(tf.nest.flatten(dataset.element_spec))).shape[0]
        replicas = context.num_replicas_in_sync // context.num_input_pipelines
        return dataset if replicas == 1 else dataset.rebatch(size // replicas, drop_remainder=True)

    return iter(strategy.distribute_datasets_from_function(share))


def check_batch_size(batch_size: int, replicas: int) -> None:
    """Raises InputError unless the global batch splits evenly, which the mean over replicas relies on."""
    if batch_size % replicas:
        near = max(replicas, batch_size // replicas * replicas)
        raise InputError(
            f"train.batch_size: expected a multiple of the {replicas} replicas, found {batch_size}; try {near}"
        )


def plain_variable(variable: Any) -> tf.Variable:
    """The tf.Variable behind a Keras variable: Keras 3 wraps it as `.value`, in Keras 2 the variable is one itself."""
    value = variable.value
    return variable if callable(value) else value


def first_replica(strategy: tf.distribute.Strategy, value: Any) -> Any:
    """The first replica's tensor of a per-replica value, or the tensor itself; for values that are equal everywhere."""
    return strategy.experimental_local_results(value)[0]


@contextmanager
def memory_explained(own: TrainConfig) -> Iterator[None]:
    """Raises InputError with what to lower where TensorFlow runs out of memory."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as cause:
        raise InputError(
            f"the training does not fit in the device's memory: lower train.batch_size (now {own.batch_size}), with a "
            f"higher train.accumulate_steps (now {own.accumulate_steps}) for the same result, or model.patch_size"
        ) from cause
