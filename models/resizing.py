"""Resizing images in the graph, compiled or not."""

from typing import Any

from keras import ops


def resize(images: Any, size: tuple[int, int]) -> Any:
    """Resizes images bilinearly, with antialiasing where they shrink.

        output[y, x] = sum over h, w of rows[y, h] columns[x, w] input[h, w]

    Row y of a matrix weighs the old pixels by their distance from the place of the new one: a triangle as
    wide as the new pixel, or as an old one if that is wider. As `tf.image.resize(antialias=True)`, whose
    operation (like `keras.ops.image.resize`, which calls it) XLA cannot compile: hence two products, which
    cost more: on one CPU core 40 ms against 2 ms for a photo of 500 x 375. A data pipeline, which XLA does
    not compile, better resizes with TensorFlow; nothing is left to do here then. The aspect ratio is not
    kept.

    Args:
        images: Numbers (B, h, w, C); h and w may be unknown when traced.
        size: H and W.

    Returns:
        float32 (B, H, W, C), in the range of the images.

    Example:
        >>> resized = resize(ops.reshape(ops.arange(4), (1, 1, 4, 1)), (1, 2))
        >>> resized.numpy().ravel().astype(float).round(3).tolist()
        [0.714, 2.286]
    """
    images = ops.cast(images, "float32")
    for subscripts, old, new in zip(
        ("yh,bhwc->bywc", "xw,bywc->byxc"), ops.shape(images)[1:3], size, strict=True
    ):
        if not (isinstance(old, int) and old == new):
            images = ops.einsum(subscripts, _weights(old, new), images)
    return images  # (B, H, W, C)


def _weights(old: Any, new: int) -> Any:
    """How much of each old pixel is in each new one: float32 (new, old), rows of sum 1."""
    ratio = ops.cast(old, "float32") / new
    centre = (ops.arange(new, dtype="float32") + 0.5) * ratio  # (new,), in old pixels
    pixel = ops.cast(ops.arange(old, dtype="int32"), "float32") + 0.5  # (old,)
    distance = ops.abs(pixel - ops.expand_dims(centre, 1)) / ops.maximum(ratio, 1.0)  # (new, old)
    weights = ops.relu(1.0 - distance)
    return weights / ops.sum(weights, axis=1, keepdims=True)
