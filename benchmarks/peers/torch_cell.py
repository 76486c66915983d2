"""Recurrent attention in PyTorch: a loop over the steps of a GRU cell, or of an LSTM cell on a grid."""

from typing import Any

import sizes
import torch
from peers import common, torch_training
from torch import nn


def train(task: common.Task, clock: common.Clock) -> int:
    """See `common`."""
    return torch_training.train(Model(task.size), task, clock)


class Model(nn.Module):
    """A bidirectional GRU, or nothing for a grid of features, and a decoder with additive attention."""

    def __init__(self, size: sizes.Size) -> None:
        super().__init__()
        units, captions = size.units, size.kind == "captioner"
        width = size.grid[-1] if captions else 2 * units
        if not captions:
            self.source_embedding = nn.Embedding(size.vocabulary, size.embedding)
            self.encoder = nn.GRU(size.embedding, units, batch_first=True, bidirectional=True)
        self.embedding = nn.Embedding(size.vocabulary, size.embedding)
        self.dropout = nn.Dropout(size.dropout)
        self.cell = (nn.LSTMCell if captions else nn.GRUCell)(size.embedding + width, units)
        self.start = nn.ModuleList(nn.Linear(width, units) for _ in range(2 if captions else 1))
        self.query = nn.Linear(units, units, bias=False)
        self.key = nn.Linear(width, units, bias=captions)
        self.score = nn.Linear(units, 1, bias=False)
        self.gate = nn.Linear(units, 1) if captions else None
        self.readout = nn.Linear(units + width + size.embedding, size.embedding)
        self.bias = nn.Parameter(torch.zeros(size.vocabulary))

    def forward(self, source: Any, target: Any) -> Any:
        """Teacher forcing: (B, T, V)."""
        captions = self.gate is not None
        memory, summary, mask = self.encode(source)
        keys = self.key(memory)  # (B, S, U)
        y = self.dropout(self.embedding(target))  # (B, T, E)
        states = [torch.tanh(start(summary)) for start in self.start]
        outputs = []
        for token in y.unbind(1):
            scores = self.score(torch.tanh(self.query(states[0])[:, None] + keys))[..., 0]  # (B, S)
            weights = scores.masked_fill(~mask, -1e9).softmax(-1)
            context = torch.bmm(weights[:, None], memory)[:, 0]  # (B, D)
            if captions:
                context = context * torch.sigmoid(self.gate(states[0]))
            inputs = torch.cat([token, context], dim=-1)
            states = self.cell(inputs, tuple(states)) if captions else [self.cell(inputs, states[0])]
            outputs.append(torch.cat([states[0], context], dim=-1))
        readout = torch.tanh(self.readout(torch.cat([torch.stack(outputs, 1), y], dim=-1)))
        return self.dropout(readout) @ self.embedding.weight.T + self.bias

    def encode(self, source: Any) -> tuple[Any, Any, Any]:
        """The memory (B, S, D), its summary (B, D) and its mask (B, S)."""
        if self.gate is not None:
            memory = source.flatten(1, 2)
            mask = torch.ones(memory.shape[:2], dtype=torch.bool, device=memory.device)
            return memory, memory.mean(1), mask
        memory, last = self.encoder(self.source_embedding(source))
        return memory, torch.cat(list(last), dim=-1), source != sizes.PAD_ID


if __name__ == "__main__":
    common.main(train)
