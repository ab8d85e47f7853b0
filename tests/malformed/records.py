"""What eas wrote and reads back: adapters, standalone folders, checkpoints, and the records of steps."""

import copy
import json
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch
from families import attached, build
from safetensors.torch import save_file
from trainers import searcher

from eas import load, prune, save, save_standalone
from eas.attachment.save import CheckpointError
from eas.attachment.state import attached as attached_already
from eas.paper.compare import _read as read_comparison
from eas.pipeline import Run, RunConfig
from eas.records import raised_as
from eas.reports.card import write_card
from eas.training.resuming import check_checkpoint
from eas.weights import Safetensors
from malformed import Case, flipped

LLAMA, ABSENT, DEEP = "LlamaForCausalLM", object(), "[" * 100_000
ADAPTER, STANDALONE = "adapter.safetensors", "model.eas.safetensors"
NOT_A_FILE = {
    "missing": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "a pipe": lambda path: os.mkfifo(path),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path),
}
DAMAGE = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "its end cut": lambda data: data[:-9],
    "a page": lambda data: b"<!DOCTYPE html><html>404</html>",
    "zeros": lambda data: bytes(len(data)),
    "LFS pointer": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
}


@cache
def written(kind):
    """A folder of each kind as it should be; cases change copies of it."""
    folder = Path(tempfile.mkdtemp())
    if kind == "checkpoint":
        searcher(folder, max_steps=4, save_steps=4).train()
        return folder / "checkpoint-4"
    model = attached(LLAMA)
    if kind == "adapter":
        save(model, folder)
    else:
        prune(model)
        save_standalone(model, folder)
    return folder


@cache
def base():
    return build(LLAMA)


@cache
def search():
    return searcher(Path(tempfile.mkdtemp())).search_phase


def check(folder):
    with raised_as(CheckpointError):
        check_checkpoint(folder, searching=True)
    search().load(folder)


def onto_the_base(folder):
    try:
        load(base(), folder)
    finally:
        if attached_already(base()):  # a refused adapter leaves it as it was
            base.cache_clear()


READ = {"adapter": onto_the_base, "standalone": load, "checkpoint": check}


def case(kind, name, change, names, may_read=False):
    """A folder that ``change`` was done to."""

    def make(folder):
        place = folder / written(kind).name
        shutil.copytree(written(kind), place)
        change(place)
        return lambda: READ[kind](place)

    return Case(f"{kind}: {name}", make, names, may_read)


def changed(value, where, new):
    """A value with another one at a path of keys, or without it."""
    value = copy.deepcopy(value)
    place = value
    for key in where[:-1]:
        place = place[key]
    if new is ABSENT:
        del place[where[-1]]
    else:
        place[where[-1]] = new
    return value


def title(where, new):
    return f"{'.'.join(map(str, where))} {'absent' if new is ABSENT else repr(new)[:30]}"


def in_json(kind, file, where, new, names=None):
    def change(folder):
        path = folder / file
        path.write_text(json.dumps(changed(json.loads(path.read_text()), where, new)))

    return case(kind, f"{file} {title(where, new)}", change, names or rf"{file}.*{where[-1]}")


def record_text(name, edit, names=""):
    """The adapter's record, in both its places."""

    def change(folder):
        file = Safetensors([folder / ADAPTER], "")
        tensors, text = dict(file), edit(file.metadata["eas"])
        (folder / ADAPTER).unlink()
        save_file(tensors, folder / ADAPTER, metadata={"eas": text})
        (folder / "eas_config.json").write_text(text)

    return case("adapter", f"record {name}", change, f"{ADAPTER}.*{names}")


def in_record(where, new, names):
    return record_text(title(where, new), lambda text: json.dumps(changed(json.loads(text), where, new)), names)


def in_weights(kind, name, do, names):
    def change(folder):
        path = folder / (ADAPTER if kind == "adapter" else STANDALONE)
        file = Safetensors([path], "")
        tensors = {key: tensor.clone() for key, tensor in file.items()}
        path.unlink()
        save_file(do(tensors), path, metadata=file.metadata)

    return case(kind, f"weights {name}", change, names)


def every(key, new):
    """One tensor, by its key, or all, made another one."""
    return lambda tensors: {k: new(t) if key in (None, k) else t for k, t in tensors.items()}


def files(kind, file, names):
    """A whole file is something else."""

    def replaced(make):
        def change(folder):
            (folder / file).unlink()
            make(folder / file)

        return change

    def damaged(how):
        return lambda folder: (folder / file).write_bytes(how((folder / file).read_bytes()))

    yield from (case(kind, f"{file} {name}", replaced(make), names) for name, make in NOT_A_FILE.items())
    yield from (case(kind, f"{file} {name}", damaged(how), names) for name, how in DAMAGE.items())


def flips(kind, file, may_read):
    for seed in range(4):

        def change(folder, seed=seed):
            (folder / file).write_bytes(flipped((folder / file).read_bytes(), seed))

        yield case(kind, f"{file} with flipped bytes, seed {seed}", change, f"{file}|weights are not those", may_read)


def link_to_the_file(folder):
    """As the Hub's cache keeps it."""
    (folder / ADAPTER).rename(folder.parent / "blob")
    (folder / ADAPTER).symlink_to(folder.parent / "blob")


PIA, FINGERPRINT = "layers.0.skip_pia.down1.weight", "base_fingerprint"
TENSORS = {  # what becomes of one or all tensors, and what the refusal names
    "NaN": (lambda t: t * float("nan"), "NaN or infinite"),
    "infinite": (lambda t: t + float("inf"), "NaN or infinite"),
    "int8": (lambda t: t.to(torch.int8), "of I8"),
    "int64": (lambda t: t.to(torch.int64), "of I64"),
    "bool": (lambda t: t > 0, "of BOOL"),
    "complex": (lambda t: t.to(torch.complex64), "of C64"),
    "8-bit floats": (lambda t: t.to(torch.float8_e4m3fn), "of F8"),
}
SHAPES = {
    "transposed": lambda t: t.T.contiguous(),
    "a number": lambda t: torch.zeros(()),
    "of no rows": lambda t: torch.zeros(0, t.shape[1]),
    "wider": lambda t: torch.zeros(t.shape[0], 2 * t.shape[1]),
}
TYPES = (None, "x", 2.5, True, [], {}, [[0]])
CONFIG = {  # of the method
    "skip_rank": (10**9, 2**20, 1000, -1, 0, 2.5, "4", True, [4], {}),
    "hidden_scale": (1e308, 1e5, 0.0, -1.0, float("nan"), float("inf"), "1"),
    "temperature": (1e-300, 0, -1.0, "10", float("-inf"), True),
    "dropout": (1.0, -0.1, "0", [0.1]),
    "up_groups": (0, 3, 10**12, 1.0),
    "num_skip": (10**9, 4, -1, "2", None),
    "router": ("gate", 1, ["input"]),
    "method": ("nothing", 5, ["eas"], {"a": 1}, None),
    "train_projector": (1, "no", True),
}
KEYS = {"method": "name"}  # as it is typed, and as it is kept
ADAPTERS = [
    *(in_record([key], new, key) for key in ("config", "base", "versions") for new in (*TYPES[:5], ABSENT)),
    *(in_record(["skip_set"], new, "skip.set") for new in (*TYPES[:4], {}, [[0]], ABSENT, "02")),
    *(in_record(["skip_set"], new, "skip set") for new in ([0, 0], [99], [-1], [0, 1, 2, 3])),
    *(in_record(["skip_set"], [0, new], "skip_set") for new in (0.5, True, None, "1")),
    *(in_record(["pruned"], new, "pruned") for new in (None, 0, "no", [], ABSENT)),
    in_record(["pruned"], True, "does not fit its record"),
    *(
        in_record(["base", key], new, key)
        for key in ("hidden_size", "num_hidden_layers", "class", "id")
        for new in (None, 4.5, True, [], ABSENT)
    ),
    *(in_record(["versions"], {"eas": new}, "versions") for new in (None, 1, [])),
    *(
        in_record(["config", KEYS.get(key, key)], new, key.partition("_")[0])
        for key, values in CONFIG.items()
        for new in values
    ),
    in_record(["config", "tau"], 1, "tau"),
    *(
        record_text(name, lambda _, text=name: text)
        for name in ("{", "[]", "null", '{"pruned": false, "pruned": true}')
    ),
    record_text("nested too deep", lambda _: DEEP),
    *(
        in_weights("adapter", f"{name} in {key}", every(key, new), f"{ADAPTER}.*{names}")
        for name, (new, names) in TENSORS.items()
        for key in (None, PIA, FINGERPRINT)
    ),
    *(
        in_weights("adapter", f"{name} in {key}", every(key, new), f"{ADAPTER}.*{key}")
        for name, new in SHAPES.items()
        for key in (PIA, FINGERPRINT)
    ),
    in_weights("adapter", "missing", lambda t: {k: v for k, v in t.items() if k != PIA}, PIA),
    in_weights("adapter", "too many", lambda t: t | {"layers.9.x": torch.zeros(1)}, "layers.9.x"),
    in_weights("adapter", "none", lambda t: {}, "not written by eas.save"),
    *files("adapter", ADAPTER, ADAPTER),
    *files("adapter", "eas_config.json", "eas_config.json"),
    *flips("adapter", ADAPTER, True),
    case("adapter", "a link to the file", link_to_the_file, None),
]
INDEX = "model.safetensors.index.eas.json"


def sharded(weight_map, keep=False):
    def change(folder):
        if not keep:
            (folder / STANDALONE).unlink()
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    return change


SIZES = {
    "num_hidden_layers": (10**6, 10**9, 999, 3, 0, -1, "4", 2.5, True, [4], float("nan")),
    "hidden_size": (10**9, 64, 0, -32, "32", float("inf")),
    "intermediate_size": (10**12, 65, "x"),
    "vocab_size": (10**12, 65, None),
    "num_attention_heads": (0, 3, 10**9),
    "head_dim": (10**9, 7, "8"),
    "num_labels": (10**10,),
    "model_type": (None, 3, "eas_nothing", ["eas_llama"], ABSENT),
}
FOLDER = r"config\.json|standalone folder"
STANDALONES = [
    *(in_json("standalone", "config.json", [key], new, FOLDER) for key in SIZES for new in SIZES[key]),
    *(in_json("standalone", "config.json", ["eas"], new) for new in (*TYPES[:5], {}, ABSENT)),
    *(
        in_json("standalone", "config.json", ["eas", "skip_set"], new, r"config\.json.*skip.set")
        for new in (*TYPES[:4], [[0]], [0.5], [True], ABSENT, [0, 0], [99], [-1])
    ),
    *(in_json("standalone", "config.json", ["eas", "config"], new) for new in (*TYPES[:5], ABSENT)),
    *(
        in_json(
            "standalone",
            "config.json",
            ["eas", "config", KEYS.get(key, key)],
            new,
            f"({FOLDER}).*{key.partition('_')[0]}",
        )
        for key, values in CONFIG.items()
        for new in values
    ),
    *(
        in_weights("standalone", f"{name} in {key}", every(key, new), names)
        for name, (new, names) in TENSORS.items()
        for key in (None, f"model.{PIA}")
    ),
    *(in_weights("standalone", name, every(f"model.{PIA}", new), PIA) for name, new in SHAPES.items()),
    in_weights("standalone", "missing", lambda t: {k: v for k, v in t.items() if k != f"model.{PIA}"}, PIA),
    in_weights("standalone", "too many", lambda t: t | {"model.layers.9.x": torch.zeros(1)}, "layers.9.x"),
    in_weights("standalone", "none", lambda t: {}, "standalone folder"),
    *files("standalone", STANDALONE, STANDALONE),
    *files("standalone", "config.json", r"config\.json"),
    case("standalone", "two sets of weights", sharded({}, keep=True), "two sets of weights"),
    case(
        "standalone", "a shard that is missing", sharded({"lm_head.weight": "model-1.eas.safetensors"}), "model-1.eas"
    ),
    case("standalone", "a shard elsewhere", sharded({"lm_head.weight": "../x.safetensors"}), "x.safetensors"),
    case("standalone", "an index of numbers", sharded({"lm_head.weight": 1}), f"{INDEX}.*weight_map"),
    case("standalone", "an index of a list", sharded([]), f"{INDEX}.*weight_map"),
]


def saved(file, content, names):
    """torch.save wrote something else."""
    shown = repr(content)[:30]
    return case("checkpoint", f"{file} {shown}", lambda folder: torch.save(content, folder / file), f"{file}.*{names}")


def in_optimizer(name, do, names):
    def change(folder):
        state = torch.load(folder / "optimizer.pt", weights_only=True)
        do(state)
        torch.save(state, folder / "optimizer.pt")

    return case("checkpoint", f"optimizer {name}", change, f"optimizer.pt.*({names})")


def in_state(where, names, *values):
    return [in_json("checkpoint", "search_state.json", where, new, f"search_state.json.*({names})") for new in values]


def in_trainer(key, *values):
    return [in_json("checkpoint", "trainer_state.json", [key], new) for new in values]


TORCH = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
CHECKPOINTS = [
    *(c for file in (*TORCH, "trainer_state.json", "search_state.json") for c in files("checkpoint", file, file)),
    *(c for file in TORCH for c in flips("checkpoint", file, False)),
    *files("checkpoint", ADAPTER, ADAPTER),
    *in_trainer("global_step", None, "4", 4.5, True, 5, ABSENT),
    *in_trainer("log_history", None, {}, [1], [{"step": 1, "loss": "x"}], [{"loss": 1.0}]),
    *in_trainer("epoch", "1", [], float("nan"), ABSENT),
    in_json("checkpoint", "trainer_state.json", ["another"], 1),
    *(saved("rng_state.pth", content, "random") for content in ({}, [], {"python": 1}, torch.zeros(3))),
    *(saved("scheduler.pt", content, "(last_epoch|mapping)") for content in ({}, [], {"last_epoch": "3"}, None)),
    saved("optimizer.pt", {}, "state"),
    in_optimizer("of NaN", lambda s: s["state"][0]["exp_avg"].fill_(float("nan")), "exp_avg.*NaN"),
    in_optimizer("of another shape", lambda s: s["state"][0].update(exp_avg=torch.zeros(7, 7)), "shape"),
    in_optimizer("without groups", lambda s: s.pop("param_groups"), "param_groups"),
    in_optimizer("of text", lambda s: s.update(state={"a": {}}), "state"),
    *(c for key in ("rule", "rounds", "seconds") for c in in_state([key], key, None, "x", True, ABSENT)),
    *in_state(["rule", "importance"], "rule.*importance", [], [0.0], ["a"] * 4, None, ABSENT),
    *in_state(["rule", "rng"], "rule.*rng", {}, [], None, {"bit_generator": "MT19937"}),
    *in_state(["rule", "gram"], "rule.*gram", [], [[0.0]], [0.0] * 4, ABSENT),
    *in_state(["rule", "rounds"], "rule.*rounds", "1", True, ABSENT),
    *in_state(["rounds", 0, "skip_sets"], "skip_sets|one loss", [], [[99]] * 3, [[0, 0]] * 3, "x", [[0.5]]),
    *in_state(["rounds", 0, "losses"], "losses|one loss", [], [float("nan")] * 3, "x", None, ABSENT),
    *in_state(["rounds", 0, "importances"], "importances|one importance", [], None, [0.0]),
]
GOOD = {
    "search": {"skip_set": [0, 2], "searched": True, "log": [{"step": 1, "loss": 0.5}], "seconds": 1.0},
    "tune": {"log": [{"step": 1, "loss": 0.5}], "seconds": 1.0},
    "fold": {"mode": None},
    "eval": {"score": {"tuned": 0.5}, "answers": {"tuned": {"1": "a"}}, "report": {"tuned": {}}},
    "measure": {"counts": {"base": {}}, "latency": {}},
}


def run_step(folder, name):
    return Run(RunConfig(output_dir=str(folder))).require(name)


def comparison(folder):
    return read_comparison(folder / "comparison.json")


def card(folder):
    (folder / "result.json").write_text("{}")
    return write_card(folder)


def text_of(read, file, text, names):
    """A record in JSON, read by ``read(folder)``."""

    def make(folder):
        (folder / file).parent.mkdir(exist_ok=True)
        if text is None:
            (folder / file).mkdir()
        else:
            (folder / file).write_text(text)
        return lambda: read(folder)

    return Case(f"{file}: {'a folder' if text is None else text[:70]}", make, names)


def of_step(name, text, names):
    return text_of(lambda folder: run_step(folder, name), f"{name}.json", text, names)


BROKEN = ("{", "", "[]", "null", '{"a": 1, "a": 2}', DEEP, None)
STEPS = [
    *(of_step(name, json.dumps(good), None) for name, good in GOOD.items()),
    *(of_step(name, text, f"{name}.json") for name in GOOD for text in BROKEN),
    *(
        of_step(name, json.dumps({key: new} | {k: v for k, v in good.items() if k != key}), f"{name}.json.*{key}")
        for name, good in GOOD.items()
        for key in good
        for new in ("x", True, [None], [[0]])
        if (key, new) not in (("searched", True), ("mode", "x"))
    ),
    *(
        text_of(read, file, text, file.rpartition("/")[2])
        for read, file, more in (
            (comparison, "comparison.json", ('{"latency": 3}', '{"latency": {}}')),
            (card, "adapter/eas_config.json", ("{}", '{"base": []}')),
        )
        for text in (*BROKEN, *more)
    ),
]
CASES = [*ADAPTERS, *STANDALONES, *CHECKPOINTS, *STEPS]
