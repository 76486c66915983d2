"""Scores of captions against several references each: BLEU-1 to BLEU-4, CIDEr-D and ROUGE-L.

The numbers are those of coco-caption, the evaluation code of the MS COCO captioning challenge, from which
practically all published ones come (what it calls CIDEr is CIDEr-D); where it and the papers disagree, it is
followed, and a comment says so. BLEU is sacreBLEU's. CIDEr-D and ROUGE-L are written here: the packages that
have them need Java (pycocoevalcap) or bring PyTorch and Transformers along (aac-metrics), and the ROUGE-L of
rouge-score is another one.
"""

import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

_ORDERS = (1, 2, 3, 4)  # lengths of the n-grams of BLEU and CIDEr-D
_CIDER_SIGMA = 6.0  # words
_ROUGE_BETA = 1.2


@dataclasses.dataclass(frozen=True)
class CaptionScores:
    """Scores of a set of captions, and how they were computed.

    Args:
        bleu_1: BLEU of single words, 0 to 100.
        bleu_2: BLEU of n-grams of up to 2 words, 0 to 100.
        bleu_3: BLEU of n-grams of up to 3 words, 0 to 100.
        bleu_4: BLEU of n-grams of up to 4 words, 0 to 100.
        cider_d: CIDEr-D, 0 to 10. Tables in papers often print 100 times this (113.2 for 1.132).
        rouge_l: ROUGE-L, 0 to 100.
        signature: The settings, and how many images and references there were.
    """

    bleu_1: float
    bleu_2: float
    bleu_3: float
    bleu_4: float
    cider_d: float
    rouge_l: float
    signature: str

    def __str__(self) -> str:
        rows = [
            f"BLEU-1   {self.bleu_1:6.2f}   of 100",
            f"BLEU-2   {self.bleu_2:6.2f}   of 100",
            f"BLEU-3   {self.bleu_3:6.2f}   of 100",
            f"BLEU-4   {self.bleu_4:6.2f}   of 100",
            f"ROUGE-L  {self.rouge_l:6.2f}   of 100",
            f"CIDEr-D  {self.cider_d:7.3f}  of 10",
            self.signature,
        ]
        return "\n".join(rows)


def evaluate_captions(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], tokenized: bool = False
) -> CaptionScores:
    """Computes BLEU-1 to BLEU-4, CIDEr-D and ROUGE-L of captions, each against all references of its image.

    BLEU-k = BP (p_1 ... p_k)^(1/k), with the clipped n-gram precisions p_n of the whole corpus and the
    brevity penalty BP = min(1, exp(1 - r / c)), where c counts the words of the hypotheses and r those of
    each one's reference of closest length (the shorter of two as close). Not smoothed: 0 if no n-gram of
    some length matches.

    CIDEr-D = mean over images, references and n = 1..4 of

        10 exp(-(l(c) - l(s))^2 / (2 6^2)) min(g(c), g(s)) . g(s) / (|g(c)| |g(s)|)

    where l is the length in words and g(c), g(s) hold the weight of every n-gram in the hypothesis and in the
    reference: its count times log(images / images with the n-gram in some reference). What is said of every
    image weighs nothing, so the CIDEr-D of a single image is 0, and that of few images says little: numbers
    can be compared only on the same set of images. A hypothesis reaches 10 if all its references equal it,
    and it holds an n-gram of each length, 1 to 4, that not all images share (so it has four words or more).

    ROUGE-L = mean over images of (1 + b^2) P R / (R + b^2 P), b = 1.2, with P and R the longest common
    subsequence as a share of the hypothesis and of the reference. Each is the best over the references,
    which need not be the same one for both.

    METEOR and SPICE are left out: they need Java and data to download.

    Args:
        hypotheses: One caption per image. An empty one scores 0.
        references: One or more references for every image, in the same order; not every image needs equally
            many.
        tokenized: False for ordinary text, which `tokenize_caption` cuts into words. True for text that is
            already cut into words by spaces, which are then taken as they are, capitals and punctuation too.

    Returns:
        The scores with a signature that says how they were computed.

    Raises:
        TypeError: If `hypotheses` is not a list of strings or `references` not a list of lists of strings.
        ValueError: If there are no hypotheses, their number and that of the images differ, or an image has
            no references.
        ImportError: If sacrebleu is missing.

    Example:
        >>> scores = evaluate_captions(
        ...     ["a dog runs on grass", "two people ride horses"],
        ...     [["A dog runs on grass.", "The dog is running."], ["Two people ride horses."]],
        ... )
        >>> round(scores.bleu_4), round(scores.rouge_l), round(scores.cider_d, 3)
        (100, 100, 7.638)

    Reference:
        Chen et al. 2015, "Microsoft COCO Captions: Data Collection and Evaluation Server"; Papineni et al.
        2002, "BLEU: a Method for Automatic Evaluation of Machine Translation"; Vedantam, Zitnick and Parikh
        2015, "CIDEr: Consensus-based Image Description Evaluation"; Lin 2004, "ROUGE: A Package for
        Automatic Evaluation of Summaries".
    """
    _check(hypotheses, references)
    cut = str.split if tokenized else tokenize_caption
    hypothesis_words = [cut(hypothesis) for hypothesis in hypotheses]
    reference_words = [[cut(reference) for reference in group] for group in references]
    bleu, version = _bleu(hypothesis_words, reference_words)
    pairs = zip(hypothesis_words, reference_words, strict=True)
    rouge = sum(_rouge_l(words, group) for words, group in pairs) / len(hypotheses)
    fewest, most = min(map(len, references)), max(map(len, references))
    signature = "|".join(
        [
            f"images:{len(references)}",
            f"nrefs:{fewest}" if fewest == most else f"nrefs:{fewest}-{most}",
            "tok:none|case:mixed" if tokenized else "tok:ptb-like|case:lc",
            f"bleu:sacrebleu-{version},smooth:none",
            "cider-d:n4,sigma6,df:references",
            f"rouge-l:beta{_ROUGE_BETA}",
        ]
    )
    return CaptionScores(*bleu, _cider_d(hypothesis_words, reference_words), 100 * rouge, signature)


# The first alternative that matches wins, at the earliest place not yet consumed.
_TOKEN = re.compile(
    r"""
      (?:[a-z]\.){2,}                                     # u.s.  a.m.
    | (?:mr|mrs|ms|dr|st|ave|jr|sr|vs|ft|etc)\.           # abbreviations frequent in captions
    | n't\b | '(?:s|re|ve|ll|d|m)\b                       # the second part of a contraction
    | o'\w{2,}                                            # o'clock
    | \w+?(?=n't\b)                                       # is|n't
    | can(?=not\b) | gon(?=na\b) | wan(?=na\b) | got(?=ta\b)
    | \w+(?: [-/.]\w+ | (?<=\d)[,:]\d+ )*                 # t-shirt  and/or  3.5  1,000  10:30
    | [?!]+
    | [^\w\s]
    """,
    re.VERBOSE,
)
_PUNCTUATION = frozenset(".,:;?!-–—…'`\"“”")
# coco-caption means to drop brackets, but looks for "-LRB-" after lower-casing: they stay, as words.
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_APOSTROPHES = str.maketrans("‘’", "''")


def tokenize_caption(caption: str) -> list[str]:
    """Cuts a caption into lower-case words without punctuation, nearly as coco-caption does.

    coco-caption runs the Penn Treebank tokenizer of Stanford CoreNLP (Java). This follows it where captions
    go: contractions are cut in two (is|n't, man|'s), hyphens and slashes stay inside words, abbreviations
    keep their periods, symbols are words, punctuation is dropped. Brackets (as -lrb- and -rrb-) and runs of
    question and exclamation marks stay, as they do there. It differs in rarities, such as further
    abbreviations ("no. 5"), elisions ('tis, y'all, rock 'n' roll), AT&T, signed numbers and markup in angle
    brackets.

    Args:
        caption: The text.

    Returns:
        Its words.

    Example:
        >>> tokenize_caption("The dog's T-shirt isn't red, it is blue.")
        ['the', 'dog', "'s", 't-shirt', 'is', "n't", 'red', 'it', 'is', 'blue']
    """
    tokens = _TOKEN.findall(caption.lower().translate(_APOSTROPHES))
    return [_BRACKETS.get(token, token) for token in tokens if token not in _PUNCTUATION]


def _bleu(
    hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> tuple[list[float], str]:
    """Returns BLEU-1 to BLEU-4 and the version of sacreBLEU.

    coco-caption adds 1e-15 to every count of matches and 1e-9 to every total against division by zero. It
    shows only where no n-gram of some length matches in the whole corpus: there it gives small positive
    numbers, sacreBLEU 0.
    """
    try:
        import sacrebleu
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise ImportError("Scoring captions needs sacrebleu: pip install 'attention-zoo[eval]'.") from error
    # force: the text is tokenized on purpose, so sacreBLEU need not suspect it.
    metric = BLEU(tokenize="none", smooth_method="none", max_ngram_order=len(_ORDERS), force=True)
    groups = [[" ".join(words) for words in group] for group in references]
    # sacreBLEU wants the first references of all images, then the second ones, None where there is none.
    streams = list(itertools.zip_longest(*groups))
    full = metric.corpus_score([" ".join(words) for words in hypotheses], streams)
    scores = [
        BLEU.compute_bleu(
            full.counts[:order], full.totals[:order], full.sys_len, full.ref_len, max_ngram_order=order
        ).score
        for order in _ORDERS
    ]
    return scores, sacrebleu.__version__


def _cider_d(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> float:
    """Returns the mean CIDEr-D of the images.

    Conventions of coco-caption that the paper leaves open or has otherwise: the term frequency is the plain
    count, not its share of the caption; the logarithm is the natural one; an n-gram of the hypothesis that no
    reference has counts as if one image had it. As in the paper, an n-gram counts once per image, however
    many references have it, and the four lengths of n-grams weigh equally. (The code there takes the number
    of bigrams as a caption's length, one less than its words: their differences are the same, and a caption
    without words scores 0 anyway.)
    """
    images = len(references)
    frequency: Counter[tuple[str, ...]] = Counter()
    for group in references:
        frequency.update({ngram for words in group for order in _ORDERS for ngram in _ngrams(words, order)})

    def weights(words: Sequence[str]) -> list[dict[tuple[str, ...], float]]:
        return [
            {
                ngram: count * math.log(images / max(1, frequency[ngram]))
                for ngram, count in _ngrams(words, order).items()
            }
            for order in _ORDERS
        ]

    total = 0.0
    for words, group in zip(hypotheses, references, strict=True):
        hypothesis_weights = weights(words)
        similarity = 0.0
        for reference in group:
            penalty = math.exp(-((len(words) - len(reference)) ** 2) / (2 * _CIDER_SIGMA**2))
            both = zip(hypothesis_weights, weights(reference), strict=True)
            similarity += penalty * sum(_clipped_cosine(left, right) for left, right in both)
        total += 10 * similarity / (len(_ORDERS) * len(group))
    return total / images


def _ngrams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + order]) for start in range(len(words) - order + 1))


def _clipped_cosine(
    hypothesis: dict[tuple[str, ...], float], reference: dict[tuple[str, ...], float]
) -> float:
    """Returns min(c, s) . s / (|c| |s|): repeating a word cannot raise it. 0 if a vector is empty or zero."""
    lengths = math.hypot(*hypothesis.values()) * math.hypot(*reference.values())
    if not lengths:
        return 0.0
    shared = hypothesis.keys() & reference.keys()
    return sum(min(hypothesis[ngram], reference[ngram]) * reference[ngram] for ngram in shared) / lengths


def _rouge_l(words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Returns ROUGE-L of one image, 0 to 1."""
    common = [_longest_common_subsequence(words, reference) for reference in references]
    if not any(common):
        return 0.0
    precision = max(common) / len(words)
    recall = max(
        length / len(reference) for length, reference in zip(common, references, strict=True) if reference
    )
    return (1 + _ROUGE_BETA**2) * precision * recall / (recall + _ROUGE_BETA**2 * precision)


def _longest_common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    # row[j]: of the words of `left` read so far and the first j words of `right`.
    row = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for column, other in enumerate(right, start=1):
            above = row[column]
            row[column] = diagonal + 1 if word == other else max(above, row[column - 1])
            diagonal = above
    return row[-1]


def _check(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if not _is_list(hypotheses):
        raise TypeError(
            f"evaluate_captions: expected a list of strings as hypotheses, received {_describe(hypotheses)}."
        )
    if not _is_list(references):
        raise TypeError(
            "evaluate_captions: expected a list as references, with a list of strings for every image, "
            f"received {_describe(references)}."
        )
    if len(hypotheses) != len(references):
        raise ValueError(
            "evaluate_captions: expected a list of references for every hypothesis, "
            f"received {len(hypotheses)} hypotheses and references of {len(references)} images."
        )
    if not hypotheses:
        raise ValueError("evaluate_captions: expected at least one hypothesis, received none.")
    for image, (hypothesis, group) in enumerate(zip(hypotheses, references, strict=True)):
        if not isinstance(hypothesis, str):
            raise TypeError(
                f"evaluate_captions: expected a string as hypothesis {image}, "
                f"received {_describe(hypothesis)}."
            )
        # A string is a sequence of strings too, and would be taken for references of one letter.
        if not _is_list(group):
            raise TypeError(
                f"evaluate_captions: expected a list of strings as references of image {image}, "
                f"received {_describe(group)}; put a single reference into a list, [reference]."
            )
        if not group:
            raise ValueError(
                f"evaluate_captions: expected at least one reference for image {image}, received none; "
                "leave out images without references."
            )
        for reference in group:
            if not isinstance(reference, str):
                raise TypeError(
                    f"evaluate_captions: expected strings as references of image {image}, "
                    f"received {_describe(reference)}."
                )


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _describe(value: Any) -> str:
    kind = type(value).__name__
    return f"the string {value!r}" if isinstance(value, str) else f"{value!r:.60} of type {kind}"
