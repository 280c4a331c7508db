"""Names of folders on the command line, which Hydra's grammar would read as something else."""

import pytest

from flowdiff import config
from flowdiff.config.arguments import parsed, quoted, setting, several, without
from flowdiff.errors import ConfigurationError

NAMES = [
    "a=b",
    "ärger",
    "a,b",
    "a(b)",
    "a#b",
    "a[b]",
    "a b",
    "{a}",
    "it's",
    "2024",
    "1e3",
    "true",
    "a:b",
    "a\\b",
    "a%b",
    "${a}",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_exists_can_be_named_without_quotes(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    assert setting(quoted([f"run={name}"]), "run") == name
    assert quoted(quoted([f"run={name}"])) == quoted([f"run={name}"])  # another rank of the run reads it again


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("a,b", "${a}", "a\\b")])
def test_so_can_one_that_is_to_be_made(name):
    assert setting(quoted([f"out={name}"]), "out") == name
    assert config.compose([f"dataset.path=data/{name}/x", "dataset=image_folder"]).dataset.path == f"data/{name}/x"


@pytest.mark.parametrize("given", ["run='a=b'", 'run="a=b"', r"run=a\=b", "++run='a=b'"])
def test_quotes_of_hydra_are_read(given):
    assert setting(quoted([given]), "run") == "a=b"


def test_what_hydra_reads_as_text_is_left_alone():
    given = [
        "run=outputs/default-9c32aa42",
        "resume=null",
        "-m",
        "seed=0,1",
        "tags=[a,b]",
        "--cfg",
        "job",
        "out=${run}",
    ]
    assert quoted(given) == given


def test_several_runs_may_have_any_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a=b", "c d", "2024", "e"):
        (tmp_path / name).mkdir()
    for given, names in (("run=a=b,c d", ["a=b", "c d"]), ("run=2024,e", ["2024", "e"]), ("run='a=b',e", ["a=b", "e"])):
        override = parsed(quoted([given])[0])
        assert [setting([one], "run") for one in several(override)] == names


def test_a_variable_is_resolved(monkeypatch):
    monkeypatch.setenv("WHERE", "there")
    assert setting(["run=${oc.env:WHERE}/a"], "run") == "there/a"


def test_plugins_with_odd_names_are_imported(tmp_path):
    plugin = tmp_path / "my=plugin (1).py"
    plugin.write_text("raise ValueError('imported')")
    with pytest.raises(ConfigurationError, match="imported"):
        config.load_plugins([f"plugins=[{plugin}]"])


def test_settings_are_taken_out_of_the_arguments():
    given = ["seed=1", "dataset.path=1", "-m", "dataset.num_workers=2", "plugins=[a.py]"]
    others, taken = without(quoted(given), ["dataset.path", "dataset.num_workers", "plugins"])
    assert others == ["seed=1", "-m"]
    assert taken == {"dataset.path": "1", "dataset.num_workers": 2, "plugins": ["a.py"]}
    with pytest.raises(
        ConfigurationError, match=r"dataset\.path=a,b gives several values, and dataset\.path takes one"
    ):
        without(["dataset.path=a,b"], ["dataset.path"])


@pytest.mark.parametrize(("text", "typed"), [("0.002", "0.002"), ("2e-5", "2e-05"), ("True", "true"), ("word", None)])
def test_a_variable_is_decoded_into_what_can_be_typed_again(text, typed, monkeypatch):
    monkeypatch.setenv("VALUE", text)
    nested = "optimizer.lr=${oc.decode:${oc.env:VALUE}}"
    expected = f"optimizer.lr={typed}" if typed else "optimizer.lr='${oc.decode:${oc.env:VALUE}}'"
    assert quoted([nested, "seed=${a.${b}}"]) == [expected, "seed='${a.${b}}'"]
