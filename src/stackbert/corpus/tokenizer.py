"""The tokenizer of a corpus, and the same one as transformers opens it."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stackbert.errors import UserError
from stackbert.files import reading

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCAB_SIZE = 32_768  # the paper's (Gong et al., ICML 2019)
ROW_MULTIPLE = 64  # embeddings have a multiple of 64 rows: faster matrix products
ROLES = {
    "pad_token": ("[PAD]", "<pad>", "<|padding|>", "<|pad|>"),
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]", "<cls>", "<|cls|>"),
    "sep_token": ("[SEP]", "<sep>", "<|sep|>"),
    "mask_token": ("[MASK]", "<mask>", "<|mask|>"),
    "bos_token": ("<s>", "<bos>", "[BOS]"),
    "eos_token": ("</s>", "<eos>", "[EOS]", "<|endoftext|>"),
}


@dataclass(frozen=True)
class Vocabulary:
    """What batches and models know of a tokenizer: its sizes and its special ids."""

    size: int  # rows of the embedding: the tokenizer's size rounded up to a multiple of 64
    tokenizer_size: int  # ids 0 … tokenizer_size - 1 exist; random replacements are drawn from them
    pad: int
    cls: int
    sep: int  # stands behind every document, too
    mask: int
    special: tuple[int, ...]  # every special id, ascending: never masked, never a replacement

    @property
    def dtype(self) -> str:
        """What ids are stored as."""
        return "uint16" if self.size <= 1 << 16 else "uint32"


@dataclass(frozen=True)
class CorpusTokenizer:
    """A tokenizer and what makes it one for transformers."""

    tokenizer: Any  # `tokenizers.Tokenizer` without truncation or padding
    file: bytes  # its tokenizer.json
    config: dict[str, Any]  # of tokenizer_config.json: which token has which role
    ids: dict[str, int]  # of each role

    @property
    def vocabulary(self) -> Vocabulary:
        """What batches and models know of it."""
        size = max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        pad, cls, sep, mask = (self.ids[f"{role}_token"] for role in ("pad", "cls", "sep", "mask"))
        added = self.tokenizer.get_added_tokens_decoder().items()
        special = {*self.ids.values(), *(number for number, token in added if token.special)}
        rows = -(-size // ROW_MULTIPLE) * ROW_MULTIPLE
        return Vocabulary(rows, size, pad, cls, sep, mask, tuple(sorted(special)))

    def save(self, folder: Path) -> None:
        """Make a folder that `transformers.AutoTokenizer.from_pretrained` opens.

        As a PreTrainedTokenizerFast, the class that takes tokenizer.json as it is.
        """
        from transformers import AutoTokenizer

        folder.mkdir()
        (folder / "tokenizer.json").write_bytes(self.file)
        config = json.dumps(self.config | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2)
        (folder / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")
        with reading(folder):
            opened: Any = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            if opened.get_vocab() != self.tokenizer.get_vocab():
                raise UserError(
                    "Transformers makes another vocabulary of the tokenizer. Save it again with "
                    "transformers, or take another one."
                )


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
        file = main.read_bytes()
        tokenizer: Any = Tokenizer.from_str(file.decode())
        tokenizer.encode("a\u6f22")  # parts may not fit each other, or the unknown token be missing
        for chance in ("dropout", "alpha"):
            if getattr(tokenizer.model, chance, None):
                setattr(tokenizer.model, chance, None)
                file = tokenizer.to_str(pretty=True).encode()
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    stored: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json") if path.is_dir() else ():
        with reading(path / name):
            stored |= json.loads((path / name).read_bytes()) if (path / name).exists() else {}
    inputs = "model_input_names"
    config, ids = {inputs: stored[inputs]} if inputs in stored else {}, {}
    with reading(path):  # half a character, escaped in JSON, is no UTF-8 text
        for role, names in ROLES.items():
            for token in (stored.get(role), *names):
                text = token.get("content") if isinstance(token, dict) else token  # with settings
                found = tokenizer.token_to_id(text) if isinstance(text, str) else None
                if found is not None:
                    ids[role], config[role] = found, token
                    break
    for role, other in (("cls_token", "bos_token"), ("sep_token", "eos_token")):
        if role not in ids and other in ids:
            ids[role], config[role] = ids[other], config[other]
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
    return CorpusTokenizer(tokenizer, file, config, ids)


def add_tokens(tokenizer: CorpusTokenizer, path: str | Path) -> CorpusTokenizer:
    """The tokenizer with each line of a file as a token of its own, a whole word."""
    from tokenizers import AddedToken

    with reading(path):
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    words = [line.strip() for line in lines if line.strip()]
    tokenizer.tokenizer.add_tokens([AddedToken(word, single_word=True) for word in words])
    made = tokenizer.tokenizer.to_str(pretty=True).encode()
    return replace(tokenizer, file=made)
