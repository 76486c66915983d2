import sys

import numpy as np
import pytest

from attention_zoo.training.evaluation import (
    LengthScore,
    bleu_by_length,
    evaluate_translations,
    exact_match,
    sentence_costs,
)

pytest.importorskip("sacrebleu")


class TestEvaluateTranslations:
    def test_bleu_by_hand(self):
        # Precisions 6/6, 4/5, 3/4, 2/3; six words against seven.
        scores = evaluate_translations(["the cat sat on the mat"], ["the cat sat on the red mat"])
        assert scores.bleu == pytest.approx(100 * np.exp(1 - 7 / 6) * (1 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25)

    def test_bleu_counts_over_the_corpus_and_does_not_average_sentences(self):
        hypotheses = ["a b c d e", "a b c d x"]
        # Matches 5+4, 4+3, 3+2, 2+1 of 10, 8, 6, 4.
        expected = 100 * (9 / 10 * 7 / 8 * 5 / 6 * 3 / 4) ** 0.25
        assert evaluate_translations(hypotheses, ["a b c d e"] * 2).bleu == pytest.approx(expected)

    def test_chrf_by_hand(self):
        # Single characters: precision and recall 1/2; pairs: 0; longer ones: none. Mean 1/4.
        assert evaluate_translations(["ab"], ["ac"]).chrf == pytest.approx(25)

    def test_perfect_and_hopeless(self):
        scores = evaluate_translations(["a b c d"], ["a b c d"])
        assert scores.bleu == pytest.approx(100)
        assert scores.chrf == pytest.approx(100)
        scores = evaluate_translations(["a b c d"], ["w x y z"])
        assert scores.chrf == 0

    def test_tokenized_text_is_taken_as_it_is_and_said_so(self, caplog):
        hypotheses, references = ["he said hello , world ."], ["he said hello , world."]
        ordinary = evaluate_translations(hypotheses, references)
        tokenized = evaluate_translations(hypotheses, references, tokenized=True)
        assert ordinary.bleu == pytest.approx(100)
        # "he said hello ," matches; "world ." does not match "world.".
        assert tokenized.bleu < 80
        assert "tok:13a" in ordinary.bleu_signature
        assert "tok:none" in tokenized.bleu_signature
        assert not caplog.records  # sacreBLEU warns of tokenized text unless it is told

    def test_case_counts(self):
        scores = evaluate_translations(["A B C D"], ["a b c d"])
        assert scores.bleu == 0
        assert "case:mixed" in scores.bleu_signature

    def test_prints_scores_and_signatures(self):
        lines = str(evaluate_translations(["a b c d"], ["a b c d"])).splitlines()
        assert lines[0].split()[:2] == ["BLEU", "100.00"]
        assert lines[1].split()[:2] == ["chrF", "100.00"]
        assert "tok:13a" in lines[0]
        assert "version:" in lines[0]
        assert "nc:6" in lines[1]

    @pytest.mark.parametrize(
        "hypotheses, references, message",
        [
            (["a"], ["a", "b"], "received 1 hypotheses and 2 references"),
            ([], [], "received none"),
            ("abc", "abc", "expected a list of strings"),
        ],
    )
    def test_errors(self, hypotheses, references, message):
        with pytest.raises(ValueError, match=message):
            evaluate_translations(hypotheses, references)
        with pytest.raises(ValueError, match=message):
            bleu_by_length(hypotheses, references, hypotheses)
        with pytest.raises(ValueError, match=message):
            exact_match(hypotheses, references)

    def test_missing_sacrebleu_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
        with pytest.raises(ImportError, match=r"attention-zoo\[eval\]"):
            evaluate_translations(["a"], ["a"])


class TestBleuByLength:
    hypotheses = ("a b c d", "a b c d e f", "x y z q", "a b c d e")
    references = ("a b c d", "a b c d e f", "a b c d", "a b c d e")

    def test_rows(self):
        rows = bleu_by_length(self.hypotheses, self.references, [1, 3, 4, 12], edges=[3, 6, 9])
        assert [(row.shortest, row.longest, row.sentences) for row in rows] == [
            (0, 3, 2),
            (4, 6, 1),
            (7, 9, 0),
            (10, None, 1),
        ]
        assert rows[0].bleu == pytest.approx(100)
        assert rows[1].bleu == pytest.approx(evaluate_translations(["x y z q"], ["a b c d"]).bleu)
        assert rows[2].bleu is None
        assert rows[3].bleu == pytest.approx(100)

    def test_words_of_sources_are_counted(self):
        sources = ["one", "one two", "one  two three", "four words are here"]
        counted = bleu_by_length(self.hypotheses, self.references, sources, edges=[1, 2, 3])
        assert counted == bleu_by_length(self.hypotheses, self.references, [1, 2, 3, 4], edges=[1, 2, 3])
        assert [row.sentences for row in counted] == [1, 1, 1, 1]

    def test_tokenized(self):
        (row, _) = bleu_by_length(
            ["he said hello , world ."], ["he said hello , world."], [5], edges=[9], tokenized=True
        )
        assert row.bleu < 80

    def test_prints_as_a_table(self):
        assert str(LengthScore(0, 10, 12, 34.567)).split() == ["0-10", "12", "34.57"]
        assert str(LengthScore(41, None, 0, None)).split() == ["41+", "0", "-"]

    def test_wrong_number_of_sources(self):
        with pytest.raises(ValueError, match=r"one source per hypothesis \(4\), received 1"):
            bleu_by_length(self.hypotheses, self.references, ["a"])

    @pytest.mark.parametrize("edges", [[5, 5], [10, 5], [0, 5], [-1]])
    def test_edges_must_increase(self, edges):
        with pytest.raises(ValueError, match="expected positive, increasing edges"):
            bleu_by_length(self.hypotheses, self.references, [1, 2, 3, 4], edges=edges)


class TestExactMatch:
    def test_share(self):
        assert exact_match(["a", "b", "c"], ["a", "B", "c "]) == pytest.approx(1 / 3)
        assert exact_match(["a"], ["a"]) == 1


class TestSentenceCosts:
    def test_by_hand(self):
        # BLEU: precisions 3/4 and, with 1 added, 3/4, 2/3, 1/2; chrF2 by the metric of its own test.
        hypothesis, reference = "a b c x", "a b c d"
        chrf = evaluate_translations([hypothesis], [reference]).chrf
        bleu = 100 * (3 / 4 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
        costs = sentence_costs([[reference, hypothesis]], [reference], tokenized=True)
        np.testing.assert_allclose(costs, [[0, 1 - (bleu + chrf) / 200]], atol=1e-6)

    def test_missing_candidates(self):
        costs = sentence_costs([["a"], [], ["b", "c"]], ["a", "b", "c"])
        assert costs.shape == (3, 2) and costs.dtype == "float32"
        assert costs[0].tolist() == [0, 0] and costs[1].tolist() == [0, 0] and costs[2, 0] > costs[2, 1] == 0

    def test_lengths_must_agree(self):
        with pytest.raises(ValueError, match="received 1 hypotheses and 2 references"):
            sentence_costs([["a"]], ["a", "b"])
