"""A run records the version of flowdiff and the commit of its code, and errors name them."""

import shutil
import subprocess
from importlib import metadata

import flowdiff
from flowdiff.runs import provenance
from flowdiff.runs.provenance import git_commit, made_by, versions


def test_the_versions_include_flowdiff_itself():
    assert versions()["flowdiff"] == flowdiff.__version__
    assert versions()["torch"] == metadata.version("torch")


def git(folder, *arguments):
    identity = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_commit_is_that_of_the_repository_that_tracks_the_code(tmp_path, monkeypatch):
    file = tmp_path / "site-packages" / "provenance.py"
    file.parent.mkdir()
    shutil.copy(provenance.__file__, file)
    monkeypatch.setattr(provenance, "__file__", str(file))
    assert git_commit() is None  # no repository
    git(tmp_path, "init", "-q")
    (tmp_path / "notes").touch()
    git(tmp_path, "add", "notes")
    git(tmp_path, "commit", "-q", "-m", "the user's own repository")
    assert git_commit() is None
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "now with the code")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_commit() == commit
    file.write_text("changed")
    assert git_commit() == f"{commit}+dirty"


def test_errors_can_name_the_version_that_made_a_run():
    assert made_by({"versions": {"flowdiff": "0.2.0"}, "git_commit": None}) == "flowdiff 0.2.0"
    new = {"versions": {"flowdiff": "0.2.0"}, "git_commit": 4 * "0123456789" + "+dirty"}
    assert made_by(new) == "flowdiff 0.2.0 (commit 012345678901)"
    old = {"versions": {"torch": "2.6"}, "git_commit": 4 * "0123456789"}
    assert made_by(old) == "the version of flowdiff that made it (commit 012345678901)"
    assert made_by({}) == "the version of flowdiff that made it"
