"""`eas serve --engine vllm`: the model is exported once and handed to vLLM's server; what is missing is named first."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import pytest
import torch
from exports import EXPORTED, base, shaken, words
from safetensors import safe_open
from safetensors.torch import save_file
from test_serve import TEMPLATE
from test_vllm import CACHE, HEADS, PYTHON
from typer.testing import CliRunner

import eas
from eas.attachment.load import load_base
from eas.cli import app
from eas.pipeline import serve_vllm

PLUGIN_SOURCE = Path(__file__).parents[1] / "plugins/eas-vllm/src"
READY = {"vllm": True, "plugins": [["eas", "eas_vllm:register"]]}


@pytest.fixture
def adapter(tmp_path):
    """Of a base that lies beside it."""
    model, tokenizer = shaken(base(**HEADS)), words()
    tokenizer.chat_template = TEMPLATE
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "base")
    model = eas.attach(load_base(str(tmp_path / "base")), eas.EASConfig(num_skip=2, **EXPORTED))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.2)
    eas.select(model, (0, 3))
    eas.prune(model)
    eas.save(model, tmp_path / "mine")
    return tmp_path / "mine"


def fake(path, answer):
    """A Python that says this of itself."""
    path.write_text(f"#!/bin/sh\necho '{answer}'\n")
    path.chmod(0o755)
    return str(path)


def serve(model, *more):
    return CliRunner().invoke(app, ["serve", str(model), "--port", "0", *more])


def test_what_is_missing_is_named_before_the_model_is_opened(tmp_path, monkeypatch):
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)

    def said(*more):
        return str(serve("nowhere", *more).exception)

    for more in (("--python", "python"), ("--", "--seed", "1")):
        assert "add --engine vllm" in said(*more)
    vllm = ("--engine", "vllm")
    assert "name the Python of vLLM's environment with --python" in said(*vllm)
    for no in (str(tmp_path / "no"), str(tmp_path), fake(tmp_path / "words", "hello")):
        assert re.match(rf"--python {no}: no Python runs there \(.*ENVIRONMENT/bin/python", said(*vllm, "--python", no))
    if find_spec("vllm") is None:
        assert f"{sys.executable} -m pip install vllm" in said(*vllm, "--python", sys.executable)
    bare = fake(tmp_path / "bare", json.dumps({**READY, "plugins": [["other", "other:register"]]}))
    assert "bare -m pip install ./plugins/eas-vllm" in said(*vllm, "--python", bare)
    ready = fake(tmp_path / "ready", json.dumps(READY))
    assert "nowhere" in said(*vllm, "--python", ready)
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    assert "VLLM_PLUGINS = 'other' leaves the plugin out; add 'eas' to it" in said(*vllm, "--python", ready)


def test_a_model_is_exported_once_and_vllm_gets_the_command(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(serve_vllm, "HF_HOME", str(tmp_path / "hub"))
    commands = []

    def become(file, told):
        commands.append(told)
        raise SystemExit

    monkeypatch.setattr(os, "execvp", become)
    python = fake(tmp_path / "python", json.dumps(READY))

    def folder(*more):
        done = serve(adapter, "--engine", "vllm", "--python", python, *more)
        assert done.exit_code == 0, done.exception
        return commands[-1][commands[-1].index("--model") + 1]

    first = folder("--name", "m", "--host", "127.0.0.1", "--", "--max-model-len", "64")
    assert commands[0][:3] == [python, "-m", "eas_vllm.server"]
    port = commands[0][commands[0].index("--port") + 1]
    told = f"--served-model-name m --dtype bfloat16 --host 127.0.0.1 --port {port} --max-model-len 64"
    assert " ".join(commands[0]).endswith(told)
    assert int(port) > 0
    written = os.stat(first).st_ino
    shutil.copytree(adapter, tmp_path / "copy")
    assert folder() == first == str(serve_vllm.exported(str(tmp_path / "copy")))
    assert os.stat(first).st_ino == written
    tokenizer = tmp_path / "base" / "tokenizer_config.json"
    others = [first, folder("--dtype", "float32"), folder("--processor", str(tmp_path / "base"))]
    for name, other in (("REVISION", 0), ("library_versions", lambda: {"eas": "another"})):
        with monkeypatch.context() as patched:
            patched.setattr(serve_vllm, name, other)
            others.append(folder())
    tokenizer.write_text(tokenizer.read_text() + " ")
    others.append(folder())
    with safe_open(adapter / "adapter.safetensors", "pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    name = next(key for key in tensors if "up" in key)
    tensors[name] = tensors[name] + 1
    save_file(tensors, adapter / "adapter.safetensors", metadata=metadata)
    others.append(folder())
    assert len(set(others)) == 7
    os.truncate(f"{first}/model.safetensors", 100)
    shutil.copytree(tmp_path / "copy", adapter, dirs_exist_ok=True)
    tokenizer.write_text(tokenizer.read_text()[:-1])
    done = serve(adapter, "--engine", "vllm", "--python", python)
    assert "model.safetensors is not the file that was written" in str(done.exception)


def test_what_vllm_cannot_express_is_refused_as_in_export(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(serve_vllm, "HF_HOME", str(tmp_path / "hub"))
    model = eas.attach(load_base(str(tmp_path / "base")), eas.EASConfig(num_skip=1, skip_rank=8, adapt_rank=4))
    eas.select(model, [1])
    eas.save(model, tmp_path / "other")
    reasons = next(row.reasons for row in eas.explain(model) if row.engine == "vllm")
    done = serve(tmp_path / "other", "--engine", "vllm", "--python", fake(tmp_path / "python", json.dumps(READY)))
    assert "; ".join(reasons) in str(done.exception)
    assert not list((tmp_path / "hub" / "eas").glob("vllm-*[!.lock]"))


vllm = pytest.mark.skipif(not PYTHON.is_file(), reason=f"needs vLLM, {PYTHON}; `make test-vllm` installs it")
CLIENT = """
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0, timeout=300)
texts = json.loads(sys.argv[2])
given = {"model": "mine", "temperature": 0, "max_tokens": 12}
chat = {**given, "messages": [{"role": "user", "content": texts[0]}]}
with ThreadPoolExecutor(len(texts)) as pool:
    replies = list(pool.map(lambda text: client.completions.create(prompt=text, **given), texts))
pieces = [piece.choices[0].delta.content for piece in client.chat.completions.create(stream=True, **chat)]
answers = {
    "texts": [reply.choices[0].text for reply in replies],
    "chat": client.chat.completions.create(**chat).choices[0].message.content,
    "pieces": [piece for piece in pieces if piece],
}
print(json.dumps(answers))
"""
"""OpenAI's own client, which vLLM's environment has: eight requests at once, a chat, and a chat in pieces."""


@contextmanager
def in_a_terminal(command, log, **more):
    """A process that heads a group, as in a shell's foreground, and hears Ctrl-C, which the background ignores."""

    def hear():
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, process_group=0, preexec_fn=hear, **more)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def wait_for(text, process, log):
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)


def ended(process, number):
    """The exit status after a signal to the group; none of the process's children is left then."""
    started = psutil.Process(process.pid).children(recursive=True)
    assert started
    os.killpg(process.pid, number)
    status = process.wait(60)
    assert not psutil.wait_procs(started, timeout=0)[1]
    return status


@contextmanager
def serving(adapter, tmp_path):
    """A server and its log."""
    command = [sys.executable, "-m", "eas", "serve", str(adapter), "--port", "0", "--name", "mine"]
    command += ["--dtype", "float32", "--engine", "vllm", "--python", str(PYTHON)]
    command += ["--", "--enforce-eager", "--max-model-len", "256"]
    quiet = {"OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **quiet, "HF_HOME": str(tmp_path / "hub"), "VLLM_CACHE_ROOT": CACHE}
    with in_a_terminal(command, tmp_path / "log", env=environment) as process:
        yield process, tmp_path / "log"


@vllm
def test_openais_client_gets_from_vllm_what_eas_answers(adapter, tmp_path):
    texts = [f"{'the ' * i}cat {i} is" for i in range(8)]
    with serving(adapter, tmp_path) as (process, log):
        asked = [PYTHON, "-c", CLIENT, ready(process, log), json.dumps(texts)]
        found = json.loads(subprocess.run(asked, check=True, capture_output=True, timeout=300).stdout)
        assert ended(process, signal.SIGINT) == 0
    for noise in ("Traceback", "leaked function"):
        assert noise not in log.read_text()
    model, tokenizer = eas.load(str(tmp_path / "base"), adapter).eval(), words()

    def want(text):
        batch = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        tokens = model.generate(**batch, max_new_tokens=12, do_sample=False)[0, batch["input_ids"].shape[1] :]
        return tokenizer.decode(tokens, skip_special_tokens=True)

    assert found["texts"] == [want(text) for text in texts]
    assert found["chat"] == "".join(found["pieces"]) == want(f"user: {texts[0]}\nassistant:")
    assert len(found["pieces"]) > 1


@vllm
def test_a_server_that_starts_can_be_stopped(adapter, tmp_path):
    with serving(adapter, tmp_path) as (process, log):
        wait_for("(EngineCore pid=", process, log)  # vLLM has two processes then, and does not serve yet
        assert ended(process, signal.SIGTERM) == 0
    assert "Traceback" not in log.read_text()


STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", deaf])
if sys.argv[1] == "serve":
    os.kill(os.getppid(), signal.SIGUSR1)
time.sleep(60)
"""
"""A server, and a child of it that hears nothing; one that says when it serves, and one that never does."""


@pytest.mark.parametrize("state", ["serve", "start"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_of_a_server_is_left(state, number, tmp_path):
    code = "import sys; from eas_vllm.server import supervised; sys.exit(supervised(sys.argv[1:], grace=0.5))"
    command = [sys.executable, "-c", code, sys.executable, "-c", STUBBORN, state]
    environment = {**os.environ, "PYTHONPATH": str(PLUGIN_SOURCE)}
    with in_a_terminal(command, tmp_path / "log", env=environment) as process:
        wait_for("up", process, tmp_path / "log")
        assert ended(process, number) == 0
    assert (tmp_path / "log").read_text() == "up\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent was killed")
def test_a_server_ends_when_who_started_it_is_killed(tmp_path):
    code = "import sys; from eas_vllm.server import supervised; supervised(sys.argv[1:])"
    command = [sys.executable, "-c", code, sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
    environment = {**os.environ, "PYTHONPATH": str(PLUGIN_SOURCE)}
    with in_a_terminal(command, tmp_path / "log", env=environment) as process:
        wait_for("up", process, tmp_path / "log")
        started = psutil.Process(process.pid).children()
        process.kill()
        assert len(started) == len(psutil.wait_procs(started, timeout=10)[0]) == 1


@pytest.mark.parametrize(("code", "status"), [("exit(3)", 3), ("import os; os.abort()", 134)])
def test_a_server_that_ends_by_itself_gives_its_status(code, status):
    told = [
        sys.executable,
        "-c",
        "import sys; from eas_vllm.server import supervised; sys.exit(supervised(sys.argv[1:]))",
    ]
    environment = {**os.environ, "PYTHONPATH": str(PLUGIN_SOURCE)}
    assert subprocess.run([*told, sys.executable, "-c", code], env=environment, timeout=60).returncode == status


def ready(process, log):
    """The address of a server, as soon as it answers."""
    while process.poll() is None:
        said = re.search(r"serving mine at (http://localhost:\d+/v1) as soon as vLLM is ready; Ctrl-C", log.read_text())
        try:
            if said and json.load(urlopen(f"{said[1]}/models"))["data"][0]["id"] == "mine":
                return said[1]
        except URLError:
            pass
        time.sleep(1)
    raise AssertionError(log.read_text())
