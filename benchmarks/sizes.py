"""The sizes that are compared, as plain data, and how many operations they need.

Operations are those of matrix products, two for a multiplication with its addition, by formula: what the
architecture asks for, whatever a library does to get there. Look-ups, normalizations and softmax are left
out.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Size:
    """The architecture of a model.

    Attributes:
        kind: "transformer"; "recurrent", a bidirectional GRU and a GRU with additive attention; or
            "captioner", an LSTM that looks at a grid of features with gated additive attention.
        units: Width of the layers, or of the state.
        vocabulary: Number of token ids; a transformer has one matrix for source, target and output, the
            others one for the source, and one for target and output.
        dropout: Rate on embeddings and on what each sublayer adds, or on embeddings and readout.
        layers: Of a transformer's encoder, and as many of its decoder.
        feed_forward_units: Of a transformer.
        num_heads: Of a transformer.
        embedding: Width of the other models' embeddings and readout.
        grid: Positions and channels of a captioner's features.
        steps: Steps of training that are timed in one process.
    """

    kind: str
    units: int
    vocabulary: int
    dropout: float
    layers: int = 1
    feed_forward_units: int = 0
    num_heads: int = 0
    embedding: int = 0
    grid: tuple[int, int, int] = (0, 0, 0)
    steps: int = 30


SIZES = {
    "T": Size("transformer", 128, 8000, 0.1, layers=4, feed_forward_units=256, num_heads=4),
    "B": Size("transformer", 512, 32000, 0.1, layers=6, feed_forward_units=2048, num_heads=8, steps=6),
    "R": Size("recurrent", 256, 8000, 0.0, embedding=256),
    "C": Size("captioner", 512, 8000, 0.1, embedding=256, grid=(7, 7, 1280), steps=20),
}

TRAINING = {"batch": 64, "source_length": 32, "target_length": 32}
DECODING = {"source_length": 16, "target_length": 32}
CELLS = [(1, 1), (1, 4), (32, 1), (32, 4)]  # (batch, beams) of decoding

PAD_ID, START_ID, END_ID, FIRST_ID = 0, 1, 2, 4  # the first id of a word


def training_operations(size: Size, batch: int, source_length: int, target_length: int) -> float:
    """Operations of one step: the backward pass makes two products for each of the forward pass."""
    pair = _source_products(size, source_length) + _target_products(size, source_length, target_length)
    return 3 * 2.0 * batch * pair


def decoding_operations(size: Size, batch: int, beams: int, source_length: int, target_length: int) -> float:
    """Operations of translating one batch: each source is encoded once, however many beams there are."""
    target = beams * _target_products(size, source_length, target_length)
    return 2.0 * batch * (_source_products(size, source_length) + target)


def _source_products(size: Size, source_length: int) -> int:
    """Multiplications for one source: the encoder, and its keys and values for the decoder."""
    units = size.units
    if size.kind == "transformer":
        layer = 4 * units**2 + 2 * units * size.feed_forward_units + 2 * source_length * units
        return source_length * size.layers * (layer + 2 * units**2)
    if size.kind == "recurrent":
        direction = 3 * units * (size.embedding + units)
        return source_length * (2 * direction + 2 * units * units)
    rows, columns, channels = size.grid
    return rows * columns * channels * units


def _target_products(size: Size, source_length: int, target_length: int) -> int:
    """Multiplications for one target (one hypothesis, when decoding)."""
    units = size.units
    if size.kind == "transformer":
        attention = 6 * units**2 + 2 * (source_length + target_length) * units
        layer = attention + 2 * units * size.feed_forward_units
        return target_length * (size.layers * layer + units * size.vocabulary)
    rows, columns, channels = size.grid
    captions = size.kind == "captioner"
    positions, context, gates = (rows * columns, channels, 4) if captions else (source_length, 2 * units, 3)
    attention = units * units + positions * (units + context)
    cell = gates * units * (size.embedding + context + units)
    readout = (units + context + size.embedding) * size.embedding
    return target_length * (attention + cell + readout + size.embedding * size.vocabulary)
