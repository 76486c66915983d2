"""How fast this machine multiplies matrices in TensorFlow: the limit that models are compared with."""

import json
import statistics
import time

import machine
import tensorflow as tf
from peers import device

WIDTH, REPEATS = 8192 if device.GPU else 2048, 15


def speed(dtype: tf.DType) -> float:
    """GFLOP/s of a product of two square matrices."""
    a, b = (tf.cast(tf.random.stateless_normal((WIDTH, WIDTH), (0, seed)), dtype) for seed in (1, 2))
    multiply = tf.function(tf.matmul)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        multiply(a, b)[0, 0].numpy()  # waits for it: a GPU runs behind the program
        times.append(time.perf_counter() - start)
    return 2e-9 * WIDTH**3 / statistics.median(times[3:])


if __name__ == "__main__":
    device.require_tensorflow_gpu()
    load = machine.Load()
    result = {"float32": speed(tf.float32), "bfloat16": speed(tf.bfloat16)}
    print(json.dumps({**result, "others": load.others(), "versions": {"tensorflow": tf.__version__}}))
