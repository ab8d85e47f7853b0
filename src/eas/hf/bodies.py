"""What the body of a request may say: what is served, what may be left off only, and what makes no difference.

The server of transformers takes many fields of OpenAI's and ignores them, and fails with a traceback at a value of
another type. Here a body is checked before anything else happens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from eas.errors import fault


class Field(NamedTuple):
    """A field that is served: whether a value is right, and what it must be."""

    right: Callable[[Any], bool]
    must: str


def _number(low: float, high: float) -> Field:
    # JSON's NaN is neither above nor below; Python's True is a number
    return Field(
        lambda value: isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high,
        f"must be a number from {low} to {high}",
    )


def _whole(low: int, must: str) -> Field:
    return Field(
        lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value < 2**63,
        f"must be {must}",
    )


def _objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _messages(value: Any) -> bool:
    return _objects(value) and all(_content(message.get("content")) for message in value)


def _content(value: Any) -> bool:
    return value is None or isinstance(value, str) or _objects(value)  # what a message lacks is said with its number


def _input(value: Any) -> bool:
    if isinstance(value, str):
        return True
    if not _messages(value) or len({"role" in item for item in value}) != 1:
        return False
    return all("content" in item for item in value if "role" in item)


def _text(value: Any) -> bool:
    return isinstance(value, str) and not fault(value)


def _stops(value: Any) -> bool:
    return all(text and _text(text) for text in (value if isinstance(value, list) else [value]))


TEXT = Field(_text, "must be a text without NULs and halves of surrogate pairs")
PROMPT = Field(lambda value: bool(value) and _text(value), "must be one text that is not empty")
SWITCH = Field(lambda value: isinstance(value, bool), "must be true or false")
STOP = Field(_stops, "must be a text or a list of texts, none of them empty")
LENGTH = _whole(1, "a whole number above 0")
MESSAGES = Field(_messages, "must be a list of objects, each with a role and a content: a text or a list of objects")
INPUT = Field(_input, "must be a text, a list of messages with a role and a content, or a list of parts")
ALL = {
    "model": TEXT,
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "seed": _whole(-(2**63), "a whole number of 64 bits"),
    "stream": SWITCH,
}
SERVED: Mapping[str, Mapping[str, Field]] = {
    "chat": {**ALL, "messages": MESSAGES, "max_tokens": LENGTH, "max_completion_tokens": LENGTH, "stop": STOP},
    "completions": {**ALL, "prompt": PROMPT, "max_tokens": LENGTH, "stop": STOP},
    "responses": {**ALL, "input": INPUT, "instructions": TEXT, "max_output_tokens": LENGTH},
}
"""The fields that change an answer, by interface."""
NEEDED = ("messages", "prompt", "input")
"""Fields that a request of an interface with such a field must have."""
OFF: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "chat": {
        "n": (1,),
        "logprobs": (False,),
        "top_logprobs": (0,),
        "presence_penalty": (0,),
        "frequency_penalty": (0,),
        "logit_bias": ({},),
        "response_format": ({"type": "text"},),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "reasoning_effort": ("none",),
        "verbosity": ("medium",),
        "chat_template_kwargs": ({},),
    },
    "completions": {
        "n": (1,),
        "best_of": (1,),
        "echo": (False,),
        "suffix": ("",),
        "logprobs": (False,),
        "presence_penalty": (0,),
        "frequency_penalty": (0,),
        "logit_bias": ({},),
    },
    "responses": {
        "text": ({}, {"format": {"type": "text"}}),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "reasoning": ({}, {"effort": "none"}),
        "include": ([],),
        "top_logprobs": (0,),
        "truncation": ("disabled",),
        "background": (False,),
    },
}
"""Values of fields that are not served, where a value says the same as none."""
WITHOUT_EFFECT = {
    "max_tool_calls",
    "metadata",
    "parallel_tool_calls",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "stream_options",
    "user",
}
"""Fields that say who asks, what OpenAI does with a request, or how fast; an answer is the same without them."""
WHY = {
    "tools": ": the model knows of none",
    "chat_template_kwargs": ": prompts are made as in tuning",
    "previous_response_id": ": the server keeps no conversations, so send the whole conversation as input",
}


def checked(body: Mapping[str, Any], interface: str) -> dict[str, Any]:
    """The fields of a body that change its answer.

    Args:
        body: of a request; null is as good as no value.
        interface: "chat", "completions" or "responses".

    Raises:
        ValueError: a field is missing, not served, or of a wrong form; the message starts with its name.
    """
    served, off = SERVED[interface], OFF[interface]
    given = {name: value for name, value in body.items() if value is not None}
    for name, value in given.items():
        if name in served:
            if not served[name].right(value):
                raise ValueError(f"{name}: {served[name].must}, not {_short(value)}")
        elif name not in WITHOUT_EFFECT and not any(_same(value, none) for none in off.get(name, ())):
            instead = "".join(f", or send {json.dumps(none)}" for none in off.get(name, ())[:1])
            raise ValueError(f"{name}: {_short(value)} is not supported{WHY.get(name, '')}; leave it out{instead}")
    for name in NEEDED:
        if name in served and name not in given:
            raise ValueError(f"{name} is missing: it {served[name].must}")
    return {name: value for name, value in given.items() if name in served}


def _same(value: Any, other: Any) -> bool:
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)  # to Python 0 is False


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
