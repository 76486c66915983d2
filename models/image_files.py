"""Encoded images to pixels: what training, captioning and serving do before anything is compiled."""

from typing import Any

import tensorflow as tf


def decode(encoded: Any) -> tf.Tensor:
    """Decodes one JPEG, PNG, GIF (its first frame) or BMP file.

    Args:
        encoded: string (), the bytes of the file.

    Returns:
        uint8 (h, w, 3), red, green, blue; grey images have three equal channels, transparency is dropped.
    """
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return tf.ensure_shape(image, (None, None, 3))


def resize(images: Any, size: tuple[int, int]) -> tf.Tensor:
    """Resizes as `resizing.resize` does, many times as fast, but not in functions compiled with XLA.

    Args:
        images: uint8 or float (h, w, 3) or (B, h, w, 3).
        size: H and W.

    Returns:
        float32 (H, W, 3) or (B, H, W, 3), in the range of the images.
    """
    return tf.image.resize(images, size, method="bilinear", antialias=True)
