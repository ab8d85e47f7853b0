"""The official files of benchmarks, each with one thing wrong."""

import copy
import json
import os

from eas.data import load_data
from malformed import Case

PROBLEM = {"question": "q", "choices": ["a", "b"], "answer": 0, "hint": "", "image": None, "task": "t"} | {
    **{"grade": "grade1", "subject": "s", "topic": "t", "lecture": "", "solution": "", "split": "test"},
}
SLAKE = {"qid": 1, "question": "q", "answer": "a", "answer_type": "OPEN", "q_lang": "en", "img_name": "x/source.jpg"}
PAIR = {"identifier": "dev-1-0-0", "sentence": "s", "label": "True"}
BOXES = {"identifier": "1-0", "sentence": "s", "label": "true", "directory": "0"}
ASKED = {"image_id": 1, "question": "q", "question_id": 1000}
ANNOTATION = {"question_id": 1000, "image_id": 1, "answer_type": "other", "question_type": "what"} | {
    "multiple_choice_answer": "a",
    "answers": [{"answer": "a", "answer_id": number} for number in range(1, 11)],
}
QUESTIONS, ANNOTATIONS = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"
KARPATHY = {"images": [{"split": "test", "filename": "1.jpg", "sentences": [{"raw": "a dog"}]}]}
FILES = {
    "scienceqa": {
        "problems.json": {"7": PROBLEM},
        "pid_splits.json": {"test": ["7"]},
        "captions.json": {"captions": {"7": "c"}},
    },
    "slake": {"test.json": [SLAKE]},
    "vqa2": {
        QUESTIONS: {"data_subtype": "val2014", "questions": [ASKED]},
        ANNOTATIONS: {"annotations": [ANNOTATION]},
    },
    "nlvr2": {"dev.json": PAIR},
    "flickr30k": {"dataset_flickr30k.json": KARPATHY},
    "nlvr": {"dev.json": BOXES, "dev/images/0/dev-1-0-0.png": b"-"},
    "aid": {"Airport/airport_1.jpg": b"-", "Airport/airport_2.jpg": b"-"},
}
SPLITS = {"vqa2": "val2014", "nlvr2": "dev", "nlvr": "dev", "aid": "all"}
ABSENT = object()


def loaded(name, folder, options):
    return lambda: list(load_data(f"{name}:{folder}", SPLITS.get(name, "test"), options=options, images=False))


def wrong(benchmark, file, where, value, names, **options):
    """One value, at a path of keys, is another or absent; without a path, the file is these bytes, or absent."""

    def make(folder):
        files = copy.deepcopy(FILES[benchmark])
        if where:
            place = files[file]
            for key in where[:-1]:
                place = place[key]
            if value is ABSENT:
                del place[where[-1]]
            else:
                place[where[-1]] = value
        else:
            files[file] = value
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if callable(content):
                content(folder / name)
            elif content is not ABSENT:
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                (folder / name).write_bytes(data)
        return loaded(benchmark, folder, options)

    shown = "absent" if value is ABSENT else getattr(value, "__name__", repr(value)[:40])
    return Case(f"{benchmark} {file} {'.'.join(map(str, where))} {shown}", make, names)


def values(benchmark, file, where, names, *bad, **options):
    return [wrong(benchmark, file, where, value, names, **options) for value in bad]


def no_texts(benchmark, file, where, names):
    """A text that is absent, or of another type."""
    return values(benchmark, file, where, names, ABSENT, None, 7, ["a"], {"a": 1})


def whole(benchmark, file, *more):
    """The file is of another kind altogether."""
    name = file.replace(".", r"\.")
    return [
        wrong(benchmark, file, (), b"", name),
        wrong(benchmark, file, (), b"[1, 2", name),
        wrong(benchmark, file, (), b"<html>404</html>", name),
        wrong(benchmark, file, (), json.dumps({"a": 1}).encode("utf-16"), name),
        wrong(benchmark, file, (), b'{"a": ' * 50_000, name),
        wrong(benchmark, file, (), b'{"a": ' + b"9" * 100_000 + b"}", name),
        wrong(benchmark, file, (), os.mkfifo, name),
        wrong(benchmark, file, (), ABSENT, name),
        *more,
    ]


PROBLEMS, PIDS, CAPTIONS = "problems.json", "pid_splits.json", "captions.json"
CASES = [
    *whole("scienceqa", PROBLEMS),
    *whole("slake", "test.json"),
    *whole("vqa2", ANNOTATIONS),
    *whole("nlvr2", "dev.json"),
    *whole("flickr30k", "dataset_flickr30k.json"),
    *values("scienceqa", PROBLEMS, ("7",), "7|problems.json", 7, None, ["q"]),
    *values(
        "scienceqa",
        PROBLEMS,
        ("7", "question"),
        "problem 7: .*question|7.question holds|example 7: ",
        ABSENT,
        7,
        ["q"],
        "\ud83d",
        "q" * 10**6,
    ),
    *values("scienceqa", PROBLEMS, ("7", "choices"), "problem 7: choices", "ab", [], None, [1, 2], list("abcdef")),
    *values("scienceqa", PROBLEMS, ("7", "answer"), "problem 7: answer", 2, -1, "0", True, 0.0, None, 10**30),
    *values("scienceqa", PROBLEMS, ("7", "hint"), "problem 7: .*hint", 7, ["h"]),
    *values("scienceqa", PIDS, ("test",), "pid_splits.json", "7", 7, [["7"]], ["8"]),
    *values("scienceqa", CAPTIONS, ("captions",), "captions.json", ABSENT, ["c"], {"7": 7}, captions=True),
    *no_texts("slake", "test.json", (0, "question"), r"test.json\[0\]: .*question"),
    *no_texts("slake", "test.json", (0, "answer"), r"test.json\[0\]: .*answer"),
    *values("slake", "test.json", (0, "answer_type"), r"test.json\[0\]: .*answer_type", ABSENT, "EITHER", 7),
    *values("slake", "test.json", (0, "qid"), r"test.json\[0\]: .*qid", ABSENT, None, [1], True, 0.5),
    *values("slake", "test.json", (0, "q_lang"), r"test.json", ABSENT),
    *values("vqa2", QUESTIONS, ("questions",), QUESTIONS, ABSENT, {"a": 1}, [7]),
    *values("vqa2", QUESTIONS, ("data_subtype",), QUESTIONS, ABSENT, 7),
    *no_texts("vqa2", QUESTIONS, ("questions", 0, "question"), "question 1000: .*question"),
    *values(
        "vqa2", QUESTIONS, ("questions", 0, "image_id"), "an entry of 'questions'", "1", None, [1], ABSENT, True, 0.5
    ),
    *values("vqa2", QUESTIONS, ("questions", 0, "question_id"), "an entry of 'questions'", "1000", None, {"a": 1}),
    *values("vqa2", ANNOTATIONS, ("annotations", 0, "answers"), "question 1000", "abc", [1], {"a": 1}),
    *values("vqa2", ANNOTATIONS, ("annotations", 0, "answers", 0, "answer"), "question 1000: answers", ABSENT, 7, None),
    *values("vqa2", ANNOTATIONS, ("annotations", 0, "answer_type"), "question 1000: .*answer_type", ABSENT, 7, None),
    *values("vqa2", ANNOTATIONS, ("annotations", 0, "question_id"), "annotations", 1001, "1000", None),
    *no_texts("nlvr2", "dev.json", ("identifier",), "dev.json:1: .*identifier"),
    *no_texts("nlvr2", "dev.json", ("sentence",), "dev.json:1: .*sentence"),
    *values(
        "nlvr2", "dev.json", ("label",), "dev.json:1: .*label|dev-1-0-0: answer", ABSENT, None, "Maybe", 1, ["True"]
    ),
    *values("flickr30k", "dataset_flickr30k.json", ("images",), "dataset_flickr30k", ABSENT, 7, [7], ["a"], {"a": 1}),
    *no_texts("flickr30k", "dataset_flickr30k.json", ("images", 0, "filename"), r"images\[0\]: .*filename"),
    *values("flickr30k", "dataset_flickr30k.json", ("images", 0, "sentences"), r"images\[0\]", ABSENT, 7, ["a"], [{}]),
    *no_texts("nlvr", "dev.json", ("sentence",), "dev.json:1: .*sentence"),
    *values("nlvr", "dev.json", ("directory",), "dev.json:1: .*(directory|no image)", ABSENT, None, [0], "9"),
    *values(
        "nlvr", "dev.json", ("label",), "dev.json:1: .*label|dev-1-0-0: answer|answer 'maybe'", None, "maybe", True
    ),
    wrong("aid", "Airport/airport_x.jpg", (), b"-", "airport_x"),
    wrong("aid", "Airport/beach_1.jpg", (), b"-", "beach_1.jpg"),
    wrong("aid", "Airport/airport_1.png", (), b"-", "airport_1"),
]
