"""Flags, ``-o`` values, YAML and JSON of runs and comparisons, and the ``config.json`` of models."""

import json
import random

from typer.testing import CliRunner

from eas import cli
from eas.attachment.load import load_base
from eas.config import ConfigError, read_yaml
from eas.keys import as_typed
from eas.measure.count import count
from eas.models.folder import TINY_DIR
from eas.paper.compare_config import CompareConfig
from eas.pipeline import RunConfig
from malformed import Case, flipped

DEEP = "[" * 3000 + "]" * 3000
BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
MERGES = "a: &a {x: 1}\n" + "".join(f"b{i}: &b{i} {{<<: [*a, *a]}}\n" for i in range(3))


def said(*arguments):
    """What the command line says, as one error."""
    ended = CliRunner().invoke(cli.app, list(arguments))
    if ended.exit_code == 2:
        raise ConfigError(ended.output)
    if isinstance(ended.exception, ValueError | TypeError | FloatingPointError | OSError):  # as eas.cli.main
        if "\n" in str(ended.exception):
            raise RuntimeError("more than a line") from ended.exception
        raise ConfigError(as_typed(str(ended.exception), arguments[0])) from ended.exception
    if ended.exception is not None:
        raise ended.exception


def command(name, names, *arguments):
    return Case(name, lambda folder: lambda: said(*(a.format(folder=folder) for a in arguments)), names)


def override(name, text, names):
    """A value of ``-o``, in a run that has to skip something."""
    return Case(
        f"-o: {name}", lambda folder: lambda: said("search", str(folder / "run"), "--skip", "2", "-o", text), names
    )


def settings(name, content, names, rest="run.yaml", may_read=False):
    """A file of settings."""

    def make(folder):
        (folder / rest).write_bytes(content if isinstance(content, bytes) else content.encode())
        return lambda: RunConfig.from_file(folder / rest)

    return Case(f"file: {name}", make, names, may_read)


def comparison(name, values, names):
    def make(folder):
        (folder / "compare.yaml").write_text(json.dumps(values))
        return lambda: CompareConfig.from_file(folder / "compare.yaml")

    return Case(f"comparison: {name}", make, rf"compare\.yaml: .*{names}")


def model(name, names, text=None, **values):
    """A model's folder, whose configuration is the tiny one's with other values."""

    def make(folder):
        config = json.loads((TINY_DIR / "config.json").read_text())
        for key, value in values.items():
            *path, last = key.split("__")
            at = config
            for part in path:
                at = at[part]
            at[last] = value
        (folder / "config.json").write_text(json.dumps(config) if text is None else text)
        return lambda: load_base(str(folder))

    return Case(f"model: {name}", make, rf"config\.json.*{names}")


def flips():
    """A run's own file with a few bytes changed: what is refused names the file."""
    whole = json.dumps(RunConfig().to_dict(), indent=1).encode()
    return [
        settings(f"{suffix}, bytes flipped {seed}", flipped(whole, seed), rf"run\.{suffix}", f"run.{suffix}", True)
        for seed in range(40)
        for suffix in ("yaml", "json")
    ]


def random_values():
    """A value of another kind at a key of a run."""
    draw = random.Random(0)
    odd = [None, True, -1, 0, 1.5, 1e300, 10**18, 2**70, "", "x", "\0", [], [None], {}, {"a": 1}, [[1]], "😀"]
    cases = []
    for key, default, _ in RunConfig().describe():
        for value in draw.sample(odd, 3):
            *path, last = key.split(".")
            given = {last: value}
            for part in reversed(path):
                given = {part: given}
            if value != default:
                name = f"{key} = {value!r}"
                cases.append(settings(name, json.dumps(given), rf"run\.json: .*{last}|method", "run.json", True))
    return cases


CASES = [
    command("no such model", "nowhere/m", "search", "{folder}/run", "--model", "nowhere/m", "--skip", "1"),
    command("a model of no name", "model", "search", "{folder}/run", "--model", "", "--skip", "1"),
    command("data of no name", "data", "search", "{folder}/run", "--data", "", "--skip", "1"),
    command("no such data", "unknown data 'nowhere'", "search", "{folder}/run", "--data", "nowhere", "--skip", "1"),
    command("no such task", "task 'nothing'", "search", "{folder}/run", "--data", "scenes:nothing", "--skip", "1"),
    command("no such method", "method 'loar'", "search", "{folder}/run", "--method", "loar"),
    command("skip, a word", "--skip", "search", "{folder}/run", "--skip", "many"),
    command("skip, negative", "num_skip.*--skip", "search", "{folder}/run", "--skip", "-1"),
    command("skip, a fraction", "--skip", "search", "{folder}/run", "--skip", "1.5"),
    command("skip, all", "--skip.*12 attentions", "search", "{folder}/run", "--skip", "12"),
    command("skip, huge", "--skip", "search", "{folder}/run", "--skip", "9" * 30),
    command("a missing configuration", "none.yaml cannot be read", "search", "{folder}/run", "--config", "none.yaml"),
    command("a device as configuration", "/dev/zero", "search", "{folder}/run", "--config", "/dev/zero"),
    command("a folder as configuration", "cannot be read", "search", "{folder}/run", "--config", "{folder}"),
    command("no run", "holds no run.yaml", "tune", "{folder}"),
    command("no run to fold", "holds no run.yaml", "fold", "{folder}"),
    command("no run to evaluate", "holds no run.yaml", "eval", "{folder}"),
    command("no run to measure", "holds no run.yaml", "measure", "{folder}"),
    command("no run to ask", "holds no run.yaml", "generate", "{folder}", "--prompt", "x"),
    command("no run to predict", "holds no run.yaml", "predict", "{folder}", "q.jsonl", "--output", "{folder}/o"),
    command("no run for a frontier", "holds no run.yaml", "frontier", "{folder}"),
    command("measure, words", "--measure a,b", "frontier", "{folder}", "--measure", "a,b"),
    command("nothing to report", "result.json is missing", "report", "{folder}"),
    command("nothing to count", "neither a folder nor a shape", "count", "llava-8b"),
    command("count without a configuration", "config.json", "count", "{folder}"),
    command("count, skip set of words", "--skip-set a", "count", "tiny", "--skip-set", "a"),
    command("count, skip set outside", "99", "count", "tiny", "--skip-set", "99"),
    command("count, skip and set", "k = 3 and a skip_set of 2", "count", "tiny", "--skip", "3", "--skip-set", "1,2"),
    command("count, no tokens", "prompt_tokens = 0", "count", "tiny", "--prompt-tokens", "0"),
    command("count, negative images", "images = -1", "count", "tiny", "--images", "-1"),
    command("count, grid", "--patch-grid 3", "count", "tiny", "--patch-grid", "3"),
    command("count, dtype", "--dtype int3", "count", "tiny", "--dtype", "int3"),
    command("count, convention", "convention 'x'", "count", "tiny", "--convention", "x"),
    command("count, fold", "--fold merged", "count", "tiny", "--fold", "merged"),
    command("count, unknown key", "rnak", "count", "tiny", "--method", "lora", "-o", "rnak=3"),
    command("count, no value", "-o rank: write", "count", "tiny", "--method", "lora", "-o", "rank"),
    command("count, half a list", "-o rank: the value is not YAML", "count", "tiny", "-o", "rank=[1"),
    command("bench, sizes", "--batch-sizes 1,x", "bench", "llava-0.5b", "--batch-sizes", "1,x"),
    command("bench, size 0", "--batch-sizes = ", "bench", "llava-0.5b", "--batch-sizes", "0"),
    command("bench, variants", "--variants", "bench", "llava-0.5b", "--variants", "base,none"),
    command("bench, prompt", "--prompt = 1", "bench", "llava-0.5b", "--prompt", "1"),
    command("bench, model", "MODEL = 'nothing'", "bench", "nothing", "--output", "{folder}/b.json"),
    command("reproduce, table", "table9", "reproduce", "table9", "--output-dir", "{folder}"),
    command("reproduce, data untrained", "add --train", "reproduce", "table1", "--data", "x"),
    command("data options without a prefix", "-o a=1", "data", "check", "scenes:odd", "-o", "a=1"),
    command("data options unknown", "data_options has no key", "data", "check", "x.json", "-o", "data_options.q=1"),
    command("an unknown verb", "serch", "serch"),
    command("an unknown flag", "--modle", "search", "{folder}/run", "--modle", "x"),
    override("half a list", "skip_set=[1,2", r"-o skip_set: .*not YAML"),
    override("half a text", 'metric="x', r"-o metric: .*not YAML"),
    override("no value", "metric", r"-o metric: write key=value"),
    override("no key", "=3", r"there is no key ''"),
    override("no section", "nothing.x=3", r"-o nothing\.x: there is no section 'nothing'"),
    override("a section's value", "train=3", "train = 3: must be a mapping"),
    override("too deep", f"skip_set={DEEP}", "-o skip_set: .*nested deeper than"),
    override("too long", f"metric={'x' * 1_500_000}", "-o metric: .*longer than"),
    override("a long word", f"metric={'x' * 100_000}", r"metric = 'xxx.*characters\)"),
    override("python", "metric=!!python/object/apply:os.system [ls]", "-o metric: .*not YAML"),
    override("a tag that does not fit", "seed=!!int x", "-o seed: .*not YAML"),
    override("a control character", "metric=\x01", "-o metric: .*not YAML"),
    override("too many digits", f"seed={'9' * 5000}", "-o seed: "),
    override("2**63", f"seed={2**63}", "seed = 9223372036854775808: must be below"),
    override("samples", "search.samples=1000000000", "search.samples = 1000000000: must be at most"),
    override("not a number", "train.learning_rate=.nan", r"train\.learning_rate = nan: must be finite"),
    override("infinite", "train.learning_rate=.inf", r"train\.learning_rate = inf: must be finite"),
    override("a set of texts", "skip_set=['1', '2']", "skip_set = .*must be list"),
    override("a set outside", "skip_set=[1, 12]", r"skip_set = \[1, 12\]: .*0 to 11"),
    override("a set of one twice", "skip_set=[3, 3]", r"skip_set = \[3, 3\]: .*twice"),
    override("a set of another size", "skip_set=[3]", r"skip_set = \[3\] does not hold"),
    override("ranks beyond memory", "method.skip_rank=1000000000", "method.skip_rank = 1000000000: must be at most"),
    override("range beyond the model", "search.num_skip_range=[1, 12]", r"search\.num_skip_range = .*12 attentions"),
    override("a tracker", "train.report_to=nothing", r"train\.report_to = 'nothing'"),
    override("a date for a name", "data=2024-01-01", "unknown data '2024-01-01'"),
    settings("empty", "", r"run\.yaml must hold one mapping"),
    settings("a list", "- 1", r"run\.yaml must hold one mapping"),
    settings("a tab", "train:\n\tcut: 3", r"run\.yaml is not YAML: .*line 2"),
    settings("half a mapping", "train: {cut: 3", r"run\.yaml is not YAML"),
    settings("no UTF-8", b"\xff\xfe\x00", r"run\.yaml is not YAML"),
    settings("a key twice", "seed: 1\nseed: 2", r"run\.yaml is not YAML: a key occurs twice"),
    settings("a key twice in JSON", '{"seed": 1, "seed": 2}', r"run\.json is not valid JSON.*twice", "run.json"),
    settings("half of JSON", '{"seed": 1', r"run\.json is not JSON", "run.json"),
    settings("JSON, many digits", '{"seed": ' + "9" * 5000 + "}", r"run\.json is not JSON", "run.json"),
    settings("JSON too deep", f'{{"data_options": {DEEP}}}', r"run\.json is nested deeper", "run.json"),
    settings("JSON deep", '{"data_options": ' + "[" * 200 + "]" * 200 + "}", r"run\.json is nested", "run.json"),
    settings("YAML too deep", f"data_options: {DEEP}", r"run\.yaml is nested deeper"),
    settings("an alias of itself", "data_options: &a [*a]", r"run\.yaml is nested deeper .*itself"),
    settings("an alias bomb", BOMB, r"run\.yaml holds more than .* aliases written out"),
    settings("merged keys", MERGES, r"run\.yaml: .*has no key"),
    settings("an anchor of nothing", "seed: *nothing", r"run\.yaml is not YAML: found undefined alias"),
    settings("two documents", "seed: 1\n---\nseed: 2", r"run\.yaml is not YAML"),
    settings("long", "# " + "x" * 2_000_000, r"run\.yaml is longer than"),
    settings("long JSON", '{"metric": "' + "x" * 2_000_000 + '"}', r"run\.json is longer than", "run.json"),
    settings("no parent", "extends: none.yaml", r"none\.yaml cannot be read"),
    settings("its own parent", "extends: run.yaml", r"run\.yaml extends run\.yaml, which extends another"),
    settings("a mapping as name", "model: {a: 1}", r"run\.yaml: .*model = {'a': 1}: must be str"),
    settings("a number as key", "1: 2", r"run\.yaml: .*no key 1"),
    settings("a list as key", "? [1]\n: 2", r"run\.yaml is not YAML"),
    comparison("no entries", {"entries": []}, "entries"),
    comparison("entries, a word", {"entries": "all"}, "entries = 'all': must be list"),
    comparison("an entry without a label", {"entries": [{}]}, "label"),
    comparison("an entry, a number", {"entries": [3]}, r"entries\[0\] = 3"),
    comparison("a run's unknown key", {"run": {"x": 1}, "entries": [{"label": "a"}]}, "'a': .*no key 'x'"),
    comparison("seeds of texts", {"seeds": ["a"], "entries": [{"label": "a"}]}, r"seeds = \['a'\]"),
    comparison("a seed too large", {"seeds": [2**40], "entries": [{"label": "a"}]}, "'a': .*seed = 1099511627776"),
    comparison("rates of texts", {"learning_rates": ["a"], "entries": [{"label": "a"}]}, "learning_rates = "),
    comparison("labels twice", {"entries": [{"label": "a"}, {"label": "a"}]}, "entry 'a'"),
    model("empty", "", text=""),
    model("half", "", text='{"model_type"'),
    model("a list", "", text="[]"),
    model("deep", "", text='{"a": ' + DEEP + "}"),
    model("no model type", "has no 'model_type'", text="{}"),
    model("an unknown type", "'nothing'|`nothing`", model_type="nothing"),
    model("a number as type", "", model_type=3),
    model("many layers", r"text_config\.num_hidden_layers = 1000000", text_config__num_hidden_layers=10**6),
    model("very many layers", r"text_config\.num_hidden_layers = ", text_config__num_hidden_layers=10**12),
    model("layers, a text", r"text_config\.num_hidden_layers = 4", text_config__num_hidden_layers="4"),
    model("negative layers", r"text_config\.num_hidden_layers = -4", text_config__num_hidden_layers=-4),
    model("wide", r"text_config\.hidden_size = ", text_config__hidden_size=10**10),
    model("width, a list", "hidden_size", text_config__hidden_size=["a"]),
    model("words", r"text_config\.vocab_size = ", text_config__vocab_size=10**12),
    model("heads", r"text_config\.num_attention_heads = ", text_config__num_attention_heads=1.5),
    model("a text model of no mapping", "", text_config=3),
    model("vision of no mapping", "", vision_config="x"),
    model("a stranger's kernel", "attn_implementation = 'org/kernel'", attn_implementation="org/kernel"),
    model("a kernel below", "_attn_implementation = 'a/b'", text_config___attn_implementation="a/b"),
    Case("a YAML text", lambda folder: lambda: read_yaml("a: [1, {b: 1e-4, c: yes}]"), None),
    Case("a count", lambda folder: lambda: count(str(TINY_DIR), 8), None),
    *flips(),
    *random_values(),
]
