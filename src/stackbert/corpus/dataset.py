"""A Hugging Face data set, on this disk or on the hub, to a stream of documents."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stackbert.corpus.readers import MAX_DOCUMENT_BYTES, Input
from stackbert.errors import UserError


class DatasetInput(Input):
    """The training split of a data set, through the `datasets` library.

    Args:
        name: a folder that `save_to_disk` wrote, a folder of data files, or a name on the hub
            (`NAME` or `NAME:CONFIGURATION`), the only one that uses the network.
        field: the column that holds the text.
        max_document_bytes: a longer document is refused.

    Raises:
        UserError: `datasets` is not installed, or the data set cannot be opened.
    """

    def __init__(
        self, name: str, field: str = "text", max_document_bytes: int = MAX_DOCUMENT_BYTES
    ) -> None:
        super().__init__(name, 0)
        self._field = field
        self._limit = max_document_bytes
        self._rows = _open(name)
        columns = getattr(self._rows, "column_names", None)
        if columns is not None and field not in columns:
            raise self._no_field(columns)

    def documents(self) -> Iterator[str]:
        """See `Input.documents`.

        Raises:
            UserError: a row cannot be read, or its text is missing or no string.
        """
        self.position = 0
        rows = iter(self._rows)
        number = 0
        while True:
            try:
                row = next(rows, None)
            except Exception as error:  # whatever the format's reader or the network raises
                raise UserError(
                    f"The data set {self.name} cannot be read after row {number}: {_reason(error)}."
                ) from error
            if row is None:
                break
            number += 1
            if self._field not in row:
                raise self._no_field(row)
            value = row[self._field]
            if value is not None and not isinstance(value, str):
                raise UserError(
                    f"The data set {self.name}, row {number}: the field '{self._field}' is not a "
                    f"string but {type(value).__name__}. Name the one that holds the text with "
                    "--field."
                )
            value = (value or "").encode("utf-8", "replace")
            if len(value) > self._limit:
                raise UserError(
                    f"The data set {self.name}, row {number}: the document is longer than "
                    f"{self._limit:,} bytes. Split it, or allow longer ones (max_document_bytes)."
                )
            self.position += len(value)
            yield value.decode()
        self.size = self.position

    def _no_field(self, names: Any) -> UserError:  # noqa: ANN401
        return UserError(
            f"The data set {self.name} has no field '{self._field}'. The fields are: "
            f"{', '.join(names)}. Name the one that holds the text with --field."
        )


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


def _open(name: str) -> Any:  # noqa: ANN401 (datasets has no types to speak of)
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"Reading the data set {name} needs the 'datasets' library. "
            "Install it with: pip install 'stackbert[datasets]'"
        ) from error
    folder = Path(name).expanduser()
    if folder.is_file():
        raise UserError(f"{name} is a file, not a data set. Pass it as text (--text {name}).")
    try:
        saved = ("dataset_info.json", "dataset_dict.json", "state.json")
        if folder.is_dir() and any((folder / file).is_file() for file in saved):
            return _training_split(datasets.load_from_disk(str(folder)), name)
        if folder.is_dir():
            return _training_split(datasets.load_dataset(str(folder), streaming=True), name)
        repository, _, configuration = name.partition(":")
        return _training_split(
            datasets.load_dataset(repository, configuration or None, streaming=True), name
        )
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"The data set {name} cannot be opened: {_reason(error)}. Check the name or the path; "
            "a configuration goes behind a colon (NAME:CONFIGURATION)."
        ) from error


def _training_split(found: Any, name: str) -> Any:  # noqa: ANN401
    """`found` itself if it has no splits, else its training split or its only one."""
    if not isinstance(found, dict):
        return found
    if "train" in found:
        return found["train"]
    if len(found) == 1:
        return next(iter(found.values()))
    raise UserError(
        f"The data set {name} has no split 'train', only {', '.join(map(str, found))}. "
        "Save the one you want with save_to_disk and pass that folder."
    )
