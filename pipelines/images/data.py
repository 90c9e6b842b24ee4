"""Labelled pictures of a built-in task, a folder, Parquet files or a hub data set, decoded by Pillow when asked for."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from conf.errors import UserError, nearest
from conf.schema import Images
from pipelines.checkpoints.content import folder_hash
from pipelines.checkpoints.untrusted import check_file
from pipelines.tiny import pictures as tiny

EXTRA = "pip install 'mergebench[vision]'"


@dataclass(frozen=True)
class Pictures:
    """A split: the words of its classes, the label of every picture, and the pictures themselves."""

    name: str
    """What messages call it."""
    classes: tuple[str, ...]
    labels: list[int]
    read: Callable[[int], Any]
    """From a place to what ``datasets.Image`` stores, or to pixels."""

    def __len__(self) -> int:
        return len(self.labels)

    def picture(self, place: int) -> Any:
        """The picture at a place, in RGB. Raises UserError for one that Pillow cannot read."""
        import datasets
        from PIL import Image

        where = f"{self.name}, picture {place}"
        try:
            stored = self.read(place)
            if stored is None:
                raise UserError("there is no picture", where=where, do="leave the row out, or fill it in")
            if not isinstance(stored, dict):
                return Image.fromarray(stored)
            if stored["bytes"] is None and "::" not in stored["path"]:  # which is a place in an archive
                check_file(Path(stored["path"]), links=True)
            return datasets.Image().decode_example(stored).convert("RGB")
        except UserError:
            raise
        except Exception as error:  # whatever Pillow's many readers raise
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise UserError(
                f"the picture cannot be read: {reason}", where=where, do="mend it, or leave it out"
            ) from None


def described(images: Images) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words of the classes, where it is known without the data, and the templates."""
    if images.skill is None:
        return tuple(images.classes), tuple(images.templates)
    task = tiny.SKILLS[images.skill]
    return task.classes, (task.template,)


def problem(images: Images) -> str | None:
    """What is wrong with a data set of pictures, told without opening it."""
    if importlib.util.find_spec("PIL") is None:
        return f"pictures need the package pillow: {EXTRA}"
    if images.skill is not None:
        for name in ("path", "subset", "revision", "splits", "image", "label", "classes", "templates"):
            if getattr(images, name) != getattr(Images(), name):
                return f"images.{name} is not used beside images.skill={images.skill}; leave one of them out"
        known = images.skill in tiny.SKILLS
        return (
            None
            if known
            else f"no built-in picture task is called {images.skill!r}; {nearest(images.skill, tiny.SKILLS)}"
        )
    if not images.path:
        return "names no pictures: give images.path=… (a folder, a Parquet file or a hub id)"
    if wrong := [text for text in images.templates if text.count("{}") != 1]:
        return f"the template {wrong[0]!r} has no single {{}} for the class"
    if not images.templates:
        return "has no template to put its classes into"
    if twice := [word for word in images.classes if images.classes.count(word) > 1]:
        return f"two classes are called {twice[0]!r}"
    return None


def fingerprint(images: Images, split: str, datasets: str | None, commit: str | None = None) -> dict[str, Any]:
    """What fixes pictures, labels and head of a split, as plain JSON; ``commit`` is that of a hub data set, if known.

    Raises:
        UserError: No such folder or file.
    """
    if images.skill is not None:
        return {"pictures": images.skill, "version": tiny.VERSION, "split": split}
    fields = {name: value for name, value in asdict(images).items() if name not in ("skill", "path", "splits")}
    folder = find_local(images, datasets)
    data = folder_hash(folder) if folder else f"hub:{images.path}:{commit or images.revision or ''}"
    return {**fields, "split": images.splits.get(split, split), "data": data}


def find_local(images: Images, datasets: str | None) -> Path | None:
    """The folder or file that the pictures lie in; None where their path is a hub id that no mirror holds.

    Raises:
        UserError: A path that only can be local and is not there, or that a mirror lacks.
    """
    path = str(images.path)
    places = [Path(path).expanduser(), *([Path(datasets).expanduser() / path] if datasets else [])]
    for place in places:
        if place.exists():
            return place
    local = path.startswith((".", "/", "~")) or path.endswith(".parquet")
    if local or datasets:
        do = "check images.path" if local else f"put its files into {places[-1]}, or leave datasets out"
        raise UserError(f"no pictures at {path}", where="images.path", do=do)
    return None


def open_split(images: Images, split: str, datasets: str | None = None, online: bool = True) -> Pictures:
    """The pictures of a split (a name, or a part as in ``train[90%:]``), read but not decoded.

    Raises:
        UserError: No such data, split or column, a label that is missing or has no class, or classes that have no name.
    """
    if text := problem(images):
        raise UserError(text, where="images")
    if images.skill is not None:
        try:
            pixels, drawn = tiny.pictures(images.skill, split)  # type: ignore[arg-type]
        except ValueError as error:
            raise UserError(str(error), where="split") from None
        return Pictures(images.skill, tiny.SKILLS[images.skill].classes, drawn.tolist(), pixels.__getitem__)
    rows, name = _load(images, images.splits.get(split, split), datasets, online), f"{images.path}, split {split}"
    for key, column in (("image", images.image), ("label", images.label)):
        if column not in rows.column_names:
            do = f"set images.{key}: {nearest(column, rows.column_names)}"
            raise UserError(f"no column {column!r}", where=name, do=do)
    classes, labels = _labels(rows, images, name)
    stored = _undecoded(rows, images.image, name)
    return Pictures(name, classes, labels, lambda place: stored[place][images.image])


def _load(images: Images, split: str, datasets: str | None, online: bool) -> Any:
    import datasets as library

    from pipelines.process import data_cache, offline  # with torch

    library.disable_progress_bars()
    folder = find_local(images, datasets)
    options: dict[str, Any] = {"name": images.subset, "revision": images.revision}
    path = images.path
    if folder is not None and folder.is_file():
        path, options = "parquet", {"data_files": str(folder)}
        split = re.sub(r"^\w+", "train", split)  # the one file is whatever split is asked for
    elif folder is not None:
        path, options = str(folder.resolve()), {"name": images.subset}
    try:
        with (
            data_cache({str(folder): folder_hash(folder)} if folder else {}),
            offline(not online or folder is not None),
        ):
            return library.load_dataset(path, split=split, **options)
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        do = "check images.path, images.subset and the split"
        raise UserError(f"cannot load split {split} of {images.path}", where=reason[:300], do=do) from None


def _undecoded(rows: Any, column: str, name: str) -> Any:
    import datasets

    try:
        return rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except Exception:
        raise UserError(f"column {column!r} holds no pictures", where=name, do="set images.image") from None


def _labels(rows: Any, images: Images, name: str) -> tuple[tuple[str, ...], list[int]]:
    """The words of the classes, and every row's label as a place among them."""
    values = rows.select_columns([images.label])[:][images.label]
    if not values:
        raise UserError("there are no pictures", where=name, do="give a split with rows in it")
    if (place := next((i for i, value in enumerate(values) if value is None or value == ""), None)) is not None:
        raise UserError(f"picture {place} has no label", where=name, do="leave the row out, or fill it in")
    if (place := next((i for i, value in enumerate(values) if not isinstance(value, (int, str))), None)) is not None:
        what = f"the label of picture {place} is neither a whole number nor the name of a class"
        raise UserError(what, where=name, do="set images.label")
    own = list(getattr(rows.features[images.label], "names", None) or [])
    if isinstance(values[0], str):
        own = list(images.classes) or sorted(set(values))
        if unknown := sorted(set(values) - set(own)):
            raise UserError(
                f"label {unknown[0]!r} is none of the {len(own)} classes", where=name, do=nearest(unknown[0], own)
            )
        values = [own.index(value) for value in values]
    classes = list(images.classes) or own
    if not classes:
        raise UserError(
            "its classes have no names", where=name, do="give them in the order of the labels: images.classes"
        )
    if own and len(own) != len(classes):
        what = f"the data have {len(own)} classes, images.classes names {len(classes)}"
        raise UserError(what, where=name, do="give one name for each class")
    if own and set(own) == set(classes):  # the same names in another order
        order = [classes.index(word) for word in own]
        values = [order[value] for value in values]
    labels = [int(value) for value in values]
    if (wrong := next((label for label in labels if not 0 <= label < len(classes)), None)) is not None:
        what = f"label {wrong} is none of the {len(classes)} classes"
        raise UserError(what, where=name, do="give images.classes as many names as there are labels, from 0 on")
    return tuple(classes), labels
