"""Image encoder: pictures to one annotation per position of a grid."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from attention_zoo.layers.dropout import Dropout
from attention_zoo.layers.positional_encoding import PositionalEncoding
from attention_zoo.layers.transformer_encoder_block import TransformerEncoderBlock
from attention_zoo.models import image_backbones
from attention_zoo.models.resizing import resize
from attention_zoo.models.self_attention_cnn import SelfAttentionCNN

OWN_BACKBONES = ("self_attention_cnn", "patches")


@keras.saving.register_keras_serializable(package="attention_zoo")
class ImageEncoder(keras.layers.Layer):
    """Looks at pictures through a grid: features of a CNN, or patches, and a Transformer over them if wanted.

        z   = backbone(preprocess(resize(image)))        H x W positions of C channels
        x_0 = dropout(z W + b + position)
        x_n = block_n(x_{n-1})

    The backbones:

    - the name of a network of `keras.applications` ("MobileNetV2", "VGG16", "ResNet50", ...), cut at its
      last grid, each with its own preprocessing. One that is frozen, or began with trained weights, runs in
      inference mode in training too: statistics of small batches would spoil those of its normalizations;
    - "self_attention_cnn": `SelfAttentionCNN`, for small pictures: 8 x 8 positions of 64 x 64 pixels;
    - "patches": the pixels of `patch_size` x `patch_size` squares, between -1 and 1, which `units` projects
      and blocks relate, as in the vision Transformer.

    Args:
        backbone: See above.
        image_size: Height and width to which all images are resized (bilinear, antialiased, without keeping
            the aspect ratio), or one number for both.
        pretrained: For a network of `keras.applications`: "imagenet" (downloaded), a file of weights without
            the classifier (`.weights.h5`, or `.h5` as published), or None for random ones. Read here once;
            a layer that comes back from a configuration does not read it again, as its weights are saved
            with the model. (Not named `weights`, as Keras layers have an attribute of this name.)
        frozen: Whether the backbone's weights stay as they are. To fine-tune later, set the attribute to
            False and compile again.
        units: D, the width to which the channels are projected; None leaves them as they are.
        positions: Whether 2-D sinusoids are added, half of the channels for the row, half for the column.
        layers: N, the number of Transformer blocks; 0 for none.
        num_heads: H of the blocks.
        feed_forward_units: Width of the blocks' hidden layers.
        activation: Of the hidden layers.
        normalize_first: Whether blocks normalize before attention and feed-forward; the outputs are
            normalized at the end then.
        dropout: Rate on the projected features, and on what attention and feed-forward add.
        attention_dropout: Rate on the blocks' attention weights.
        widths: Of "self_attention_cnn".
        attention_stages: Of "self_attention_cnn".
        patch_size: Of "patches", at least 2; must divide both sides of the image.
        **kwargs: `name`, `dtype` and so on, see `keras.layers.Layer`.

    Call arguments:
        images: RGB images of any size, (B, h, w, 3), uint8 or float from 0 to 255; or what `features`
            returned for some, (B, H, W, C), from memory or disk. C is never 3.
        training: Whether dropout is active.
        return_attention: Whether the memory has the attention as well.

    Returns:
        The memory, a dict of "values": (B, S, D), S = H * W positions row by row, "mask": bool (B, S), True
        everywhere, "summary": (B, D), the mean over the positions, and if asked, "attention": float32
        (B, N, heads, S, S). D is C without `units`.

    Raises:
        ValueError: If an option is unknown, a size does not fit another, the images have another shape, a
            file of weights does not fit, or attention is asked for where there are no blocks.
        TypeError: If the images are no numbers.
        FileNotFoundError: If there is no file of weights.
        OSError: If the weights cannot be downloaded.

    Example:
        >>> import numpy as np
        >>> encoder = ImageEncoder("patches", image_size=(32, 48), patch_size=16, units=8)
        >>> encoder(np.zeros((1, 100, 75, 3), "uint8"))["values"].shape, encoder.grid
        (TensorShape([1, 6, 8]), (2, 3))

    Reference:
        Xu et al. 2015, "Show, Attend and Tell", section 3.1.1; Zhang et al. 2019, "Self-Attention Generative
        Adversarial Networks"; Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", section 3.1.
    """

    max_positions = None  # the grid is the same for all images

    def __init__(
        self,
        backbone: str = "MobileNetV2",
        image_size: int | Sequence[int] = 224,
        pretrained: str | os.PathLike | None = None,
        frozen: bool = False,
        units: int | None = None,
        positions: bool = False,
        layers: int = 0,
        num_heads: int = 8,
        feed_forward_units: int = 2048,
        activation: Any = "relu",
        normalize_first: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        widths: Sequence[int] = (32, 64, 128),
        attention_stages: int = 2,
        patch_size: int = 16,
        **kwargs: Any,
    ) -> None:
        restored = kwargs.pop("_restored", False)  # by `from_config`
        # Half precision is for what the backbone makes of the pixels, not for them.
        super().__init__(autocast=False, **kwargs)
        # === Config ===
        self.backbone = backbone
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        self.pretrained = None if pretrained is None else os.fspath(pretrained)
        self.units = units
        self.positions = positions
        self.layers = layers
        self.num_heads = num_heads
        self.feed_forward_units = feed_forward_units
        self.activation = keras.activations.get(activation)
        self.normalize_first = normalize_first
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.widths = tuple(widths)
        self.attention_stages = attention_stages
        self.patch_size = patch_size
        self._check_arguments(restored)
        # === Layers ===
        policy = self.dtype_policy
        self.network = self._make_network(restored)
        self.frozen = frozen
        self._check_width()
        self.projection = (
            None if units is None else keras.layers.Dense(units, name="projection", dtype=policy)
        )
        self.position = PositionalEncoding(name="position", dtype=policy) if positions else None
        self.feature_dropout = Dropout(dropout, name="feature_dropout", dtype=policy)
        self.blocks = [
            TransformerEncoderBlock(
                num_heads,
                feed_forward_units,
                activation=self.activation,
                normalize_first=normalize_first,
                dropout=dropout,
                attention_dropout=attention_dropout,
                name=f"block_{index}",
                dtype=policy,
            )
            for index in range(layers)
        ]
        # Blocks that normalize first leave their sum as it is.
        self.output_norm = (
            keras.layers.LayerNormalization(epsilon=1e-5, name="output_norm", dtype=policy)
            if layers and normalize_first
            else None
        )

    @property
    def grid(self) -> tuple[int, int]:
        """H and W: the positions are counted row by row."""
        return self._feature_shape[:2]

    @property
    def feature_dim(self) -> int:
        """C, the channels of the backbone."""
        return self._feature_shape[2]

    @property
    def output_dim(self) -> int:
        """Width of the memory's values and of its summary."""
        return self.feature_dim if self.units is None else self.units

    @property
    def has_attention(self) -> bool:
        """Whether there are blocks whose attention can be returned."""
        return self.layers > 0

    @property
    def frozen(self) -> bool:
        """Whether the backbone's weights stay as they are; settable."""
        return self._frozen

    @frozen.setter
    def frozen(self, value: bool) -> None:
        self._frozen = bool(value)
        self._freeze()

    @property
    def trainable(self) -> bool:
        """Whether anything of the layer is trained; what is `frozen` is not in either case."""
        return super().trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        keras.layers.Layer.trainable.fset(self, value)  # of all sublayers
        self._freeze()

    def _freeze(self) -> None:
        if self.network is not None:
            self.network.trainable = self.trainable and not self.frozen

    def build(self, images_shape: Any = None) -> None:
        """Creates every weight; the shape of the images does not matter."""
        height, width = self.grid
        if self.network is not None and not self.network.built:
            self.network.build((None, *self.image_size, 3))
        if self.projection is not None:
            self.projection.build((None, height * width, self.feature_dim))
        if self.position is not None:
            self.position.build((None, height, width, self.output_dim))
        for block in self.blocks:
            block.build((None, height * width, self.output_dim))
        if self.output_norm is not None:
            self.output_norm.build((None, height * width, self.output_dim))
        self.built = True

    def call(
        self, images: Any, training: bool | None = None, return_attention: bool = False
    ) -> dict[str, Any]:
        """Encodes a batch of images, or of their features."""
        if return_attention and not self.has_attention:
            raise ValueError(
                "ImageEncoder: expected layers of at least 1 with return_attention=True, received layers=0; "
                "without blocks there is no attention among the positions"
            )
        self._check_images(images)
        if images.shape[-1] == 3:
            x = self.features(images, training=training)  # (B, H, W, C)
        else:
            x = ops.cast(images, self.compute_dtype)
        height, width = self.grid
        x = ops.reshape(x, (-1, height * width, self.feature_dim))  # (B, S, C)
        if self.projection is not None:
            x = self.projection(x)  # (B, S, D)
        if self.position is not None:
            x = self.position(ops.reshape(x, (-1, height, width, self.output_dim)))  # (B, H, W, D)
            x = ops.reshape(x, (-1, height * width, self.output_dim))  # (B, S, D)
        x = self.feature_dropout(x, training=training)
        attention = []
        for block in self.blocks:
            x = block(x, training=training, return_attention=return_attention)
            if return_attention:
                x, weights = x
                attention.append(weights)
        if self.output_norm is not None:
            x = self.output_norm(x)
        summary = ops.mean(ops.cast(x, "float32"), axis=1)  # (B, D), float32 as it may be of many
        memory = {
            "values": x,
            "mask": ops.ones(ops.shape(x)[:2], "bool"),  # (B, S)
            "summary": ops.cast(summary, x.dtype),
        }
        if return_attention:
            memory["attention"] = ops.stack(attention, axis=1)  # (B, N, heads, S, S)
        return memory

    def features(self, images: Any, training: bool | None = None) -> Any:
        """What the backbone alone makes of images: to be computed once where it is frozen.

        Args:
            images: RGB images of any size, (B, h, w, 3), uint8 or float from 0 to 255.
            training: Whether a network of `keras.applications` that learns from scratch is in training.

        Returns:
            Float (B, H, W, C), for which `call` returns what it returns for the images.

        Raises:
            ValueError: If the images have another shape.
            TypeError: If they are no numbers.
        """
        images = ops.convert_to_tensor(images)
        self._check_images(images, features=False)
        images = resize(images, self.image_size)  # (B, h, w, 3) of the image size
        if self.backbone in OWN_BACKBONES:
            images = images / 127.5 - 1.0
            x = self._cut(images) if self.network is None else self.network(images)
        else:
            scratch = self.pretrained is None and not self.frozen
            images = image_backbones.preprocess(self.backbone, images)
            x = self.network(images, training=bool(training and scratch))
        # What is frozen has no gradient: nothing of it need be kept for one.
        return ops.cast(ops.stop_gradient(x) if self.frozen else x, self.compute_dtype)

    def _cut(self, images: Any) -> Any:
        """The patches of images: (B, h, w, 3) -> (B, H, W, 3 p^2)."""
        (height, width), size = self.grid, self.patch_size
        x = ops.reshape(images, (-1, height, size, width, size, 3))  # (B, H, p, W, p, 3)
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))  # (B, H, W, p, p, 3)
        return ops.reshape(x, (-1, height, width, self.feature_dim))  # (B, H, W, 3 p^2)

    def _make_network(self, restored: bool) -> keras.layers.Layer | None:
        """The backbone; also sets the shape of its output, (H, W, C)."""
        height, width = self.image_size
        if self.backbone == "patches":
            size = self.patch_size
            self._feature_shape = (height // size, width // size, 3 * size**2)
            return None
        if self.backbone == "self_attention_cnn":
            network = SelfAttentionCNN(
                self.widths,
                self.attention_stages,
                activation=self.activation,
                name="network",
                dtype=self.dtype_policy,
            )
            self._feature_shape = network.compute_output_shape((None, height, width, 3))[1:]
            return network
        network = image_backbones.make(self.backbone, self.image_size, self.dtype_policy)
        self._feature_shape = network.output_shape[1:]
        if self.pretrained is not None and not restored:
            image_backbones.read_weights(network, self.backbone, self.image_size, self.pretrained)
        return network

    def _check_arguments(self, restored: bool) -> None:
        if self.backbone not in (*OWN_BACKBONES, *image_backbones.names()):
            raise ValueError(
                f"ImageEncoder: expected a backbone among {', '.join(OWN_BACKBONES)} and the networks of "
                f"keras.applications, {', '.join(image_backbones.names())}; received {self.backbone!r}"
            )
        if len(self.image_size) != 2 or not all(
            isinstance(size, int) and size >= 1 for size in self.image_size
        ):
            raise ValueError(
                f"ImageEncoder: expected image_size as one or two integers of at least 1, received "
                f"{self.image_size}"
            )
        least = {"layers": 0, "num_heads": 1, "feed_forward_units": 1, "patch_size": 2}
        if self.units is not None:
            least["units"] = 1
        for name, size in least.items():
            if getattr(self, name) < size:
                raise ValueError(
                    f"ImageEncoder: expected {name} of at least {size}, received {getattr(self, name)}"
                )
        if self.backbone == "patches" and any(size % self.patch_size for size in self.image_size):
            raise ValueError(
                "ImageEncoder: expected a patch_size that divides both sides of the image, received "
                f"{self.patch_size} and image_size {self.image_size}"
            )
        if self.pretrained is None:
            return
        if self.backbone in OWN_BACKBONES:
            raise ValueError(
                f"ImageEncoder: expected no pretrained weights for {self.backbone!r}, received "
                f"{self.pretrained!r}; only the networks of keras.applications have some"
            )
        if self.pretrained != "imagenet" and not restored and not pathlib.Path(self.pretrained).is_file():
            raise FileNotFoundError(
                'ImageEncoder: expected pretrained as "imagenet", None, or a file of weights; found no file '
                f"at {self.pretrained}"
            )

    def _check_width(self) -> None:
        width = self.output_dim
        if self.feature_dim == 3:
            raise ValueError(
                "ImageEncoder: expected a backbone of other than 3 channels, as features and images could "
                f"not be told apart; received widths {self.widths}"
            )
        if self.positions and width % 4:
            raise ValueError(
                "ImageEncoder: expected a width that is a multiple of 4 with positions=True, received "
                f"{width}; change units"
            )
        if self.layers and width % self.num_heads:
            raise ValueError(
                f"ImageEncoder: expected num_heads to divide the width, received {self.num_heads} and "
                f"{width}; change units"
            )

    def _check_images(self, images: Any, features: bool = True) -> None:
        dtype, shape = keras.backend.standardize_dtype(images.dtype), tuple(images.shape)
        if "int" not in dtype and "float" not in dtype:
            raise TypeError(
                f"ImageEncoder: expected images as uint8 or float, received {dtype}; decode files first, "
                "e.g. with tf.io.decode_image"
            )
        if len(shape) == 4:
            if shape[-1] == 3:
                return
            grid = zip(shape[1:], self._feature_shape, strict=True)
            if features and shape[-1] is not None and all(size in (None, own) for size, own in grid):
                return
        also = f", or their features (B, {', '.join(map(str, self._feature_shape))})" if features else ""
        raise ValueError(
            f"ImageEncoder: expected RGB images of shape (B, height, width, 3){also}, received {shape}; "
            "add an axis to a single image, and convert others to RGB"
        )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "backbone": self.backbone,
            "image_size": list(self.image_size),
            "pretrained": self.pretrained,
            "frozen": self.frozen,
            "units": self.units,
            "positions": self.positions,
            "layers": self.layers,
            "num_heads": self.num_heads,
            "feed_forward_units": self.feed_forward_units,
            "activation": keras.activations.serialize(self.activation),
            "normalize_first": self.normalize_first,
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
            "widths": list(self.widths),
            "attention_stages": self.attention_stages,
            "patch_size": self.patch_size,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ImageEncoder":
        """Makes the layer again, without reading `pretrained`: the weights come from what was saved."""
        return cls(**config, _restored=True)
