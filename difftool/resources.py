"""Resources: the fields of a command that hold what no option can, such as a component or a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Later:
    """A value that is made at the first use, since that takes time."""

    make: Callable[[], object]


class Resource:
    """The default of a dataclass field, by which it becomes the descriptor of the attribute."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.owner, self.name = owner, name

    def __get__(self, record: object, _owner: object = None) -> Any:
        if record is None:
            return self
        values = vars(record)
        if isinstance(value := values[self.name], Later):
            values[self.name] = value = value.make()
        return value

    def __set__(self, record: object, value: object) -> None:
        vars(record)[self.name] = Later(lambda: self.default(record)) if value is self else self.accepted(value)

    def default(self, record: Any) -> object:
        """Return the value that a record has unless it is given one."""
        raise NotImplementedError

    def accepted(self, value: object) -> object:
        """Return the value to store for one that is given. Raises `TypeError` and `UsageError`."""
        raise NotImplementedError


def resource(what: Resource, *, opened: bool = False) -> Any:
    """Return the dataclass field of a resource. Printing and comparing records does not read one that is `opened`."""
    return dataclasses.field(default=what, metadata={Resource: what}, repr=not opened, compare=not opened)


def resources(record: Any) -> dict[str, Any]:
    """Return the resources of a class of records by name, in the order of their definition."""
    return {f.name: f.metadata[Resource] for f in dataclasses.fields(record) if Resource in f.metadata}
