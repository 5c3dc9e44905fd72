"""Published tokenizers: `tokenizer.json` of a folder or of the Hub, and the byte tokenizer written as one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mi_align.data.tokenizer import ByteTokenizer, Tokenizer

__all__ = ["HubTokenizer", "load_tokenizer", "padding_id", "save_byte_tokenizer", "save_tokenizer"]

#: What a tokenizer is, beside the weights in a folder.
FILES = ("tokenizer*", "special_tokens_map.json", "chat_template*", "vocab.*", "merges.txt")
#: What a token that was added for padding may be called.
PADDING = ("<|pad|>", "<|padding|>", "[PAD]")


class HubTokenizer:
    """A tokenizer from `tokenizer.json`, with the special tokens and the chat template of `tokenizer_config.json`.

    A tokenizer without a BOS, as Qwen's, opens texts with its EOS, as GPT-2 does: something has to predict the first
    token. `fingerprint` is a hash of all that ids depend on.
    """

    def __init__(self, folder: str | Path) -> None:
        """Read the folder's files.

        Raises:
          FileNotFoundError: it has no `tokenizer.json`.
          ValueError: no token is said to end a text.
        """
        import tokenizers

        self.folder = Path(folder)
        file = self.folder / "tokenizer.json"
        if not file.is_file():
            raise FileNotFoundError(
                f"{self.folder} has no tokenizer.json. Save the tokenizer with `transformers`' `save_pretrained`, or "
                "name another by `data.tokenizer`."
            )
        self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        told = _json(self.folder / "special_tokens_map.json") | _json(self.folder / "tokenizer_config.json")
        eos = self._id(told.get("eos_token"))
        if eos is None:
            raise ValueError(f"{self.folder} names no `eos_token` in tokenizer_config.json: nothing would end a text.")
        bos = self._id(told.get("bos_token"))
        self.eos_id = eos
        self.bos_id = eos if bos is None else bos
        pad = self._id(told.get("pad_token"))
        self.pad_id = None if pad == eos else pad
        said = f"{self.eos_id} {self.bos_id} ".encode()
        self.fingerprint = hashlib.sha256(said + file.read_bytes()).hexdigest()
        template = self.folder / "chat_template.jinja"
        self.chat_template = template.read_text() if template.is_file() else told.get("chat_template")
        self._special = {
            name: _text(told[name]) for name in ("bos_token", "eos_token", "unk_token", "pad_token") if told.get(name)
        }

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> np.ndarray:
        """The ids of `text` alone, int32, without BOS and EOS."""
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special tokens left out."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def chat(self, messages: Sequence[Mapping[str, Any]], *, open_turn: bool = False) -> str:
        """Messages as one text, by the tokenizer's own template; with `open_turn` the assistant's turn stands open.

        The template runs in Jinja's sandbox, without access to anything but the messages.

        Raises:
          ValueError: the tokenizer has no template, or the template refuses these messages.
        """
        import jinja2
        import jinja2.sandbox

        if not isinstance(self.chat_template, str):
            raise ValueError(
                f"the tokenizer of {self.folder} has no chat template, which lists of messages need. Give texts, or "
                "the tokenizer of a chat model."
            )

        def refuse(message: str) -> None:
            raise jinja2.TemplateError(message)

        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = refuse
        environment.filters["tojson"] = lambda x, **options: json.dumps(x, ensure_ascii=False, **options)
        try:
            return environment.from_string(self.chat_template).render(
                messages=messages, add_generation_prompt=open_turn, **self._special
            )
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template of {self.folder} refuses these messages: {error}") from None

    def _id(self, token: Any) -> int | None:
        return None if token is None else self._tokenizer.token_to_id(_text(token))


def _text(token: Any) -> str:
    """A special token, which may be written as a table with its text as `content`."""
    return str(token["content"]) if isinstance(token, Mapping) else str(token)


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def load_tokenizer(name: str | Path) -> Tokenizer:
    """A tokenizer: "bytes", a folder, or the id of a repository on the Hub.

    Raises:
      FileNotFoundError: there is no such folder, or no `tokenizer.json` in it.
      ValueError: the tokenizer names no EOS.
    """
    if str(name) == "bytes":
        return ByteTokenizer()
    folder = Path(name)
    if not folder.is_dir():
        if str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
            raise FileNotFoundError(f"there is no folder {name}, and it is neither 'bytes' nor an id on the Hub.")
        import huggingface_hub

        try:
            folder = Path(huggingface_hub.snapshot_download(str(name), allow_patterns=list(FILES)))
        except OSError as error:
            raise FileNotFoundError(f"there is no folder {name}, and the Hub gave none so named: {error}") from error
    return HubTokenizer(folder)


def padding_id(tokenizer: Tokenizer) -> int:
    """The id of a token that ends no response: the tokenizer's own padding, or else one after its last id.

    `transformers` reads a reward at the last token that is no padding. Where padding is the EOS itself, as people like
    to have it, that is not where the response ends.
    """
    own: int | None = getattr(tokenizer, "pad_id", None)
    return tokenizer.vocab_size if own is None else own


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path, *, padded: bool = False) -> None:
    """Write a tokenizer's files into a folder of weights.

    Args:
      tokenizer: from `load_tokenizer`.
      folder: is there already.
      padded: with the padding token of `padding_id`, which is added where the tokenizer has none.
    """
    folder = Path(folder)
    if isinstance(tokenizer, HubTokenizer):
        if tokenizer.folder.resolve() != folder.resolve():
            for file in (path for pattern in FILES for path in tokenizer.folder.glob(pattern)):
                shutil.copy(file, folder)
    else:
        save_byte_tokenizer(folder)
    if padded:
        _pad_by(folder, padding_id(tokenizer))


def _pad_by(folder: Path, pad_id: int) -> None:
    """Let a folder's tokenizer pad by this id, a new one if it has no such."""
    from tokenizers import AddedToken, Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    token = tokenizer.id_to_token(pad_id)
    if token is None:
        token = next(name for name in PADDING if tokenizer.token_to_id(name) is None)
        tokenizer.add_special_tokens([AddedToken(token, special=True)])
        tokenizer.save(str(folder / "tokenizer.json"))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            told = _json(folder / name) | {"pad_token": token}
            (folder / name).write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_byte_tokenizer(folder: str | Path) -> None:
    """Write `ByteTokenizer` as a `tokenizer.json`, whose ids are the same, so that others can open what it trained."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = _letters_of_bytes()
    tokenizer = Tokenizer(models.BPE(vocab={letter: byte for byte, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    eos, bos = "<|eos|>", "<|bos|>"  # ids 256 and 257
    tokenizer.add_special_tokens([AddedToken(eos, special=True), AddedToken(bos, special=True)])
    folder = Path(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos, "pad_token": eos}
    (folder / "tokenizer_config.json").write_text(json.dumps(told, indent=2) + "\n")


def _letters_of_bytes() -> list[str]:
    """The letter by which byte-level tokenizers write each byte: itself if printable, otherwise one beyond Latin-1."""
    plain = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]
