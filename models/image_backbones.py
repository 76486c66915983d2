"""Convolutional networks of `keras.applications` without their classifiers."""

import contextlib
import inspect
import sys
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

# What keras.applications calls IMAGENET_STDDEV_RGB.
_DEVIATIONS = (0.229, 0.224, 0.225)


def names() -> list[str]:
    """The names of all networks."""
    return [name for name, value in vars(keras.applications).items() if inspect.isfunction(value)]


def preprocess(name: str, images: Any) -> Any:
    """Brings pixels into the range that a network wants.

    Args:
        name: Of the network.
        images: Float (B, H, W, 3), RGB, 0 to 255.

    Returns:
        The same shape and dtype.
    """
    # Each network stands in one file with its `preprocess_input`.
    return sys.modules[getattr(keras.applications, name).__module__].preprocess_input(images)


def make(name: str, image_size: tuple[int, int], policy: Any) -> keras.Model:
    """Makes a network up to its last grid, with random weights.

    Args:
        name: Of the network.
        image_size: Height and width of its images.
        policy: The dtype policy of its layers.

    Returns:
        A model from preprocessed images to (B, H, W, C).

    Raises:
        ValueError: If the images are too small for the network.
    """
    with _as_default(policy):  # keras.applications takes no policy
        try:
            return _application(name, image_size, weights=None)
        except ValueError as error:
            raise ValueError(
                f"ImageEncoder: expected an image_size that {name} takes, received {image_size}: {error}"
            ) from error


def read_weights(network: keras.Model, name: str, image_size: tuple[int, int], source: str) -> None:
    """Reads trained weights into a network that `make` made.

    Args:
        network: The network.
        name: Its name.
        image_size: Its image size.
        source: "imagenet" for those that keras.applications downloads, or a file of weights without the
            classifier: `.weights.h5`, or `.h5` as keras.applications publishes them.

    Raises:
        OSError: If the weights cannot be downloaded.
        ValueError: If the file does not fit.
    """
    if source == "imagenet":
        try:
            trained = _application(name, image_size, weights="imagenet")
        except Exception as error:  # Keras raises plain Exceptions here
            raise OSError(
                f"ImageEncoder: expected to download the ImageNet weights of {name}, which failed: {error}; "
                "without a network, pass a file of them as `pretrained`, or copy it into ~/.keras/models"
            ) from error
        network.set_weights(trained.get_weights())
    else:
        try:
            network.load_weights(source)
        except Exception as error:  # h5py and Keras raise many kinds for files of another kind
            raise ValueError(
                f"ImageEncoder: expected a file with the weights of {name} without its classifier "
                f"(include_top=False), .weights.h5 or .h5; received {source}: {error}"
            ) from error
    if name.startswith("EfficientNetB"):
        _correct_normalization(network)


def _application(name: str, image_size: tuple[int, int], weights: str | None) -> keras.Model:
    return getattr(keras.applications, name)(include_top=False, weights=weights, input_shape=(*image_size, 3))


def _correct_normalization(network: keras.Model) -> None:
    """Divides what EfficientNet's normalization returns by the root of the colours' standard deviations.

    The published weights need that. keras.applications adds a layer for it if (and only if) it downloads
    them itself; here it goes into the variance, so that one architecture serves all, and a saved
    configuration tells it without the weights.
    """
    for layer in network.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.adapt_variance.assign(ops.multiply(layer.adapt_variance, _DEVIATIONS))
            layer.finalize_state()


@contextlib.contextmanager
def _as_default(policy: Any) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
