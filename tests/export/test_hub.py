"""The hub, by a pretended one: what is uploaded, what is downloaded, and what is refused."""

import shutil

import pytest

from flowdiff.errors import ConfigurationError, RunError
from flowdiff.export import hub
from flowdiff.runs.exported import FORMAT, Exported


class Pretended:
    """A hub in a folder."""

    def __init__(self, folder):
        self.folder = folder
        self.asked = []

    def create_repo(self, repo_id, *, private, exist_ok):
        self.asked.append((repo_id, private, exist_ok))

    def upload_folder(self, *, repo_id, folder_path, commit_message, ignore_patterns):
        assert commit_message
        shutil.copytree(folder_path, self.folder / repo_id, ignore=shutil.ignore_patterns(*ignore_patterns))

    def snapshot_download(self, repo_id, *, revision):
        self.asked.append(revision)
        if not (self.folder / repo_id).is_dir():
            raise OSError("404: no such repository.\nand more")
        return str(self.folder / repo_id)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "out").mkdir()
    Exported(FORMAT, "1a2b3c4d", "0", "levels.json", {}, {}, {}).write(tmp_path / "out")
    return tmp_path / "out"


def test_what_is_pushed_is_found_again(folder, tmp_path):
    pretended = Pretended(tmp_path / "hub")
    hub.push(folder, "me/mine", private=True, hub=pretended)
    assert pretended.asked == [("me/mine", True, True)]
    assert hub.located("hub:me/mine@v1", pretended) == tmp_path / "hub" / "me" / "mine"
    assert pretended.asked[-1] == "v1"
    assert hub.located(folder) == folder


def test_sentences(folder, tmp_path, monkeypatch):
    pretended = Pretended(tmp_path)
    with pytest.raises(RunError, match=r"hub:me/other cannot be downloaded \(404: no such repository\)"):
        hub.located("hub:me/other", pretended)
    with pytest.raises(ConfigurationError, match="does not name a model on the hub: give user/name"):
        hub.located("hub:mine", pretended)
    (tmp_path / "me" / "foreign").mkdir(parents=True)
    with pytest.raises(RunError, match=r"is not a model of flowdiff, it has no export.json"):
        hub.located("hub:me/foreign", pretended)
    with pytest.raises(RunError, match="was not exported: write it with `flowdiff export"):
        hub.push(tmp_path, "me/mine", hub=pretended)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match="HF_HUB_OFFLINE is not set"):
        hub.push(folder, "me/mine")
    with pytest.raises(RunError, match="HF_HUB_OFFLINE is not set"):
        hub.located("hub:me/mine-that-is-in-no-cache")
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'flowdiff\[hub\]'"):
        hub.push(folder, "me/mine")
