import pytest
import tensorflow as tf

from attention_zoo.models import Translator, WhitespaceTokenizer
from attention_zoo.models.text_preparation import check_preparation, moses_lowercase


def prepared(*texts):
    return [text.decode() for text in moses_lowercase(tf.constant(texts)).numpy()]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("A man rides a bike.", "a man rides a bike ."),
        ("Two dogs, one red ball!", "two dogs , one red ball !"),
        ("Ist das dein T-Shirt?", "ist das dein t-shirt ?"),
        ("the man's hat isn't new", "the man &apos;s hat isn &apos;t new"),
        ("He said: “Stop.”", "he said : &quot; stop . &quot;"),
        ("10,000 people, 3.5 km (by 5:30)", "10,000 people , 3.5 km ( by 5 : 30 )"),
        ("in the U.S. today", "in the u.s. today"),
        ("wait... what", "wait ... what"),
        ("Tom & Jerry's", "tom &amp; jerry &apos;s"),
        ("ÜBER DEN FLÜSSEN", "über den flüssen"),
        ("one—two – three", "one - two - three"),
        ("  no-break\u00a0space \t ", "no-break space"),
        ("", ""),
        (" ", ""),
    ],
)
def test_raw_text(raw, expected):
    assert prepared(raw) == [expected]
    assert prepared(expected) == [expected]


@pytest.mark.parametrize(
    "text",
    [
        "a boy &apos;s t-shirt says &quot; stop &quot; .",
        "the dogs &apos; bowls , 95,000 of them",
        "l &apos; homme d&apos; un café",
        "rot- und blau-gestreift",
        "am 3. mai bzw. mr. x in n.y. um 2,52 %",
        "der läufer trägt die nummer 28.",
        "sie sieht &amp; hört ( fast ) nichts ; er auch # 7 $ 5 = ...",
        "plan b.",
        "a &lt; b &gt; c &#124; &#91; d &#93;",
        "日本 ☕ .",
    ],
)
def test_tokenized_text_stays_as_it_is(text):
    assert prepared(text) == [text]


def test_bytes_that_are_no_utf8():
    (text,) = moses_lowercase(tf.constant([b"A \xff."])).numpy()
    assert text.startswith(b"a ")


def test_unknown_preparation():
    with pytest.raises(ValueError, match="preparation: expected None or 'moses_lowercase', received 'lower'"):
        check_preparation("lower")
    check_preparation(None)


def test_is_in_tokenizers_models_and_saved_models(tmp_path):
    words = WhitespaceTokenizer(["a", "dog", "."], preparation="moses_lowercase")
    assert words.tokenize(["A dog."]).to_list() == [[4, 5, 6]]
    sizes = {"embedding_dim": 4, "units": 4}
    model = Translator.from_preset("seq2seq", words, WhitespaceTokenizer(["x"]), encoder=sizes, decoder=sizes)
    model.export(tmp_path / "model", beams=1)
    served = tf.saved_model.load(tmp_path / "model").signatures["serving_default"]
    tokens = served(texts=tf.constant(["A DOG."]))["source_tokens"].numpy().tolist()
    assert tokens == [[b"a", b"dog", b".", b"</s>"]]
