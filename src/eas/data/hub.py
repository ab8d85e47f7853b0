"""Rows of a Hugging Face dataset, from the Hub or a local folder, whose images are decoded when they are opened."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from PIL import Image

from eas.data.benchmark import OF_HUB, DataOptions, Source, unknown_split
from eas.example import DataError


@dataclass(frozen=True)
class HubImage:
    """One image of a dataset, decoded when called.

    Args:
        data: the dataset, its images not decoded.
        row: index of the row.
        column: name of the column.
        position: which of the row's images, where the column holds lists.
    """

    data: Any
    row: int
    column: str
    position: int | None = None

    def __call__(self) -> Image.Image:
        cell = self.data[self.row : self.row + 1][self.column][0]
        if self.position is not None:
            cell = cell[self.position]
        return Image.open(cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"]))

    def __str__(self) -> str:
        return f"image {self.column!r} of row {self.row}"


class HubRows(Sequence[dict[str, Any]]):
    """Rows as plain values under our names for the columns; images are `HubImage` (or None), or lists of them.

    Values of class labels are their names. Slices are views.

    Args:
        data: a ``datasets.Dataset`` with undecoded images.
        columns: our name for a column, and the dataset's.
        name: of the dataset, for messages.

    ``unread`` are the dataset's other columns, and whether they hold images.
    """

    def __init__(self, data: Any, columns: Mapping[str, str], name: str) -> None:
        self.columns, self.name = columns, name
        self._rows = range(len(data))
        others = [column for column in data.column_names if column not in columns.values()]
        self.unread = {column: _image_kind(data.features[column]) is not None for column in others}
        self._data = data.select_columns(list(dict.fromkeys(columns.values())))
        kinds = {column: _image_kind(self._data.features[column]) for column in columns.values()}
        self._plain = self._data.remove_columns([column for column, kind in kinds.items() if kind])
        self._labels = {column: names for column in columns.values() if (names := _label_names(self._data, column))}
        # How many images a cell holds is read off the table, without its bytes.
        self._images = {column: _counts(self._data, column, kind) for column, kind in kinds.items() if kind}

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> HubRows: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | HubRows:
        if isinstance(index, slice):
            view = copy(self)
            view._rows = self._rows[index]
            return view
        row = self._rows[index]
        values = self._plain[row] if self._plain.column_names else {}
        return {name: self._cell(row, column, values) for name, column in self.columns.items()}

    def column(self, name: str) -> list[Any]:
        """The values of one of our columns without images, or the file names (or None) in one with an image a row."""
        column = self.columns[name]
        if column in self._images:
            import pyarrow.compute as pc

            values = pc.struct_field(self._data.with_format("arrow")[:][column], "path").to_pylist()
        else:
            values = [self._cell(row, column, {column: value}) for row, value in enumerate(self._plain[column])]
        return [values[row] for row in self._rows]

    def _cell(self, row: int, column: str, values: Mapping[str, Any]) -> Any:
        if column in self._images:
            return self._image(row, column)
        names, value = self._labels.get(column), values[column]
        if names is None or value is None:
            return value
        return names[value] if value >= 0 else None  # -1 says that there is no label

    def _image(self, row: int, column: str) -> HubImage | list[HubImage] | None:
        single, counts = self._images[column]
        if single:
            return HubImage(self._data, row, column) if counts[row] else None
        return [HubImage(self._data, row, column, position) for position in range(counts[row] or 0)]


def hub_rows(
    source: Source, split: str, options: DataOptions, columns: Mapping[str, str], optional: Sequence[str] = ()
) -> HubRows:
    """The rows of one split.

    Args:
        source: a Hub id, a folder written by ``save_to_disk``, or a local folder that ``load_dataset`` reads.
        split: as the dataset names it (``options.splits`` is applied to it).
        options: configuration, revision, streaming, and other names of columns.
        columns: our name for a column, and the dataset's usual one; ``options.columns`` goes before.
        optional: those of ours that may be absent.

    Raises:
        DataError: the dataset, the split or a column does not exist; the message says what does.
    """
    data = _load(source, options.splits.get(split, split), options)
    names = {**columns, **options.columns}
    if unknown := [name for name in options.columns if name not in columns]:
        raise DataError(f"data_options.columns names {unknown[0]!r}; the columns are {', '.join(columns)}")
    present = {name: column for name, column in names.items() if column in data.column_names}
    for name, column in names.items():
        if name not in present and (name not in optional or name in options.columns):
            raise DataError(
                f"{source.path} has no column {column!r} but {', '.join(data.column_names)}; name the one that holds "
                f"it: -o 'data_options.columns={{{name}: COLUMN}}'"
            )
    return HubRows(data, present, source.path)


def _load(source: Source, split: str, options: DataOptions) -> Any:
    """A dataset whose images are not decoded."""
    try:
        from datasets import Dataset, DatasetDict, get_dataset_split_names, load_dataset, load_from_disk
    except ImportError as error:
        raise DataError("reading a Hub dataset needs the package `datasets`; pip install 'eas[hub]'") from error
    folder = Path(source.path)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        options.refuse(OF_HUB, f"{source.path} was written by save_to_disk")
        try:
            saved = load_from_disk(source.path)
        except Exception as error:  # damaged files raise whatever their readers do
            raise DataError(
                f"{source.path} cannot be read as a dataset: {error or type(error).__name__}; write it again"
            ) from error
        splits = saved if isinstance(saved, DatasetDict) else {str(saved.split or "train"): saved}
        if (name := split.partition("[")[0]) not in splits:
            raise unknown_split(source.path, name, list(splits))
        return _undecoded(splits[name] if name == split else _slice(splits[name], name, split))
    try:
        splits = get_dataset_split_names(source.path, options.config, revision=options.revision)
        if split.partition("[")[0] not in splits:  # "train[:90%]" is theirs to read
            raise unknown_split(source.path, split, splits)
        streaming = options.stream is not None
        data = load_dataset(source.path, options.config, split=split, revision=options.revision, streaming=streaming)
        data = _undecoded(data)
        return Dataset.from_list(list(data.take(options.stream)), features=data.features) if streaming else data
    except DataError:
        raise
    except Exception as error:  # damaged files and networks raise whatever their readers do
        raise DataError(
            f"{source.path} cannot be read as a dataset: {error or type(error).__name__}; check id, configuration and "
            "network, and whether the files are whole"
        ) from error


def _slice(data: Any, name: str, slice: str) -> Any:
    """The rows of a slice such as "train[:90%]" of the split of that name, as ``load_dataset`` counts them."""
    from datasets import ReadInstruction

    try:
        (part,) = ReadInstruction.from_spec(slice).to_absolute({name: len(data)})
    except (ValueError, AssertionError) as error:
        raise DataError(f"{slice!r} is no slice of a split ({error}); write it as in train[:90%]") from error
    return data.select(range(part.from_, part.to))


def _image_kind(feature: Any) -> str | None:
    from datasets import Image as ImageFeature
    from datasets import List

    if isinstance(feature, ImageFeature):
        return "one"
    return "many" if isinstance(feature, List) and isinstance(feature.feature, ImageFeature) else None


def _label_names(data: Any, column: str) -> list[str] | None:
    from datasets import ClassLabel

    feature = data.features[column]
    return list(feature.names) if isinstance(feature, ClassLabel) else None


def _undecoded(data: Any) -> Any:
    from datasets import Image as ImageFeature
    from datasets import List

    if data.features is None:
        raise DataError("a streamed dataset does not say what its columns are; read it without data_options.stream")
    for column, feature in data.features.items():
        if kind := _image_kind(feature):
            bare = ImageFeature(decode=False)
            data = data.cast_column(column, bare if kind == "one" else List(bare))
    return data


def _counts(data: Any, column: str, kind: str) -> tuple[bool, list[int | None]]:
    """Whether a cell is one image, and how many images each holds (None or 0: none)."""
    import pyarrow.compute as pc

    cells = data.with_format("arrow")[:][column]
    if kind == "one":
        return True, [int(valid) for valid in cells.is_valid().to_pylist()]
    return False, pc.list_value_length(cells).to_pylist()
