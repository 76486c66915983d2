"""Scores of translations against references: BLEU, chrF and exact match."""

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of a set of translations, each with the sacreBLEU signature that says how it was computed.

    Args:
        bleu: BLEU, 0 to 100.
        bleu_signature: Its settings; "tok:none" means that the text was tokenized beforehand.
        chrf: chrF2 on characters, white space ignored, 0 to 100.
        chrf_signature: Its settings.
    """

    bleu: float
    bleu_signature: str
    chrf: float
    chrf_signature: str

    def __str__(self) -> str:
        return f"BLEU  {self.bleu:6.2f}  {self.bleu_signature}\nchrF  {self.chrf:6.2f}  {self.chrf_signature}"


@dataclasses.dataclass(frozen=True)
class LengthScore:
    """BLEU of the sentences whose source length lies between `shortest` and `longest`.

    Args:
        shortest: Fewest source words.
        longest: Most source words; None is no limit.
        sentences: How many sentences there are.
        bleu: Their BLEU, 0 to 100; None if there are none.
    """

    shortest: int
    longest: int | None
    sentences: int
    bleu: float | None

    def __str__(self) -> str:
        words = f"{self.shortest}+" if self.longest is None else f"{self.shortest}-{self.longest}"
        bleu = "-" if self.bleu is None else f"{self.bleu:.2f}"
        return f"{words:>9}  {self.sentences:>6}  {bleu:>6}"


def evaluate_translations(
    hypotheses: Sequence[str], references: Sequence[str], tokenized: bool = False
) -> Scores:
    """Computes corpus BLEU and chrF with sacreBLEU.

    Args:
        hypotheses: The translations.
        references: Their references, in the same order.
        tokenized: False for ordinary text, which sacreBLEU tokenizes itself (tokenizer 13a): scores
            that can be compared across papers. True for text that is already split into tokens by
            spaces, which are then taken as they are; the signature says "tok:none".

    Returns:
        The scores with their signatures.

    Raises:
        ValueError: If the lists are empty or of different length.
        ImportError: If sacrebleu is missing.

    Example:
        >>> scores = evaluate_translations(["a small house"], ["a small house"])
        >>> scores.chrf
        100.0

    Reference:
        Papineni et al. 2002, "BLEU: a Method for Automatic Evaluation of Machine Translation"; Popović
        2015, "chrF: character n-gram F-score for automatic MT evaluation"; Post 2018, "A Call for
        Clarity in Reporting BLEU Scores".
    """
    _check(hypotheses, references)
    bleu = _bleu(tokenized)
    bleu_score = bleu.corpus_score(hypotheses, [references]).score
    from sacrebleu.metrics import CHRF

    chrf = CHRF()
    chrf_score = chrf.corpus_score(hypotheses, [references]).score
    # The signature knows the number of references only after scoring.
    return Scores(bleu_score, str(bleu.get_signature()), chrf_score, str(chrf.get_signature()))


def bleu_by_length(
    hypotheses: Sequence[str],
    references: Sequence[str],
    sources: Sequence[str] | Sequence[int],
    edges: Sequence[int] = (10, 20, 30, 40),
    tokenized: bool = False,
) -> list[LengthScore]:
    """Computes BLEU separately for short and long source sentences.

    Args:
        hypotheses: The translations.
        references: Their references, in the same order.
        sources: The source sentences, whose words are counted between spaces, or their lengths.
        edges: Longest length of every range but the last, which has no limit.
        tokenized: As in `evaluate_translations`.

    Returns:
        One row per range, shortest first, empty ranges included.

    Raises:
        ValueError: If the lists are empty or of different length, or `edges` do not increase.
        ImportError: If sacrebleu is missing.

    Example:
        >>> for row in bleu_by_length(["a b c d e"], ["a b c d e"], ["1 2 3 4 5"], edges=[4]):
        ...     print(row.shortest, row.longest, row.sentences)
        0 4 0
        5 None 1

    Reference:
        Bahdanau, Cho and Bengio 2015, "Neural Machine Translation by Jointly Learning to Align and
        Translate", figure 2.
    """
    _check(hypotheses, references)
    if len(sources) != len(hypotheses):
        raise ValueError(
            f"bleu_by_length: expected one source per hypothesis ({len(hypotheses)}), "
            f"received {len(sources)}."
        )
    edges = list(edges)
    if any(right <= left for left, right in itertools.pairwise([0, *edges])):
        raise ValueError(f"bleu_by_length: expected positive, increasing edges, received {edges}.")
    lengths = [len(source.split()) if isinstance(source, str) else int(source) for source in sources]
    members: list[list[int]] = [[] for _ in range(len(edges) + 1)]
    for index, length in enumerate(lengths):
        members[bisect.bisect_left(edges, length)].append(index)
    metric = _bleu(tokenized)
    rows = []
    for shortest, longest, indices in zip(
        [0, *(edge + 1 for edge in edges)], [*edges, None], members, strict=True
    ):
        bleu = None
        if indices:
            chosen = [hypotheses[index] for index in indices]
            bleu = metric.corpus_score(chosen, [[references[index] for index in indices]]).score
        rows.append(LengthScore(shortest, longest, len(indices), bleu))
    return rows


def sentence_costs(
    candidates: Sequence[Sequence[str]], references: Sequence[str], tokenized: bool = False
) -> np.ndarray:
    """What candidate translations cost in minimum risk training.

        cost = 1 - (sentence BLEU + chrF2) / 200

    BLEU of a sentence adds 1 to all counts but those of single words, so that four words in a row that agree
    are not all that counts.

    Args:
        candidates: For each sentence its translations, at least one of them for one sentence.
        references: The reference of each sentence.
        tokenized: As in `evaluate_translations`.

    Returns:
        float32 (N, K), with K the most candidates of a sentence; 0 where a sentence has fewer.

    Raises:
        ValueError: If the lists are empty or of different length.
        ImportError: If sacrebleu is missing.

    Example:
        >>> sentence_costs([["a small house", "a house"]], ["a small house"]).astype(float).round(2).tolist()
        [[0.0, 0.59]]

    Reference:
        Lin and Och 2004, "Automatic Evaluation of Machine Translation Quality Using Longest Common
        Subsequence and Skip-Bigram Statistics", section 4 (BLEU of sentences).
    """
    _check(candidates, references)
    bleu = _bleu(tokenized, smooth_method="add-k", smooth_value=1, effective_order=True)
    from sacrebleu.metrics import CHRF

    chrf = CHRF()
    costs = np.zeros((len(candidates), max(map(len, candidates))), "float32")
    for row, texts, reference in zip(costs, candidates, references, strict=True):
        for place, text in enumerate(texts):
            scores = (metric.sentence_score(text, [reference]).score for metric in (bleu, chrf))
            row[place] = max(0.0, 1 - sum(scores) / 200)
    return costs


def exact_match(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Returns the share of hypotheses that equal their reference, 0 to 1.

    Args:
        hypotheses: The translations.
        references: Their references, in the same order.

    Raises:
        ValueError: If the lists are empty or of different length.

    Example:
        >>> exact_match(["2024-05-01", "2024-05-02"], ["2024-05-01", "2024-05-03"])
        0.5
    """
    _check(hypotheses, references)
    pairs = zip(hypotheses, references, strict=True)
    return sum(hypothesis == reference for hypothesis, reference in pairs) / len(hypotheses)


def _bleu(tokenized: bool, **options: Any) -> "BLEU":
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise ImportError(
            "Scoring translations needs sacrebleu: pip install 'attention-zoo[eval]'."
        ) from error
    # force: we were told that the text is tokenized, so sacreBLEU need not suspect it.
    return BLEU(tokenize="none", force=True, **options) if tokenized else BLEU(**options)


def _check(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    for name, texts in (("hypotheses", hypotheses), ("references", references)):
        # A string is a sequence of strings too, and would be scored letter by letter.
        if isinstance(texts, str):
            raise ValueError(
                f"evaluation: expected a list of strings as {name}, received the string {texts!r}."
            )
    if len(hypotheses) != len(references):
        raise ValueError(
            f"evaluation: expected one reference per hypothesis, received {len(hypotheses)} hypotheses "
            f"and {len(references)} references."
        )
    if not hypotheses:
        raise ValueError("evaluation: expected at least one hypothesis, received none.")
