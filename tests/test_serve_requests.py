"""What requests to `eas serve` may ask for: stop strings, sampling; and how they are refused."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from exports import tuned, words
from test_serve import TEMPLATE, parts, server

import eas
from eas.data.scenes import scenes
from eas.demo.tiny import load_tiny
from eas.pipeline import serve as serving

pytestmark = server
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"


def client_of(model, processor):
    from fastapi.testclient import TestClient

    return TestClient(serving.application(model, processor, "mine"), raise_server_exceptions=False)


def sees():
    """The tiny LLaVA, and a question about a picture."""
    model, processor = load_tiny()
    model.generation_config.suppress_tokens = [processor.tokenizer.eos_token_id]  # its own answers have one word
    messages, prompt = parts(next(iter(scenes("colour", "test", 1)))), "question : what is red ? answer :"
    return SimpleNamespace(
        model=model, client=client_of(model, processor), processor=processor, messages=messages, prompt=prompt
    )


def reads(anchor="assistant:", **fields):
    """A text model whose answers are random letters, and how its tokenizer says that they are parsed."""
    model, tokenizer = tuned(), words()
    tokenizer.chat_template = TEMPLATE
    if fields:
        tokenizer.response_template = {"start_anchor": anchor, "fields": fields}
    eas.fold(model)
    unsaid = range(len(tokenizer), model.config.vocab_size)
    model.generation_config.suppress_tokens = [*tokenizer.all_special_ids, *unsaid]
    messages = [{"role": "user", "content": "the cat"}]
    return SimpleNamespace(
        model=model, client=client_of(model, tokenizer), processor=tokenizer, messages=messages, prompt="the cat"
    )


KINDS = {"sees": sees, "reads": reads, "is parsed": lambda: reads(content={"content": "text"})}


@pytest.fixture(scope="module", params=KINDS)
def served(request):
    return KINDS[request.param]()


@pytest.fixture(scope="module")
def seen():
    return sees()


@pytest.fixture(scope="module")
def read():
    return reads()


def body_of(served, path=CHAT, **more):
    asked = {CHAT: "messages", COMPLETIONS: "prompt", RESPONSES: "input"}[path]
    given = served.prompt if path == COMPLETIONS else served.messages
    length = "max_output_tokens" if path == RESPONSES else "max_tokens"
    return {"model": "mine", asked: given, "temperature": 0, length: 8, **more}


def post(served, path=CHAT, **more):
    """The answer's text, why it ended and how many tokens it has; streamed, the pieces' text."""
    reply = served.client.post(path, json=body_of(served, path, **more))
    assert reply.status_code == 200, reply.text
    if more.get("stream"):
        told = [json.loads(line.removeprefix("data: ")) for line in reply.text.splitlines() if line]
        key = "delta" if path == CHAT else "text"
        found = [piece["choices"][0][key] for piece in told]
        text = "".join(piece.get("content") or "" if path == CHAT else piece for piece in found)
        return text, told[-1]["choices"][0]["finish_reason"], told[-1]["usage"]["completion_tokens"]
    told = reply.json()
    choice = told["choices"][0]
    text = choice["message"]["content"] if path == CHAT else choice["text"]
    return text, choice["finish_reason"], told["usage"]["completion_tokens"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_an_answer_ends_before_its_first_stop_string(served, path, stream):
    whole, reason, length = post(served, path, stream=stream)
    assert (reason, length) == ("length", 8)
    assert len(whole) > 6
    for stop in (whole[2], whole[1:4], [whole[4:6], "never said"], [whole[5:], whole[3:5]], whole[-1]):
        first = min(at for text in ([stop] if isinstance(stop, str) else stop) if (at := whole.find(text)) >= 0)
        text, reason, length = post(served, path, stop=stop, stream=stream)
        assert (text, reason) == (whole[:first], "stop")
        assert post(served, path, stop=stop, max_tokens=length, stream=stream) == (text, "stop", length)
        if length > 1:  # the token before the last one did not end it
            assert post(served, path, stop=stop, max_tokens=length - 1, stream=stream)[1] == "length"
    for stop in ([], None, "never said", whole + whole):
        assert post(served, path, stop=stop, stream=stream) == (whole, "length", 8)


def test_what_may_begin_a_stop_string_waits():
    from eas.hf.generating import Pieces

    pieces = Pieces(["end"])
    assert [pieces.add(piece) for piece in ("we", "ep; e", "at; en", "d", "more")] == ["w", "eep; ", "eat; ", "", ""]
    assert pieces.found


def test_what_may_begin_a_stop_string_is_shown_at_the_end(read):
    whole = post(read)[0]
    assert post(read, stop=[whole[-2:] + "!"], stream=True)[0] == whole


def test_a_stop_string_is_looked_for_in_the_answer_only(read):
    whole = post(read)[0]
    assert post(read, stop=":" + whole[0])[0] == whole  # the prompt ends with a colon


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("anchor", ["<|im_start|>assistant\n", ["<|turn>model\n", "<other>"]])
def test_a_prompt_without_the_mark_of_an_answer_is_no_part_of_the_answer(read, anchor, stream):
    """Such as Vicuna's, of a Qwen without a chat template of its own."""
    other = reads(anchor, content={"content": "text"})
    for more in ({}, {"stop": [post(read)[0][3:5]]}):
        assert post(other, stream=stream, **more) == post(read, stream=stream, **more)


def test_thoughts_end_at_a_stop_string(read):
    """Where a tokenizer says how answers are parsed, a stop string ends thoughts, too."""
    whole = post(read)[0]
    thinks = reads(reasoning_content={"open": whole[0], "close": "never", "content": "text"}, content={})
    body = body_of(thinks, stop=whole[4:6])
    said = thinks.client.post(CHAT, json=body).json()["choices"][0]["message"]
    assert (said["content"], said["reasoning_content"]) == ("", whole[1:4])
    streamed = thinks.client.post(CHAT, json={**body, "stream": True}).text
    assert (
        "".join(
            json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("reasoning_content") or ""
            for line in streamed.splitlines()
            if line
        )
        == whole[1:4]
    )


# sampling


def sampled(served, seed, temperature):
    prompt = served.processor(served.prompt, return_tensors="pt", return_token_type_ids=False)
    torch.manual_seed(seed)
    tokens = served.model.generate(**prompt, max_new_tokens=8, do_sample=True, temperature=temperature)
    return served.processor.decode(tokens[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)


def test_a_temperature_samples_and_a_seed_repeats(read):
    want = [sampled(read, seed, 1.5) for seed in range(4)]
    assert len(set(want)) == 4
    for seed, text in enumerate(want):
        assert post(read, COMPLETIONS, temperature=1.5, seed=seed)[0] == text
    assert post(read, COMPLETIONS, temperature=1.5, seed=0, stream=True)[0] == want[0]
    with ThreadPoolExecutor(4) as pool:  # seeds of requests at once do not mix
        assert [*pool.map(lambda seed: post(read, COMPLETIONS, temperature=1.5, seed=seed)[0], range(4))] == want
    torch.manual_seed(5)
    free = set()
    for _ in range(3):  # a request without a seed does not repeat after one with a seed
        free.add(post(read, COMPLETIONS, temperature=1.5)[0])
        assert post(read, COMPLETIONS, temperature=1.5, seed=0)[0] == want[0]
    assert len(free) == 3
    assert post(read, temperature=1e-30) == post(read)  # too cold to sample


def test_without_a_temperature_the_bases_own_settings_rule():
    served = reads()
    greedy = post(served, COMPLETIONS)[0]
    assert post(served, COMPLETIONS, temperature=None, seed=0)[0] == greedy
    served.model.generation_config.update(do_sample=True, temperature=1.5)
    assert post(served, COMPLETIONS, temperature=None, seed=0)[0] == sampled(served, 0, 1.5) != greedy
    assert post(served, COMPLETIONS)[0] == greedy


# refusals


def refused(served, said, path=CHAT, **more):
    reply = served.client.post(path, json={n: v for n, v in body_of(served, path, **more).items() if v != "left out"})
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert said in error["message"]


@pytest.mark.parametrize(
    ("path", "name", "values", "off"),
    [
        (CHAT, "n", [2, 0], [1]),
        (CHAT, "logprobs", [True, 0], [False]),
        (CHAT, "top_logprobs", [3], [0]),
        (CHAT, "response_format", [{"type": "json_object"}, {"type": "json_schema"}], [{"type": "text"}]),
        (CHAT, "presence_penalty", [1.5], [0, 0.0]),
        (CHAT, "frequency_penalty", [-1], [0, 0.0]),
        (CHAT, "logit_bias", [{"5": 100}, {"5": 1.5}], [{}]),
        (CHAT, "tools", [[{"type": "function", "function": {"name": "f"}}]], [[]]),
        (CHAT, "functions", [[{"name": "f"}]], [[]]),
        (CHAT, "tool_choice", ["required"], ["auto", "none"]),
        (CHAT, "modalities", [["text", "audio"]], [["text"]]),
        (CHAT, "reasoning_effort", ["high"], ["none"]),
        (CHAT, "chat_template_kwargs", [{"enable_thinking": True}], [{}]),
        (CHAT, "generation_config", ['{"num_beams": 2}'], []),
        (CHAT, "foo", [3], []),
        (CHAT, "user", [], ["me"]),
        (CHAT, "stream_options", [], [{"include_usage": True}]),
        (COMPLETIONS, "n", [2], [1]),
        (COMPLETIONS, "best_of", [3], [1]),
        (COMPLETIONS, "echo", [True], [False]),
        (COMPLETIONS, "suffix", ["x"], [""]),
        (COMPLETIONS, "logprobs", [0, 2], [False]),
        (COMPLETIONS, "logit_bias", [{"5": 100}], [{}]),
        (COMPLETIONS, "frequency_penalty", [1], [0]),
        (COMPLETIONS, "messages", [[]], []),
        (RESPONSES, "previous_response_id", ["resp_1"], []),
        (RESPONSES, "conversation", ["c"], []),
        (RESPONSES, "text", [{"format": {"type": "json_object"}}], [{"format": {"type": "text"}}]),
        (RESPONSES, "tools", [[{"type": "function", "name": "f"}]], [[]]),
        (RESPONSES, "reasoning", [{"effort": "high"}], [{}]),
        (RESPONSES, "background", [True], [False]),
        (RESPONSES, "truncation", ["auto"], ["disabled"]),
        (RESPONSES, "stop", ["e"], []),
        (RESPONSES, "store", [], [True, False]),
    ],
)
def test_what_is_not_supported_is_refused_unless_it_is_off(read, path, name, values, off):
    for value in values:
        refused(read, f"{name}: {json.dumps(value)} is not supported", path, **{name: value})
    for value in [*off, None]:
        assert read.client.post(path, json=body_of(read, path, **{name: value})).status_code == 200


@pytest.mark.parametrize(
    ("path", "name", "values"),
    [
        (CHAT, "messages", ["left out", None, "hi", [5], 5, {}, [{"role": "user", "content": [5]}]]),
        (CHAT, "temperature", [-1, 2.5, "hot", True, float("inf")]),
        (CHAT, "top_p", [2, -0.1, "x"]),
        (CHAT, "seed", ["a", 1.5, 2**64]),
        (CHAT, "stop", [5, [5], "", ["a", ""], {}]),
        (CHAT, "max_tokens", [0, -1, "8", 1.5, True]),
        (CHAT, "max_completion_tokens", [0, "8"]),
        (CHAT, "stream", ["yes", 1]),
        (CHAT, "model", [5, "\ud800"]),
        (COMPLETIONS, "prompt", ["left out", "", "\ud800", ["a", "b"], [5, 6], 5]),
        (COMPLETIONS, "stop", [5]),
        (RESPONSES, "input", ["left out", 5, [], [5], [{"role": "user", "content": "a"}, {"type": "function_call"}]]),
        (
            RESPONSES,
            "input",
            [[{"role": "user"}], [{"role": "user", "content": "a"}, {"type": "input_text", "text": "a"}]],
        ),
        (RESPONSES, "instructions", [5]),
        (RESPONSES, "max_output_tokens", [0]),
    ],
)
def test_a_field_of_a_wrong_form_is_named(read, path, name, values):
    for value in values:
        body = {field: given for field, given in body_of(read, path, **{name: value}).items() if given != "left out"}
        reply = read.client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
        assert reply.status_code == 400, reply.text
        assert reply.json()["error"]["message"].startswith(name)
        assert "must be" in reply.json()["error"]["message"]


def test_wrong_messages_are_numbered(seen):
    for content in ([{"type": "image_url"}], [{"type": "image_url", "image_url": {}}], [{"type": "text"}], [{}]):
        refused(
            seen,
            "message 1: a part of its content is neither text nor an",
            messages=[{"role": "user", "content": content}],
        )
    refused(seen, "message 1: expected a role", messages=[{"content": "a"}])
    refused(seen, "Server is pinned to 'mine'; requested 'gpt'", model="gpt")


def test_a_body_that_is_no_json_object_is_refused_in_openais_form(read):
    for body in (b"{", b"[]", b"", b'"a"', b"\xff{"):
        reply = read.client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
        assert reply.status_code == 400
        assert reply.json()["error"]["type"] == "invalid_request_error"
        assert "body" in reply.json()["error"]["message"]
    assert read.client.post(CHAT, content=b"{}").json()["error"]["message"].startswith("the body must be a JSON object")
    assert read.client.get("/v1/nothing").json()["error"]["message"] == "Not Found"


def test_earlier_thoughts_are_left_out_and_instructions_are_not_lost(read):
    def answer(given, **more):
        reply = read.client.post(RESPONSES, json=body_of(read, RESPONSES, input=given, **more))
        assert reply.status_code == 200, reply.text
        return reply.json()["output"][0]["content"][0]["text"], reply.json()["usage"]["input_tokens"]

    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    thought = {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    assert answer([turns[0], thought, *turns[1:]]) == answer([thought, *turns]) == answer(turns)
    system = {"role": "system", "content": "short"}
    assert answer(turns, instructions="short") == answer([system, *turns]) != answer(turns)
    refused(read, "instructions: the input starts with", RESPONSES, instructions="long", input=[system, *turns])
