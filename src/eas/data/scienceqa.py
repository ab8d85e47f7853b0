"""ScienceQA (Lu et al., 2022): multiple-choice questions of school science, half of them with an image.

Prompts and targets as in LaVIN (base_prompt.py) and in LLaVA (convert_sqa_to_llava.py), whose quirks are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from eas.config import option
from eas.data.benchmark import Benchmark, DataOptions, Examples, Source, unknown_split
from eas.data.hub import HubRows, hub_rows
from eas.data.official import find_file, read_json
from eas.data.predictions import read_answers
from eas.errors import shown
from eas.example import DataError, Example, ImageSource
from eas.metrics.exact import form_for
from eas.metrics.report import Report
from eas.metrics.scienceqa import EXTRACTIONS, LETTERS, score_scienceqa

FORMS = ("lavin", "llava", "letter", "choice")
_INPUTS = ("QCM", "CQM", "QCML", "QCME", "QCMLE", "QCLM", "QCEM", "QCLEM")
# What follows or precedes the answer. The published converters have lecture and explanation crossed in AL and AE.
_OUTPUTS = {
    "A": (),
    "AL": ("solution",),
    "AE": ("lecture",),
    "ALE": ("lecture", "solution"),
    "AEL": ("solution", "lecture"),
    "LA": ("lecture",),
    "EA": ("solution",),
    "LEA": ("lecture", "solution"),
    "ELA": ("solution", "lecture"),
}
INSTRUCTION = "Answer with the option's letter from the given choices directly."
SPLITS = ("train", "val", "test", "trainval", "minitrain", "minival", "minitest")
_COLUMNS = (
    *("image", "question", "choices", "answer", "hint", "task", "grade"),
    *("subject", "topic", "category", "skill", "lecture", "solution"),
)


@dataclass
class ScienceQAOptions(DataOptions):
    """Options of ScienceQA."""

    form: str = option(
        "llava",
        "prompt and target: 'lavin', 'llava', 'letter' (LLaVA-1.5: options A. B. and a letter), or 'choice' (llava's "
        "prompt, the answer is the likeliest text of a choice; for small models)",
    )
    order: str = option(
        "QCM-ALE", "parts of prompt and target (choice: of the prompt), not for letter, for example QCM-LEA or CQM-A"
    )
    instruction: bool = option(True, f"end the prompt of the form letter with: {INSTRUCTION}")
    captions: bool = option(False, "put the image's caption (captions.json) after the hint")
    pid_splits: str | None = option(
        None, "file of the problems' ids by split; a folder's own pid_splits.json by default"
    )
    extraction: str = option("eas", f"rule that reads the letter from an answer: {', '.join(EXTRACTIONS)}")
    fallback_seed: int | None = option(
        None, "seed of random choices for answers without a letter; null: such answers are wrong"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("form", self.form in FORMS, f"must be one of {', '.join(FORMS)}")
        given, _, answer = self.order.partition("-")
        known = f"must join one of {', '.join(_INPUTS)} by '-' to one of {', '.join(_OUTPUTS)}"
        self._require("order", given in _INPUTS and answer in _OUTPUTS, known)
        self._require("extraction", self.extraction in EXTRACTIONS, f"must be one of {', '.join(EXTRACTIONS)}")


def load(source: Source, split: str, options: ScienceQAOptions) -> Sequence[Example]:
    """The problems of one split, in the order of pid_splits.

    Args:
        source: a folder with problems.json (or problems_{split}.json, which goes before it), pid_splits.json (without
            it, the problems' own "split" counts), images/{train,val,test}/{pid}/image.png, and captions.json here or
            one above; or a dataset with the columns of derek-thomas/ScienceQA.
        split: "train", "val", "test" or another name in pid_splits.
        options: see `ScienceQAOptions`. A Hub dataset has no pids: they are those of ``options.pid_splits`` row by row,
            or else "row-N".

    Raises:
        DataError: an unknown split; a file that is missing or broken; a pid without a problem.
    """
    if source.hub:
        return _load_hub(source, split, options)
    folder = source.folder
    alone = folder / f"problems_{split}.json"
    path = alone if alone.is_file() else find_file(folder, "problems.json")
    problems = read_problems(path)
    pids_path = folder / (options.pid_splits or "pid_splits.json")
    if options.pid_splits or pids_path.is_file():
        pids = read_pids(pids_path, split)
    else:
        pids = [pid for pid, problem in problems.items() if problem.get("split") == split]
        if not pids:
            raise unknown_split("scienceqa", split, sorted({str(p.get("split")) for p in problems.values()}))
    absent = [pid for pid in pids if pid not in problems]
    if absent and not options.skip_bad:
        raise DataError(
            f"{path} lacks {len(absent)} of the {len(pids)} problems that {pids_path} lists for {split} ({absent[0]}, "
            "...); complete it, or name the ids of a subset by data_options.pid_splits"
        )
    images = Path(options.images) if options.images else folder / "images"
    captions = read_captions(folder) if options.captions else {}

    def build(pid: str) -> Example:
        problem = problems[pid]
        name = problem.get("image")
        image = images / str(problem.get("split")) / pid / str(name) if name else None
        return make_example(pid, problem, image, captions.get(pid, ""), options)

    left_out = [f"problem {pid}: listed in {pids_path}, but not in {path}" for pid in absent]
    return Examples([pid for pid in pids if pid in problems], build, left_out)


def _load_hub(source: Source, split: str, options: ScienceQAOptions) -> Sequence[Example]:
    if split not in SPLITS:
        raise unknown_split("scienceqa", split, SPLITS)
    name = "validation" if split == "val" and "val" not in options.splits else split
    columns = {column: column for column in _COLUMNS} | {"pid": "pid"}
    rows = hub_rows(source, name, options, columns, optional=("image", "pid", "task", "category", "skill"))
    pids = [f"row-{row}" for row in range(len(rows))]
    if options.pid_splits:
        pids = read_pids(Path(options.pid_splits), split)[: options.stream]
        if len(pids) != len(rows):
            raise DataError(
                f"{options.pid_splits} has {len(pids)} ids for {split}, but {source.path} has {len(rows)} rows; name "
                "the whole of that split (ids are given by row), or leave data_options.pid_splits out"
            )
    captions = read_captions(Path(options.pid_splits or ".").parent) if options.captions else {}
    return Examples(range(len(rows)), partial(_hub_example, rows, pids, captions, options))


def _hub_example(
    rows: HubRows, pids: Sequence[str], captions: Mapping[str, str], options: ScienceQAOptions, row: int
) -> Example:
    problem = rows[row]
    pid = str(problem.get("pid", pids[row]))
    return make_example(pid, problem, problem.get("image"), captions.get(pid, ""), options)


def make_example(
    pid: str, problem: Mapping[str, Any], image: ImageSource | None, caption: str, options: ScienceQAOptions
) -> Example:
    try:
        choices, answer = problem["choices"], problem["answer"]
        given = {key: problem[key] for key in ("question", "lecture", "solution", "hint", "subject", "grade", "topic")}
    except (KeyError, TypeError) as error:
        raise DataError(f"problem {pid}: {error} is missing; complete the row, or drop it") from error
    for name, text in given.items():
        if not isinstance(text, str | None):
            raise DataError(f"problem {pid}: {name} is {shown(text)}; expected a text")
    texts = {key: given[key] or "" for key in ("question", "lecture", "solution")}
    about, hint = {key: given[key] for key in ("subject", "grade", "topic")}, given["hint"] or ""
    if not isinstance(choices, list) or not 0 < len(choices) <= len(LETTERS):
        raise DataError(f"problem {pid}: choices are {shown(choices)}; expected a list of 1 to {len(LETTERS)}")
    if not all(isinstance(choice, str) for choice in choices):
        raise DataError(f"problem {pid}: choices are {shown(choices)}; expected texts")
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise DataError(
            f"problem {pid}: answer {shown(answer)} is outside its {len(choices)} choices; fix or drop the row"
        )
    parts = texts | {"context": " ".join([hint, caption]).strip(), "letter": LETTERS[answer], "choice": choices[answer]}
    prompt, target = _FORMS[options.form](parts, choices, options)
    return Example.ask(
        pid,
        prompt,
        target,
        *([] if image is None else [image]),
        choices={"letter": tuple(LETTERS[: len(choices)]), "choice": tuple(choices)}.get(options.form, ()),
        metadata=about | {"answer": answer, "choices": choices, "hint": bool(hint), "image": image is not None},
    )


def _lavin(parts: Mapping[str, str], choices: Sequence[str], options: ScienceQAOptions) -> tuple[str, str]:
    # Line breaks of lecture and solution become two characters each.
    parts = {**parts, **{key: parts[key].replace("\n", "\\n") for key in ("lecture", "solution")}}
    order, _, answer = options.order.partition("-")
    # A target that ends on "BECAUSE:" keeps it, unlike in LLaVA.
    return _collapsed(f"{_given(order, parts, choices)}Response:"), _collapsed(_answered(answer, parts))


def _llava(parts: Mapping[str, str], choices: Sequence[str], options: ScienceQAOptions) -> tuple[str, str]:
    order, _, answer = options.order.partition("-")
    prompt, target = _collapsed(_given(order, parts, choices)), _collapsed(f"Answer: {_answered(answer, parts)}")
    if prompt.endswith("BECAUSE:"):
        prompt = prompt.replace("BECAUSE:", "").strip()
    if target.endswith("BECAUSE:"):
        target = target.replace("BECAUSE:", "").strip()
    # The prefixes go wherever they occur.
    return prompt.replace("Question: ", "") if prompt.startswith("Question: ") else prompt, target.replace(
        "Answer: ", ""
    )


def _letter(parts: Mapping[str, str], choices: Sequence[str], options: ScienceQAOptions) -> tuple[str, str]:
    context = f"Context: {parts['context']}\n" if parts["context"] else ""
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    prompt = _collapsed(f"{context}{parts['question']}\n{listed}")
    return f"{prompt}\n{INSTRUCTION}" if options.instruction else prompt, parts["letter"]


def _choice(parts: Mapping[str, str], choices: Sequence[str], options: ScienceQAOptions) -> tuple[str, str]:
    return _llava(parts, choices, options)[0], parts["choice"]


_FORMS = {"lavin": _lavin, "llava": _llava, "letter": _letter, "choice": _choice}


def _given(order: str, parts: Mapping[str, str], choices: Sequence[str]) -> str:
    """The question's lines; lecture and solution among them in the orders of the upper-bound experiments."""
    listed = " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    why = " ".join(parts[{"L": "lecture", "E": "solution"}[letter]] for letter in order if letter in "LE")
    lines = {
        "Q": f"Question: {parts['question']}",
        "C": f"Context: {parts['context'] or 'N/A'}",
        "M": f"Options: {listed}",
    }
    lines |= {"L": f"BECAUSE: {why}", "E": f"BECAUSE: {why}"}
    return "".join(f"{lines[letter]}\n" for letter in order.replace("LE", "L"))


def _answered(order: str, parts: Mapping[str, str]) -> str:
    answer, why = f"The answer is {parts['letter']}.", " ".join(parts[name] for name in _OUTPUTS[order])
    if order == "A":
        return answer
    return f"{answer} BECAUSE: {why}" if order.startswith("A") else f"{why} {answer}"


def _collapsed(text: str) -> str:
    """Double spaces made single, once: three make two."""
    return text.replace("  ", " ").strip()


def read_problems(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict) or not value or not all(isinstance(entry, dict) for entry in value.values()):
        raise DataError(f"{path} holds no problems; expected one object of them by id")
    return value


def read_pids(path: Path, split: str) -> list[str]:
    splits = read_json(path)
    if not isinstance(splits, dict):
        raise DataError(f"{path} is not an object of ids by split; name the official pid_splits.json")
    if split not in splits:
        raise unknown_split(str(path), split, list(splits))
    if not isinstance(pids := splits[split], list) or not all(isinstance(pid, str | int) for pid in pids):
        raise DataError(f"{path}: {split} is {shown(pids)}; expected a list of ids")
    return [str(pid) for pid in pids]


def read_captions(folder: Path) -> Mapping[str, str]:
    path = find_file(folder, "captions.json", (".", ".."))
    match read_json(path):
        case {"captions": dict() as captions} if all(isinstance(caption, str) for caption in captions.values()):
            return captions
        case _:
            raise DataError(f'{path} has no texts by id under "captions"; name the official file')


def score(examples: Sequence[Example], predictions: Mapping[str, str], options: ScienceQAOptions) -> Report:
    """See `score_scienceqa`; in the form choice the text of a choice counts as its letter."""
    if options.form == "choice":
        predictions = lettered(examples, predictions)
    return score_scienceqa(examples, predictions, options.extraction, options.fallback_seed)


def lettered(examples: Sequence[Example], predictions: Mapping[str, str]) -> dict[str, str]:
    """Answers as the sentence that every extraction reads, where they are the text of a choice; others unchanged."""
    letters = {}
    for example in examples:
        choices, answer = example.metadata["choices"], example.metadata["answer"]
        form = form_for(choices)
        said, texts = form(predictions[example.id]), [form(choice) for choice in choices]
        named = [LETTERS[i] for i in (answer, *range(len(texts))) if texts[i] == said]  # a repeated text is right
        letters[example.id] = f"The answer is {named[0]}." if named else predictions[example.id]
    return letters


def read_predictions(path: Path) -> dict[str, str]:
    """Texts by pid: from ``{pid: index}``, as it is or under "results", or from LLaVA's rows of question_id and text.

    An index becomes the sentence that every extraction reads; one outside A to E (-1: failed) an empty text.

    Raises:
        DataError: the file cannot be read, or an entry is neither index nor text.
    """
    found = read_answers(path)
    texts = {}
    for pid, answer in (found["results"] if isinstance(found.get("results"), dict) else found).items():
        if isinstance(answer, bool) or not isinstance(answer, int | str):
            raise DataError(
                f"{path}: the prediction for {pid} is {shown(answer)}; expected the index of a choice, or a text"
            )
        if isinstance(answer, int):
            answer = f"The answer is {LETTERS[answer]}." if 0 <= answer < len(LETTERS) else ""
        texts[pid] = answer
    return texts


SCIENCEQA = Benchmark(
    name="scienceqa",
    splits=SPLITS,
    parts={"train": "train", "validation": "val", "test": "test"},
    load=load,
    score=score,
    read_predictions=read_predictions,
    options=ScienceQAOptions,
    ranked=lambda options: options.form == "choice",
)
