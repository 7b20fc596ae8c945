"""Data sets in the format of Hugging Face `datasets`, read by rows in the order of a step."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from difftool import Dataset, option
from difftool_plugins.datasets.images.augment import Change, augment_option, check_changes
from difftool_plugins.datasets.options import (
    Crop,
    bits_option,
    bytes_in_memory,
    channels_option,
    check_bits,
    check_captions,
    crop_option,
    height_width,
    memory_option,
    read_caption,
    size_option,
    skip_bad_option,
    words_option,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from difftool import ConditionSpec, DatasetContext, Samples

AUTO, NONE = "auto", "none"


class HuggingFace(Dataset, name="hf"):
    """A data set of Hugging Face: by its name on the hub, or a folder or file with its rows.

    Columns of images become pixels, as those of image-folder do. Lists and arrays of numbers are scaled to mean 0 and
    deviation 1 in each channel; points need `--backbone mlp`. No code of a data set is ever run.
    """

    default_backbone = "unet"

    path: str = option(
        help="name on the hub, such as ylecun/mnist; a folder of save_to_disk, of Parquet files or of images; or a "
        "file (.parquet, .csv, .json, .jsonl, .arrow)"
    )
    subset: str | None = option(default=None, help="subset (configuration) of a data set that has several")
    split: str = option(default="train", help="split, or a part of it, such as train[:1000]")
    revision: str | None = option(default=None, help="branch, tag or commit on the hub", otherwise="the newest")
    items: str | None = option(
        default=None, help="column of images or arrays to learn", otherwise="the only column of images, or of arrays"
    )
    labels: str = option(
        default=AUTO, help="column of classes; auto: the column that declares classes; none: there are no classes"
    )
    vectors: tuple[str, ...] = option(default=(), help="columns of numbers that the network is shown, joined")
    captions: str | None = option(default=None, help="column of texts that the network is shown as tokens, by words")
    words: int = words_option()
    images: str | None = option(default=None, help="column of images that the network is shown, one for each item")
    tokens: str | None = option(default=None, help="column of arrays (L,D) that the network is shown as tokens")
    size: tuple[int, ...] = size_option()
    channels: int = channels_option()
    bits: int = bits_option()
    crop: Crop = crop_option()
    augment: tuple[Change, ...] = augment_option()
    skip_bad: bool = skip_bad_option("images")
    memory: float | None = memory_option()

    def __post_init__(self) -> None:
        height_width(self.size)
        check_changes(self.augment)
        check_bits(self.bits)
        check_captions(self.captions, self.tokens)
        local = os.path.expanduser(self.path)
        if os.path.exists(local):  # a run may go on elsewhere
            object.__setattr__(self, "path", os.path.abspath(local))

    def load(self, context: DatasetContext) -> Samples:
        from difftool import Samples
        from difftool_plugins.datasets.packed import cells, hub

        table = hub.open_table(os.path.expanduser(self.path), self.subset, self.split, self.revision)
        column = self._item_column(table)
        used = [column, *self.vectors, *filter(None, (self.captions, self.images, self.tokens))]
        for name in ("items", "captions", "images", "tokens"):
            if getattr(self, name) is not None:
                hub.check_column(table, name, getattr(self, name))
        for vector in self.vectors:
            hub.check_column(table, "vectors", vector)
        if (label := self._label_column(table)) is not None:
            used.append(label)
        mark = hub.fingerprint(table, used)
        rows, place = range(len(table)), self._place()
        if column in hub.image_columns(table):
            columns = {name: hub.encoded(table, name, place) for name in (column, *filter(None, [self.images]))}
            items, good = cells.image_arguments(self, columns, rows, mark, context.cache)
            items["item_ids"] = [str(i) for i in good]
        else:
            items, good = cells.array_arguments(self, hub.cells(table, column, place), rows), [*rows]
        return Samples(**{"fingerprint": mark, **items, **self._beside(table, label, good)})

    def read_condition(self, field: str, text: str, spec: ConditionSpec) -> Tensor | None:
        """Return the tokens of a caption. Other conditions are taken as they are."""
        return read_caption(field, text, self.captions, self.words)

    def _item_column(self, table: Any) -> str:
        """Return the column to learn. Raises `ValueError`."""
        from difftool_plugins.datasets.folders import listed
        from difftool_plugins.datasets.packed import hub

        arrays = [name for name in hub.array_columns(table) if name not in (*self.vectors, self.tokens)]
        images = [name for name in hub.image_columns(table) if name != self.images]
        if self.items is not None:
            hub.check_column(table, "items", self.items)
            if self.items not in (*arrays, *images):
                raise ValueError(
                    f"items: {self.items} holds {table.features[self.items]}, neither images nor arrays; "
                    f"choose from {listed([*images, *arrays]) or 'none'}"
                )
            return self.items
        found = images or arrays
        if len(found) == 1:
            return found[0]
        if not found:
            raise ValueError(f"items: no column holds images or arrays; the columns are {listed([*table.features])}")
        raise ValueError(f"items: several columns could be learned ({listed(found)}); choose one by --dataset.items")

    def _label_column(self, table: Any) -> str | None:
        from difftool_plugins.datasets.folders import listed
        from difftool_plugins.datasets.packed import hub

        if self.labels == NONE:
            return None
        if self.labels != AUTO:
            hub.check_column(table, "labels", self.labels)
            return self.labels
        found = hub.class_columns(table)
        if len(found) > 1:
            raise ValueError(f"labels: several columns hold classes ({listed(found)}); name one, or none")
        return found[0] if found else None

    def _beside(self, table: Any, label: str | None, rows: Sequence[int]) -> dict[str, Any]:
        """Return what comes with the items of these rows, as arguments of `Samples`."""
        import torch

        from difftool_plugins.datasets.columns import captions, classes
        from difftool_plugins.datasets.packed import cells, hub

        place, more = self._place(), dict[str, Any]()
        if label is not None:
            found = hub.values(table, label)
            chosen = [found[i] for i in rows]
            names = hub.class_names(table, label)
            if names and any(value is None or value < 0 for value in chosen):
                raise ValueError(f"labels: column {label} has rows without a class; --dataset.labels none")
            more["labels"], more["class_names"] = classes.classes_of(chosen, names, f"column {label}")
        if self.vectors:
            parts = [cells.vectors_of(hub.cells(table, name, place), rows) for name in self.vectors]
            more["vectors"] = torch.cat(parts, dim=1)
        if self.tokens is not None:
            more["tokens"] = cells.load_arrays(
                cells.PackedArrays(hub.cells(table, self.tokens, place), rows), self.memory
            )
        if self.captions is not None:
            texts, column = hub.values(table, self.captions), f"column {self.captions}"
            room = bytes_in_memory(self.memory)
            more["tokens"] = captions.caption_rows([texts[i] for i in rows], column, self.words, room)
        return more

    def _place(self) -> str:
        return f"{self.path} ({self.split})"
