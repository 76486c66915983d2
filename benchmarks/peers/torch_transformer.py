"""`torch.nn.Transformer`, eager."""

import math
from typing import Any

import sizes
import torch
from peers import common, torch_training


def train(task: common.Task, clock: common.Clock) -> int:
    """See `common`."""
    return torch_training.train(Model(task.size), task, clock)


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
        causal = torch.nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=torch.bool)
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
    common.main(train)
