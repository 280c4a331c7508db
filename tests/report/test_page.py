import base64
import io
import json
import re

import numpy as np
import pytest
from browser import CHROMIUM, DRIVER, chromium
from fake_runs import write_run
from PIL import Image

from flowdiff.report import page as page_module
from flowdiff.report import read, report

needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium with chromedriver here (Debian: chromium, chromium-driver)"
)


@pytest.fixture(scope="module")
def out(sweep, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    report([sweep], folder)
    return folder


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def browser(window, out):
    window.open(out / "report.html")
    yield window
    assert window.complaints() == []


def data_of(out):
    return json.loads(re.search(r'id="data">(.*?)</script>', (out / "report.html").read_text(), re.S)[1])


def column(browser, title):
    """The visible cells below a title, top to bottom."""
    heads = browser.texts("#table thead th")
    at = next(i for i, head in enumerate(heads) if head.strip() == title) + 1
    return browser.texts(f"#table tbody tr td:nth-child({at})")


def head(browser, title):
    """A selector of the button with this title."""
    heads = [text.strip() for text in browser.texts("#table thead th")]
    return f"#table thead th:nth-child({heads.index(title) + 1}) button"


def means(cells):
    return [float(cell.split(" ")[0].replace(",", "")) for cell in cells if cell]


# -------------------------------------------------------------------------------------------------- as text


def test_the_page_is_one_file_that_loads_nothing(out):
    text = (out / "report.html").read_text()
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#|data:)""", text.split('id="data">')[0])
    assert "http://" not in text
    assert "https://" not in text
    assert "default-src 'none'" in text
    assert len(text) < 1_000_000
    assert (out / "plots" / "curves.png").read_bytes() in (
        base64.b64decode(found) for found in re.findall(r"data:image/png;base64,([\w+/=]+)'", text)
    )


def test_names_cannot_end_the_script(tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    write_run(tmp_path / "runs" / "a", loss={"name": evil})
    write_run(tmp_path / "runs" / "b", complete=False, error=evil)
    report([tmp_path / "runs"], tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    assert text.count("</script>") == 2
    assert "<img src=x" not in text
    assert evil in data_of(tmp_path / "out")["config"]["values"]


def test_pictures_beyond_the_budget_are_linked_not_embedded(tmp_path, monkeypatch):
    for i in range(4):
        write_run(tmp_path / "runs" / str(i), seed=i)
    one = len(page_module._picture(tmp_path / "runs" / "0" / "samples.png"))
    monkeypatch.setattr(page_module, "PICTURE_BYTES", one + 1)
    report([tmp_path / "runs"], tmp_path / "out")
    pictures = data_of(tmp_path / "out")["pictures"].values()
    embedded = [picture for picture in pictures if picture.startswith("data:")]
    linked = [picture for picture in pictures if not picture.startswith("data:")]
    assert (len(embedded), len(linked)) == (2, 2)
    assert all((tmp_path / "out" / path).is_file() for path in linked)


def test_large_grids_are_scaled_down_and_broken_ones_left_out(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (900, 600, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    small = page_module._picture(tmp_path / "large.png")
    assert len(small) < 200_000
    assert Image.open(io.BytesIO(base64.b64decode(small.split(",")[1]))).size == (256, 384)
    for name, content in (("cut.png", (tmp_path / "large.png").read_bytes()[:5000]), ("text.png", b"text")):
        (tmp_path / name).write_bytes(content)
        assert page_module._picture(tmp_path / name) == ""
    assert page_module._picture(tmp_path / "none.png") == ""


def test_the_page_of_runs_without_results(tmp_path):
    write_run(tmp_path / "a", complete=False, picture=False)
    (write_run(tmp_path / "b") / "config.yaml").write_text("[")
    made = read([tmp_path])
    assert [run.state for run in made.runs] == ["unfinished", "unreadable"]
    assert "config.yaml cannot be read" in page_module.page(made, [], tmp_path)


# ----------------------------------------------------------------------------------------------- in Chromium


@needs_chromium
def test_a_click_on_a_head_sorts(browser):
    cells = means(column(browser, "fd_cnn"))
    assert len(cells) == 9
    assert cells != sorted(cells)
    browser.click(head(browser, "fd_cnn"))
    assert means(column(browser, "fd_cnn")) == sorted(cells)
    assert browser.run("return document.querySelectorAll('th[aria-sort=ascending]').length") == 1
    browser.click(head(browser, "fd_cnn"))
    assert means(column(browser, "fd_cnn")) == sorted(cells, reverse=True)
    assert browser.run("return document.querySelectorAll('th[aria-sort=descending]').length") == 1


@needs_chromium
def test_numbers_sort_as_numbers_the_best_first_and_empty_cells_last(browser):
    browser.click(head(browser, "flow.n_flows"))
    assert means(column(browser, "flow.n_flows")) == [1, 1, 2, 2, 3, 5, 5, 10, 10]
    browser.click(head(browser, "samples_per_second"))  # more is better: the first click falls
    speeds = means(column(browser, "samples_per_second"))
    assert speeds == sorted(speeds, reverse=True)
    for _ in range(2):
        browser.click(head(browser, "bpd"))
        assert column(browser, "bpd")[-1] == ""


@needs_chromium
def test_the_keyboard_sorts_too(browser):
    button = head(browser, "fd_cnn")
    browser.run("document.querySelector(arguments[0]).focus()", button)
    browser.press(button, "Enter")
    cells = means(column(browser, "fd_cnn"))
    assert cells == sorted(cells)
    browser.press(button, "Space")
    assert means(column(browser, "fd_cnn")) == sorted(cells, reverse=True)


@needs_chromium
@pytest.mark.parametrize(
    ("typed", "rows"),
    [
        ("softplus", 4),
        ("SOFT", 4),
        ("elu n_flows=5", 1),
        ("n_flows=1", 2),  # not 10
        ("flow.n_flows=1", 2),
        ("n_flows>=5", 4),
        ("network=unet", 1),
        ("n_flows<3 softplus", 2),
        ("nothing-like-this", 0),
        ("", 9),
    ],
)
def test_the_filter(browser, typed, rows):
    browser.type("#filter", typed)
    assert len(browser.texts("#table tbody tr")) == rows
    assert browser.texts("#count") == [f"{rows} of 9 rows"]


@needs_chromium
def test_filter_and_sort_hold_together(browser):
    browser.type("#filter", "softplus")
    browser.click(head(browser, "fd_cnn"))
    cells = column(browser, "fd_cnn")
    assert len(cells) == 4
    assert means(cells) == sorted(means(cells))


@needs_chromium
def test_every_run_and_every_way_of_sampling_can_be_shown(browser):
    browser.choose("#view", "every run")
    states = column(browser, "state")
    assert (len(states), states.count("failed"), states.count("unfinished")) == (29, 1, 1)
    browser.type("#filter", "failed")
    assert column(browser, "run") == ["n_flows=10,activation=tanh"]
    browser.type("#filter", "sampler=heun num_steps=100")
    browser.choose("#view", "ways of sampling")
    assert set(column(browser, "num_steps")) == {"100"}
    assert len(column(browser, "fd_cnn")) == 8


@needs_chromium
def test_the_best_is_bold_and_problems_are_listed(browser):
    assert len(browser.texts("#table td.best")) >= 4
    weight = browser.run("return getComputedStyle(document.querySelector('#table td.best')).fontWeight")
    assert weight == "700"
    assert any("loss is nan at step 40" in row for row in browser.texts("#incomplete tbody tr"))


@needs_chromium
def test_the_diff_shows_only_differing_keys(browser):
    browser.choose("#left", "n_flows=1,activation=elu,seed=0")
    browser.choose("#right", "n_flows=5,activation=softplus,seed=0")
    rows = [tuple(row.split("\t")) for row in browser.texts("#diff tbody tr")]
    assert set(rows) == {("flow.n_flows", "1", "5"), ("activation.name", "elu", "softplus")}
    assert browser.texts("#diff thead th")[1:] == [
        "n_flows=1,activation=elu,seed=0",
        "n_flows=5,activation=softplus,seed=0",
    ]
    browser.click("#housekeeping")
    keys = [row.split("\t")[0] for row in browser.texts("#diff tbody tr")]
    assert set(keys) >= {"flow.n_flows", "activation.name", "paths.output_dir", "logger.group"}


@needs_chromium
def test_the_diff_knows_absent_keys_and_equal_runs(browser):
    browser.choose("#left", "network=unet,seed=0")
    browser.choose("#right", "n_flows=1,activation=elu,seed=0")
    rows = {row.split("\t")[0]: row.split("\t")[1:] for row in browser.texts("#diff tbody tr")}
    assert rows["network.channels"] == ["32", "not set"]
    assert rows["network.name"] == ["unet", "score_flow"]
    browser.choose("#right", "network=unet,seed=0")
    assert browser.texts("#diff tbody tr") == []
    assert browser.texts("#diff-note") == ["No key differs."]


@needs_chromium
def test_samples_stand_side_by_side(browser):
    def shown():
        return browser.run("return [...document.querySelectorAll('#gallery img')].map((i) => i.naturalWidth)")

    assert len(shown()) == 6  # the best settings, before anything is chosen
    browser.click("#clear")
    assert shown() == []
    browser.choose("#view", "every run")
    browser.type("#filter", "n_flows=1 seed=0")
    browser.click("#table tbody tr:not([hidden]) input")
    browser.type("#filter", "n_flows=20")
    browser.click("#table tbody tr:not([hidden]) input")
    browser.run("document.querySelector('#gallery').scrollIntoView()")
    browser.run("return Promise.all([...document.querySelectorAll('#gallery img')].map((i) => i.decode()))")
    assert shown() == [80]
    assert browser.texts("#samples-note") == ["1 of the chosen runs have no samples.png."]
    browser.click("#clear")
    browser.choose("#view", "settings, mean ± sd over seeds")
    browser.type("#filter", "unet")
    browser.click("#table tbody tr:not([hidden]) input")
    assert len(shown()) == 3  # a setting stands for all of its seeds


@needs_chromium
def test_plots_are_in_the_page(browser):
    browser.run("document.querySelectorAll('.plots img').forEach((i) => { i.loading = 'eager' })")
    sizes = browser.run(
        "return Promise.all([...document.querySelectorAll('.plots img')].map((i) => i.decode()"
        ".then(() => [i.naturalWidth, i.alt])))"
    )
    assert len(sizes) == 8
    assert all(width > 300 and alt for width, alt in sizes)
