"""Marian's models in both forms, against those of transformers and CTranslate2, with small random weights."""

import io
import json
import shutil
import sys

import numpy as np
import pytest
import sentencepiece
import tensorflow as tf
import yaml

import attention_zoo as az
from attention_zoo.models.marian_import import load_marian
from attention_zoo.models.tokenizer import END_ID, PAD_ID, START_ID, UNKNOWN_ID

TEXTS = {
    "source": ["the cat sat on the mat", "the dog sat on the log", "a cat and a dog", "in 1998"],
    "target": ["die Katze saß auf der Matte", "der Hund saß auf dem Baum", "eine Katze", "im Jahr 1998"],
}
SENTENCES = [*TEXTS["source"], ">>deu<< the cat", "a mat", "漢字 on the dog 99", "sat"]
UNITS, HEADS, HIDDEN, LAYERS = 16, 4, 24, {"encoder": 2, "decoder": 1}
LONGEST = 40


@pytest.fixture(scope="module")
def spm():
    """The SentencePiece models of two languages."""
    models = {}
    for side, texts in TEXTS.items():
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts * 3), model_writer=model, vocab_size=40, hard_vocab_limit=False,
            minloglevel=2, bos_id=-1, eos_id=0, unk_id=1,
        )  # fmt: skip
        models[side] = model.getvalue()
    return models


def pieces_of(model):
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(i) for i in range(2, processor.vocab_size())]


@pytest.fixture(scope="module")
def vocabulary(spm):
    """Of both languages together, as Hugging Face has it: padding, which Marian lacks, is last."""
    pieces = sorted({*pieces_of(spm["source"]), *pieces_of(spm["target"]), ">>deu<<"}, reverse=True)
    return ["</s>", "<unk>", *pieces, "<pad>"]


# === Ids ===


def their_ids(vocabulary, model, text):
    """By SentencePiece and the vocabulary, with END."""
    language = [">>deu<<"] if text.startswith(">>deu<<") else []
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = language + processor.encode(text.removeprefix(">>deu<<"), out_type=str)
    return [vocabulary.index(piece) if piece in vocabulary else 1 for piece in pieces] + [0]


def our_id(vocabulary, number):
    """Our id of theirs; of padding, with which their outputs begin, our START."""
    special = {"<pad>": START_ID, "</s>": END_ID, "<unk>": UNKNOWN_ID}
    return special.get(vocabulary[number], number + 2)


def ids_of_pieces(vocabulary, pieces):
    return [our_id(vocabulary, vocabulary.index(piece)) for piece in pieces]


def padded(rows, padding):
    return np.array([row + [padding] * (max(map(len, rows)) - len(row)) for row in rows])


def test_ids_are_those_of_their_tokenizer(hugging_face, ours, vocabulary, spm):
    transformers = pytest.importorskip("transformers")
    files = [str(hugging_face / name) for name in ("source.spm", "target.spm", "vocab.json")]
    theirs = transformers.MarianTokenizer(*files)
    ids = ours.source_tokenizer.tokenize(SENTENCES).to_list()
    for text, row in zip(SENTENCES, ids, strict=True):
        expected = theirs(text).input_ids
        assert expected == their_ids(vocabulary, spm["source"], text)
        assert [*row, END_ID] == [our_id(vocabulary, number) for number in expected]


# === Hugging Face ===


def make_theirs(vocabulary, steps=0, spm=None, **options):
    """A random model of transformers, trained a little if it is to come to an end."""
    torch = pytest.importorskip("torch", reason="PyTorch makes the models that these tests convert")
    transformers = pytest.importorskip("transformers", reason="transformers has the model to compare with")
    pad = len(vocabulary) - 1
    config = {
        "vocab_size": len(vocabulary), "d_model": UNITS, "encoder_layers": LAYERS["encoder"],
        "decoder_layers": LAYERS["decoder"], "encoder_attention_heads": HEADS, "decoder_attention_heads": 2,
        "encoder_ffn_dim": HIDDEN, "decoder_ffn_dim": 20, "activation_function": "swish",
        "scale_embedding": True, "pad_token_id": pad, "decoder_start_token_id": pad,
        "max_position_embeddings": 64, "init_std": 0.2, "dropout": 0.0,
    }  # fmt: skip
    torch.set_num_threads(1)  # more of them only wait for each other
    torch.manual_seed(1)
    model = transformers.MarianMTModel(transformers.MarianConfig(**{**config, **options}))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(0.3 * torch.randn_like(weight))  # biases and norms are trivial at first
        model.final_logits_bias.normal_()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        rows = {
            side: [their_ids(vocabulary, spm[side], text) for text in texts] for side, texts in TEXTS.items()
        }
        source = torch.tensor(padded(rows["source"], pad))
        labels = torch.tensor(padded(rows["target"], -100))
        model(input_ids=source, attention_mask=(source != pad).long(), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def theirs(vocabulary, spm):
    return make_theirs(vocabulary, steps=80, spm=spm)


def write_hugging_face(folder, theirs, vocabulary, spm, target_vocabulary=None, old=False):
    folder.mkdir()
    (folder / "config.json").write_text(theirs.config.to_json_string(use_diff=False), encoding="utf-8")
    for name, pieces in (("vocab.json", vocabulary), ("target_vocab.json", target_vocabulary)):
        if pieces:
            ids = {piece: number for number, piece in enumerate(pieces)}
            (folder / name).write_text(json.dumps(ids), encoding="utf-8")
    for side, model in spm.items():
        (folder / f"{side}.spm").write_bytes(model)
    if old:  # every name, tables of positions included
        pytest.importorskip("torch").save(theirs.state_dict(), folder / "pytorch_model.bin")
    else:
        pytest.importorskip("safetensors", reason="safetensors reads the weights")
        theirs.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory, theirs, vocabulary, spm):
    return write_hugging_face(tmp_path_factory.mktemp("opus") / "hf", theirs, vocabulary, spm)


@pytest.fixture(scope="module")
def ours(hugging_face):
    return load_marian(hugging_face)


def assert_same_logits(ours, theirs, vocabulary, spm, target_vocabulary=None, without_padding=False):
    torch = pytest.importorskip("torch")
    target_vocabulary = target_vocabulary or vocabulary
    source = [their_ids(vocabulary, spm["source"], text) for text in SENTENCES]
    pad = len(target_vocabulary) - 1
    target = np.random.default_rng(0).integers(1, pad, (len(source), 6))
    target[:, 0] = pad
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(padded(source, len(vocabulary) - 1)),
            attention_mask=torch.tensor(padded([[1] * len(row) for row in source], 0)),
            decoder_input_ids=torch.tensor(target),
        ).logits.numpy()
    received = ours(
        {
            "source": padded([[our_id(vocabulary, n) for n in row] for row in source], PAD_ID),
            "target": np.vectorize(lambda n: our_id(target_vocabulary, n))(target),
        }
    ).numpy()
    columns = [our_id(target_vocabulary, n) for n in range(pad if without_padding else pad + 1)]
    np.testing.assert_allclose(received[..., columns], expected[..., : len(columns)], atol=1e-4)
    assert expected.std() > 0.5
    # What they do not have has no weight.
    rest = np.delete(received, columns, axis=-1)
    assert rest.shape[-1] == (2 if without_padding else 1)
    assert rest.max() < expected.min() - 50


def test_logits(ours, theirs, vocabulary, spm):
    assert_same_logits(ours, theirs, vocabulary, spm)
    assert ours.max_source_length == 64


def test_old_pytorch_file(tmp_path, theirs, vocabulary, spm, ours):
    copy = load_marian(write_hugging_face(tmp_path / "old", theirs, vocabulary, spm, old=True))
    for weight, other in zip(copy.weights, ours.weights, strict=True):
        np.testing.assert_array_equal(weight, other)


@pytest.mark.parametrize(("dtype", "old"), [("float16", False), ("bfloat16", False), ("bfloat16", True)])
def test_half_precision_weights(tmp_path, theirs, vocabulary, spm, dtype, old):
    torch = pytest.importorskip("torch")
    rounded = {name: x.to(getattr(torch, dtype)) for name, x in theirs.state_dict().items()}
    half, reference = (make_theirs(vocabulary) for _ in range(2))
    half.to(getattr(torch, dtype)).load_state_dict(rounded)
    # The tables of positions are not rounded: those are computed.
    kept = {name: x.float() for name, x in rounded.items() if "positions" not in name}
    reference.load_state_dict(kept, strict=False)
    model = load_marian(write_hugging_face(tmp_path / "half", half, vocabulary, spm, old=old))
    assert {weight.dtype for weight in model.trainable_weights} == {"float32"}
    assert_same_logits(model, reference, vocabulary, spm)


def test_a_vocabulary_each_and_relu(tmp_path, vocabulary, spm):
    target = ["</s>", "<unk>", *pieces_of(spm["target"]), "<pad>"]
    theirs = make_theirs(
        vocabulary, share_encoder_decoder_embeddings=False, decoder_vocab_size=len(target),
        activation_function="relu", scale_embedding=False, pad_token_id=len(target) - 1,
        decoder_start_token_id=len(target) - 1,
    )  # fmt: skip
    model = load_marian(write_hugging_face(tmp_path / "two", theirs, vocabulary, spm, target))
    assert model.encoder.embedding is not model.decoder.embedding
    assert_same_logits(model, theirs, vocabulary, spm, target)


@pytest.mark.parametrize("beams", [1, 4])
def test_translations(ours, theirs, vocabulary, spm, beams):
    """With the log-probability itself as the score, which means the same to both.

    Their beam search leaves out ends that are not among the best K continuations of all. So once in a while
    ours finds a hypothesis of a higher score; where it does not, all is equal.
    """
    torch = pytest.importorskip("torch")
    beam = {"length_penalty": 0.0, "early_stopping": "never", "output_scores": True} if beams > 1 else {}
    expected, scores = [], []
    for text in SENTENCES:
        ids = torch.tensor([their_ids(vocabulary, spm["source"], text)])
        found = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=LONGEST, num_beams=beams,
            bad_words_ids=[[len(vocabulary) - 1]], return_dict_in_generate=True, do_sample=False, **beam,
        )  # fmt: skip
        row = found.sequences[0].tolist()[1:]
        assert len(row) < LONGEST and row[-1] == 0  # it came to an end by itself
        expected.append([our_id(vocabulary, number) for number in row])
        scores.append(float(found.sequences_scores[0]) if beams > 1 else None)
    assert len(set(map(len, expected))) > 2

    received = ours.translate(SENTENCES, beams=beams, length_penalty=0.0, max_length=LONGEST - 1)
    found = [ids_of_pieces(vocabulary, one.tokens) for one in received]
    same = [ours == theirs for ours, theirs in zip(found, expected, strict=True)]
    assert sum(same) >= len(SENTENCES) - (beams > 1)
    if beams > 1:
        for one, score, equal in zip(received, scores, same, strict=True):
            assert abs(one.score - score) < 1e-3 if equal else one.score > score
    processor = sentencepiece.SentencePieceProcessor(model_proto=spm["target"])
    for one in received:
        assert one.text == processor.decode_pieces(one.tokens[:-1]).replace("▁", " ").strip()


# === Marian ===


def marian_weights(size):
    """Random weights by the names that Marian gives them."""
    random = np.random.default_rng(0)

    def draw(*shape, mean=0.0):
        return (mean + random.normal(size=shape) * 0.3).astype("float32")

    weights = {"Wemb": draw(size, UNITS), "decoder_ff_logit_out_b": draw(1, size)}
    for part, layers in LAYERS.items():
        for layer in range(1, layers + 1):
            block = f"{part}_l{layer}"
            for attention in ("self", "context") if part == "decoder" else ("self",):
                for letter in "qkvo":
                    weights[f"{block}_{attention}_W{letter}"] = draw(UNITS, UNITS)
                    weights[f"{block}_{attention}_b{letter}"] = draw(1, UNITS)
                weights[f"{block}_{attention}_Wo_ln_scale"] = draw(1, UNITS, mean=1.0)
                weights[f"{block}_{attention}_Wo_ln_bias"] = draw(1, UNITS)
            weights |= {
                f"{block}_ffn_W1": draw(UNITS, HIDDEN),
                f"{block}_ffn_b1": draw(1, HIDDEN),
                f"{block}_ffn_W2": draw(HIDDEN, UNITS),
                f"{block}_ffn_b2": draw(1, UNITS),
                f"{block}_ffn_ffn_ln_scale": draw(1, UNITS, mean=1.0),
                f"{block}_ffn_ffn_ln_bias": draw(1, UNITS),
            }
    return weights


def marian_config(size):
    return {
        "type": "transformer", "dim-vocabs": [size, size], "dim-emb": UNITS, "enc-depth": LAYERS["encoder"],
        "dec-depth": LAYERS["decoder"], "transformer-heads": HEADS, "transformer-dim-ffn": HIDDEN,
        "transformer-ffn-activation": "swish", "transformer-preprocess": "", "transformer-postprocess": "dan",
        "transformer-postprocess-emb": "d", "transformer-decoder-autoreg": "self-attention",
        "transformer-no-projection": False, "tied-embeddings-all": True, "right-left": False,
        "transformer-guided-alignment-layer": "last", "version": "v1.9.0",
    }  # fmt: skip


def write_npz(file, weights, config):
    text = np.frombuffer(yaml.safe_dump(config).encode() + b"\0", "int8")
    np.savez(file, **weights, **{"special:model.yml": text})


def write_marian(folder, vocabulary, spm):
    """As OPUS-MT publishes a model; the paths are those of another machine."""
    folder.mkdir()
    pieces = [piece for piece in vocabulary if piece != "<pad>"]
    write_npz(folder / "model.npz", marian_weights(len(pieces)), marian_config(len(pieces)))
    ids = {piece: number for number, piece in enumerate(pieces)}
    (folder / "opus.vocab.yml").write_text(yaml.safe_dump(ids, allow_unicode=True), encoding="utf-8")
    names = {"models": ["/training/model.npz"], "vocabs": ["/training/opus.vocab.yml"] * 2, "beam-size": 6}
    (folder / "decoder.yml").write_text(yaml.safe_dump(names), encoding="utf-8")
    for side, model in spm.items():
        (folder / f"{side}.spm").write_bytes(model)
    return folder


@pytest.fixture(scope="module")
def marian(tmp_path_factory, vocabulary, spm):
    return write_marian(tmp_path_factory.mktemp("opus") / "marian", vocabulary, spm)


@pytest.fixture(scope="module")
def from_marian(marian):
    return load_marian(marian)


def marian_positions(count):
    """As Marian computes them: the wavelengths of the sines, and of the cosines behind them."""
    scales = 10000.0 ** (-np.arange(UNITS // 2) / (UNITS // 2 - 1))
    angles = np.arange(count)[:, None] * scales
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype("float32")


def test_marian_positions(from_marian):
    zeros = np.zeros((1, 30, UNITS), "float32")
    for stack in (from_marian.encoder, from_marian.decoder):
        np.testing.assert_allclose(stack.position(zeros)[0], marian_positions(30), atol=1e-5)


def test_marian_weights_in_their_model(from_marian, vocabulary, spm):
    """Marian's weights put into the model of transformers, with Marian's positions."""
    torch = pytest.importorskip("torch")
    theirs = make_theirs(vocabulary, decoder_ffn_dim=HIDDEN, decoder_attention_heads=HEADS)
    arrays = marian_weights(len(vocabulary) - 1)
    state = {"model.shared.weight": np.pad(arrays.pop("Wemb"), [(0, 1), (0, 0)])}
    state["final_logits_bias"] = np.pad(arrays.pop("decoder_ff_logit_out_b"), [(0, 0), (0, 1)])
    kinds = {"W": "weight", "b": "bias", "scale": "weight", "bias": "bias"}
    for name, array in arrays.items():
        part, layer, rest = name.split("_", 2)
        prefix = f"model.{part}.layers.{int(layer[1:]) - 1}."
        block, _, last = rest.rpartition("_")
        attention = "self_attn" if rest.startswith("self") else "encoder_attn"
        if rest.startswith("ffn_ffn_ln"):
            key = f"final_layer_norm.{kinds[last]}"
        elif rest.startswith("ffn"):
            key = f"fc{last[1]}.{kinds[last[0]]}"
        elif block.endswith("_ln"):
            key = f"{attention}_layer_norm.{kinds[last]}"
        else:
            key = f"{attention}.{last[1].replace('o', 'out')}_proj.{kinds[last[0]]}"
        state[prefix + key] = array.T if len(array) > 1 else array[0]
    for part in ("encoder", "decoder"):
        state[f"model.{part}.embed_positions.weight"] = marian_positions(64)
    state = {name: torch.tensor(array) for name, array in state.items()}
    missing = theirs.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert {name.rpartition(".")[0] for name in missing.missing_keys} <= {
        "lm_head", "model.encoder.embed_tokens", "model.decoder.embed_tokens"
    }  # fmt: skip
    assert_same_logits(from_marian, theirs, vocabulary, spm, without_padding=True)


def test_marian_file_in_ctranslate2(from_marian, marian, tmp_path):
    """CTranslate2 reads the same file by itself; it scores what our model says."""
    ctranslate2 = pytest.importorskip("ctranslate2", reason="CTranslate2 reads Marian's files too")
    with np.load(marian / "model.npz") as arrays:  # it takes other positions unless told
        np.savez(tmp_path / "model.npz", Wpos=marian_positions(64), **arrays)
    vocabularies = [str(marian / "opus.vocab.yml")] * 2
    ctranslate2.converters.MarianConverter(str(tmp_path / "model.npz"), vocabularies).convert(
        str(tmp_path / "converted")
    )
    theirs = ctranslate2.Translator(str(tmp_path / "converted"), intra_threads=1)
    ids = from_marian.source_tokenizer.tokenize([">>deu<< the cat", "a dog"])
    pieces = [[piece.decode() for piece in from_marian.source_tokenizer.pieces(row).numpy()] for row in ids]
    expected = theirs.score_batch(pieces, [row[::-1] for row in pieces])
    for row, one in zip(ids.to_list(), expected, strict=True):
        labels = [*row[::-1], END_ID]
        inputs = {"source": np.array([[*row, END_ID]]), "target": np.array([[START_ID, *labels[:-1]]])}
        received = tf.nn.log_softmax(from_marian(inputs))[0].numpy()[range(len(labels)), labels]
        np.testing.assert_allclose(received, one.log_probs, atol=1e-4)


def test_export(from_marian, tmp_path):
    """What the command writes: a SavedModel that takes strings, and a model to go on with."""
    from_marian.export(tmp_path / "exported", beams=1)
    copy = az.load(tmp_path / "exported")
    for weight, other in zip(copy.weights, from_marian.weights, strict=True):
        np.testing.assert_array_equal(weight, other)
    assert copy.encoder.embedding is copy.decoder.embedding
    texts = [">>deu<< the cat", "", "漢字 on the dog"]
    serve = tf.saved_model.load(tmp_path / "exported").signatures["serving_default"]
    served = serve(texts=tf.constant(texts))
    expected = from_marian.translate(texts, beams=1, length_penalty=1.0)
    assert [text.decode() for text in served["text"].numpy()] == [one.text for one in expected]
    assert served["source_tokens"].numpy()[0, 0] == b">>deu<<"
    tokens = {token for one in expected for token in one.tokens}
    assert tokens and not tokens & {"<pad>", "<s>", ""}


def test_vocabulary_rows(from_marian, vocabulary):
    pieces = from_marian.target_tokenizer.pieces([range(from_marian.decoder.vocabulary_size)]).numpy()[0]
    weights = marian_weights(len(vocabulary) - 1)
    embeddings = from_marian.decoder.embedding.embeddings.numpy()
    assert not embeddings[[PAD_ID, START_ID]].any()
    for row, piece in list(enumerate(pieces))[2:]:
        np.testing.assert_array_equal(embeddings[row], weights["Wemb"][vocabulary.index(piece.decode())])


# === Errors ===


@pytest.fixture
def broken(marian, tmp_path):
    """A folder to break."""
    return shutil.copytree(marian, tmp_path / "broken")


@pytest.mark.parametrize("name", ["model.npz", "opus.vocab.yml", "decoder.yml", "source.spm", "target.spm"])
def test_missing_files(broken, name):
    (broken / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load_marian(broken)


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected the folder of a Marian model, found none"):
        load_marian(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"expected config.json .* or decoder.yml .*found nothing"):
        load_marian(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "s2s"}, "model.npz: expected type 'transformer', received 's2s'; models of other arch"),
        ({"transformer-preprocess": "n"}, "expected transformer-preprocess '', received 'n'"),
        ({"transformer-postprocess": "da"}, "expected transformer-postprocess 'dan', received 'da'"),
        ({"transformer-decoder-autoreg": "average-attention"}, "'self-attention', received 'average-att"),
        ({"transformer-ffn-activation": "gelu"}, "expected transformer-ffn-activation 'swish' or 'relu'"),
        ({"right-left": True}, "expected right-left False, received True"),
        ({"tied-embeddings-all": False}, "expected a model with tied-embeddings-all or tied-embeddings"),
        ({"dim-emb": None}, "expected dim-emb, an integer of at least 1, received None"),
        ({"enc-depth": 3}, r"expected encoder_l3_\w+ of shape .*, found none"),
        ({"enc-depth": 1}, "received 16 others, such as encoder_l2_"),
        ({"transformer-dim-ffn": 20}, r"expected encoder_l1_ffn_W1 of shape \(16, 20\), received \(16, 24\)"),
        ({"transformer-heads": 3}, "expected num_heads to divide units, received 3 and 16"),
        ({"dim-vocabs": [7, 8]}, r"pieces, as there are in opus.vocab.yml, received the sizes \[7, 8\]"),
    ],
)
def test_other_architectures(broken, vocabulary, changes, message):
    size = len(vocabulary) - 1
    write_npz(broken / "model.npz", marian_weights(size), {**marian_config(size), **changes})
    with pytest.raises(ValueError, match=message):
        load_marian(broken)


def test_wrong_weights(broken, vocabulary):
    size = len(vocabulary) - 1
    for name, array, message in [
        ("Wemb", np.zeros((3, UNITS), "float32"), rf"Wemb of shape \({size}, 16\), received \(3, 16\)"),
        ("encoder_l1_ffn_b1", np.zeros((1, HIDDEN), "int8"), "float32, float16 or bfloat16, received int8"),
        ("decoder_l1_self_Wq_QuantMultA", np.zeros(1, "float32"), "1 others, such as decoder_l1_self_Wq_Q"),
    ]:
        write_npz(broken / "model.npz", {**marian_weights(size), name: array}, marian_config(size))
        with pytest.raises(ValueError, match=message):
            load_marian(broken)


calls = []


def call():
    calls.append(1)


class Alarm:
    """Pickled, it is a call of a function."""

    def __reduce__(self):
        return call, ()


def test_no_pickle_is_run(broken, hugging_face_files):
    np.savez(broken / "model.npz", Wemb=np.array([Alarm()], object))
    with pytest.raises(ValueError, match=r"model.npz: expected an .npz file of arrays, received another"):
        load_marian(broken)
    torch = pytest.importorskip("torch")
    torch.save({"model.shared.weight": Alarm()}, hugging_face_files / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin: expected a PyTorch file with nothing but"):
        load_marian(hugging_face_files)
    assert not calls


def test_damaged_files(broken, vocabulary):
    for name in ("model.npz", "source.spm", "target.spm"):
        content = (broken / name).read_bytes()
        (broken / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=f"{name}.*damaged"):
            load_marian(broken)
        (broken / name).write_bytes(content)
    for name, text, message in [
        ("decoder.yml", "models: [a", "decoder.yml: expected a YAML file, received a damaged one"),
        ("decoder.yml", "models", "decoder.yml: expected keys and values, received str"),
        ("decoder.yml", "models: [a, b]\nvocabs: [c, d]", "expected one model under .*received .'a', 'b'."),
        ("decoder.yml", "models: [a]\nvocabs: [c]", "expected two vocabularies under .*received .'c'."),
        ("opus.vocab.yml", "a: b", "opus.vocab.yml: expected a number for each piece"),
        ("opus.vocab.yml", "a: 0\nb: 2", "expected the numbers 0 to 1, one for each of 2 pieces"),
        ("opus.vocab.yml", "a: 0\nb: 0", "expected the numbers 0 to 1, one for each of 2 pieces"),
        ("opus.vocab.yml", "</s>: 0\nb: 1", "opus.vocab.yml: expected '<unk>' among the pieces"),
    ]:
        content = (broken / name).read_bytes()
        (broken / name).write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            load_marian(broken)
        (broken / name).write_bytes(content)
    size = len(vocabulary) - 1
    np.savez(broken / "model.npz", **marian_weights(size))
    with pytest.raises(ValueError, match=r"expected Marian's configuration, special:model.yml, found none"):
        load_marian(broken)


# The files of Hugging Face but for the weights: no other library is needed.
HUGGING_FACE_CONFIG = {
    "model_type": "marian", "d_model": UNITS, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": HIDDEN,
    "decoder_ffn_dim": HIDDEN, "activation_function": "swish", "scale_embedding": True, "eos_token_id": 0,
}  # fmt: skip


@pytest.fixture
def hugging_face_files(tmp_path, vocabulary, spm):
    folder = tmp_path / "files"
    folder.mkdir()
    for side, model in spm.items():
        (folder / f"{side}.spm").write_bytes(model)
    ids = {piece: number for number, piece in enumerate(vocabulary)}
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    write_config(folder, vocabulary)
    return folder


def write_config(folder, vocabulary, **changes):
    pad = len(vocabulary) - 1
    ids = {"vocab_size": len(vocabulary), "pad_token_id": pad, "decoder_start_token_id": pad}
    text = json.dumps({**HUGGING_FACE_CONFIG, **ids, **changes})
    (folder / "config.json").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bart"}, "config.json: expected model_type 'marian', received 'bart'"),
        ({"normalize_before": True}, "expected normalize_before False, received True"),
        ({"static_position_embeddings": False}, "expected static_position_embeddings True, received False"),
        ({"activation_function": "tanh"}, "expected activation_function 'swish' or .*received 'tanh'"),
        ({"vocab_size": 7}, "config.json: expected vocabularies of .* as there are in vocab.json, received"),
        ({"pad_token_id": 3}, "expected pad_token_id=.*, the id of '<pad>' in the target voc.* received 3"),
        ({"eos_token_id": 2}, "expected eos_token_id=0, the id of '</s>'"),
        ({"d_model": "wide"}, "expected d_model, an integer of at least 1, received 'wide'"),
        ({"share_encoder_decoder_embeddings": False}, "target_vocab.json: expected the file"),
        ({}, "expected the weights in model.safetensors or pytorch_model.bin, found neither"),
    ],
)
def test_wrong_configurations(hugging_face_files, vocabulary, changes, message):
    write_config(hugging_face_files, vocabulary, **changes)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_marian(hugging_face_files)


@pytest.mark.parametrize(
    ("file", "library", "message"),
    [
        ("model.safetensors", "safetensors", r"pip install 'attention-zoo\[convert\]'"),
        ("pytorch_model.bin", "torch", "pip install torch, or take a folder with model.safetensors"),
    ],
)
def test_missing_libraries(hugging_face_files, monkeypatch, file, library, message):
    (hugging_face_files / file).write_bytes(b"")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=f"{file}: expected .*{message}"):
        load_marian(hugging_face_files)


@pytest.mark.parametrize(
    ("file", "library"), [("model.safetensors", "safetensors"), ("pytorch_model.bin", "torch")]
)
def test_damaged_weights(hugging_face_files, file, library):
    pytest.importorskip(library)
    (hugging_face_files / file).write_bytes(b"nothing of the kind" * 9)
    with pytest.raises(ValueError, match=f"{file}: expected .*damaged"):
        load_marian(hugging_face_files)
