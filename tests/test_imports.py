"""The rooms of the house stand on each other in one order, and no file imports itself by way of others."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import eas

SOURCE = Path(eas.__file__).parent
# from the ground up; a room imports only from rooms of lower floors
FLOORS = (
    "files records errors keys costed progress terminal distributed",
    "weights config card picture exported packaged",
    "hf example runtime",
    "pia",
    "models metrics",
    "methods",
    "data reports attachment",
    "tasks doctor",
    "demo measure searching convert exporting",
    "training",
    "pipeline",
    "paper lmms_eval",
    "cli",
    "__main__",
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}


def module(path: Path) -> str:
    return ".".join(("eas", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


FILES = {module(path): path for path in SOURCE.rglob("*.py")}


def imports(path: Path) -> set[str]:
    """The modules of eas that a file imports when it runs, in functions too."""
    tree, found = ast.parse(path.read_text()), set()
    types = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    only_types = {inner for node in types for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").partition(".")[0] == "eas"
            and node not in only_types
        ):
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in full}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in FILES}
    return found - {"eas"}


def test_every_room_has_its_floor_and_imports_from_below():
    rooms = {name.split(".")[1] for name in FILES if name != "eas"}
    assert rooms == FLOOR.keys()
    for name, path in FILES.items():
        if name == "eas":
            continue
        own = name.split(".")[1]
        for other in {target.split(".")[1] for target in imports(path)} - {own}:
            assert FLOOR[other] < FLOOR[own], f"{name} imports from {other}, which is not below {own}"


def test_no_file_imports_itself_by_way_of_others():
    list(TopologicalSorter({name: imports(path) for name, path in FILES.items()}).static_order())


def test_a_file_is_one_idea_and_is_not_called_by_what_it_is_not():
    assert not [path for path in FILES.values() if len(path.read_text().splitlines()) > 400]
    assert not [path for path in FILES.values() if path.stem in ("utils", "helpers", "misc", "common")]
