"""A component: a named record of options that makes one working part."""

from __future__ import annotations

from typing import Any, ClassVar

from difftool.options import Options


class Component(Options):
    """A named record of options that makes one working part."""

    name: ClassVar[str] = ""
    """The name that users type."""

    # Declared by the base class of each kind:
    kind: ClassVar[str] = ""
    """The word for the kind: `dataset`, `timestep-sampling`."""
    hook: ClassVar[str] = ""
    """The hook in `difftool.hookspecs` by which plugins offer components of the kind."""
    flag: ClassVar[str | None] = None
    """The flag that chooses one by name, or None where something else does, such as the suffix of a file."""
    several: ClassVar[bool] = False
    """True if several can be chosen at once. They accompany a run, and its steps do not depend on them."""
    commands: ClassVar[tuple[str, ...]] = ()
    """The commands that take the flag."""
    default: ClassVar[str] = ""
    """The default, unless a component of another kind suggests another, as `Dataset.default_backbone` does."""
    needed_to_sample: ClassVar[bool] = True
    """True if sampling from a trained model needs the component it was trained with."""

    def __init_subclass__(cls, *, name: str = "", **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls.name = name

    @classmethod
    def plural(cls) -> str:
        """Return the plural of the kind: `datasets`, `timestep-samplings`."""
        return cls.hook.removeprefix("difftool_").replace("_", "-")

    @classmethod
    def chosen_by(cls) -> str:
        """Return what a user types to choose this component."""
        return f"{cls.flag} {cls.name}"
