import base64
import io
import json
import re

import numpy as np
import pytest
from browser import CHROMIUM, DRIVER, chromium
from PIL import Image

from flowdiff.report import page, report
from flowdiff.testing.fake_runs import write_run, write_runs


@pytest.fixture(scope="module")
def out(swept, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    swept.write_page(folder)
    return folder


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium with chromedriver here (Debian: chromium, chromium-driver)")
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def browser(window, out):
    window.open(out / "report.html")
    yield window
    assert window.errors() == []


def data_of(folder):
    return json.loads(re.search(r'id="data">(.*?)</script>', (folder / "report.html").read_text(), re.S)[1])


def place(browser, title):
    """The number of the column with this title, from 1."""
    return [head.strip() for head in browser.texts("#table thead th")].index(title) + 1


def column(browser, title):
    """The visible cells of a column, top to bottom."""
    return browser.texts(f"#table tbody tr td:nth-child({place(browser, title)})")


def means(browser, title):
    """The numbers in the visible cells of a column."""
    return [float(cell.split(" ")[0].replace(",", "")) for cell in column(browser, title) if cell]


def head(browser, title):
    """A selector of the button that sorts by this column."""
    return f"#table thead th:nth-child({place(browser, title)}) button"


def differences(browser, left, right):
    """The comparison of two runs: key to their values."""
    browser.choose("#left", left)
    browser.choose("#right", right)
    lines = (row.split("\t") for row in browser.texts("#diff tbody tr"))
    return {key: values for key, *values in lines}


# ----------------------------------------------------------------------------------------------------- as text


def test_the_page_is_one_file_that_loads_nothing(out):
    text = (out / "report.html").read_text()
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#|data:)""", text.split('id="data">')[0])
    assert not re.search("https?://", text)
    assert "default-src 'none'" in text
    assert len(text) < 1_000_000
    embedded = map(base64.b64decode, re.findall(r"data:image/png;base64,([\w+/=]+)'", text))
    assert (out / "plots" / "curves.png").read_bytes() in embedded


def test_names_cannot_end_the_script(tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    write_run(tmp_path / "runs" / "a", loss={"name": evil})
    write_run(tmp_path / "runs" / "b", complete=False, error=evil)
    report([tmp_path / "runs"], tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert text.count("</script>") == 2
    assert "<img src=x" not in text
    assert evil in data_of(tmp_path)["config"]["values"]


def test_pictures_beyond_the_budget_are_linked_not_embedded(tmp_path, monkeypatch):
    runs = write_runs(tmp_path / "runs", *("picture=true",) * 4)
    monkeypatch.setattr(page, "MAX_EMBEDDED_BYTES", len(page._picture(runs / "0" / "samples.png")) + 1)
    report([runs], tmp_path / "out")
    pictures = data_of(tmp_path / "out")["pictures"].values()
    linked = [picture for picture in pictures if not picture.startswith("data:")]
    assert (len(pictures), len(linked)) == (4, 2)
    assert all((tmp_path / "out" / path).is_file() for path in linked)


def test_large_grids_are_scaled_down_and_broken_ones_left_out(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (900, 600, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    small = page._picture(tmp_path / "large.png")
    assert len(small) < 200_000
    assert Image.open(io.BytesIO(base64.b64decode(small.split(",")[1]))).size == (256, 384)
    (tmp_path / "cut.png").write_bytes((tmp_path / "large.png").read_bytes()[:5000])
    (tmp_path / "text.png").write_bytes(b"text")
    assert {page._picture(tmp_path / f"{name}.png") for name in ("cut", "text", "none")} == {""}


# -------------------------------------------------------------------------------------------------- in Chromium


@pytest.mark.parametrize("keys", [(None, None), ("Enter", "Space")], ids=["mouse", "keyboard"])
@pytest.mark.parametrize(("filtered", "rows"), [("", 9), ("softplus", 4)])
def test_the_button_of_a_column_sorts(browser, keys, filtered, rows):
    browser.type("#filter", filtered)
    button, unsorted = head(browser, "fd_cnn"), means(browser, "fd_cnn")
    assert len(unsorted) == rows
    assert unsorted != sorted(unsorted) or filtered
    browser.run("document.querySelector(arguments[0]).focus()", button)
    for key, order in zip(keys, ("ascending", "descending"), strict=True):
        browser.press(button, key) if key else browser.click(button)
        assert means(browser, "fd_cnn") == sorted(unsorted, reverse=order == "descending")
        assert browser.run(f"return document.querySelectorAll('th[aria-sort={order}]').length") == 1


def test_numbers_sort_as_numbers_the_best_first_and_empty_cells_last(browser):
    browser.click(head(browser, "flow.n_flows"))
    assert means(browser, "flow.n_flows") == [1, 1, 2, 2, 3, 5, 5, 10, 10]
    browser.click(head(browser, "samples_per_second"))  # higher is better: the first click sorts in descending order
    speeds = means(browser, "samples_per_second")
    assert speeds == sorted(speeds, reverse=True)
    for _ in range(2):
        browser.click(head(browser, "bpd"))
        assert column(browser, "bpd")[-1] == ""


@pytest.mark.parametrize(
    ("typed", "rows"),
    [
        *(("softplus", 4), ("SOFT", 4), ("elu n_flows=5", 1), ("n_flows=1", 2)),  # not n_flows=10
        *(("flow.n_flows=1", 2), ("n_flows>=5", 4), ("network=unet", 1), ("n_flows<3 softplus", 2)),
        *(("nothing-like-this", 0), ("", 9)),
    ],
)
def test_the_filter(browser, typed, rows):
    browser.type("#filter", typed)
    assert len(browser.texts("#table tbody tr")) == rows
    assert browser.texts("#count") == [f"{rows} of 9 rows"]


def test_every_run_and_every_way_of_sampling_can_be_shown(browser):
    browser.choose("#view", "every run")
    states = column(browser, "state")
    assert (len(states), states.count("failed"), states.count("unfinished")) == (29, 1, 1)
    browser.type("#filter", "failed")
    assert column(browser, "run") == ["n_flows=10,activation=tanh"]
    browser.type("#filter", "sampler=heun num_steps=100")
    browser.choose("#view", "ways of sampling")
    assert column(browser, "num_steps") == ["100"] * 8


def test_the_best_is_bold_incomplete_runs_are_listed_and_plots_are_shown(browser):
    assert len(browser.texts("#table td.best")) >= 4
    assert browser.run("return getComputedStyle(document.querySelector('#table td.best')).fontWeight") == "700"
    assert any("loss is nan at step 40" in row for row in browser.texts("#incomplete tbody tr"))
    browser.run("document.querySelectorAll('.plots img').forEach((i) => { i.loading = 'eager' })")
    decoded = "(i) => i.decode().then(() => [i.naturalWidth, i.alt])"
    sizes = browser.run(f"return Promise.all([...document.querySelectorAll('.plots img')].map({decoded}))")
    assert len(sizes) == 8
    assert all(width > 300 and alt for width, alt in sizes)


def test_the_comparison_shows_only_differing_keys_and_absent_ones(browser):
    pair = ("n_flows=1,activation=elu,seed=0", "n_flows=5,activation=softplus,seed=0")
    assert differences(browser, *pair) == {"flow.n_flows": ["1", "5"], "activation.name": ["elu", "softplus"]}
    assert browser.texts("#diff thead th")[1:] == list(pair)
    browser.click("#housekeeping")
    assert {"flow.n_flows", "activation.name", "paths.output_dir", "logger.group"} <= set(differences(browser, *pair))
    unet = "network=unet,seed=0"
    rows = differences(browser, unet, "n_flows=1,activation=elu,seed=0")
    assert (rows["network.channels"], rows["network.name"]) == (["32", "not set"], ["unet", "score_flow"])
    assert differences(browser, unet, unet) == {}
    assert browser.texts("#diff-note") == ["No key differs."]


def test_samples_are_shown_side_by_side(browser):
    def shown():
        return browser.run("return [...document.querySelectorAll('#gallery img')].map((i) => i.naturalWidth)")

    def select_row(words):
        browser.type("#filter", words)
        browser.click("#table tbody tr:not([hidden]) input")

    assert len(shown()) == 6  # the best settings, before the user selects any
    browser.click("#clear")
    assert shown() == []
    browser.choose("#view", "every run")
    select_row("n_flows=1 seed=0")
    select_row("n_flows=20")
    browser.run("document.querySelector('#gallery').scrollIntoView()")
    browser.run("return Promise.all([...document.querySelectorAll('#gallery img')].map((i) => i.decode()))")
    assert shown() == [80]
    assert browser.texts("#samples-note") == ["1 of the selected runs have no samples.png."]
    browser.click("#clear")
    browser.choose("#view", "settings, mean ± sd over seeds")
    select_row("unet")
    assert len(shown()) == 3  # a setting shows all of its seeds
