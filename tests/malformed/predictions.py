"""Files of predictions, in every benchmark's result format."""

import json
import os

import numpy as np

from eas.data.score import score_file
from malformed import Case, benchmarks

GOOD = {
    "scienceqa": {"7": 0},
    "slake": {"1": "a"},
    "vqa2": [{"question_id": 1000, "answer": "a"}],
    "nlvr2": b"dev-1-0-0,True\n",
}


def prepared(benchmark, folder):
    for name, content in benchmarks.FILES[benchmark].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def case(benchmark, name, content, names, file="given.json"):
    def make(folder):
        prepared(benchmark, folder)
        path, split = folder / file, benchmarks.SPLITS.get(benchmark, "test")
        if callable(content):
            content(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return lambda: score_file(benchmark, str(folder), split, path, {})

    return Case(f"{benchmark}: {name}", make, names)


def saved(matrix):
    return lambda path: np.save(path, matrix, allow_pickle=True)


def damaged(path):
    np.save(path, np.zeros((1, 1)))
    path.write_bytes(path.read_bytes().replace(b"'shape': (1, 1)", b"'shape': (9, 9)"))


def kinds(benchmark):
    """The file is of another kind."""
    for name, content in (
        ("empty", b""),
        ("a page", b"<html>404</html>"),
        ("UTF-16", json.dumps({"7": 0}).encode("utf-16")),
        ("nested too deep", b"[" * 100_000),
        ("a NUL", b'{"7": "\0"}'),
        ("a folder", lambda path: path.mkdir()),
        ("a pipe", lambda path: os.mkfifo(path)),
        ("missing", lambda path: None),
    ):
        yield case(benchmark, name, content, "given.json|lack 1 of 1 ids")


ROW = {"question_id": "7", "text": "The answer is A."}
CASES = [
    *(one for benchmark in GOOD for one in kinds(benchmark)),
    *(case(benchmark, "right", content, None) for benchmark, content in GOOD.items()),
    case("scienceqa", "an id twice", b'{"7": 0, "7": 1}', "given.json:1: the key '7' stands twice"),
    case("scienceqa", "an id twice below", b'{"results": {"7": 0, "7": 1}}', "given.json:1: the key '7' stands twice"),
    case("scienceqa", "an id twice in rows", "\n".join([json.dumps(ROW)] * 2).encode(), "given.json:2: the id '7'"),
    case("scienceqa", "a text that is a list", {"7": ["A"]}, "given.json: the prediction for 7"),
    case("scienceqa", "true", {"7": True}, "given.json: the prediction for 7"),
    case("scienceqa", "a float", {"7": 0.0}, "given.json: the prediction for 7"),
    case("scienceqa", "null", {"7": None}, "given.json: the prediction for 7"),
    case("scienceqa", "not a number", b'{"7": NaN}', "given.json:1: NaN"),
    case("scienceqa", "an index of 100,000 digits", b'{"7": ' + b"1" * 100_000 + b"}", "given.json:1: a number"),
    case("scienceqa", "half a surrogate pair", {"7": "A \ud83d"}, "given.json: 7 holds half"),
    case("scienceqa", "another id", {"8": 0}, "lack 1 of 1 ids and have 1 of others"),
    case("scienceqa", "an id too many", {"7": 0, "8": 0}, "have 1 of others .8"),
    case("scienceqa", "no id", {}, "lack 1 of 1 ids"),
    case("scienceqa", "an array of indices", [0], r"given.json\[0\]: expected an object"),
    case("scienceqa", "rows without text", [{"question_id": "7"}], r"given.json\[0\]: the row has the keys"),
    case("scienceqa", "an id that is a list", [{**ROW, "question_id": ["7"]}], r"given.json\[0\]: question_id is"),
    case("slake", "an index", {"1": 0}, "given.json: the prediction for 1"),
    case("slake", "every line broken", b"{\n{\n", "given.json:1: broken JSON"),
    case("vqa2", "an object", {"1000": "a"}, "given.json holds no list"),
    case("vqa2", "an id that is a text", [{"question_id": "1000", "answer": "a"}], r"given.json\[0\]: expected"),
    case("vqa2", "an id that is true", [{"question_id": True, "answer": "a"}], r"given.json\[0\]: question_id"),
    case("vqa2", "an answer that is a list", [{"question_id": 1000, "answer": ["a"]}], r"given.json\[0\]: expected"),
    case("vqa2", "an id twice", [*GOOD["vqa2"], *GOOD["vqa2"]], r"given.json\[1\]: question 1000"),
    case("vqa2", "an entry that is a number", [7], r"given.json\[0\]: expected"),
    case("nlvr2", "no prediction", b"dev-1-0-0\n", "given.json:1: expected identifier,prediction"),
    case("nlvr2", "three fields", b"dev-1-0-0,True,1\n", "given.json:1: expected identifier,prediction"),
    case("nlvr2", "an id twice", b"dev-1-0-0,True\n\ndev-1-0-0,False\n", "given.json:3: dev-1-0-0"),
    case("nlvr2", "a line of a megabyte", b"a" * 10**6, "given.json:1: expected"),
    case("nlvr2", "an open quote", b'"dev-1-0-0,True\n' + b"x" * 200_000, "given.json:2: expected"),
    case("nlvr2", "Windows line ends", b"dev-1-0-0,True\r\n", None),
    case("nlvr2", "a mark in front", b"\xef\xbb\xbfdev-1-0-0,True\n", None),
    case("flickr30k", "right", saved(np.zeros((1, 1))), None, "given.npy"),
    case("flickr30k", "another shape", saved(np.zeros((2, 1))), r"scores are \(2, 1\)", "given.npy"),
    case("flickr30k", "no shape", saved(np.float64(1)), "scores are", "given.npy"),
    case("flickr30k", "not a number", saved(np.full((1, 1), np.nan)), "not finite", "given.npy"),
    case("flickr30k", "texts", saved(np.array([["a"]])), "given.npy holds no numbers", "given.npy"),
    case("flickr30k", "complex", saved(np.array([[1j]])), "given.npy holds no numbers", "given.npy"),
    case("flickr30k", "objects", saved(np.array([[{}]], object)), "given.npy is not a .npy file", "given.npy"),
    case("flickr30k", "larger than the file", damaged, "given.npy is not a .npy file", "given.npy"),
    case(
        "flickr30k", "several", lambda path: np.savez(path.open("wb"), a=np.zeros(1)), "given.npy holds no", "given.npy"
    ),
    case("flickr30k", "a pipe", os.mkfifo, "given.npy is not a .npy file", "given.npy"),
    case("flickr30k", "JSON", {"a": 1}, "given.npy is not a .npy file", "given.npy"),
    case(
        "flickr30k", "a damaged header", b"\x93NUMPY\x01\x00\x10\x00{'descr': [[[[,\n", "given.npy is not", "given.npy"
    ),
]
