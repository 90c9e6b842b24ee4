"""Pictures of folders and Parquet files: the same as the pixels that they were made from; what is wrong is one line."""

import datasets
import numpy as np
import pytest
from PIL import Image

from conf.errors import UserError
from conf.schema import Images
from pipelines.images.data import fingerprint, open_split
from pipelines.tiny.pictures import SKILLS, pictures


def test_generated_pictures_are_fixed_and_splits_are_apart():
    assert len(SKILLS) == 10
    for skill, task in SKILLS.items():
        test, labels = pictures(skill, "test", 20)
        assert test.shape == (20, 24, 24, 3)
        assert set(labels) == set(range(len(task.classes)))
        again, _ = pictures(skill, "test", 5)
        assert np.array_equal(again, test[:5])
        others = {part.tobytes() for part in pictures(skill, "train", 20)[0]}
        assert not others & {part.tobytes() for part in test}
        assert len({part.tobytes() for part in test}) == 20
    assert pictures("shapes", "test", 1)[0].astype(int).sum() == 253_353, "other pixels need another VERSION"


def test_a_folder_and_parquet_files_give_the_pictures(folder_of_pictures, tmp_path):
    found = open_split(Images(path=str(folder_of_pictures)), "test")
    pixels, labels = pictures("shapes", "test", 24)
    kept = [place for place, label in enumerate(labels) if label < 2]
    assert found.classes == ("circle", "square")
    assert sorted(found.labels) == sorted(labels[kept])
    own = {pixels[place].tobytes(): labels[place] for place in kept}
    assert {np.asarray(found.picture(i)).tobytes(): label for i, label in enumerate(found.labels)} == own
    rows = {"img": [Image.fromarray(pixels[i]) for i in kept], "kind": [("round", "boxy")[labels[i]] for i in kept]}
    datasets.Dataset.from_dict(rows).cast_column("img", datasets.Image()).to_parquet(tmp_path / "all.parquet")
    columns = {"image": "img", "label": "kind", "classes": ["round", "boxy"]}
    table = open_split(Images(path=str(tmp_path / "all.parquet"), **columns), "test")
    assert [np.asarray(table.picture(i)).tobytes() for i in range(len(table))] == [pixels[i].tobytes() for i in kept]
    assert table.labels == labels[kept].tolist()
    part = open_split(
        Images(path=str(tmp_path / "all.parquet"), splits={"validation": "train[:50%]"}, **columns), "validation"
    )
    assert len(part) == len(kept) // 2
    mirror = open_split(Images(path="folder"), "test", datasets=str(folder_of_pictures.parent))
    assert mirror.labels == found.labels


def test_classes_follow_their_names(folder_of_pictures):
    swapped = open_split(Images(path=str(folder_of_pictures), classes=["square", "circle"]), "test")
    plain = open_split(Images(path=str(folder_of_pictures)), "test")
    assert [swapped.classes[label] for label in swapped.labels] == [plain.classes[label] for label in plain.labels]


def parquet(folder, **columns):
    file = folder / "rows.parquet"
    datasets.Dataset.from_dict(columns).to_parquet(file)
    return str(file)


def png(colour=0):
    import io

    out = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(out, "PNG")
    return {"bytes": out.getvalue(), "path": None}


@pytest.mark.parametrize(
    ("columns", "classes", "words"),
    [
        ({"image": [png(), png(9)], "label": [0, None]}, ["a", "b"], "picture 1 has no label"),
        ({"image": [png(), png(9)], "label": [0, 2]}, ["a", "b"], "label 2 is none of the 2 classes"),
        ({"image": [png()], "label": [0]}, [], "its classes have no names"),
        (
            {"image": [png(), png(9)], "label": ["a", "c"]},
            ["a", "b", "d"],
            "label 'c' is none of the 3 classes",
        ),
        ({"picture": [png()], "label": [0]}, ["a"], "no column 'image'.*picture"),
        ({"image": ["x.png"], "label": [0]}, ["a"], "cannot be read"),
        ({"image": [{"bytes": b"no picture", "path": None}], "label": [0]}, ["a"], "cannot be read"),
        ({"image": [None, png()], "label": [0, 0]}, ["a"], "there is no picture"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, columns, classes, words):
    images = Images(path=parquet(tmp_path, **columns), classes=classes)
    with pytest.raises(UserError, match=words) as caught:
        open_split(images, "test").picture(0)
    assert "\n" not in str(caught.value)


def test_data_that_are_not_there(tmp_path):
    for images, words in (
        (Images(path="./nowhere"), "no pictures at ./nowhere"),
        (Images(), "names no pictures"),
        (Images(skill="shapes", path="x"), "images.path is not used"),
        (Images(path="x", templates=["a photo"]), "no single {}"),
        (Images(path="org/name"), "cannot load split test of org/name"),
    ):
        with pytest.raises(UserError, match=words):
            open_split(images, "test", online=False)


def test_a_fingerprint_follows_content_and_classes(folder_of_pictures, tmp_path):
    images = Images(path=str(folder_of_pictures))
    first = fingerprint(images, "test", None)
    assert first == fingerprint(Images(path=f"{folder_of_pictures}/"), "test", None), "not where it lies"
    assert first != fingerprint(Images(path=str(folder_of_pictures), classes=["square", "circle"]), "test", None)
    assert first != fingerprint(images, "train", None)
