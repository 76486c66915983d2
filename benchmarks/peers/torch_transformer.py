"""`torch.nn.Transformer`, eager."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import epoch_data
import sizes
import torch
from peers import common, epochs, torch_training
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader


def train(task: common.Task, clock: common.Clock) -> int:
    """See `common`."""
    return torch_training.train(Model(task.size), task, clock)


def epoch(task: common.Task, clock: epochs.EpochClock) -> tuple[int, Iterable]:
    """See `common`."""
    torch.set_num_threads(task.threads)
    sides = ([torch.from_numpy(row).long() for row in side] for side in epoch_data.read_ids(task.data))
    pairs = list(zip(*sides, strict=True))
    loader = DataLoader(pairs, task.batch, shuffle=True, collate_fn=_padded)
    model = Model(task.size)
    clock.ready()
    torch_training.take_steps(model, _shuffled(loader), clock, model)
    batches = ((source.numpy(), labels.numpy()) for source, _, labels in _shuffled(loader))
    return torch_training.count_parameters(model), batches


def _shuffled(loader: DataLoader) -> Iterator[tuple[Any, Any, Any]]:
    """The batches, in the same order every time."""
    torch.manual_seed(1)
    yield from loader


def _padded(pairs: list[tuple[Any, Any]]) -> tuple[Any, Any, Any]:
    """Source (B, S), target and labels (B, T), as long as the longest of the batch."""
    source, target = (pad_sequence(side, True, sizes.PAD_ID) for side in zip(*pairs, strict=True))
    return source, target[:, :-1], target[:, 1:]


class Model(torch.nn.Module):
    """Embeddings and positions around `torch.nn.Transformer`; logits by the embedding matrix."""

    def __init__(self, size: sizes.Size) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(size.vocabulary, size.units)
        torch.nn.init.normal_(self.embedding.weight, std=size.units**-0.5)
        angles = torch.arange(2048)[:, None] / 10000 ** (torch.arange(0, size.units, 2) / size.units)
        self.register_buffer("positions", torch.cat([angles.sin(), angles.cos()], dim=-1))
        self.dropout = torch.nn.Dropout(size.dropout)
        self.transformer = torch.nn.Transformer(
            size.units,
            size.num_heads,
            size.layers,
            size.layers,
            size.feed_forward_units,
            size.dropout,
            batch_first=True,
        )
        for module in self.transformer.modules():
            # Its `dropout` is a rate for attention weights and hidden layers too, where the models compared
            # have none.
            if isinstance(module, torch.nn.MultiheadAttention):
                module.dropout = 0.0
            if isinstance(module, torch.nn.TransformerEncoderLayer | torch.nn.TransformerDecoderLayer):
                module.dropout = torch.nn.Identity()

    def forward(self, source: Any, target: Any) -> Any:
        """Teacher forcing: (B, T, V)."""
        padding = source == sizes.PAD_ID
        causal = torch.nn.Transformer.generate_square_subsequent_mask(
            target.shape[1], device=target.device, dtype=torch.bool
        )
        x = self.transformer(
            self.embed(source),
            self.embed(target),
            tgt_mask=causal,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
            tgt_key_padding_mask=target == sizes.PAD_ID,
            tgt_is_causal=True,
        )
        return x @ self.embedding.weight.T

    def embed(self, ids: Any) -> Any:
        """(B, T) -> (B, T, D)."""
        scaled = self.embedding(ids) * math.sqrt(self.embedding.embedding_dim)
        return self.dropout(scaled + self.positions[: ids.shape[1]])


if __name__ == "__main__":
    common.main(train, epoch=epoch)
