"""Text of components and packages as the markup of Typer's help wants it."""

from __future__ import annotations

import re

from rich.markup import escape

from difftool.errors import printable


def help_text(text: str, note: str = "") -> str:
    """Help that stands as it was written, with a dim note such as `[default: 3]` behind it."""
    return _plainly(text) + (f" [dim]{_plainly(f'[{note}]')}[/dim]" if note else "")


def _plainly(text: str) -> str:
    """Text that markup shows as it stands, without control characters, tags, or rich's names of pictures (`:fire:`)."""
    lines = "\n".join(printable(line) for line in text.splitlines())
    return re.sub(r":(?=\S+:)", ":[none][/none]", escape(lines))
