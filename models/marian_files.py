"""The files of a Marian model, as OPUS-MT or Hugging Face publishes them, in one form."""

import dataclasses
import json
import pathlib
import pickle
import zipfile
from collections.abc import Iterable
from typing import Any

import numpy as np
import yaml

END_PIECE, UNKNOWN_PIECE, PAD_PIECE = "</s>", "<unk>", "<pad>"

# The parts of a block by our names, and what they are called by Hugging Face and in Marian.
_LINEAR = {
    "feed_forward.hidden": ("fc1", "ffn_{}1"),
    "feed_forward.output_layer": ("fc2", "ffn_{}2"),
    "self_attention.query": ("self_attn.q_proj", "self_{}q"),
    "self_attention.key": ("self_attn.k_proj", "self_{}k"),
    "self_attention.value": ("self_attn.v_proj", "self_{}v"),
    "self_attention.output": ("self_attn.out_proj", "self_{}o"),
    "cross_attention.query": ("encoder_attn.q_proj", "context_{}q"),
    "cross_attention.key": ("encoder_attn.k_proj", "context_{}k"),
    "cross_attention.value": ("encoder_attn.v_proj", "context_{}v"),
    "cross_attention.output": ("encoder_attn.out_proj", "context_{}o"),
}
_NORMS = {
    "feed_forward_norm": ("final_layer_norm", "ffn_ffn_ln"),
    "self_attention_norm": ("self_attn_layer_norm", "self_Wo_ln"),
    "cross_attention_norm": ("encoder_attn_layer_norm", "context_Wo_ln"),
}

# What these options must be if they are there: all else is another architecture.
_HUGGING_FACE_OPTIONS = {
    "model_type": ["marian"],
    "activation_function": ["swish", "silu", "relu", "gelu"],
    "normalize_before": [False],
    "normalize_embedding": [False],
    "add_final_layer_norm": [False],
    "static_position_embeddings": [True],
    "tie_word_embeddings": [True],
}
_MARIAN_OPTIONS = {
    "type": ["transformer"],
    "transformer-ffn-activation": ["swish", "relu"],
    "transformer-preprocess": [""],
    "transformer-postprocess": ["dan"],
    "transformer-postprocess-emb": ["d", ""],
    "transformer-postprocess-top": [""],
    "transformer-decoder-autoreg": ["self-attention"],
    "transformer-train-position-embeddings": [False],
    "transformer-train-positions": [False],
    "transformer-no-projection": [False],
    "transformer-no-bias": [False],
    "transformer-no-affine": [False],
    "transformer-ffn-depth": [2],
    "transformer-decoder-ffn-depth": [0, 2],
    "transformer-decoder-dim-ffn": [0],
    "transformer-tied-layers": [[]],
    "transformer-pool": [False],
    "right-left": [False],
    "input-types": [[]],
    "lemma-dim-emb": [0],
    "output-omit-bias": [False],
    "tied-embeddings-src": [False],
}


@dataclasses.dataclass
class MarianFiles:
    """A Marian model without the form in which it came.

    Attributes:
        encoder: Arguments of `TransformerEncoder`: sizes, activation, positions, dropout.
        decoder: Arguments of `TransformerDecoder`, likewise.
        source_pieces: The pieces of the source vocabulary, in the order of their ids.
        target_pieces: Those of the target vocabulary.
        source_model: The SentencePiece model of the source language.
        target_model: That of the target language.
        shared: Whether both languages have one embedding matrix.
        max_source_length: Most tokens of a source text, or None if the files do not say.
        embeddings: The embedding matrices of "encoder" and "decoder", float32 (V, D).
        output_bias: float32 (V,), of the target vocabulary.
        blocks: For "encoder" and "decoder", for each block, its weights by our names:
            "feed_forward.hidden" is a pair of kernel (in, out) and bias (out,), "feed_forward_norm" one of
            gamma and beta.
    """

    encoder: dict[str, Any]
    decoder: dict[str, Any]
    source_pieces: list[str]
    target_pieces: list[str]
    source_model: bytes
    target_model: bytes
    shared: bool
    max_source_length: int | None
    embeddings: dict[str, np.ndarray]
    output_bias: np.ndarray
    blocks: dict[str, list[dict[str, tuple[np.ndarray, np.ndarray]]]]


def read(folder: pathlib.Path) -> MarianFiles:
    """Reads a folder with `config.json` (Hugging Face) or `decoder.yml` (Marian).

    Args:
        folder: The folder.

    Returns:
        The model.

    Raises:
        FileNotFoundError: If the folder or one of its files is missing.
        ValueError: If a file is damaged, the architecture another, or weights do not fit.
        ImportError: If the weights are in a format whose library is not installed.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected the folder of a Marian model, found none")
    if (folder / "config.json").is_file():
        return _read_hugging_face(folder)
    if (folder / "decoder.yml").is_file():
        return _read_marian(folder)
    raise FileNotFoundError(
        f"{folder}: expected config.json (Hugging Face) or decoder.yml (Marian) in the folder of a Marian "
        f"model, found {', '.join(sorted(path.name for path in folder.iterdir())) or 'nothing'}"
    )


# === Hugging Face ===


def _read_hugging_face(folder: pathlib.Path) -> MarianFiles:
    file = folder / "config.json"
    config = _read_json(file)
    _check_options(file, {"model_type": None, "activation_function": None, **config}, _HUGGING_FACE_OPTIONS)
    shared = config.get("share_encoder_decoder_embeddings", True)
    vocabularies = [folder / "vocab.json", folder / ("vocab.json" if shared else "target_vocab.json")]
    source, target = (_read_vocabulary(path, [END_PIECE, UNKNOWN_PIECE, PAD_PIECE]) for path in vocabularies)
    sizes = [config.get("vocab_size"), config.get("vocab_size" if shared else "decoder_vocab_size")]
    _check_vocabulary_sizes(file, sizes, vocabularies, [source, target])
    _check_special_ids(file, config, target)
    units = _size(file, config, "d_model")
    common = {
        "units": units,
        "activation": config["activation_function"],
        "scale_embeddings": bool(config.get("scale_embedding", False)),
        "dropout": config.get("dropout", 0.1),
        "attention_dropout": config.get("attention_dropout", 0.0),
        "activation_dropout": config.get("activation_dropout", 0.0),
    }
    arguments = {
        part: {
            **common,
            "layers": _size(file, config, f"{part}_layers"),
            "num_heads": _size(file, config, f"{part}_attention_heads"),
            "feed_forward_units": _size(file, config, f"{part}_ffn_dim"),
        }
        for part in ("encoder", "decoder")
    }
    weights = _hugging_face_weights(folder)

    def linear(part: str, number: int, name: str, inputs: int, outputs: int) -> tuple[Any, Any]:
        path = f"model.{part}.layers.{number}.{_LINEAR[name][0]}"
        # PyTorch has the output axis first.
        kernel = weights.take(f"{path}.weight", (outputs, inputs)).T
        return kernel, weights.take(f"{path}.bias", (outputs,))

    def norm(part: str, number: int, name: str) -> tuple[Any, Any]:
        path = f"model.{part}.layers.{number}.{_NORMS[name][0]}"
        return weights.take(f"{path}.weight", (units,)), weights.take(f"{path}.bias", (units,))

    # Older files hold one matrix under all of its names, newer ones under the first.
    names = {part: [f"model.{part}.embed_tokens.weight"] for part in ("encoder", "decoder")}
    names["decoder"].append("lm_head.weight")
    if shared:
        names = {part: ["model.shared.weight", *one] for part, one in names.items()}
    embeddings = {
        part: weights.take_one(names[part], (len(pieces), units))
        for part, pieces in (("encoder", source), ("decoder", target))
    }
    output_bias = weights.take("final_logits_bias", (1, len(target)))[0]
    blocks = _blocks(arguments, linear, norm)
    weights.check_rest(
        [
            "model.shared.weight",
            *names["encoder"],
            *names["decoder"],
            *(f"model.{part}.embed_positions.weight" for part in ("encoder", "decoder")),
        ]
    )
    return MarianFiles(
        **arguments,
        source_pieces=source,
        target_pieces=target,
        source_model=_read_bytes(folder / "source.spm"),
        target_model=_read_bytes(folder / "target.spm"),
        shared=shared,
        max_source_length=config.get("max_position_embeddings"),
        embeddings=embeddings,
        output_bias=output_bias,
        blocks=blocks,
    )


def _check_special_ids(file: pathlib.Path, config: dict[str, Any], target: list[str]) -> None:
    pad, end = target.index(PAD_PIECE), target.index(END_PIECE)
    expected = {"pad_token_id": pad, "decoder_start_token_id": pad, "eos_token_id": end}
    for name, value in expected.items():
        if config.get(name) != value:
            raise ValueError(
                f"{file}: expected {name}={value}, the id of {target[value]!r} in the target vocabulary, "
                f"received {config.get(name)}"
            )


def _hugging_face_weights(folder: pathlib.Path) -> "_Weights":
    for name, load in (("model.safetensors", _load_safetensors), ("pytorch_model.bin", _load_pytorch)):
        if (folder / name).is_file():
            return _Weights(folder / name, load(folder / name))
    raise FileNotFoundError(
        f"{folder}: expected the weights in model.safetensors or pytorch_model.bin, found neither"
    )


def _load_safetensors(file: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import ml_dtypes  # noqa: F401 (tells NumPy of bfloat16)
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            f"{file}: expected safetensors to be installed to read it; pip install 'attention-zoo[convert]' "
            f"({error})"
        ) from error
    try:
        return safetensors.numpy.load_file(file)
    except (safetensors.SafetensorError, TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{file}: expected a safetensors file, received a damaged one ({error})") from None


def _load_pytorch(file: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{file}: expected PyTorch to be installed to read it; pip install torch, or take a folder with "
            f"model.safetensors ({error})"
        ) from error
    try:
        # Never without weights_only: a pickle may run any code.
        weights = torch.load(file, map_location="cpu", weights_only=True)
        return {name: weight.float().numpy() for name, weight in weights.items()}
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, KeyError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{file}: expected a PyTorch file with nothing but weights by name, received another, or a "
            f"damaged one ({reason})"
        ) from None


# === Marian ===


def _read_marian(folder: pathlib.Path) -> MarianFiles:
    file = folder / "decoder.yml"
    settings = _read_yaml(file, yaml.SafeLoader)
    models, vocabularies = (settings.get(name) for name in ("models", "vocabs"))
    if not isinstance(models, list) or len(models) != 1:
        raise ValueError(f'{file}: expected one model under "models", received {models!r}')
    if not isinstance(vocabularies, list) or len(vocabularies) != 2:
        raise ValueError(f'{file}: expected two vocabularies under "vocabs", received {vocabularies!r}')
    # The paths are those of the machine where it was trained: only the names count.
    files = [folder / pathlib.PurePath(str(path)).name for path in (*models, *vocabularies)]
    source, target = (_read_vocabulary(path, [END_PIECE, UNKNOWN_PIECE]) for path in files[1:])
    weights = _Weights(files[0], _load_npz(files[0]))
    config = _marian_config(weights)
    _check_options(files[0], {"type": None, "transformer-ffn-activation": None, **config}, _MARIAN_OPTIONS)
    shared = bool(config.get("tied-embeddings-all", False))
    if not shared and not config.get("tied-embeddings", False):
        raise ValueError(
            f"{files[0]}: expected a model with tied-embeddings-all or tied-embeddings, received one with "
            "neither"
        )
    _check_vocabulary_sizes(files[0], config.get("dim-vocabs"), files[1:], [source, target])
    units = _size(files[0], config, "dim-emb")
    arguments = {
        part: {
            "units": units,
            "activation": config["transformer-ffn-activation"],
            "layers": _size(files[0], config, depth),
            "num_heads": _size(files[0], config, "transformer-heads"),
            "feed_forward_units": _size(files[0], config, "transformer-dim-ffn"),
            # Marian's wavelengths reach 10000 with the last pair, at 2i = D - 2, not D.
            "max_wavelength": 10000.0 ** (units / (units - 2)) if units > 2 else 10000.0,
            "dropout": config.get("transformer-dropout", 0.1),
            "attention_dropout": config.get("transformer-dropout-attention", 0.0),
            "activation_dropout": config.get("transformer-dropout-ffn", 0.0),
        }
        for part, depth in (("encoder", "enc-depth"), ("decoder", "dec-depth"))
    }

    def linear(part: str, number: int, name: str, inputs: int, outputs: int) -> tuple[Any, Any]:
        name = f"{part}_l{number + 1}_{_LINEAR[name][1]}"
        kernel = weights.take(name.format("W"), (inputs, outputs))
        return kernel, weights.take(name.format("b"), (1, outputs))[0]

    def norm(part: str, number: int, name: str) -> tuple[Any, Any]:
        name = f"{part}_l{number + 1}_{_NORMS[name][1]}"
        return tuple(weights.take(f"{name}_{kind}", (1, units))[0] for kind in ("scale", "bias"))

    embeddings = {
        part: weights.take("Wemb" if shared else f"{part}_Wemb", (len(pieces), units))
        for part, pieces in (("encoder", source), ("decoder", target))
    }
    output_bias = weights.take("decoder_ff_logit_out_b", (1, len(target)))[0]
    blocks = _blocks(arguments, linear, norm)
    weights.check_rest([_MARIAN_CONFIG])
    return MarianFiles(
        **arguments,
        source_pieces=source,
        target_pieces=target,
        source_model=_read_bytes(folder / "source.spm"),
        target_model=_read_bytes(folder / "target.spm"),
        shared=shared,
        max_source_length=None,
        embeddings=embeddings,
        output_bias=output_bias,
        blocks=blocks,
    )


_MARIAN_CONFIG = "special:model.yml"


def _load_npz(file: pathlib.Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected Marian's weights, which decoder.yml names, found none")
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, TypeError) as error:
        raise ValueError(
            f"{file}: expected an .npz file of arrays, received another, or a damaged one ({error})"
        ) from None


def _marian_config(weights: "_Weights") -> dict[str, Any]:
    text = weights.arrays.get(_MARIAN_CONFIG)
    if text is None:
        raise ValueError(f"{weights.file}: expected Marian's configuration, {_MARIAN_CONFIG}, found none")
    try:
        config = yaml.safe_load(text.tobytes().rstrip(b"\0").decode())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{weights.file}: expected YAML in {_MARIAN_CONFIG}: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{weights.file}: expected options in {_MARIAN_CONFIG}, received {config!r}")
    return config


# === Both ===


class _Weights:
    """Arrays by name, each of which must have its place and its shape."""

    def __init__(self, file: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
        self.file = file
        self.arrays = arrays
        self.taken: set[str] = set()

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The array of this name as float32."""
        array = self.arrays.get(name)
        if array is None:
            raise ValueError(f"{self.file}: expected {name} of shape {shape}, found none")
        if array.shape != shape:
            raise ValueError(f"{self.file}: expected {name} of shape {shape}, received {array.shape}")
        if array.dtype.name not in ("float32", "float16", "bfloat16"):
            raise ValueError(
                f"{self.file}: expected {name} in float32, float16 or bfloat16, received {array.dtype}"
            )
        self.taken.add(name)
        return array.astype("float32")

    def take_one(self, names: list[str], shape: tuple[int, ...]) -> np.ndarray:
        """The array that has the first of these names that there is."""
        return self.take(next((name for name in names if name in self.arrays), names[0]), shape)

    def check_rest(self, known: Iterable[str]) -> None:
        """Raises ValueError if there are arrays that have no place and are not known to need none."""
        rest = sorted(self.arrays.keys() - self.taken - set(known))
        if rest:
            raise ValueError(
                f"{self.file}: expected no weights but those of a model as the configuration describes it, "
                f"received {len(rest)} others, such as {', '.join(rest[:3])}"
            )


def _blocks(arguments: dict[str, dict[str, Any]], linear: Any, norm: Any) -> dict[str, list[dict[str, Any]]]:
    """All blocks, see `MarianFiles`, from functions that read the parts of one."""
    blocks = {}
    for part, sizes in arguments.items():
        units, hidden = sizes["units"], sizes["feed_forward_units"]
        shapes = dict.fromkeys(_LINEAR, (units, units))
        shapes |= {"feed_forward.hidden": (units, hidden), "feed_forward.output_layer": (hidden, units)}
        names = [name for name in (*_LINEAR, *_NORMS) if part == "decoder" or "cross" not in name]
        blocks[part] = [
            {
                name: linear(part, number, name, *shapes[name])
                if name in shapes
                else norm(part, number, name)
                for name in names
            }
            for number in range(sizes["layers"])
        ]
    return blocks


def _check_options(file: pathlib.Path, config: dict[str, Any], allowed: dict[str, list[Any]]) -> None:
    for name, values in allowed.items():
        if name in config and config[name] not in values:
            raise ValueError(
                f"{file}: expected {name} {' or '.join(map(repr, values))}, received {config[name]!r}; "
                "models of other architectures cannot be converted"
            )


def _check_vocabulary_sizes(
    file: pathlib.Path, sizes: Any, vocabularies: list[pathlib.Path], pieces: list[list[str]]
) -> None:
    received = [len(one) for one in pieces]
    if sizes != received:
        raise ValueError(
            f"{file}: expected vocabularies of {received} pieces, as there are in "
            f"{' and '.join(dict.fromkeys(path.name for path in vocabularies))}, received the sizes {sizes}"
        )


def _size(file: pathlib.Path, config: dict[str, Any], name: str) -> int:
    size = config.get(name)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"{file}: expected {name}, an integer of at least 1, received {size!r}")
    return size


def _read_bytes(file: pathlib.Path) -> bytes:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected the file in the folder of a Marian model, found none")
    return file.read_bytes()


def _read_json(file: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_bytes(file))
    except ValueError as error:  # UnicodeDecodeError is one too
        raise ValueError(f"{file}: expected a JSON file, received a damaged one ({error})") from None
    return _check_mapping(file, content)


def _read_yaml(file: pathlib.Path, loader: Any) -> dict[str, Any]:
    try:
        content = yaml.load(_read_bytes(file), loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: expected a YAML file, received a damaged one ({error})") from None
    return _check_mapping(file, content)


def _check_mapping(file: pathlib.Path, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected keys and values, received {type(content).__name__}")
    return content


def _read_vocabulary(file: pathlib.Path, special: list[str]) -> list[str]:
    """The pieces of a vocabulary, JSON or YAML, in the order of their ids."""
    if file.suffix == ".json":
        ids = _read_json(file)
    else:
        # The basic loader makes no numbers and no truth values of pieces such as "1" and "no".
        ids = _read_yaml(file, getattr(yaml, "CBaseLoader", yaml.BaseLoader))
    try:
        pieces = {int(number): piece for piece, number in ids.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: expected a number for each piece ({error})") from None
    if len(pieces) != len(ids) or sorted(pieces) != list(range(len(ids))):
        raise ValueError(
            f"{file}: expected the numbers 0 to {len(ids) - 1}, one for each of {len(ids)} pieces, received "
            "others"
        )
    for piece in special:
        if piece not in ids:
            raise ValueError(f"{file}: expected {piece!r} among the pieces, found none")
    return [pieces[number] for number in range(len(pieces))]
