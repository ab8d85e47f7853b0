"""The OpenAI-compatible server of transformers, around one model that is loaded already.

`transformers serve` loads models by their names, and makes prompts in its own way: it drops images that a text model
gets, opens files that a request names, and differs from training in first tokens. Here the server gets the model, and
a function makes the prompts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException  # of which FastAPI's own is a kind
from torch import Tensor
from transformers import BatchFeature, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import Modality

from eas.hf.bodies import checked
from eas.hf.classes import become
from eas.hf.generating import OneAfterAnother, Parses, asked, tokenizer_of

Ask = Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Tensor]]
"""From the messages of a request to the model's inputs, of batch size 1. A ValueError is the client's mistake."""
COLDEST = 1e-5
"""The lowest temperature to sample at: the greedy answer is all but certain there, and soon logits overflow."""


def application(model: PreTrainedModel, processor: Any, name: str, ask: Ask) -> FastAPI:
    """The server's application: ``/v1/chat/completions``, ``/v1/completions``, ``/v1/responses``, ``/v1/models``.

    Requests run one after another, in one thread.

    Args:
        model: what answers.
        processor: its processor or tokenizer, which is not changed.
        name: of the model; a request for another one is refused.
        ask: makes the prompts of chats and responses.
    """
    served = copy.copy(processor)
    become(served, _Prompts)
    served.ask = ask
    if tokenizer_of(served) is not served:
        served.tokenizer = copy.copy(processor.tokenizer)
    become(tokenizer_of(served), Parses)
    manager, state = _OneModel(model, served, name), OneAfterAnother()
    absent = _Absent()
    app = build_server(
        manager,
        _Chat(manager, state),
        completion_handler=_Completions(manager, state),
        response_handler=_Responses(manager, state),
        transcription_handler=absent,
        systemone_handler=absent,
        generation_state=state,
    )
    for kind in (ValueError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _mistake)
    return app


async def _mistake(request: Request, error: Exception) -> JSONResponse:
    """The form in which OpenAI's clients look for a message."""
    status, said = (error.status_code, error.detail) if isinstance(error, HTTPException) else (400, str(error))
    if isinstance(error, RequestValidationError):
        reason = "; ".join(
            f"{found['msg']} {found.get('ctx', {}).get('error', '')}".strip() for found in error.errors()
        )
        said = f"the body must be a JSON object, of the content type application/json ({reason})"
    return JSONResponse({"error": {"message": said, "type": "invalid_request_error"}}, status_code=status)


class _OneModel(ModelManager):  # type: ignore[misc]
    """Has one model from the start, under the name that is given, and keeps it."""

    def __init__(self, model: PreTrainedModel, processor: Any, name: str) -> None:
        super().__init__()
        self.model, self.processor, self.force_model = model, processor, name

    @staticmethod
    def process_model_name(model_id: str) -> str:
        return model_id

    def load_model_and_processor(
        self, model_id_and_revision: str, progress_callback: Any = None, tqdm_class: Any = None, gguf_file: Any = None
    ) -> tuple[PreTrainedModel, Any]:
        asked = model_id_and_revision if gguf_file is None else f"{model_id_and_revision}:{gguf_file}"
        if asked != self.force_model:
            raise ValueError(f"model {asked!r}: this server has {self.force_model!r}")
        if progress_callback is not None:
            progress_callback({"status": "ready", "model": asked, "cached": True})
        return self.model, self.processor

    @staticmethod
    def get_model_modality(model: PreTrainedModel, processor: Any = None) -> Modality:
        return Modality.LLM if isinstance(processor, PreTrainedTokenizerBase) else Modality.VLM

    def list_models(self, cache_dir: str | None = None) -> list[dict[str, Any]]:
        return [{"id": self.force_model, "object": "model", "created": 0, "owned_by": "eas"}]

    get_gen_models = list_models  # its name in 5.23


class _Checked:
    """Checks a request before anything else, and hands its messages to the processor as they are."""

    interface: str

    async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
        # OpenAI's client streams only if it is asked to
        asked_for = {"stream": False, **checked(body, self.interface)}
        return await super().handle_request(asked_for, request_id)  # type: ignore[misc]

    @staticmethod
    def get_processor_inputs_from_messages(messages: list[dict[str, Any]], modality: Modality) -> list[dict[str, Any]]:
        return messages

    def _build_generation_config(self, body: dict[str, Any], own: GenerationConfig, use_cb: bool) -> GenerationConfig:
        rest = {name: value for name, value in body.items() if name not in ("stop", "seed")}
        config = super()._build_generation_config(rest, own, use_cb=use_cb)  # type: ignore[misc]
        if "temperature" in body:
            config.do_sample = body["temperature"] >= COLDEST
        stop = body.get("stop", [])
        return asked(config, [stop] if isinstance(stop, str) else stop, body.get("seed"))


class _Chat(_Checked, ChatCompletionHandler):  # type: ignore[misc]
    interface = "chat"


class _Completions(_Checked, CompletionHandler):  # type: ignore[misc]
    interface = "completions"


class _Responses(_Checked, ResponseHandler):  # type: ignore[misc]
    interface = "responses"

    async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
        match body:
            case {"instructions": str(), "input": [{"role": "system"}, *_]}:  # transformers would drop the message
                raise ValueError("instructions: the input starts with a system message of its own; send one of the two")
            case {"input": [*items]}:  # earlier thoughts are no part of a prompt
                body = {**body, "input": [item for item in items if not _is_thought(item)]}
        return await super().handle_request(body, request_id)


def _is_thought(item: Any) -> bool:
    return isinstance(item, dict) and item.get("type") == "reasoning"


class _Absent:
    """What the server of transformers offers for other kinds of models."""

    async def handle_request(self, *args: Any) -> None:
        raise HTTPException(404, "this model answers at /v1/chat/completions, /v1/completions and /v1/responses")


class _Prompts:
    """A processor whose chats become prompts by ``ask``."""

    ask: Ask

    def apply_chat_template(self, messages: list[dict[str, Any]], tools: Any = None, **options: Any) -> BatchFeature:
        return BatchFeature(dict(self.ask(messages)))
