"""What a method changes in the structure of a model: recorded while the method is attached, and taken back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from eas.hf.classes import become_again

PLACES = ("_modules", "_parameters", "_buffers", "_forward_pre_hooks")


@dataclass(frozen=True)
class Change:
    """What a method changed at one module.

    Args:
        module: the module.
        cls: its class of before.
        added: names of attributes, children, parameters and buffers, and keys of hooks, that were not there before.
        children: children of before in whose place others stand.
    """

    module: Any
    cls: type
    added: frozenset[Any]
    children: dict[str, Any]

    def undo(self) -> None:
        """Gives the module back as it was."""
        become_again(self.module, self.cls)
        for place in _places(self.module):
            for name in self.added & place.keys():
                del place[name]
        self.module._modules.update(self.children)


class Structure:
    """The structure of a model as it is now: classes, names, children and hooks of its modules, and what is trained.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1))
        >>> before = Structure(model)
        >>> model.extra = nn.Linear(1, 1)
        >>> before.restore(model)
        >>> [name for name, _ in model.named_children()]
        ['0']
    """

    def __init__(self, model: nn.Module) -> None:
        self.trained = frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)
        self.modules = [(m, type(m), frozenset().union(*_places(m)), dict(m._modules)) for m in model.modules()]

    def changes(self) -> list[Change]:
        """What has changed since."""
        changes = []
        for module, cls, names, children in self.modules:
            added = frozenset().union(*_places(module)) - names
            replaced = {name: child for name, child in children.items() if module._modules[name] is not child}
            if type(module) is not cls or added or replaced:
                changes.append(Change(module, cls, added, replaced))
        return changes

    def restore(self, model: nn.Module) -> None:
        """Takes back what has changed since, and which parameters are trained."""
        undo(model, self.changes(), self.trained)


def undo(model: nn.Module, changes: list[Change], trained: frozenset[str]) -> None:
    """Takes changes back; of the parameters that are left, exactly those of these names are trained."""
    for change in changes:
        change.undo()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)


def _places(module: nn.Module) -> list[dict[Any, Any]]:
    """Where a module keeps its attributes, children, parameters, buffers and hooks."""
    own = vars(module)
    return [own, *(own[name] for name in PLACES)]
