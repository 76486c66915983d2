"""On what devices and machines a model trains: tf.distribute strategies, and who among the workers writes.

Raw TensorFlow throughout, as tf.distribute needs it.
"""

import functools
import json
import logging
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from attention_zoo.models.replicas import is_multi_worker

logger = logging.getLogger("attention_zoo")

NAMES = ("auto", "one_device", "mirrored", "multi_worker")


def strategy(name: str = "auto") -> tf.distribute.Strategy:
    """Returns the strategy in whose scope a model is made and compiled; `fit` then needs nothing more.

    - "one_device": no distribution: the first GPU, or the CPU;
    - "mirrored": all GPUs of this machine (or all logical CPU devices), a replica of the model on each;
    - "multi_worker": the processes that the environment variable TF_CONFIG names, all the devices of each;
      every process runs the same program (see `attention-zoo launch`);
    - "auto": "multi_worker" if TF_CONFIG names several workers, else "mirrored" if there are several GPUs,
      else "one_device".

    GPUs are set to take memory as they need it, not all at once. Every call in a process returns the same
    strategy of a name: TensorFlow takes no second one. "multi_worker" must be made before anything else of
    TensorFlow runs.

    Args:
        name: One of the above.

    Returns:
        A tf.distribute.Strategy.

    Raises:
        ValueError: If the name is unknown, or TF_CONFIG is not what "multi_worker" needs.
        RuntimeError: If "multi_worker" comes too late.

    Example:
        >>> with strategy("one_device").scope():
        ...     dense = tf.Variable(1.0)
        >>> strategy("one_device").num_replicas_in_sync
        1
    """
    if name not in NAMES:
        raise ValueError(f"strategy: expected one of {', '.join(NAMES)}, received {name!r}")
    if name == "auto":
        name = _automatic()
    return _make(name)


@functools.cache
def _make(name: str) -> tf.distribute.Strategy:
    workers = _workers() if name == "multi_worker" else []  # before TensorFlow looks at its devices
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        try:
            tf.config.experimental.set_memory_growth(gpu, True)
        except RuntimeError:  # something ran on it already
            logger.warning("strategy: %s is in use already and keeps the memory that it took.", gpu.name)
    if name == "one_device":
        return tf.distribute.get_strategy()
    if name == "mirrored":
        return tf.distribute.MirroredStrategy(tf.config.list_logical_devices("GPU" if gpus else "CPU"))
    if len(workers) < 2:
        raise ValueError(
            'strategy: expected TF_CONFIG with at least two workers for "multi_worker", received '
            f"{len(workers)}; set it in every process, or start them with `attention-zoo launch`"
        )
    implementation = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=implementation.NCCL if gpus else implementation.RING
    )
    return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)


def _automatic() -> str:
    if len(_workers()) > 1:
        return "multi_worker"
    return "mirrored" if len(tf.config.list_physical_devices("GPU")) > 1 else "one_device"


def _workers() -> list[str]:
    """The addresses in TF_CONFIG, the chief's first."""
    text = os.environ.get("TF_CONFIG") or "{}"
    try:
        cluster = json.loads(text).get("cluster", {})
        chiefs, workers = cluster.get("chief", []), cluster.get("worker", [])
        if not isinstance(chiefs, list) or not isinstance(workers, list):
            raise TypeError
        return [*chiefs, *workers]
    except (ValueError, AttributeError, TypeError):
        raise ValueError(
            'strategy: expected TF_CONFIG as JSON, {"cluster": {"worker": ["host:port", ...]}, "task": '
            f'{{"type": "worker", "index": 0}}}}, received {text!r}'
        ) from None


def describe(strategy: tf.distribute.Strategy) -> str:
    """The replicas of a strategy in a few words, such as "2 replicas on 2 workers"."""
    replicas = strategy.num_replicas_in_sync
    workers = replicas // len(strategy.extended.worker_devices) if is_multi_worker(strategy) else 1
    counts = ((replicas, "replica"), (workers, "worker"))
    return " on ".join(f"{count} {name}{'s' if count > 1 else ''}" for count, name in counts)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes files: the first worker, or the only process."""
    resolver = strategy.cluster_resolver
    if not is_multi_worker(strategy) or resolver.task_type == "chief":
        return True
    return resolver.task_id == 0 and "chief" not in resolver.cluster_spec().jobs


def broadcast(strategy: tf.distribute.Strategy, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gives every worker the arrays of the chief; all workers must call it.

    Args:
        strategy: The strategy of the training.
        arrays: Name -> array, of fixed-size types; what others than the chief pass is ignored.

    Returns:
        The chief's.
    """
    if not is_multi_worker(strategy):
        return dict(arrays)
    chief = is_chief(strategy)
    types = [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
    header = _bytes_of_chief(strategy, json.dumps(types).encode() if chief else b"")
    received = {}
    for name, dtype, shape in json.loads(header):
        data = _bytes_of_chief(strategy, np.ascontiguousarray(arrays[name]).tobytes() if chief else b"")
        received[name] = np.frombuffer(data, np.dtype(dtype)).reshape(shape)
    return received


def any_worker(strategy: tf.distribute.Strategy, flag: bool) -> bool:
    """Whether the flag is set on any worker; all workers must call it."""
    if not is_multi_worker(strategy):
        return flag
    return bool(_sum(strategy, np.array([flag], np.int32))[0])


def _bytes_of_chief(strategy: tf.distribute.Strategy, data: bytes) -> bytes:
    """The chief's bytes; the others pass none."""
    size = int(_sum(strategy, np.array([len(data)], np.int32))[0])
    if not size:  # a sum of nothing makes TensorFlow crash
        return b""
    own = np.zeros(-(-size // 4) * 4, np.uint8)  # collectives know no bytes, but numbers of four
    own[: len(data)] = np.frombuffer(data, np.uint8)
    return _sum(strategy, own.view(np.int32)).tobytes()[:size]


def _sum(strategy: tf.distribute.Strategy, array: np.ndarray) -> np.ndarray:
    """Sums an array over the workers: each worker's first replica has it, the others have zeros."""
    count = len(strategy.extended.worker_devices)

    def values(context: Any) -> tf.Tensor:
        first = context.replica_id_in_sync_group % count == 0
        return tf.constant(array if first else np.zeros_like(array))

    distributed = strategy.experimental_distribute_values_from_function(values)
    return strategy.reduce(tf.distribute.ReduceOp.SUM, distributed, axis=None).numpy()
