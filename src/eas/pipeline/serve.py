"""`eas serve`: one model behind an OpenAI-compatible endpoint, on the server that transformers ships."""

from __future__ import annotations

import base64
import socket
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from eas.attachment.attach import fold
from eas.attachment.load import load
from eas.attachment.state import attached, attachment
from eas.config import ConfigError
from eas.example import DataError, Example
from eas.exporting.opening import opened, processor_of
from eas.hf.aligned import align
from eas.methods.lora import unwrap
from eas.models.visual_tokens import fit_processor
from eas.pipeline.config import DTYPES
from eas.pipeline.run import CONFIG_FILE, Run
from eas.pipeline.savings import fold_mode
from eas.tasks.collate import Collator
from eas.tasks.evaluation import answer_as_scored

if TYPE_CHECKING:
    from fastapi import FastAPI

NEEDS = ("fastapi", "openai", "uvicorn")
"""What the server of transformers needs beyond eas."""
TEXTS, IMAGES = ("text", "input_text", "output_text"), ("image_url", "input_image")
"""The parts of a message, as OpenAI's two interfaces call them."""
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def require_packages() -> None:
    """Refuses to serve without the packages of the extra.

    Raises:
        ConfigError: the message names what is missing.
    """
    if missing := [package for package in NEEDS if find_spec(package) is None]:
        raise ConfigError(f"eas serve needs {' and '.join(missing)}; pip install 'eas[serve]'")


def listening(host: str, port: int) -> socket.socket:
    """A socket at an address; port 0 is any free one.

    Raises:
        ConfigError: the port is taken, or this machine has no such address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cannot listen at {host}:{port} ({error}); name another --port (0 takes a free one) or --host"
        ) from error


def served(
    model: str, base: str | None = None, processor: str | None = None, dtype: str | None = None
) -> tuple[PreTrainedModel, Any]:
    """The model of a folder, folded where its method can be, on the accelerator if there is one; and its processor.

    Args:
        model: folder of a run, an adapter, a standalone model or a base; or a base's Hub id.
        base: folder or Hub id of an adapter's base; by default what the adapter or the run names.
        processor: folder or Hub id of the tokenizer or processor; by default the base's.
        dtype: of the weights; by default the run's, or the base's own: float32 where the CPU computes 16 bits in
            software.

    Raises:
        ConfigError: the model generates no text, or has no processor.
        CheckpointError: the folder is damaged, or its base is not found.
    """
    if (Path(model) / CONFIG_FILE).is_file():
        run = Run.open(model)
        given = {"model": base, "revision": None} if base is not None else {}
        run = Run(run.config.with_values({**given, **({"dtype": dtype} if dtype is not None else {})}))
        run.task.check_generation(run)
        run.require("tune")
        own = run.processor if processor is None else None
        found, mode = load(run.load_base(), run.folder / "adapter"), fold_mode(run)
    else:
        if dtype not in (None, *DTYPES):
            raise ConfigError(f"dtype = {dtype!r}: must be one of {', '.join(DTYPES)}")
        found, own = opened(model, base, dtype or "auto")
        found = found.to("cuda" if torch.cuda.is_available() else "cpu")
        mode = "auto" if attached(found) and attachment(found).method.fold is not None else None
    if not found.can_generate():
        raise ConfigError(f"{model}: a {type(found).__name__} generates no text, so there is nothing to serve")
    if processor is not None:
        own = fit_processor(processor_of(processor), found.config)
    if own is None:
        raise ConfigError(f"{model} has neither a processor nor a tokenizer; name one with --processor")
    answer_as_scored(found, own)
    if mode is not None:
        fold(found, mode)
    unwrap(found)
    align(found)
    return found.eval(), own


def application(model: PreTrainedModel, processor: Any, name: str) -> FastAPI:
    """The application that answers requests for a model, under a name. Prompts are those of tuning and of `eas eval`.

    Raises:
        ConfigError: a package is missing.
    """
    require_packages()
    from eas.hf import serving

    return serving.application(model, processor, name, partial(inputs, Collator(processor, training=False)))


def inputs(collate: Collator, messages: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """What the model reads of a request, without ``prompt_mask``: all of it is prompt.

    Raises:
        DataError: the message says what is wrong with the request.
    """
    batch = collate([example(messages)])
    return {name: tensor for name, tensor in batch.items() if name != "prompt_mask"}


def example(messages: Sequence[Mapping[str, Any]]) -> Example:
    """The messages of a request, in the form of OpenAI's chats or responses.

    Images come with the request, as ``data:image/...;base64,...``. What the server would have to look for, at the
    network or on its disk, is refused: the request may come from anybody.

    Raises:
        DataError: a message or a part that is none of these.
    """
    turns: list[dict[str, Any]] = []
    images: list[Image.Image] = []
    for number, message in enumerate(messages, start=1):
        match message:
            case {"role": str(role), "content": str(text)} if role in ROLES:
                turns.append({"role": ROLES[role], "content": [{"type": "text", "text": text}]})
            case {"role": str(role), "content": [*parts]} if role in ROLES:
                turns.append({"role": ROLES[role], "content": [_part(part, number, images) for part in parts]})
            case _:
                raise DataError(
                    f"message {number}: expected a role ({', '.join(ROLES)}) and a content of text and images"
                )
    if not turns or turns[-1]["role"] != "user":
        raise DataError("messages: the last message must be the user's")
    return Example("of the request", tuple(turns), "", tuple(images))


def _part(part: Any, number: int, images: list[Image.Image]) -> dict[str, str]:
    match part:
        case {"type": str(kind), "text": str(text)} if kind in TEXTS:
            return {"type": "text", "text": text}
        case {"type": str(kind), "image_url": {"url": str(url)} | str(url)} if kind in IMAGES:
            images.append(_image(url, number))
            return {"type": "image"}
    raise DataError(
        f"message {number}: a part of its content is neither text nor an image: it must be "
        '{"type": "text", "text": ...} or {"type": "image_url", "image_url": {"url": ...}}'
    )


def _image(url: str, number: int) -> Image.Image:
    head, _, data = url.partition(",")
    if not (head.startswith("data:image/") and head.endswith(";base64")):
        raise DataError(f"message {number}: send the image itself, as data:image/png;base64,..., not {url[:40]!r}")
    try:
        return Image.open(BytesIO(base64.b64decode(data, validate=True)))
    except Exception as error:  # the readers of damaged files raise whatever they come across
        raise DataError(f"message {number}: its image cannot be read ({error})") from error
