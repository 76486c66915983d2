"""What an epoch is trained on: pairs of texts, sub-words learned from them, and the ids that these give."""

import gzip
import io
import pathlib

import numpy as np
import sizes

FILES = ("train.lc.norm.tok.en.gz", "train.lc.norm.tok.de.gz")  # source, target: line i translates line i
SOURCE, TARGET, MODEL, IDS = "source.txt.gz", "target.txt.gz", "sentencepiece.model", "ids.npz"


def prepare(data: pathlib.Path, folder: pathlib.Path, vocabulary: int, pairs: int | None = None) -> None:
    """Writes what the processes that are measured read.

    The sub-words are learned from all pairs, so that they do not depend on how many are trained on.

    Args:
        data: Folder of `FILES`.
        folder: A folder that exists, where `SOURCE`, `TARGET`, `MODEL` and `IDS` are written.
        vocabulary: Number of pieces, those of padding, start, end and unknown included.
        pairs: How many of the first pairs to take; None takes all.

    Raises:
        ValueError: If the numbers of lines differ, there are fewer pairs, or none is asked for.
        RuntimeError: If the texts do not support so many pieces.
    """
    import sentencepiece

    least = 1 if pairs is None else pairs
    if least < 1:
        raise ValueError(f"expected at least 1 pair, received {pairs}")
    texts = [_lines(data / name) for name in FILES]
    if len(texts[0]) != len(texts[1]) or len(texts[0]) < least:
        raise ValueError(
            f"expected two files of {least} lines or more, and as many in one as in the other, received "
            f"{len(texts[0])} and {len(texts[1])} lines in {data}"
        )
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts[0] + texts[1]),
        model_writer=model,
        vocab_size=vocabulary,
        model_type="bpe",
        normalization_rule_name="identity",  # the texts are normalized already
        character_coverage=1.0,
        pad_id=sizes.PAD_ID,
        bos_id=sizes.START_ID,
        eos_id=sizes.END_ID,
        unk_id=sizes.FIRST_ID - 1,
        minloglevel=2,
    )
    (folder / MODEL).write_bytes(model.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    sources, targets = (side[:pairs] for side in texts)
    for name, side in ((SOURCE, sources), (TARGET, targets)):
        with gzip.open(folder / name, "wt", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{text}\n" for text in side)
    source = pieces.encode(sources, add_eos=True)
    target = pieces.encode(targets, add_bos=True, add_eos=True)
    np.savez(
        folder / IDS,
        source=np.concatenate(source).astype("int32"),
        source_lengths=[len(row) for row in source],
        target=np.concatenate(target).astype("int32"),
        target_lengths=[len(row) for row in target],
    )


def read_ids(folder: pathlib.Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What `prepare` wrote: sources that end with END, targets from START to END, int32 (tokens,) each."""
    with np.load(folder / IDS) as arrays:
        return tuple(
            np.split(arrays[side], np.cumsum(arrays[f"{side}_lengths"])[:-1]) for side in ("source", "target")
        )


def _lines(path: pathlib.Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        return [line.rstrip() for line in file]
