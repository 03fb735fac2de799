"""The page in a real browser: it draws, it turns, it sorts, it fits, it says nothing and asks for nothing."""

from __future__ import annotations

import json

import ase.io
import pytest
from browsers import MISSING, Visit, find_browser, start
from watched import CANDIDATE, COVERED, HALTING, build_index, frame_of, session_of

from quests_md.report import run_page

pytestmark = pytest.mark.browser

HOSTILE = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>"
# How many pixels of the view are not the background; it is transparent.
DRAWN = """() => {
  const canvas = document.querySelector(".canvas canvas");
  const copy = document.createElement("canvas");
  copy.width = canvas.width; copy.height = canvas.height;
  const context = copy.getContext("2d");
  context.drawImage(canvas, 0, 0);
  const { data } = context.getImageData(0, 0, copy.width, copy.height);
  let count = 0, sum = 0;
  for (let i = 0; i < data.length; i += 4) if (data[i + 3] > 0) { count++; sum += data[i] * (i % 1009); }
  return [count / (canvas.width * canvas.height), sum];
}"""
COLUMN = "(n) => [...document.querySelectorAll('table')[0].tBodies[0].rows].map((row) => row.cells[n].textContent)"
OVERFLOW = "() => document.documentElement.scrollWidth - window.innerWidth"


@pytest.fixture(scope="module")
def browser():
    if find_browser() is None:
        pytest.skip(MISSING)
    with pytest.importorskip("playwright.sync_api", reason="pip install 'quests_md[test]'").sync_playwright() as made:
        running = start(made)
        yield running
        running.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Return the page of a run in which hostile strings were planted."""
    folder = tmp_path_factory.mktemp("run") / "uq"
    with session_of(build_index(), folder) as session:
        for step, scale in enumerate((COVERED, CANDIDATE, 0.07, 0.09, HALTING)):
            session.observe(frame_of(step, scale))
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(run | {"reason": HOSTILE, "host": HOSTILE}))
    frames = ase.io.read(folder / "candidates.extxyz", ":")
    for frame in frames:
        frame.info["band"] = HOSTILE
    ase.io.write(folder / "candidates.extxyz", frames)
    path = folder.parent / "report.html"
    path.write_text(run_page(folder), encoding="utf-8")
    return path


def test_it_draws_and_turns_and_is_quiet(browser, report):
    visit = Visit(browser, report, viewport={"width": 1200, "height": 900})
    page = visit.page
    share, first = visit.run(DRAWN)
    assert 0.02 < share < 0.9
    page.locator(".canvas").scroll_into_view_if_needed()
    box = page.locator(".canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 120, y + 40, steps=4)
    page.mouse.up()
    page.wait_for_function(f"() => ({DRAWN})()[1] !== {first}")
    turned = visit.run(DRAWN)[1]
    page.locator(".pick").nth(1).click()
    page.wait_for_function(f"() => ({DRAWN})()[1] !== {turned}")
    assert page.locator(".pick").nth(1).get_attribute("aria-pressed") == "true"
    assert (visit.said, visit.asked) == ([], [report.as_uri()])
    assert visit.run("() => window.pwned") is None
    assert HOSTILE in page.locator(".lead").inner_text()


def test_a_table_sorts(browser, report):
    visit = Visit(browser, report)
    assert visit.run(COLUMN, 0) == ["1", "3", "4"]
    head = visit.page.locator("table").first.locator("th").nth(2)  # the largest dH
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    down = [float(text) for text in visit.run(COLUMN, 2)]
    assert down == sorted(down, reverse=True)
    head.get_by_role("button").click()
    assert [float(text) for text in visit.run(COLUMN, 2)] == down[::-1]


@pytest.mark.parametrize("width", [400, 1200])
def test_it_fits(browser, report, width):
    visit = Visit(browser, report, viewport={"width": width, "height": 800})
    assert visit.run(OVERFLOW) <= 0
    assert visit.page.locator(".is-narrow").is_visible() is (width == 400)
    sizes = visit.run("() => [...document.querySelectorAll('.drawing text')].filter((t) => t.getClientRects().length)"
                      ".map((t) => t.getBoundingClientRect()).map((r) => Math.min(r.width, r.height))")  # fmt: skip
    assert min(size for size in sizes if size > 0) > 5.0


def test_it_prints_pictures_in_place_of_the_view(browser, report):
    visit = Visit(browser, report)
    visit.page.emulate_media(media="print")
    assert not visit.page.locator(".stage").is_visible()
    assert visit.page.locator(".pick svg").first.is_visible()
    assert visit.page.locator(".is-wide").is_visible()


def test_without_webgl_the_pictures_stay(browser, report):
    refuse = "HTMLCanvasElement.prototype.getContext = () => null;"
    visit = Visit(browser, report, before=refuse)
    assert "no WebGL" in visit.page.locator(".scenes").inner_text()
    assert not visit.page.locator(".stage").is_visible()
    assert visit.page.locator(".pick svg").first.is_visible()
    assert visit.said == []
