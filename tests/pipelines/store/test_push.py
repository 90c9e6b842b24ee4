"""A model on its way to the hub, which is faked at the client: what goes there, and what must not."""

import json

import pytest
import yaml

from conf.errors import UserError
from pipelines.store.store import Store
from pipelines.study.sources import access_of
from pipelines.study.sweep import run_study
from pipelines.upkeep.push import push


class FakeHub:
    """The calls that are made of huggingface_hub's client, and the files as they were when they were uploaded."""

    def __init__(self):
        self.created, self.files = [], {}

    def create_repo(self, repo, private, exist_ok):
        self.created.append((repo, private))

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.files = {file.name: file.read_bytes() for file in folder_path.iterdir()}


@pytest.fixture
def hub(monkeypatch):
    fake = FakeHub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: fake)
    return fake


@pytest.fixture
def merged(small_study):
    config = small_study("sampler.samples=1")
    run_study(config)
    rows = [entry for entry in Store(config.store).entries("results") if entry.describe()["trial"] == "merge"]
    return config, rows[0]


def test_a_merge_goes_with_card_recipe_and_scores_and_no_path(merged, hub, tmp_path):
    config, entry = merged
    pushed = push(entry.key, "me/it", config, access_of(config), upload=True, private=True, licence="mit")
    assert (pushed.url, hub.created) == ("https://huggingface.co/me/it", [("me/it", True)])
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "mergekit_config.yml"} <= set(hub.files)
    assert pushed.files == {name: len(content) for name, content in hub.files.items()}
    for name, content in hub.files.items():
        assert str(tmp_path).encode() not in content, name
        assert config.store.encode() not in content, name
    about, card = entry.describe(), hub.files["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "mit"
    assert "base_model" not in front  # nothing of it is on the hub
    (result,) = front["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == about["tasks"]["add"]["value"]
    recipe = yaml.safe_load(hub.files["mergekit_config.yml"])
    assert [model["model"] for model in recipe["models"]] == about["names"]
    assert not (Store(config.store).root / "tmp" / pushed.folder).exists()


def test_nothing_leaves_without_being_told_to(merged, hub, tmp_path):
    config, entry = merged
    config.out = str(tmp_path / "ready")
    pushed = push(entry.key, "me/it", config, access_of(config))
    assert (pushed.url, hub.created, hub.files) == (None, [], {})
    assert (tmp_path / "ready" / "model.safetensors").is_file()
    assert "the base names no licence" in pushed.notes[0]


def test_hub_ids_and_the_licence_of_the_base_are_in_the_front_matter(merged, hub, tmp_path):
    """As if base and first expert had been fetched: their snapshots lie in the hub's cache."""
    config, entry = merged
    about = {k: v for k, v in entry.describe().items() if k not in ("format", "files", "checksum")}
    folder = tmp_path / "models--org--base" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    source = Store(config.store).root / "bases"
    for file in next(source.iterdir()).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# base\n")
    about["base"]["path"] = str(folder)
    about["recipe"]["base"] = str(folder)
    (entry.folder / "entry.json").write_text(json.dumps(about))
    front = yaml.safe_load(push(entry.key, "me/it", config, access_of(config)).card.split("---")[1])
    assert front["base_model"] in ("org/base", ["org/base"])
    assert front["license"] == "apache-2.0"


def test_what_cannot_be_pushed(merged, hub):
    config, entry = merged
    base = next(iter(Store(config.store).entries("bases")))
    with pytest.raises(UserError, match="OWNER/NAME"):
        push(entry.key, "it", config, access_of(config))
    with pytest.raises(UserError, match="no expert and no merge"):
        push(f"bases:{base.key}", "me/it", config, access_of(config))
    hub.create_repo = lambda *args, **kwargs: (_ for _ in ()).throw(OSError("no network"))
    with pytest.raises(UserError, match="the hub refuses: no network"):
        push(entry.key, "me/it", config, access_of(config), upload=True)
