from pathlib import Path

import pytest
import torch

from conf.schema import Base, Images, Optimizer, Suite, SuiteTask, Task, Training
from pipelines.finetune import finetune
from pipelines.tiny.clip import make_base
from pipelines.tiny.pictures import pictures

TASKS = ("shapes", "faces")


@pytest.fixture(scope="session", autouse=True)
def own_data_cache(tmp_path_factory):
    """What ``datasets`` makes of folders is kept for this run alone."""
    import datasets.config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A tiny classifier of pictures, barely trained."""
    folder = tmp_path_factory.mktemp("clip")
    make_base(Base(name="tiny_clip", hidden=32, layers=2, steps=6), folder)
    return folder


@pytest.fixture(scope="session")
def train(base, tmp_path_factory):
    """Train an expert on a picture task and return its folder."""

    def run(skill="shapes", method="plain", *, task=None, optimizer=None, steps=3, **more):
        out = tmp_path_factory.mktemp("expert")
        task = task or Task(name=skill, images=Images(skill=skill))
        training = Training(**{"steps": steps, "batch_size": 16, "schedule": "constant", **more})
        run.summary = finetune(base, task, {"method": method}, optimizer or Optimizer(lr=2e-3), training, 0, out)
        return out

    return run


@pytest.fixture(scope="session")
def experts(train) -> list[Path]:
    """Two experts, trained a little."""
    return [train(task, steps=8) for task in TASKS]


@pytest.fixture
def suite() -> Suite:
    """Two picture tasks, sixty pictures each."""
    tasks = {name: SuiteTask(images=Images(skill=name)) for name in TASKS}
    return Suite(name="two", tasks=tasks, limit=60, batch_size=32)


@pytest.fixture(scope="session")
def said():
    """What plain transformers says of a checkpoint folder: 1 or 0 for each picture of a generated task, by place."""

    def loop(folder, skill, places, base=None):
        from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

        from pipelines.tiny.pictures import SKILLS

        model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
        words, processor = (kind.from_pretrained(base or folder) for kind in (AutoTokenizer, CLIPImageProcessorPil))
        texts = words(
            [SKILLS[skill].template.format(w) for w in SKILLS[skill].classes], padding=True, return_tensors="pt"
        )
        pixels, labels = pictures(skill, "test")
        with torch.no_grad():
            out = [
                model(**texts, pixel_values=processor(images=pixels[place], return_tensors="pt")["pixel_values"])
                for place in places
            ]
        return [float(o.logits_per_image.argmax() == labels[place]) for o, place in zip(out, places)]

    return loop


@pytest.fixture(scope="session")
def folder_of_pictures(tmp_path_factory) -> Path:
    """Pictures of two shapes as PNG files by split and class, and the same as Parquet files."""
    from PIL import Image

    root = tmp_path_factory.mktemp("pictures")
    for split in ("train", "test"):
        pixels, labels = pictures("shapes", split, 24)
        for place, label in enumerate(labels):
            if label < 2:
                name = root / "folder" / split / ("circle", "square")[label] / f"{place:03}.png"
                name.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels[place]).save(name)
    return root / "folder"
