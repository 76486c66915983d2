import random
import sys

import numpy as np
import pytest

from attention_zoo.training.caption_metrics import CaptionScores, evaluate_captions, tokenize_caption

pytest.importorskip("sacrebleu")


def bleu(scores):
    return [scores.bleu_1, scores.bleu_2, scores.bleu_3, scores.bleu_4]


def random_corpus(images, seed):
    """Captions of few words, so that much matches and words repeat."""
    chance = random.Random(seed)

    def caption():
        return " ".join(chance.choices("abcdefg", k=chance.randint(4, 10)))

    return [caption() for _ in range(images)], [
        [caption() for _ in range(chance.randint(1, 4))] for _ in range(images)
    ]


class TestBleu:
    def test_published_examples(self):
        # Papineni et al. 2002, section 2.1: the precisions of the candidates of examples 1 and 2.
        references = [
            "It is a guide to action that ensures that the military will forever heed Party commands.",
            "It is the guiding principle which guarantees the military forces always being under the command "
            "of the Party.",
            "It is the practical guide for the army always to heed the directions of the party.",
        ]
        candidates = [
            "It is a guide to action which ensures that the military always obeys the commands of the party.",
            "It is to insure the troops forever hearing the activity guidebook that party direct.",
        ]
        first, second = (evaluate_captions([candidate], [references]) for candidate in candidates)
        # 18 words, as the second reference.
        assert first.bleu_1 == pytest.approx(100 * 17 / 18)
        assert first.bleu_2 == pytest.approx(100 * (17 / 18 * 10 / 17) ** 0.5)
        # 14 words; the closest references have 16.
        assert second.bleu_1 == pytest.approx(100 * np.exp(1 - 16 / 14) * 8 / 14)
        assert second.bleu_2 == pytest.approx(100 * np.exp(1 - 16 / 14) * (8 / 14 * 1 / 13) ** 0.5)
        repeated = evaluate_captions(
            ["the the the the the the the"], [["The cat is on the mat.", "There is a cat on the mat."]]
        )
        assert repeated.bleu_1 == pytest.approx(100 * 2 / 7)

    def test_counts_over_the_corpus_with_unequal_numbers_of_references(self):
        # First image: words a, b, c and, in the second reference, d, 4/5; pairs ab, bc and, there, cd, 3/4;
        # triples abc, 1/3; quadruples 0/2. Second image: all 5, 4, 3 and 2.
        scores = evaluate_captions(["a b c d x", "p q r s t"], [["a b c y z", "y z c d q"], ["p q r s t"]])
        precisions = [9 / 10, 7 / 8, 4 / 6, 2 / 4]
        expected = [100 * np.prod(precisions[:order]) ** (1 / order) for order in (1, 2, 3, 4)]
        assert bleu(scores) == pytest.approx(expected)

    def test_of_two_lengths_as_close_the_shorter_one_counts(self):
        # Four words between three and five. Against five there would be a penalty.
        scores = evaluate_captions(["a b c d"], [["a b c d e", "a b c"]])
        assert bleu(scores) == pytest.approx([100] * 4)

    def test_closest_and_not_shortest_length(self):
        scores = evaluate_captions(["a b c d"], [["a", "a b c d e"]])
        assert scores.bleu_1 == pytest.approx(100 * np.exp(1 - 5 / 4))

    def test_is_zero_without_a_match_of_that_length(self):
        scores = evaluate_captions(["a b x c d"], [["a b c d e"]])
        # Words 4/5, pairs ab and cd of 4, no triples.
        assert bleu(scores) == pytest.approx([100 * 4 / 5, 100 * (4 / 5 * 2 / 4) ** 0.5, 0, 0])


class TestCiderD:
    def test_weights_by_hand(self):
        # Of four images two have "dog" (the second one in both its references, which counts once), one
        # "bird", none "cat", which counts as one: log(4/2) = L, log(4/1) = 2L, 2L.
        # Words: L L / ((L^2 + 4 L^2)^(1/2) (L^2 + 4 L^2)^(1/2)) = 1/5; pairs: 0; the mean of four: 1/20.
        hypotheses = ["dog cat", "", "", ""]
        references = [["dog bird"], ["dog", "dog"], ["fox"], ["owl"]]
        assert evaluate_captions(hypotheses, references).cider_d == pytest.approx(10 * 1 / 20 / 4)

    def test_length_penalty_and_words_of_every_image_by_hand(self):
        # "b" is in both images: log(2/2) = 0. "a": 1. "ab", of "ab" and "bb": 1/sqrt(2). "abb": 0.
        # Three words against two: exp(-1^2 / (2 6^2)).
        scores = evaluate_captions(["a b b", ""], [["a b"], ["b c"]])
        assert scores.cider_d == pytest.approx(10 / 4 * (1 + 1 / np.sqrt(2)) * np.exp(-1 / 72) / 2)

    def test_repeating_a_word_is_clipped(self):
        # Weights (2, 0) against (1, 1): min(2, 1) 1 / (2 sqrt(2)); the plain cosine would be twice that.
        scores = evaluate_captions(["a a", ""], [["a b"], ["c"]])
        assert scores.cider_d == pytest.approx(10 / 4 * 1 / (2 * np.sqrt(2)) / 2)

    def test_is_the_mean_over_references(self):
        scores = evaluate_captions(["a b c d", ""], [["a b c d", "e f g h"], ["i"]])
        assert scores.cider_d == pytest.approx(10 / 2 / 2)

    def test_reaches_ten_if_all_references_are_said_and_long_enough(self):
        captions = ["a dog runs on grass", "two people ride horses"]
        twice = [[caption, caption] for caption in captions]
        assert evaluate_captions(captions, twice).cider_d == pytest.approx(10)
        # No quadruples: three of four orders.
        shorter = ["a dog runs", "two people ride"]
        assert evaluate_captions(shorter, [[caption] for caption in shorter]).cider_d == pytest.approx(7.5)

    def test_a_single_image_scores_zero(self):
        assert evaluate_captions(["a b c d"], [["a b c d"]]).cider_d == 0

    def test_more_than_ten_is_impossible(self):
        for seed in range(5):
            hypotheses, references = random_corpus(6, seed)
            references = [
                [hypothesis, *group] for hypothesis, group in zip(hypotheses, references, strict=True)
            ]
            assert 0 < evaluate_captions(hypotheses, references).cider_d <= 10


class TestRougeL:
    @pytest.mark.parametrize(
        "hypothesis, expected", [("police kill the gunman", 3 / 4), ("the gunman kill police", 2 / 4)]
    )
    def test_published_examples(self, hypothesis, expected):
        # Lin 2004, section 3.1. Precision and recall are equal, so that beta plays no part.
        scores = evaluate_captions([hypothesis], [["police killed the gunman"]])
        assert scores.rouge_l == pytest.approx(100 * expected)

    def test_by_hand(self):
        # "the cat sat": 3 of 3 and 3 of 6. Averaged with an image without anything common.
        scores = evaluate_captions(["the cat sat", "a"], [["the cat on the mat sat"], ["b"]])
        assert scores.rouge_l == pytest.approx(100 * (1 + 1.44) * 1 * 0.5 / (0.5 + 1.44 * 1) / 2)

    def test_a_word_matches_once(self):
        # "a": 1 of 2 and 1 of 3.
        scores = evaluate_captions(["a b"], [["a a a"]])
        assert scores.rouge_l == pytest.approx(100 * 2.44 * (1 / 2) * (1 / 3) / (1 / 3 + 1.44 * 1 / 2))

    def test_best_precision_and_best_recall_may_come_from_different_references(self):
        # Against "a b": 2/4 and 2/2. Against the long one: 4/4 and 4/8.
        assert evaluate_captions(["a b c d"], [["a b", "x a b c d y z w"]]).rouge_l == pytest.approx(100)

    def test_another_reference_never_lowers_it(self):
        hypotheses, references = random_corpus(5, seed=7)
        _, more = random_corpus(5, seed=8)
        before = evaluate_captions(hypotheses, references).rouge_l
        for image in range(5):
            references[image] = references[image] + more[image]
            after = evaluate_captions(hypotheses, references).rouge_l
            assert after >= before
            before = after


class TestTokenizeCaption:
    # The words that coco-caption makes of them: pycocoevalcap 1.2 with its Stanford CoreNLP 3.4.1.
    @pytest.mark.parametrize(
        "caption, words",
        [
            ("A man's dog doesn't like the T-shirt.", "a man 's dog does n't like the t-shirt"),
            ("Men’s room, I’m in; they're out!", "men 's room i 'm in they 're out"),
            ("it can't, it won't, it cannot", "it ca n't it wo n't it can not"),
            ("A \"funny\" sign says 'stop' - now -- or...", "a funny sign says stop now or"),
            ("“quoted” words – and — dashes…", "quoted words and dashes"),
            (
                "woman,and child at 10:30 a.m. with a U.S. flag.",
                "woman and child at 10:30 a.m. with a u.s. flag",
            ),
            ("It costs $3.50 or 1,000 dollars, 50% off", "it costs $ 3.50 or 1,000 dollars 50 % off"),
            ("Dr. Smith near 5th Ave. is on St. Mary's", "dr. smith near 5th ave. is on st. mary 's"),
            ("a red/white dress & a 12-year-old.", "a red/white dress & a 12-year-old"),
            ("the boys' ball at ten o'clock", "the boys ball at ten o'clock"),
            ("A man (wearing a hat) [sic].", "a man -lrb- wearing a hat -rrb- -lsb- sic -rsb-"),
            ("a cake!! really? yes.. no", "a cake !! really yes no"),
            ("a café\nby the sea .", "a café by the sea"),
            (" . ", ""),
        ],
    )
    def test_cuts_as_coco_caption_does(self, caption, words):
        assert tokenize_caption(caption) == words.split()


class TestEvaluateCaptions:
    hypotheses = (
        "A brown dog runs across the grass.",
        "Two children are playing with a red ball",
        "a man on a a bicycle",
        "The woman isn't wearing a hat, but a scarf.",
    )
    references = (
        (
            "A brown dog is running across the green grass.",
            "The dog's in the grass!",
            "A dog runs over a lawn.",
        ),
        ("Two kids play with a ball.",),
        ("A man rides a bicycle down the street.", "A man on a bicycle (in black-and-white)."),
        (
            "A woman with a scarf, but no hat.",
            "The woman isn't wearing a hat.",
            'A woman wearing a "silk" scarf',
        ),
    )

    def test_agrees_with_coco_caption(self):
        # What pycocoevalcap 1.2 (coco-caption for Python 3) gives for these, its tokenizer included.
        scores = evaluate_captions(self.hypotheses, self.references)
        assert bleu(scores) == pytest.approx(
            [83.87096773922997, 72.66886978092761, 56.84422119941204, 46.888770114728764], rel=1e-9
        )
        assert scores.cider_d == pytest.approx(2.47755325271822, rel=1e-12)
        assert scores.rouge_l == pytest.approx(70.35157301449411, rel=1e-12)

    def test_saying_a_reference_scores_the_maximum(self):
        hypotheses = [group[-1] for group in self.references]
        scores = evaluate_captions(hypotheses, self.references)
        assert bleu(scores) == pytest.approx([100] * 4)
        assert scores.rouge_l == pytest.approx(100)
        # CIDEr-D is a mean over the references, so only those that say the same give 10.
        assert scores.cider_d < 10
        alone = evaluate_captions(hypotheses, [[hypothesis] for hypothesis in hypotheses])
        assert alone.cider_d == pytest.approx(10)

    def test_the_order_of_images_and_of_references_is_irrelevant(self):
        hypotheses, references = random_corpus(8, seed=3)
        order = [5, 2, 7, 0, 1, 6, 3, 4]
        scores = evaluate_captions(hypotheses, references)
        turned = evaluate_captions(
            [hypotheses[image] for image in order], [references[image][::-1] for image in order]
        )
        assert bleu(turned) == pytest.approx(bleu(scores))
        assert turned.cider_d == pytest.approx(scores.cider_d)
        assert turned.rouge_l == pytest.approx(scores.rouge_l)

    def test_case_and_punctuation_count_only_in_tokenized_text(self):
        hypotheses, references = ["A dog , a cat .", "x"], [["a dog a cat"], ["y"]]
        ordinary = evaluate_captions(hypotheses, references)
        tokenized = evaluate_captions(hypotheses, references, tokenized=True)
        assert ordinary.rouge_l == pytest.approx(50)
        # "dog a cat": 3 of 6 and 3 of 4.
        assert tokenized.rouge_l == pytest.approx(100 * 2.44 * 0.5 * 0.75 / (0.75 + 1.44 * 0.5) / 2)
        assert "tok:ptb-like|case:lc" in ordinary.signature
        assert "tok:none|case:mixed" in tokenized.signature

    def test_signature_counts_images_and_references(self):
        assert "images:2|nrefs:1-2|" in evaluate_captions(["a", "b"], [["a"], ["b", "c"]]).signature
        assert "images:2|nrefs:2|" in evaluate_captions(["a", "b"], [["a", "c"], ["b", "c"]]).signature

    @pytest.mark.parametrize("nothing", ["", " ", "..."])
    def test_empty_hypotheses_score_zero(self, nothing):
        scores = evaluate_captions([nothing, nothing], [["a b c d"], ["e f g h", "i"]])
        assert [*bleu(scores), scores.cider_d, scores.rouge_l] == [0] * 6
        # Half of the images: half the mean, and two words of BLEU's brevity penalty.
        scores = evaluate_captions([nothing, "e f g h"], [["a b"], ["e f g h"]])
        assert bleu(scores) == pytest.approx([100 * np.exp(1 - 6 / 4)] * 4)
        assert scores.cider_d == pytest.approx(5)
        assert scores.rouge_l == pytest.approx(50)

    def test_a_reference_without_words_matches_nothing(self):
        scores = evaluate_captions(["a b c d", ""], [["a b c d", "."], ["."]])
        assert bleu(scores) == pytest.approx([100] * 4)
        assert scores.rouge_l == pytest.approx(50)
        assert scores.cider_d == pytest.approx(10 / 2 / 2)

    def test_prints_as_an_aligned_table(self):
        lines = str(CaptionScores(72.5, 55.25, 40, 100, 1.1325, 8.5, "images:5")).splitlines()
        assert lines == [
            "BLEU-1    72.50   of 100",
            "BLEU-2    55.25   of 100",
            "BLEU-3    40.00   of 100",
            "BLEU-4   100.00   of 100",
            "ROUGE-L    8.50   of 100",
            "CIDEr-D    1.133  of 10",
            "images:5",
        ]

    @pytest.mark.parametrize(
        "hypotheses, references, message",
        [
            (["a"], [["a"], ["b"]], "received 1 hypotheses and references of 2 images"),
            ([], [], "at least one hypothesis, received none"),
            (["a", "b"], [["a"], []], "at least one reference for image 1, received none"),
        ],
    )
    def test_wrong_numbers(self, hypotheses, references, message):
        with pytest.raises(ValueError, match=message):
            evaluate_captions(hypotheses, references)

    @pytest.mark.parametrize(
        "hypotheses, references, message",
        [
            ("a dog", [["a dog"]], "list of strings as hypotheses, received the string 'a dog'"),
            ({1: "a"}, [["a"]], "list of strings as hypotheses, received .* of type dict"),
            (["a"], "a", "expected a list as references"),
            (["a"], {1: ["a"]}, "expected a list as references"),
            (
                ["a", "b"],
                [["a"], "b"],
                r"references of image 1, received the string 'b'; put .* \[reference\]",
            ),
            (["a", ["b"]], [["a"], ["b"]], r"a string as hypothesis 1, received \['b'\] of type list"),
            (["a", None], [["a"], ["b"]], "a string as hypothesis 1, received None"),
            (["a"], [["a", b"b"]], "strings as references of image 0, received b'b' of type bytes"),
        ],
    )
    def test_wrong_types(self, hypotheses, references, message):
        with pytest.raises(TypeError, match=message):
            evaluate_captions(hypotheses, references)

    def test_missing_sacrebleu_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "sacrebleu", None)
        with pytest.raises(ImportError, match=r"attention-zoo\[eval\]"):
            evaluate_captions(["a"], [["a"]])
