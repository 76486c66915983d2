"""MarianMT of transformers, from a configuration, with random weights."""

from collections.abc import Callable
from typing import Any

import sizes
import torch
from peers import common, device, torch_training
from transformers import MarianConfig, MarianMTModel


def train(task: common.Task, clock: common.Clock) -> int:
    """See `common`."""
    model = make_model(task.size)

    def predict(source: Any, target: Any) -> Any:
        mask = (source != sizes.PAD_ID).long()
        return model(input_ids=source, attention_mask=mask, decoder_input_ids=target).logits

    return torch_training.train(model, task, clock, predict)


def decode(task: common.Task) -> tuple[int, Callable]:
    """See `common`."""
    torch.set_num_threads(task.threads)
    place = device.torch_device()
    model = make_model(task.size).to(place).eval()

    def prepare(source: list[list[int]], beams: int) -> Callable:
        ids = torch.tensor(source, device=place)
        mask = (ids != sizes.PAD_ID).long()

        def translate() -> list[int]:
            found = model.generate(
                input_ids=ids,
                attention_mask=mask,
                num_beams=beams,
                do_sample=False,
                min_new_tokens=task.target_length,
                max_new_tokens=task.target_length,
            )
            return [len(row) - 1 for row in found]  # the start token does not count

        return translate

    return torch_training.count_parameters(model), prepare


def make_model(size: sizes.Size) -> MarianMTModel:
    """The model, with one matrix for source, target and output."""
    config = MarianConfig(
        vocab_size=size.vocabulary,
        d_model=size.units,
        encoder_layers=size.layers,
        decoder_layers=size.layers,
        encoder_ffn_dim=size.feed_forward_units,
        decoder_ffn_dim=size.feed_forward_units,
        encoder_attention_heads=size.num_heads,
        decoder_attention_heads=size.num_heads,
        activation_function="relu",
        dropout=size.dropout,
        scale_embedding=True,
        pad_token_id=sizes.PAD_ID,
        eos_token_id=sizes.END_ID,
        forced_eos_token_id=None,
        decoder_start_token_id=sizes.START_ID,
    )
    return MarianMTModel(config)


if __name__ == "__main__":
    common.main(train, decode)
