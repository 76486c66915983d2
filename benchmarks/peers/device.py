"""What a peer computes on: the processors, or a GPU if the environment variable BENCHMARK_GPU is set.

And how it trains: in float32, or with BENCHMARK_BFLOAT16 in bfloat16, in whatever way it has for that.
"""

import os
import sys
from typing import Any

import machine

GPU = bool(os.environ.get("BENCHMARK_GPU"))
BFLOAT16 = bool(os.environ.get("BENCHMARK_BFLOAT16"))


def require_tensorflow_gpu() -> None:
    """Raises RuntimeError if a GPU is to be measured and TensorFlow finds none; float32 is float32 then."""
    import tensorflow as tf

    if GPU and not tf.config.list_physical_devices("GPU"):
        raise RuntimeError("expected a GPU, TensorFlow finds none")
    tf.config.experimental.enable_tensor_float_32_execution(False)  # as is PyTorch's choice for products


def torch_device() -> Any:
    """The device for PyTorch; RuntimeError if a GPU is to be measured and PyTorch finds none."""
    import torch

    if GPU and not torch.cuda.is_available():
        raise RuntimeError("expected a GPU, PyTorch finds none")
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda" if GPU else "cpu")


def wait_for_torch() -> None:
    """Returns when PyTorch has computed all that it was told to; a GPU runs behind the program."""
    import torch

    if GPU:
        torch.cuda.synchronize()


def peak_memory() -> float | None:
    """The most memory that this process has held, in MB; with a GPU that of its arrays there, if known."""
    if not GPU:
        return machine.peak_memory()
    if "tensorflow" in sys.modules:
        return sys.modules["tensorflow"].config.experimental.get_memory_info("GPU:0")["peak"] / 1e6
    if "torch" in sys.modules:
        return sys.modules["torch"].cuda.max_memory_allocated() / 1e6
    return None
