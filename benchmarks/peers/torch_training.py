"""What the peers on PyTorch share: the training loop, and a loss over real tokens."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import sizes
import torch
from peers import common, device, epochs


def train(
    model: torch.nn.Module, task: common.Task, clock: common.Clock, predict: Callable | None = None
) -> int:
    """Takes the steps of a task; `predict` makes logits of source and target, if not the model itself does.

    Returns the number of parameters.
    """
    torch.set_num_threads(task.threads)
    take_steps(model, itertools.repeat(tensors(task), task.all_steps), clock, predict or model)
    return count_parameters(model)


def take_steps(
    model: torch.nn.Module,
    batches: Iterable[tuple[Any, Any, Any]],
    clock: common.Clock | epochs.EpochClock,
    predict: Callable,
) -> None:
    """Takes a step for each batch of source, target and labels; `predict` makes logits of the first two."""
    place = device.torch_device()
    model.to(place).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for batch in batches:
        source, target, labels = (rows.to(place) for rows in batch)
        optimizer.zero_grad()
        with torch.autocast(place.type, torch.bfloat16, enabled=device.BFLOAT16):
            logits = predict(source, target)
        masked_crossentropy(logits.float(), labels).backward()
        optimizer.step()
        device.wait_for_torch()
        clock.tick()


def count_parameters(model: torch.nn.Module) -> int:
    """Trained numbers; tables of sinusoids do not count."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def tensors(task: common.Task) -> tuple[Any, Any, Any]:
    """Source, target and labels of a batch; a captioner's source is what a network made of images."""
    source, target, labels = (torch.tensor(rows) for rows in task.training_batch())
    if task.size.kind == "captioner":
        source = torch.randn(task.batch, *task.size.grid)
    return source, target, labels


def masked_crossentropy(logits: Any, labels: Any) -> Any:
    """The mean over the real tokens: (B, T, V), (B, T) -> ()."""
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=sizes.PAD_ID
    )
