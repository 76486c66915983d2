"""Raw text to the form of many published corpora: lower-cased words and signs between spaces."""

import re

import tensorflow as tf

# Ways to prepare a text, as a tokenizer's `preparation` names them.
PREPARATIONS = ("moses_lowercase",)

# What Moses writes for characters that mean something to it; "&" comes first here, as all others have one.
_ENTITIES = {
    "&": "&amp;",
    "|": "&#124;",
    "<": "&lt;",
    ">": "&gt;",
    "'": "&apos;",
    '"': "&quot;",
    "[": "&#91;",
    "]": "&#93;",
}

_LETTER = r"\p{L}\p{M}"
_RULES = [
    # Typographic signs to plain ones.
    (r"[“”„‟«»]", '"'),
    (r"[‘’‚‛´`]", "'"),
    (r"…", "..."),
    (r"[—―]", " - "),
    (r"[–‐‑]", "-"),
    (r"[\s\p{Z}\p{Cc}]+", " "),
    # Words of their own: every sign but . ' - and comma; several dots; a comma, unless it is in a number.
    (rf"([^{_LETTER}\p{{N}}\s.',-])", r" \1 "),
    (r"(\.{2,})", r" \1 "),
    (r"([^\p{N}]),", r"\1 , "),
    (r",([^\p{N}]|$)", r" , \1"),
    # "man's" -> "man 's", as in English.
    (rf"([{_LETTER}\p{{N}}])'([{_LETTER}])", r"\1 '\2"),
    (r" +", " "),
    # The full stop at the end of the text, before quotes and brackets. All others stay, as they may belong to
    # an abbreviation: those inside the text, of a letter ("plan b."), a number ("am 3.") or many ("u.s.").
    (r"""((?:^| )[^ .]+[^ .\p{N}])\.((?: [")\]])* ?)$""", r"\1 .\2"),
    (r"^ | $", ""),
]


def check_preparation(name: str | None) -> None:
    """Raises ValueError if there is no such preparation."""
    if name is not None and name not in PREPARATIONS:
        allowed = " or ".join(map(repr, PREPARATIONS))
        raise ValueError(f"preparation: expected None or {allowed}, received {name!r}")


def moses_lowercase(texts: tf.Tensor) -> tf.Tensor:
    """Lower-cases texts and sets their words and signs apart by spaces, much as the Moses tokenizer does.

    Quotation marks, apostrophes, brackets and the like become what Moses writes for them, `&quot;`, `&apos;`
    and so on. Text that is in lower case and went through Moses already stays as it is, its hyphens, numbers,
    abbreviations and contractions ("&apos;s") included. Moses itself has lists of abbreviations and rules for
    many languages; here apostrophes are treated as in English, and those at the edge of a word stay with it.

    Runs in the graph.

    Args:
        texts: string (B,), UTF-8.

    Returns:
        string (B,).

    Example:
        >>> moses_lowercase(tf.constant(["The man's T-shirt is red, isn't it?"])).numpy()[0].decode()
        'the man &apos;s t-shirt is red , isn &apos;t it ?'
    """
    texts = tf.strings.lower(texts, encoding="utf-8")
    for sign, entity in reversed(_ENTITIES.items()):
        texts = tf.strings.regex_replace(texts, entity, sign)
    for pattern, replacement in _RULES:
        texts = tf.strings.regex_replace(texts, pattern, replacement)
    for sign, entity in _ENTITIES.items():
        texts = tf.strings.regex_replace(texts, re.escape(sign), entity)
    return texts
