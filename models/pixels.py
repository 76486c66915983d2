"""The check of pixels that users pass as arrays."""

import numpy as np


def check_pixels(caller: str, image: np.ndarray) -> None:
    """Raises ValueError unless an array is one RGB image with values from 0 to 255.

    Args:
        caller: Begins the message.
        image: What was passed.
    """
    if image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape or image.dtype.kind not in "uif":
        raise ValueError(
            f"{caller}: expected an image of numbers of shape (h, w, 3), received shape {image.shape} of "
            f"{image.dtype}; give images without batch axis, as red, green and blue."
        )
    if image.dtype == np.uint8:
        return
    least, most = image.min(), image.max()
    # Resizing may leave 255.00001.
    if not np.isfinite(least + most) or np.rint(least) < 0 or np.rint(most) > 255:
        raise ValueError(
            f"{caller}: expected finite values of the image from 0 to 255, received values from {least} to "
            f"{most}."
        )
    if image.dtype.kind == "f" and 0 < most <= 1:
        raise ValueError(
            f"{caller}: expected values of the image from 0 to 255, received values from {least} to {most}; "
            "multiply them by 255."
        )
