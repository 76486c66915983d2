import gzip

import pytest

from attention_zoo.training.text_data import ParallelText


def test_length_and_indexing():
    text = ParallelText(["a", "b", "c"], ["x", "y", "z"])
    assert len(text) == 3
    assert text[-1] == ("c", "z")
    assert list(text) == [("a", "x"), ("b", "y"), ("c", "z")]
    part = text[1:]
    assert isinstance(part, ParallelText)
    assert (part.sources, part.targets) == (["b", "c"], ["y", "z"])
    with pytest.raises(IndexError):
        text[3]


def test_pairs_with_an_empty_side_are_dropped_and_counted(caplog):
    text = ParallelText(["a ", "", "b", "  \t"], ["x\n", "y", " ", ""])
    assert list(text) == [("a", "x")]
    assert text.dropped == 3
    assert "left out 3 of 4 pairs" in caplog.text


def test_only_trailing_white_space_is_removed():
    assert ParallelText(["  a  b \u00a0"], ["x"])[0] == ("  a  b", "x")


@pytest.mark.parametrize(
    ("sources", "targets", "message"),
    [
        (["a", "b"], ["x"], "received 2 sources and 1 targets"),
        ([], [], "received 0 pairs, none with text on both sides"),
        ([""], ["x"], "received 1 pairs, none with text on both sides"),
        (["a", 5], ["x", "y"], "expected strings, received 5 in pair 1"),
        (["a"], [b"x"], "expected strings, received b'x' in pair 0"),
        ("a", "x", "expected two lists of strings"),
    ],
)
def test_errors(sources, targets, message):
    with pytest.raises(ValueError, match=message):
        ParallelText(sources, targets)


def test_from_pairs_takes_any_iterable():
    text = ParallelText.from_pairs((str(i), str(-i)) for i in range(3))
    assert list(text) == [("0", "0"), ("1", "-1"), ("2", "-2")]


@pytest.mark.parametrize("pair", ["ab", ("a",), ("a", "b", "c"), 3])
def test_from_pairs_refuses_what_is_no_pair(pair):
    with pytest.raises(ValueError, match=r"expected \(source, target\) pairs, received .* as pair 1"):
        ParallelText.from_pairs([("x", "y"), pair])


def test_from_files_plain_and_gzipped(tmp_path):
    source, target = tmp_path / "a.en", tmp_path / "a.de.gz"
    # A line separator inside a sentence must not put the files out of step.
    source.write_bytes("one\u2028more\r\ntwo\n\nthree\n".encode())
    target.write_bytes(gzip.compress(b"eins\nzwei\nleer\ndrei"))
    text = ParallelText.from_files(source, str(target))
    assert list(text) == [("one\u2028more", "eins"), ("two", "zwei"), ("three", "drei")]
    assert text.dropped == 1


def test_from_files_errors_name_the_files(tmp_path):
    good, short, blank, empty, latin = (
        tmp_path / name for name in ("good", "short", "blank", "empty", "latin")
    )
    good.write_text("a\nb\nc\n")
    short.write_text("a\nb\n")
    blank.write_text("\n \n\n")
    empty.write_text("")
    latin.write_bytes("ü\nb\nc\n".encode("latin-1"))
    for other, message in [
        (short, "received 3 lines in .*good and 2 lines in .*short"),
        (blank, "good, .*blank: .*none with text on both sides"),
        (empty, "empty: expected text, received an empty file"),
        (latin, "latin: expected UTF-8 text, received byte 0xfc in line 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            ParallelText.from_files(good, other)
    with pytest.raises(FileNotFoundError, match="missing: expected a text file"):
        ParallelText.from_files(good, tmp_path / "missing")
