"""`eas serve`: OpenAI's own client gets the answers that the model gives to the prompts of tuning."""

from __future__ import annotations

import base64
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from io import BytesIO
from types import SimpleNamespace
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import torch
from exports import EXPORTED, shaken, tuned, words
from PIL import Image
from test_pipeline import SHORT
from typer.testing import CliRunner

import eas
from eas.cli import app
from eas.config import ConfigError
from eas.data.scenes import scenes
from eas.demo.tiny import load_tiny
from eas.example import DataError, Example
from eas.methods.lora import lora_layers
from eas.pipeline import STEPS, Run, RunConfig
from eas.pipeline import serve as serving
from eas.tasks.evaluation import answer

missing = [package for package in serving.NEEDS if find_spec(package) is None]
server = pytest.mark.skipif(bool(missing), reason=f"needs {' and '.join(missing)}; pip install 'eas[serve]'")
CONFIG = eas.EASConfig(num_skip=3, skip_rank=8, adapt_rank=4)
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


@contextmanager
def running(model, processor, name="mine"):
    """A client of a server in this process."""
    import openai
    import uvicorn

    with serving.listening("localhost", 0) as socket:
        config = uvicorn.Config(serving.application(model, processor, name), log_level="warning")
        engine = uvicorn.Server(config)
        thread = threading.Thread(target=engine.run, kwargs={"sockets": [socket]})
        thread.start()
        at = f"http://localhost:{socket.getsockname()[1]}/v1"
        try:
            yield openai.OpenAI(base_url=at, api_key="none", max_retries=0, timeout=300)
        finally:
            engine.should_exit = True
            thread.join()


def url(image):
    with BytesIO() as file:
        image.save(file, "PNG")
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def parts(example):
    images = [{"type": "image_url", "image_url": {"url": url(image)}} for image in example.load_images()]
    return [{"role": "user", "content": [*images, {"type": "text", "text": example.question}]}]


def ask(client, messages, tokens=6, **more):
    given = {"model": "mine", "temperature": 0, "max_tokens": tokens, **more}
    return client.chat.completions.create(messages=messages, **given)


@pytest.fixture(scope="module")
def seen():
    """The tiny LLaVA, tuned at random and folded, with its client and questions about pictures."""
    model, processor = load_tiny()
    model = shaken(eas.attach(model, CONFIG))
    eas.select(model, [2, 5, 7])
    eas.prune(model)
    eas.fold(model)
    model.generation_config.min_new_tokens = 6  # its own answers have one word
    with running(model, processor) as client:
        yield SimpleNamespace(
            model=model, processor=processor, client=client, examples=list(scenes("colour", "test", 4))
        )


def expected(seen, examples, tokens=6):
    """What ``generate`` gives, one example after the other."""
    texts, collate = [], serving.Collator(seen.processor, training=False)
    for example in examples:
        batch = serving.inputs(collate, parts(example))
        new = seen.model.generate(**batch, max_new_tokens=tokens, do_sample=False)[0, batch["input_ids"].shape[1] :]
        texts.append(collate.tokenizer.decode(new, skip_special_tokens=True).strip())
    return texts


@server
def test_an_image_and_a_question_get_the_models_answer(seen):
    want = expected(seen, seen.examples)
    assert len(set(want)) > 1
    for example, text in zip(seen.examples, want, strict=True):
        got = ask(seen.client, parts(example))
        assert got.choices[0].message.content.strip() == text
        assert got.model == "mine"
    assert got.usage.completion_tokens <= 6
    batch = serving.inputs(serving.Collator(seen.processor, training=False), parts(example))
    assert got.usage.prompt_tokens == batch["input_ids"].shape[1]


@server
def test_streamed_pieces_are_the_same_answer(seen):
    pieces = list(ask(seen.client, parts(seen.examples[0]), stream=True))
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert len([piece for piece in pieces if piece.choices[0].delta.content]) > 1
    assert text.strip() == expected(seen, seen.examples[:1])[0]


@server
def test_requests_at_once_do_not_mix(seen):
    """Each prompt has statistics of its own."""
    want = expected(seen, seen.examples, 12)
    with ThreadPoolExecutor(4) as pool:
        plain = pool.map(lambda e: ask(seen.client, parts(e), 12).choices[0].message.content, seen.examples)
        streams = pool.map(lambda e: list(ask(seen.client, parts(e), 12, stream=True)), seen.examples)
        got = [text.strip() for text in plain]
        joined = ["".join(p.choices[0].delta.content or "" for p in pieces).strip() for pieces in streams]
    assert got == joined == want


@server
def test_the_other_interfaces_answer_too(seen):
    example = seen.examples[0]
    content = [
        {"type": "input_image", "image_url": url(example.load_images()[0])},
        {"type": "input_text", "text": example.question},
    ]
    got = seen.client.responses.create(
        model="mine", input=[{"role": "user", "content": content}], temperature=0, max_output_tokens=6
    )
    assert got.output_text.strip() == expected(seen, [example])[0]
    events = seen.client.responses.create(model="mine", input=example.question, max_output_tokens=6, stream=True)
    assert [event.delta for event in events if event.type == "response.output_text.delta"]
    prompt = seen.processor.tokenizer("question : what is red ? answer :", return_tensors="pt")
    tokens = seen.model.generate(**prompt, max_new_tokens=6, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    text = seen.client.completions.create(
        model="mine", prompt="question : what is red ? answer :", max_tokens=6, temperature=0
    )
    assert text.choices[0].text == seen.processor.tokenizer.decode(tokens, skip_special_tokens=True)


@server
def test_the_server_has_one_model_and_keeps_it(seen):
    import openai

    def post(path, body):
        with urlopen(Request(root + path, body.encode(), {"Content-Type": "application/json"})) as reply:
            return reply.read().decode()

    assert [model.id for model in seen.client.models.list()] == ["mine"]
    with pytest.raises(openai.BadRequestError, match="pinned to 'mine'; requested 'gpt'"):
        ask(seen.client, parts(seen.examples[0]), model="gpt")
    root = str(seen.client.base_url).removesuffix("v1/")
    post("reset", "")
    assert "this server has 'mine'" in post("load_model", '{"model": "gpt"}')
    assert '"ready"' in post("load_model", '{"model": "mine"}')
    with pytest.raises(HTTPError, match="404"):
        post("v1/systemone", "{}")
    assert ask(seen.client, parts(seen.examples[0])).choices[0].message.content


@server
def test_a_wrong_request_is_told_what_is_wrong(seen, tmp_path):
    import openai

    path = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(path)

    def refused(content, match, **more):
        with pytest.raises(openai.BadRequestError, match=match):
            ask(seen.client, [{"role": "user", "content": content}], **more)

    def image(source):
        return [{"type": "image_url", "image_url": {"url": source}}]

    refused(image(str(path)), "send the image itself")
    refused(image(f"file://{path}"), "send the image itself")
    refused(image("http://localhost/a.png"), "send the image itself")
    refused(image("data:image/png;base64,AAAA"), "image cannot be read")
    refused(image("data:image/png;base64,***"), "image cannot be read")
    refused([{"type": "input_audio", "input_audio": {}}], "neither text nor an image")
    refused("what is <image> ?", "1 <image> for 0 images")
    refused("hi", "tools", tools=[{"type": "function", "function": {"name": "f"}}])
    refused("hi", "prompts are made as in tuning", extra_body={"chat_template_kwargs": {"enable_thinking": True}})
    with pytest.raises(openai.BadRequestError, match="the last message must be the user's"):
        ask(seen.client, [{"role": "assistant", "content": "hi"}])


@server
def test_a_text_model_starts_as_in_tuning_and_refuses_images():
    """Its template writes no first token, its tokenizer does: transformers' server would leave it out."""
    import openai
    from tokenizers import processors

    model, tokenizer = tuned(config=eas.EASConfig(num_skip=2, **EXPORTED)), words()
    tokenizer.chat_template = TEMPLATE
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    eas.fold(model)
    with running(model, tokenizer) as client:
        got = ask(client, [{"role": "system", "content": "short"}, {"role": "user", "content": "the cat"}], 8)
        batch = tokenizer("system: short\nuser: the cat\nassistant:", return_tensors="pt", return_token_type_ids=False)
        assert batch["input_ids"][0, 0] == 0
        tokens = model.generate(**batch, max_new_tokens=8, do_sample=False)[0, batch["input_ids"].shape[1] :]
        assert got.choices[0].message.content == tokenizer.decode(tokens, skip_special_tokens=True)
        assert got.usage.prompt_tokens == batch["input_ids"].shape[1]
        with pytest.raises(openai.BadRequestError, match="a tokenizer alone reads none"):
            ask(client, parts(Example.ask("a", "what ?", "", Image.new("RGB", (8, 8)))))


def test_messages_become_an_example():
    picture = url(Image.new("RGB", (4, 4), "red"))
    found = serving.example(
        [
            {"role": "developer", "content": "short"},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": picture}}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
            {"role": "user", "content": "b"},
        ]
    )
    assert [message["role"] for message in found.messages] == ["system", "user", "assistant", "user"]
    assert found.load_images()[0].getpixel((0, 0)) == (255, 0, 0)
    assert found.question == "b"
    for wrong in ([], [{"role": "tool", "content": "a"}], [{"role": "user"}], [{"role": "user", "content": 3}], ["a"]):
        with pytest.raises(DataError, match=r"messages?\b"):
            serving.example(wrong)


# folders


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "my run"
    found = Run.create(
        RunConfig().with_overrides(SHORT).with_values({"output_dir": str(folder), "skip_set": [1, 3, 4, 5]})
    )
    for step in ("search", "tune"):
        STEPS[step](found)
    return folder


def test_every_folder_opens_folded(run, tmp_path):
    whole, processor = serving.served(str(run))
    assert whole.eas.fold_mode is not None
    adapter, _ = serving.served(str(run / "adapter"))
    assert adapter.eas.fold_mode == whole.eas.fold_mode
    eas.unfold(adapter)
    eas.save_standalone(adapter, tmp_path / "standalone")
    processor.save_pretrained(tmp_path / "standalone")
    standalone, _ = serving.served(str(tmp_path / "standalone"))
    base, own = serving.served("tiny", dtype="bfloat16")
    assert base.dtype == torch.bfloat16
    assert serving.served(str(run), dtype="bfloat16")[0].dtype == torch.bfloat16
    examples = list(scenes("colour", "test", 3))
    want = answer(whole, processor, examples, batch_size=1, max_new_tokens=3)
    for model in (adapter, standalone):
        assert answer(model, own, examples, batch_size=1, max_new_tokens=3) == want


def test_greedy_answers_are_those_of_scores(run):
    model, processor = serving.served(str(run))
    assert processor.tokenizer.eos_token_id in model.generation_config.eos_token_id
    own = {"repetition_penalty": 3.0, "no_repeat_ngram_size": 1, "num_beams": 2, "min_length": 9, "min_new_tokens": 9}
    model.generation_config.update(eos_token_id=7, pad_token_id=None, do_sample=True, **own)
    serving.answer_as_scored(model, processor)
    assert not own.items() & model.generation_config.to_dict().items()
    assert model.generation_config.do_sample  # where a request names no temperature
    assert model.generation_config.eos_token_id == [7, processor.tokenizer.eos_token_id]
    assert model.generation_config.pad_token_id == processor.tokenizer.pad_token_id


def test_a_run_that_is_not_tuned_is_refused(tmp_path):
    RunConfig().with_values({"output_dir": str(tmp_path)}).to_file(tmp_path / "run.yaml")
    with pytest.raises(ConfigError, match=r"has no tune.json; run `eas tune"):
        serving.served(str(tmp_path))


def test_a_model_without_words_is_refused(tmp_path):
    load_tiny()[0].save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="neither a processor nor a tokenizer; name one with --processor"):
        serving.served(str(tmp_path))
    assert serving.served(str(tmp_path), processor="tiny")[1].tokenizer.eos_token == "</s>"


# the command


def test_a_missing_package_is_named_first(monkeypatch):
    monkeypatch.setattr(serving, "find_spec", lambda name: None if name == "uvicorn" else "found")
    done = CliRunner().invoke(app, ["serve", "tiny"])
    assert str(done.exception) == "eas serve needs uvicorn; pip install 'eas[serve]'"


def test_a_port_that_is_taken_is_said_before_the_model_is_loaded(monkeypatch):
    monkeypatch.setattr(serving, "find_spec", lambda name: "found")
    with serving.listening("localhost", 0) as taken:
        port = str(taken.getsockname()[1])
        done = CliRunner().invoke(app, ["serve", "nowhere", "--port", port])
    assert re.search(rf"cannot listen at localhost:{port} \(.*in use.*name another --port", str(done.exception))
    with pytest.raises(ConfigError, match=r"cannot listen at nowhere\.invalid:0"):
        serving.listening("nowhere.invalid", 0)


@server
def test_the_command_serves_a_run_under_its_name(run):
    import openai

    command = [sys.executable, "-m", "eas", "serve", str(run), "--port", "0"]

    def hear_ctrl_c():  # what runs in the background ignores it
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c) as process:
        try:
            line = process.stderr.readline()
            said = re.fullmatch(r"serving my run at (http://localhost:\d+/v1); Ctrl-C stops it\n", line)
            assert said, line + process.stderr.read()
            client = openai.OpenAI(base_url=said[1], api_key="none", max_retries=0, timeout=300)
            example = next(iter(scenes("colour", "test", 1)))
            got = ask(client, parts(example), 3, model="my run").choices[0].message.content
            model, processor = serving.served(str(run))
            assert got.strip() == answer(model, processor, [example], batch_size=1, max_new_tokens=3)[0].text
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130
        assert "Traceback" not in process.stderr.read()


@server
def test_a_folder_that_is_not_there_is_named(tmp_path):
    done = CliRunner().invoke(app, ["serve", str(tmp_path / "none"), "--port", "0"])
    assert str(tmp_path / "none") in str(done.exception)


def test_what_is_served_has_plain_maps_and_weights_of_its_own(tmp_path):
    model, _ = load_tiny()
    eas.save(eas.attach(model, eas.LoRAConfig(2)), tmp_path / "adapter")
    found, _ = serving.served(str(tmp_path / "adapter"))
    assert not [*lora_layers(found)]
    assert not any(weight.data_ptr() % 64 for weight in found.parameters())
