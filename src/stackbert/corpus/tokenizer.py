"""The tokenizer of a corpus, and the same one as transformers opens it."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stackbert.errors import UserError
from stackbert.files import reading

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
DEFAULT_VOCAB_SIZE = 32_768
"""The paper's (Gong et al., ICML 2019)."""
ROW_MULTIPLE = 64
"""Embeddings have a multiple of 64 rows: faster matrix products."""
_SETTINGS = ("special_tokens_map.json", "tokenizer_config.json")
_COPIED = (*_SETTINGS, "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt")
GENERIC_CLASS = "PreTrainedTokenizerFast"
"""Transformers' class that takes tokenizer.json as it is."""
ROLES = {
    "pad_token": ("[PAD]", "<pad>", "<|padding|>", "<|pad|>"),
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]", "<cls>", "<|cls|>"),
    "sep_token": ("[SEP]", "<sep>", "<|sep|>"),
    "mask_token": ("[MASK]", "<mask>", "<|mask|>"),
    "bos_token": ("<s>", "<bos>", "[BOS]"),
    "eos_token": ("</s>", "<eos>", "[EOS]", "<|endoftext|>"),
}
_PROBES = (
    "The Old Mill SOLD bread for 1,234.5 (or two?) in Spring.",
    "Ça coûte 3 €, naïve schöne Straße; 漢字とカタカナ が में रहते थे ตัวอย่าง 🙂",
    "  if x_1 != 'a':\n\treturn [y]  # HTML &amp; <b>",
)
"""Compared besides lines of the text: capitals, accents and scripts that it may lack."""


@dataclass(frozen=True)
class Vocabulary:
    """What batches and models know of a tokenizer: its sizes and its special ids."""

    size: int
    """Rows of the embedding: the tokenizer's size rounded up to a multiple of 64."""
    tokenizer_size: int
    """Ids 0 … tokenizer_size - 1 exist; random replacements are drawn from them."""
    pad: int
    cls: int
    sep: int
    """Stands behind every document, too."""
    mask: int
    special: tuple[int, ...]
    """Every special id, ascending: never masked, never a replacement."""

    @property
    def dtype(self) -> str:
        """What ids are stored as."""
        return "uint16" if self.size <= 1 << 16 else "uint32"


@dataclass(frozen=True)
class CorpusTokenizer:
    """A tokenizer and what makes it one for transformers."""

    tokenizer: Any
    """A `tokenizers.Tokenizer`, without truncation or padding."""
    config: dict[str, Any]
    """Of tokenizer_config.json: the class, and which token has which role."""
    ids: dict[str, int]
    """Of each role."""
    files: dict[str, bytes]
    """The other files of its folder, by name."""

    def save(self, folder: Path, lines: Sequence[str] = ()) -> tuple[Vocabulary, str]:
        """Write a folder that `transformers.AutoTokenizer.from_pretrained` opens.

        The corpus is encoded by tokenizer.json. The class that transformers builds from its parts
        may differ (in case, accents, added ids) on `lines` of the text; then the one that takes the
        file as it is is named in its place, and a sentence that says so is returned.

        Raises:
            UserError: no class of transformers gives the ids of tokenizer.json.
        """
        kept = {k: v for k, v in self.config.items() if k in (*ROLES, "model_input_names")}
        generic = replace(
            self,
            config=kept | {"tokenizer_class": GENERIC_CLASS},
            files={"tokenizer.json": self.files["tokenizer.json"]},
        )
        problems: list[str] = []
        for one in (self, generic):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for name, content in one.files.items():
                (folder / name).write_bytes(content)
            (folder / "tokenizer_config.json").write_bytes(_plain_json(one.config))
            try:
                vocabulary = one._opened(folder, [*_PROBES, *lines])
            except UserError as error:
                problems.append(f"{one.config.get('tokenizer_class')}: {error}")
            else:
                note = f"{problems[0]} Delivered as {GENERIC_CLASS}." if problems else ""
                return vocabulary, note
        raise UserError(
            f"The model's tokenizer would not be the corpus's. {' '.join(problems)} Save the "
            "tokenizer again with transformers, or take another one."
        )

    def _opened(self, folder: Path, lines: list[str]) -> Vocabulary:
        """The vocabulary, if the tokenizer that transformers builds is the same as ours."""
        from transformers import AutoTokenizer

        size = max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        with reading(folder):
            opened: Any = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            beyond = max([*opened.all_special_ids, *opened.get_vocab().values()]) >= size
            options = {"add_special_tokens": False, "split_special_tokens": True}
            theirs = opened(lines, **options)["input_ids"]
        if beyond:
            raise UserError(f"Transformers adds ids to the {size:,} of tokenizer.json.")
        for role, number in self.ids.items():
            if getattr(opened, f"{role}_id") != number:
                raise UserError(f"Transformers takes another token for the {role}.")
        for line, other in zip(lines, theirs, strict=True):
            if self.tokenizer.encode(line, add_special_tokens=False).ids != other:
                raise UserError(f"Transformers gives other ids than tokenizer.json: '{line[:80]}'.")
        cls = self.ids.get("cls_token", self.ids.get("bos_token", -1))
        sep = self.ids.get("sep_token", self.ids.get("eos_token", -1))
        pad, mask = self.ids["pad_token"], self.ids["mask_token"]
        special = sorted({*opened.all_special_ids, pad, cls, sep, mask})
        rows = -(-size // ROW_MULTIPLE) * ROW_MULTIPLE
        return Vocabulary(rows, size, pad, cls, sep, mask, tuple(special))


def _plain_json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def load_tokenizer(path: str | Path) -> CorpusTokenizer:
    """Load an existing fast tokenizer: a folder with tokenizer.json, or that file alone.

    What would make it encode a text in another way each time (BPE dropout) is switched off.

    Raises:
        UserError: there is none, it cannot be read, it lacks a mask, pad, cls (or bos) or sep (or
            eos) token, or its padding or mask token has another role as well.
    """
    from tokenizers import Tokenizer

    path = Path(path).expanduser()
    main = path / "tokenizer.json" if path.is_dir() else path
    hint = "A fast tokenizer's save_pretrained writes it. (Names on the hub are not looked up.)"
    with reading(main, hint):
        files = {"tokenizer.json": main.read_bytes()}
        tokenizer: Any = Tokenizer.from_str(files["tokenizer.json"].decode())
        tokenizer.encode(_PROBES[1])  # parts may not fit each other
        for chance in ("dropout", "alpha"):
            if getattr(tokenizer.model, chance, None):
                setattr(tokenizer.model, chance, None)
                files["tokenizer.json"] = tokenizer.to_str(pretty=True).encode()
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    config: dict[str, Any] = {"tokenizer_class": GENERIC_CLASS}
    if path.is_dir():
        with reading(path):
            present = [name for name in _COPIED if (path / name).is_file()]
            files |= {name: (path / name).read_bytes() for name in present}
        for name in _SETTINGS:
            with reading(path / name):
                config |= json.loads(files.get(name, b"{}"))
    config.pop("auto_map", None)  # code of others, which is never run
    ids: dict[str, int] = {}
    with reading(path):  # half a character, escaped in JSON, is no UTF-8 text
        for role, names in ROLES.items():
            for token in (config.pop(role, None), *names):
                found = _id_of(tokenizer, token)
                if found is not None:
                    ids[role], config[role] = found, token
                    break
        _plain_json(config)
    needed = ("mask_token", "pad_token", "cls_token or bos_token", "sep_token or eos_token")
    missing = [roles for roles in needed if not ids.keys() & set(roles.split(" or "))]
    if missing:
        raise UserError(
            f"The tokenizer {path} has no {', no '.join(missing)}, which masked-LM training needs. "
            "Add them to the tokenizer (add_special_tokens) and save it, or take another one."
        )
    for role in ("pad_token", "mask_token"):
        shared = [other for other in ids if other != role and ids[other] == ids[role]]
        if shared:
            raise UserError(
                f"In the tokenizer {path} the {role} is also the {', the '.join(shared)}; a model "
                f"could not tell them apart. Add a {role} of its own (add_special_tokens) and save "
                "it, or take another tokenizer."
            )
    return CorpusTokenizer(tokenizer, config, ids, files)


def add_tokens(tokenizer: CorpusTokenizer, path: str | Path) -> tuple[CorpusTokenizer, list[str]]:
    """The tokenizer with each line of a file as a token of its own (a whole word), and the lines.

    Raises:
        UserError: the file cannot be read.
    """
    from tokenizers import AddedToken

    with reading(path):
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    words = [line.strip() for line in lines if line.strip()]
    tokenizer.tokenizer.add_tokens([AddedToken(word, single_word=True) for word in words])
    made = tokenizer.tokenizer.to_str(pretty=True).encode()
    return replace(tokenizer, files={**tokenizer.files, "tokenizer.json": made}), words


def _id_of(tokenizer: Any, token: Any) -> int | None:  # noqa: ANN401
    text = token.get("content") if isinstance(token, dict) else token  # with or without settings
    found: int | None = tokenizer.token_to_id(text) if isinstance(text, str) else None
    return found
