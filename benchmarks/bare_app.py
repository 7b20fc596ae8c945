"""The least that a command line with Typer can be: what `difftool --help` is measured against."""

import typer

app = typer.Typer()


@app.command()
def train() -> None:
    """Train a model."""


@app.command()
def sample() -> None:
    """Draw samples."""


if __name__ == "__main__":
    app()
