"""The built-in loggers."""

from difftool import Logger, hookimpl
from difftool_plugins.loggers.services import TensorBoard, WandB
from difftool_plugins.loggers.tables import CSV, JSONL, Nothing


@hookimpl
def difftool_loggers() -> list[type[Logger]]:
    return [Nothing, CSV, JSONL, TensorBoard, WandB]
