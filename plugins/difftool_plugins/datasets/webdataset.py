"""Data sets in tar shards, as webdataset writes them, read in the order of a step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difftool import Dataset, option
from difftool_plugins.datasets.folders import EXTENSIONS, listed
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
    from difftool_plugins.datasets.packed.shards import Members, Shard

AUTO, NONE, CLASS, ARRAY = "auto", "none", "cls", "npy"
PICTURES = tuple(extension.removeprefix(".") for extension in EXTENSIONS)


class WebDataset(Dataset, name="webdataset"):
    """Tar shards as webdataset has them: members of one name are a sample, and their suffixes its columns.

    An index of the places of all members is made once, and again when a shard changes. Samples are then read by their
    number, in an order that the seed and the step decide, so that a run resumes exactly.
    """

    default_backbone = "unet"

    path: Path = option(
        help="folder of .tar files, one file, or a pattern such as train-{000..049}.tar or 'train-*.tar'"
    )
    items: str | None = option(
        default=None,
        help="suffix of the images or arrays (.npy) to learn, such as jpg or depth.npy",
        otherwise="the only suffix of images, or of arrays",
    )
    labels: str = option(
        default=AUTO,
        help="suffix of the classes, numbers or texts, or json:KEY; auto: cls, if there is one; none: no classes",
    )
    vectors: tuple[str, ...] = option(
        default=(), help="numbers that the network is shown, joined: suffixes of .npy members, or json:KEY"
    )
    captions: str | None = option(
        default=None, help="suffix of texts that the network is shown as tokens, by words, such as txt, or json:KEY"
    )
    words: int = words_option()
    images: str | None = option(default=None, help="suffix of images that the network is shown, one for each item")
    tokens: str | None = option(default=None, help="suffix of arrays (L,D) that the network is shown as tokens")
    size: tuple[int, ...] = size_option()
    channels: int = channels_option()
    bits: int = bits_option()
    crop: Crop = crop_option()
    augment: tuple[Change, ...] = augment_option()
    skip_bad: bool = skip_bad_option("samples")
    memory: float | None = memory_option()

    def __post_init__(self) -> None:
        height_width(self.size)
        check_changes(self.augment)
        check_bits(self.bits)
        check_captions(self.captions, self.tokens)

    def load(self, context: DatasetContext) -> Samples:
        from difftool import Samples
        from difftool_plugins.datasets.packed import cells, shards

        paths = shards.shard_paths(str(self.path.expanduser().absolute()))
        found = [shards.read_index(path, context.cache) for path in paths]
        problems = [problem for shard in found for problem in shard.problems]
        if problems and not self.skip_bad:
            raise ValueError(f"{problems[0]}; use --dataset.skip-bad to go on with what can be read")
        if not any(shard.keys for shard in found):
            raise ValueError(f"path: {paths[0]} holds no samples, which are files with a suffix")
        items, label = self._item_suffix(found), self._label_suffix(found)
        columns = [items, *self.vectors, *filter(None, (label, self.captions, self.images, self.tokens))]
        members = {column: shards.members_of(found, column.partition(":")[0]) for column in columns}
        for column, each in members.items():
            if all(offset < 0 for offset in each.places[::2]):
                raise ValueError(
                    f"no sample has a member {column.partition(':')[0]}; there are {listed(suffixes(found))}"
                )
        rows = self._complete(members, problems)
        names = [f"{name}/{key}" for shard in found for name in [shard.name] for key in shard.keys]
        if len(set(names)) < len(names):
            names = [f"{name}#{i}" for i, name in enumerate(names)]
        mark = cells.digest("\0".join(names), *(each.sizes() for each in members.values()))
        if items.rpartition(".")[2] in PICTURES:
            pictures = {name: members[name] for name in (items, *filter(None, [self.images]))}
            more, rows = cells.image_arguments(self, pictures, rows, mark, context.cache)
        else:
            more = cells.array_arguments(self, members[items], rows)
        beside = self._beside(members, label, rows)
        return Samples(item_ids=[names[i] for i in rows], **{"fingerprint": mark, **beside, **more})

    def read_condition(self, field: str, text: str, spec: ConditionSpec) -> Tensor | None:
        """Return the tokens of a caption. Other conditions are taken as they are."""
        return read_caption(field, text, self.captions, self.words)

    def _item_suffix(self, found: Sequence[Shard]) -> str:
        """Return the suffix of the members to learn. Raises `ValueError`."""
        there = suffixes(found)
        if self.items is not None:
            if self.items.rpartition(".")[2] not in (*PICTURES, ARRAY):
                raise ValueError(f"items: must be images ({', '.join(PICTURES)}) or arrays (npy), not {self.items}")
            return self.items
        others = (*self.vectors, self.images, self.tokens)
        images = [s for s in there if s.rpartition(".")[2] in PICTURES and s not in others]
        arrays = [s for s in there if s.rpartition(".")[2] == ARRAY and s not in others]
        chosen = images or arrays
        if len(chosen) != 1:
            what = (
                f"several suffixes could be learned ({listed(chosen)})" if chosen else "no member is an image or .npy"
            )
            raise ValueError(f"items: {what}; name one of {listed(there)} by --dataset.items")
        return chosen[0]

    def _label_suffix(self, found: Sequence[Shard]) -> str | None:
        if self.labels == AUTO:
            return CLASS if CLASS in suffixes(found) else None
        return None if self.labels == NONE else self.labels

    def _complete(self, members: dict[str, Members], problems: Sequence[str]) -> list[int]:
        """Return the samples that have all members, and warn of others. Raises `ValueError` unless they may be bad."""
        from difftool import printable
        from difftool_plugins.datasets.folders import report

        missing: dict[int, str] = {}
        for each in members.values():
            for i in range(len(each)):
                if each.places[2 * i] < 0 and i not in missing:
                    missing[i] = f"{printable(each.name(i))}: is missing"
        if missing and not self.skip_bad:
            first = next(iter(missing.values()))
            raise ValueError(f"{first} ({len(missing)} such samples); use --dataset.skip-bad to leave them out")
        total = len(next(iter(members.values())))
        report([*problems, *missing.values()], total + len(problems), "items")
        return [i for i in range(total) if i not in missing]

    def _beside(self, members: dict[str, Members], label: str | None, rows: Sequence[int]) -> dict[str, Any]:
        """Return what comes with the items of these samples, as arguments of `Samples`."""
        import torch

        from difftool_plugins.datasets.columns import captions, classes
        from difftool_plugins.datasets.packed import cells

        more: dict[str, Any] = {}
        if label is not None:
            more["labels"], more["class_names"] = classes.classes_of(texts_of(members[label], label, rows), where=label)
        if self.vectors:
            parts = [numbers_of(members[column], column, rows) for column in self.vectors]
            more["vectors"] = torch.cat(parts, dim=1)
        if self.tokens is not None:
            more["tokens"] = cells.load_arrays(cells.PackedArrays(members[self.tokens], rows), self.memory)
        if self.captions is not None:
            texts = texts_of(members[self.captions], self.captions, rows)
            more["tokens"] = captions.caption_rows(texts, self.captions, self.words, bytes_in_memory(self.memory))
        return more


def suffixes(shards: Sequence[Shard]) -> list[str]:
    """Return the suffixes of all members, sorted."""
    return sorted({suffix for shard in shards for suffix in shard.members})


def texts_of(members: Members, column: str, rows: Sequence[int]) -> list[Any]:
    """Return the texts of members, or what their JSON holds under a key. Raises `ValueError`."""
    from difftool import printable

    key, values = column.partition(":")[2], list[Any]()
    for i in rows:
        try:
            text = members.content(i).decode("utf-8")
            values.append(json.loads(text)[key] if key else text.strip())
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"has no key {key!r}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{printable(members.name(i))}: {reason}") from None
    return values


def numbers_of(members: Members, column: str, rows: Sequence[int]) -> Tensor:
    """Return the numbers (N, D) of members: arrays, or numbers in JSON. Raises `ValueError`."""
    import torch

    from difftool_plugins.datasets.packed import cells

    if ":" in column:
        try:
            return torch.tensor(texts_of(members, column, rows), dtype=torch.float32).reshape(len(rows), -1)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"vectors: {column} must hold numbers, as many in each sample ({error})") from None
    return cells.vectors_of(members, rows)
