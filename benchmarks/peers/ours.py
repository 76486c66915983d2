"""Attention Zoo: trained with `model.fit`, decoded with `model.translate`, which takes and returns text."""

from collections.abc import Callable, Iterable
from typing import Any

import epoch_data
import keras
import numpy as np
import sizes
from peers import common, device, epochs, keras_training

import attention_zoo as az
from attention_zoo.models import SentencePieceTokenizer
from attention_zoo.training import ParallelText, TranslationBatches

TRANSFORMERS = {128: "transformer_tiny", 512: "transformer_base"}  # by width
PRODUCT_DTYPE = "bfloat16" if device.BFLOAT16 else None
BATCH_TOKENS = 1240  # padding included: batches of 64 pairs of Multi30k in the mean


def train(task: common.Task, clock: common.Clock) -> int:
    """See `common`."""
    model = make_model(task.size)
    model.compile(keras.optimizers.Adam(1e-3), product_dtype=PRODUCT_DTYPE)
    source, target, labels = (np.array(rows, "int32") for rows in task.training_batch())
    if task.size.kind == "captioner":
        source = keras_training.random_features(task)
    keras_training.fit(model, ({"source": source, "target": target}, labels), task, clock)
    return count_parameters(model)


def decode(task: common.Task) -> tuple[int, Callable]:
    """See `common`."""
    device.require_tensorflow_gpu()
    model = make_model(task.size)
    length = task.target_length
    options = {"min_length": length, "max_length": length, "product_dtype": PRODUCT_DTYPE}

    def prepare(source: list[list[int]], beams: int) -> Callable:
        texts = [" ".join(_word(i) for i in row[:-1]) for row in source]

        def translate() -> list[int]:
            found = model.translate(texts, beams=beams, batch_size=len(texts), **options)
            return [len(translation.tokens) for translation in found]

        return translate

    return count_parameters(model), prepare


def epoch(task: common.Task, clock: epochs.EpochClock) -> tuple[int, Iterable]:
    """See `common`."""
    tokenizer = SentencePieceTokenizer((task.data / epoch_data.MODEL).read_bytes())
    text = ParallelText.from_files(task.data / epoch_data.SOURCE, task.data / epoch_data.TARGET)
    batches = TranslationBatches(text, tokenizer, tokenizer, batch_tokens=BATCH_TOKENS)
    model = make_model(task.size, tokenizer)
    model.compile(keras.optimizers.Adam(1e-3))
    clock.ready()
    keras_training.fit_dataset(model, batches.dataset(), clock)
    batches.epoch.assign(0)  # the same batches again
    data = batches.dataset().as_numpy_iterator()
    return count_parameters(model), ((inputs["source"], labels) for inputs, labels in data)


def make_model(size: sizes.Size, tokenizer: Any = None) -> Any:
    """The prebuilt model of this size; without a tokenizer, for words that are numbers."""
    words = tokenizer or az.models.WhitespaceTokenizer(
        [_word(i) for i in range(sizes.FIRST_ID, size.vocabulary)]
    )
    dropout = {"dropout": size.dropout}
    if size.kind == "captioner":
        return az.models.Captioner.from_preset(
            "show_attend_and_tell", words, {"pretrained": None}, dropout, doubly_stochastic=0.0
        )
    if size.kind == "recurrent":
        return az.models.Translator.from_preset("bahdanau", words, words, dropout, dropout)
    return az.models.Translator.from_preset(
        TRANSFORMERS[size.units], words, words, dropout, dropout, share_embeddings=True
    )


def count_parameters(model: Any) -> int:
    """Trained numbers: a captioner's network, which stays as it is, does not count."""
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def _word(token: int) -> str:
    return f"w{token}"


if __name__ == "__main__":
    common.main(train, decode, epoch)
