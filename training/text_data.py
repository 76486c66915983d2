"""Parallel text: sentences and their translations."""

import logging
import os
from collections.abc import Iterable, Sequence
from typing import overload

from attention_zoo.models.tokenizer import read_lines

logger = logging.getLogger("attention_zoo")


class ParallelText:
    """Pairs of a source text and its translation.

    White space at the end of a text is removed. Pairs with an empty side are left out; `dropped` counts them,
    and the log says so.

    Args:
        sources: Source texts.
        targets: Their translations, in the same order.

    Attributes:
        sources: list[str], the source texts that are kept.
        targets: list[str], their translations.
        dropped: Number of pairs left out.

    Raises:
        ValueError: If there are not as many targets as sources, a text is no string, or no pair is left.

    Example:
        >>> text = ParallelText(["good morning", "good night"], ["guten Morgen", "gute Nacht"])
        >>> len(text), text[1]
        (2, ('good night', 'gute Nacht'))
        >>> text[:1].targets
        ['guten Morgen']
    """

    def __init__(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        if isinstance(sources, str) or isinstance(targets, str):
            raise ValueError("ParallelText: expected two lists of strings, received a single string")
        if len(sources) != len(targets):
            raise ValueError(
                f"ParallelText: expected as many targets as sources, received {len(sources)} sources and "
                f"{len(targets)} targets"
            )
        self.sources: list[str] = []
        self.targets: list[str] = []
        for number, pair in enumerate(zip(sources, targets, strict=True)):
            for text in pair:
                if not isinstance(text, str):
                    raise ValueError(f"ParallelText: expected strings, received {text!r} in pair {number}")
            source, target = pair[0].rstrip(), pair[1].rstrip()
            if source and target:
                self.sources.append(source)
                self.targets.append(target)
        self.dropped = len(sources) - len(self.sources)
        if not self.sources:
            raise ValueError(
                f"ParallelText: expected pairs of texts, received {len(sources)} pairs, none with text "
                "on both sides"
            )
        if self.dropped:
            logger.warning(
                "ParallelText: left out %d of %d pairs with an empty side.", self.dropped, len(sources)
            )

    @classmethod
    def from_files(cls, source_path: str | os.PathLike, target_path: str | os.PathLike) -> "ParallelText":
        r"""Reads two files: line i of the target file translates line i of the source file.

        Args:
            source_path: UTF-8 text, one sentence per line, plain or gzipped (`.gz`). Only "\n" ends a line.
            target_path: Likewise.

        Returns:
            The pairs.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is empty, is not UTF-8 or is damaged, or the numbers of lines differ.
        """
        sources, targets = read_lines(source_path), read_lines(target_path)
        if len(sources) != len(targets):
            raise ValueError(
                f"ParallelText: expected two files with the same number of lines, received {len(sources)} "
                f"lines in {source_path} and {len(targets)} lines in {target_path}; line i of one must "
                "translate line i of the other"
            )
        try:
            return cls(sources, targets)
        except ValueError as error:
            raise ValueError(f"{source_path}, {target_path}: {error}") from None

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[str, str]]) -> "ParallelText":
        """Takes pairs from any iterable.

        Args:
            pairs: (source, target) tuples.

        Returns:
            The pairs.

        Raises:
            ValueError: If an item is no pair of strings, or there is none.
        """
        pairs = list(pairs)
        for number, pair in enumerate(pairs):
            if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
                raise ValueError(
                    f"ParallelText: expected (source, target) pairs, received {pair!r} as pair {number}"
                )
        return cls([source for source, _ in pairs], [target for _, target in pairs])

    def __len__(self) -> int:
        return len(self.sources)

    @overload
    def __getitem__(self, index: int) -> tuple[str, str]: ...

    @overload
    def __getitem__(self, index: slice) -> "ParallelText": ...

    def __getitem__(self, index: int | slice) -> "tuple[str, str] | ParallelText":
        """One pair (source, target), or the pairs of a slice as a ParallelText."""
        if isinstance(index, slice):
            return ParallelText(self.sources[index], self.targets[index])
        return self.sources[index], self.targets[index]
