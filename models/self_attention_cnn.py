"""A small convolutional network with self-attention, for small pictures."""

import math
from collections.abc import Sequence
from typing import Any

import keras

from attention_zoo.layers.conv_self_attention import ConvSelfAttention


@keras.saving.register_keras_serializable(package="attention_zoo")
class SelfAttentionCNN(keras.layers.Layer):
    """Stages of two 3 x 3 convolutions that halve the grid; the last ones end in self-attention.

        x = activation(norm(convolution(x)))   with stride 2
        x = activation(norm(convolution(x)))
        x = self_attention(x)                  in the last `attention_stages` stages

    The normalization is that of groups of channels within one image: unlike BatchNormalization it does not
    depend on the batch, however small, and has no statistics that training would have to update, inside
    functions compiled with XLA or on several devices.

    Args:
        widths: Channels of each stage.
        attention_stages: How many of the last stages have a `ConvSelfAttention`, whose memory grows with the
            square of the positions.
        activation: "relu", "gelu" or another of Keras.
        **kwargs: `name`, `dtype` and so on, see `keras.layers.Layer`.

    Call arguments:
        images: Float (B, h, w, C), of values around 0.

    Returns:
        Float (B, H, W, D), D being the last width, H = h / 2^stages, rounded up at every stage, W alike.

    Raises:
        ValueError: If a width is not positive or there is none, or `attention_stages` exceeds the stages.

    Example:
        >>> SelfAttentionCNN(widths=(8, 16))(keras.ops.ones((1, 12, 8, 3))).shape
        TensorShape([1, 3, 2, 16])

    Reference:
        Zhang et al. 2019, "Self-Attention Generative Adversarial Networks", for the attention; Wu and He
        2018, "Group Normalization".
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128),
        attention_stages: int = 2,
        activation: Any = "relu",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not widths or min(widths) < 1:
            raise ValueError(f"SelfAttentionCNN: expected widths of at least 1, received {tuple(widths)}")
        if not 0 <= attention_stages <= len(widths):
            raise ValueError(
                f"SelfAttentionCNN: expected attention_stages from 0 to {len(widths)}, the number of widths, "
                f"received {attention_stages}"
            )
        self.widths = tuple(widths)
        self.attention_stages = attention_stages
        self.activation = keras.activations.get(activation)
        self.convolutions, self.norms = [], []
        for stage, width in enumerate(self.widths):
            for name, strides in (("down", 2), ("same", 1)):
                self.convolutions.append(
                    keras.layers.Conv2D(
                        width,
                        3,
                        strides=strides,
                        padding="same",
                        use_bias=False,  # the normalization has one
                        data_format="channels_last",
                        name=f"{name}_{stage}",
                        dtype=self.dtype_policy,
                    )
                )
                self.norms.append(
                    keras.layers.GroupNormalization(
                        math.gcd(8, width), name=f"{name}_norm_{stage}", dtype=self.dtype_policy
                    )
                )
        self.attentions = [
            ConvSelfAttention(name=f"attention_{stage}", dtype=self.dtype_policy)
            for stage in range(len(self.widths) - attention_stages, len(self.widths))
        ]

    def build(self, images_shape: tuple[int | None, ...]) -> None:
        """Makes the weights for images of this many channels."""
        channels = images_shape[-1]
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            convolution.build((None, None, None, channels))
            channels = convolution.filters
            norm.build((None, None, None, channels))
        first = len(self.widths) - self.attention_stages
        for width, attention in zip(self.widths[first:], self.attentions, strict=True):
            attention.build((None, None, None, width))

    def call(self, images: Any) -> Any:
        """Transforms images; see the class."""
        x, first = images, len(self.widths) - self.attention_stages
        for stage in range(len(self.widths)):
            for index in (2 * stage, 2 * stage + 1):
                x = self.activation(self.norms[index](self.convolutions[index](x)))  # (B, H, W, width)
            if stage >= first:
                x = self.attentions[stage - first](x)
        return x

    def compute_output_shape(self, images_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape of what images of this shape become."""
        grid = images_shape[1:3]
        for _ in self.widths:
            grid = tuple(None if size is None else -(-size // 2) for size in grid)
        return (images_shape[0], *grid, self.widths[-1])

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "widths": list(self.widths),
            "attention_stages": self.attention_stages,
            "activation": keras.activations.serialize(self.activation),
        }
