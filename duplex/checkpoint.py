"""Reading files of tensors, and putting them into a module so that every one has its place: shared by all parts with weights.

Notable: a file is data. A `.pt` is read by torch's restricted unpickler alone, which refuses anything that is not tensors and plain
containers, so a checkpoint can never run code. What does not fit is told in one message, with all its names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from duplex.errors import WeightsError

SHOWN = 12
"""Names listed of each kind of misfit; the rest is counted."""


def read_tensors(path: Path, nested: Sequence[str] = ("state_dict", "model_state_dict")) -> dict[str, Tensor]:
    """The tensors of a `.pt`, `.pth`, `.bin` or `.safetensors` file, by name, on the CPU.

    nested: keys under which a `.pt` may hold its state dict. Raises WeightsError when the file is missing, cut short, holds anything
    but tensors (it is then not executed), or is no checkpoint.
    """
    if not path.is_file():
        raise WeightsError(f"{path} is missing; fetch the weights again, or give the folder that holds it.")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except Exception as error:  # safetensors has an exception of its own, and OSError
            raise WeightsError(f"{path} is damaged or cut short ({error}); delete it and fetch it again.") from error
    try:
        data: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=_zipped(path))
    except Exception as error:  # the unpickler, zip and mmap each fail in their own ways
        raise WeightsError(_unreadable(path, error)) from error
    for key in nested:
        if isinstance(data, Mapping) and isinstance(data.get(key), Mapping):
            data = data[key]
    if not isinstance(data, Mapping):
        raise WeightsError(f"{path} holds a {type(data).__name__} instead of named tensors; it is not a checkpoint of this kind.")
    tensors = {str(name): value for name, value in data.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{path} holds no tensors; it is not a checkpoint of this kind.")
    return tensors


def _zipped(path: Path) -> bool:
    """torch's newer form is a zip, which can be mapped instead of read."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _unreadable(path: Path, error: Exception) -> str:
    text = str(error)
    if "Unsupported" in text or "weights_only" in text.lower() or "GLOBAL" in text:
        return f"{path} holds more than tensors (it could run code when loaded), so it was not opened; get it from its publisher."
    reason = text.splitlines()[0][:200] if text else type(error).__name__
    return f"{path} is damaged or cut short ({reason}); delete it and fetch it again."


def misfits(wanted: Mapping[str, Sequence[int]], given: Mapping[str, Sequence[int]]) -> str:
    """How two lists of names and shapes differ, in words; "" when they are the same."""
    missing = sorted(wanted.keys() - given.keys())
    unexpected = sorted(given.keys() - wanted.keys())
    reshaped = [
        f"{name} ({'x'.join(map(str, given[name])) or 'scalar'} instead of {'x'.join(map(str, wanted[name])) or 'scalar'})"
        for name in sorted(wanted.keys() & given.keys())
        if tuple(wanted[name]) != tuple(given[name])
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
    return "; ".join(f"{kind}: {_few(names)}" for kind, names in kinds if names)


def _few(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: Path | str, what: str, dtype: torch.dtype | None = None) -> None:
    """Put `tensors` into `module` (on the meta device or not), strictly, and make it ready for inference.

    what: the model's name for the message. dtype: floating tensors are changed to it; None keeps the file's. Raises WeightsError
    listing every key that is missing, unexpected or of another shape, before anything is changed. Buffers that are not in the state
    dict (noise, windows, position tables) are the module's own to make.
    """
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    wrong = misfits(wanted, {name: tuple(value.shape) for name, value in tensors.items()})
    if wrong:
        raise WeightsError(f"{source} does not fit {what}. {wrong[0].upper()}{wrong[1:]}.")
    kept = {name: value.to(dtype) if dtype is not None and value.is_floating_point() else value for name, value in tensors.items()}
    module.load_state_dict(kept, strict=True, assign=True)
    module.requires_grad_(False).train(False)
