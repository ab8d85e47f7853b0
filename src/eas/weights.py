"""Files of weights: headers are checked before a tensor is loaded, and no code in the files runs."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from eas.records import RecordError

FLOATING = ("F64", "F32", "F16", "BF16")
"""The kinds of numbers that a model's weights are, as headers name them."""


class Safetensors(Mapping[str, Tensor]):
    """The weights of some files; each is read on request.

    Args:
        files: read as one; no name may be in two of them.
        remedy: what to do where a file is damaged.

    Raises:
        RecordError: a file is missing, truncated or damaged, or a name is there twice.
    """

    def __init__(self, files: Iterable[Path], remedy: str) -> None:
        self.files: dict[str, Path] = {}
        self.shapes: dict[str, torch.Size] = {}
        self.dtypes: dict[str, str] = {}
        self.metadata: dict[str, str] = {}
        self.remedy = remedy
        for file in files:
            with self._opened(file) as opened:
                for key in opened.keys():  # noqa: SIM118  (no mapping)
                    if key in self.files:
                        raise RecordError(f"{key} is in {self.files[key]} and in {file}; {remedy}")
                    header = opened.get_slice(key)
                    self.files[key], self.shapes[key] = file, torch.Size(header.get_shape())
                    self.dtypes[key] = header.get_dtype()
                self.metadata |= opened.metadata() or {}

    def _opened(self, file: Path) -> Any:
        if not file.is_file():  # a folder or a pipe is none
            raise RecordError(f"{file} is missing or no file; {self.remedy}")
        try:
            return safe_open(file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise RecordError(f"{file} is truncated or damaged ({error}); {self.remedy}") from error

    def __getitem__(self, key: str) -> Tensor:
        with self._opened(self.files[key]) as opened:
            tensor: Tensor = opened.get_tensor(key)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def loaded(self) -> dict[str, Tensor]:
        """All of them, every file opened once."""
        found: dict[str, Tensor] = {}
        for file in dict.fromkeys(self.files.values()):
            with self._opened(file) as opened:
                found |= {key: opened.get_tensor(key) for key, place in self.files.items() if place == file}
        return found

    def on_meta(self) -> dict[str, Tensor]:
        """Names and shapes; the weights are not read."""
        return {key: torch.empty(shape, device="meta") for key, shape in self.shapes.items()}

    def rows(self, key: str, rows: int, columns: int) -> Tensor:
        """The upper left corner of a matrix."""
        with self._opened(self.files[key]) as opened:
            corner: Tensor = opened.get_slice(key)[:rows, :columns]
        return corner

    def require_floating(self, counts: Collection[str] = ()) -> None:
        """Refuses weights of integers, bits, complex or 8-bit numbers.

        Args:
            counts: tensors that may be integers: a batch norm counts its batches.

        Raises:
            RecordError: naming file and tensor.
        """
        for key, dtype in self.dtypes.items():
            if dtype not in FLOATING and key not in counts:
                raise RecordError(f"{self.files[key]}: {key} is of {dtype}, not of floats; {self.remedy}")


def require_finite(tensors: Iterable[tuple[str, Tensor]], where: object, remedy: str) -> None:
    """Refuses NaN and infinities.

    Raises:
        RecordError: naming the tensor.
    """
    for key, tensor in tensors:
        if not is_finite(tensor):
            raise RecordError(f"{where}: {key} holds NaN or infinite numbers; {remedy}")


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are; without storage there are none."""
    if not tensor.is_floating_point() or tensor.is_meta or tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor.detach())  # unlike isfinite it makes no copy; NaN comes through
    return bool(torch.isfinite(low) & torch.isfinite(high))


def read_torch(path: Path, remedy: str, whole: bool = False) -> Any:
    """What ``torch.save`` wrote, as long as that is tensors and plain values; tensors stay on the disk until used.

    Args:
        path: of the file.
        remedy: what to do if the file is refused.
        whole: compare every byte with the file's checksums.

    Raises:
        RecordError: the file is missing, truncated, damaged or packed, or holds anything else.
    """
    if not path.is_file():
        raise RecordError(f"{path} is missing or no file; {remedy}")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            damaged = archive.testzip() if whole and size <= path.stat().st_size else None
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise RecordError(f"{path} is truncated, or was not written by torch.save (1.6 or later); {remedy}") from None
    if size > path.stat().st_size:
        raise RecordError(f"{path} is packed: it holds {size} bytes in {path.stat().st_size}; {remedy}")
    if damaged is not None:
        raise RecordError(f"{path} is damaged at {damaged}; {remedy}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # a damaged pickle raises anything; torch's own words advise to load it unsafely
        raise RecordError(f"{path} is damaged, or holds more than weights and plain values; {remedy}") from None


def require_state(state: Any, where: object, remedy: str) -> dict[str, Tensor]:
    """A state dict whose tensors are floats and no larger than their stored data.

    Raises:
        RecordError: naming the entry.
    """
    if not isinstance(state, dict) or not state:
        raise RecordError(f"{where} holds no state_dict of tensors; {remedy}")
    for key, tensor in state.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise RecordError(f"{where}: {key!r} is no name of a tensor; {remedy}")
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise RecordError(f"{where}: {key} {tuple(tensor.shape)} is larger than its stored data; {remedy}")
        if not tensor.is_floating_point() and not key.endswith("position_ids"):
            raise RecordError(f"{where}: {key} is of {tensor.dtype}, not of floats; {remedy}")
    return state
