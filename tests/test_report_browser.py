"""The report in headless Chromium: it can be sorted, filtered and walked by keyboard, and nothing leaves the page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_fixture import SCRIPT, make_report

from segment.evaluation.page import DASH, bin_name

selenium = pytest.importorskip("selenium", reason="selenium is not installed: pip install 'segment[test]'")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.remote.webdriver import WebDriver  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
)
pytestmark = [
    pytest.mark.skipif(
        not (BROWSER and DRIVER), reason="no Chromium with chromedriver here: apt-get install chromium chromium-driver"
    ),
    # The driver is spoken to over loopback; every other socket stays closed.
    pytest.mark.allow_hosts(["127.0.0.1", "::1"]),
]
SIZE = bin_name("10-50")
CASE_IDS = [SCRIPT, "case_01", "case_02", "case_03", "case_04"]

# Every visible text with its colour and the first opaque colour behind it, as WCAG 2 contrast ratios below 4.5.
POOR_CONTRAST = """
const light = (rgb) => {
  const [r, g, b] = rgb.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const parts = (text) => text.match(/[\\d.]+/g).map(Number);
const behind = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = parts(getComputedStyle(at).backgroundColor);
    if (colour.length < 4 || colour[3] === 1) return colour.slice(0, 3);
  }
  return [255, 255, 255];
};
const poor = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  // Letters on the pictures are white with a black rim, whatever is behind them.
  if (!walker.currentNode.textContent.trim() || element.closest("script, svg.view, title")) continue;
  if (!element.getClientRects().length) continue;
  const style = getComputedStyle(element);
  const ink = light(parts(element.closest("svg") ? style.fill : style.color));
  const [a, b] = [ink, light(behind(element))].sort((x, y) => y - x);
  if ((a + 0.05) / (b + 0.05) < 4.5) poor.push(walker.currentNode.textContent.trim());
}
return poor;
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    make_report(CASE_IDS).write(path)
    return path


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        yield browser
    finally:
        browser.quit()


@pytest.fixture
def report(driver: WebDriver, page: Path) -> WebDriver:
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    driver.get(page.as_uri())
    return driver


def texts(driver: WebDriver, table: str, column: str) -> list[str]:
    """The texts of a column in the rows that are shown."""
    script = """
    const table = document.getElementById(arguments[0]);
    const column = table.querySelector(`th[data-key="${arguments[1]}"]`).cellIndex;
    return [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[column].textContent.trim());
    """
    return driver.execute_script(script, table, column)


def heading(driver: WebDriver, table: str, column: str) -> Any:
    return driver.find_element(By.CSS_SELECTOR, f'#{table} th[data-key="{column}"]')


def control(driver: WebDriver, table: str, column: str, test: str) -> Any:
    return driver.find_element(By.CSS_SELECTOR, f'form[data-table="{table}"] [data-key="{column}"][data-test="{test}"]')


def shown(driver: WebDriver, table: str) -> str:
    return driver.find_element(By.CSS_SELECTOR, f'form[data-table="{table}"] output').text


class TestQuiet:
    def test_no_request_leaves_the_page_and_the_console_is_clean(self, driver, page):
        driver.get_log("browser")
        driver.get_log("performance")
        driver.get(page.as_uri())
        for link in driver.find_elements(By.CSS_SELECTOR, "nav a"):
            link.click()
        events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
        requests = [event["params"]["request"] for event in events if event["method"] == "Network.requestWillBeSent"]
        asked = {request["url"] for request in requests}
        assert {address.partition("#")[0] for address in asked if not address.startswith("data:")} == {page.as_uri()}
        assert driver.get_log("browser") == []

    def test_the_policy_is_in_force(self, report):
        report.execute_script("""
            const made = document.createElement("script");
            made.textContent = "window.ran = 1";
            document.body.append(made);
        """)
        assert report.execute_script("return window.ran") is None
        assert "Content Security Policy" in str(report.get_log("browser"))

    def test_a_case_called_script_is_text(self, report):
        assert SCRIPT in texts(report, "case-table", "case")
        assert report.execute_script("return document.scripts.length") == 1


class TestSorting:
    def test_worst_first_at_the_start(self, report):
        assert texts(report, "case-table", "case")[0] == "case_04"
        assert heading(report, "case-table", "f1").get_attribute("aria-sort") == "ascending"

    def test_numbers_both_ways_with_undefined_last(self, report):
        for direction in ("ascending", "descending"):
            heading(report, "case-table", "iou").find_element(By.TAG_NAME, "button").click()
            column = texts(report, "case-table", "iou")
            numbers = [float(text) for text in column[:-1]]
            assert column[-1] == DASH
            assert numbers == sorted(numbers, reverse=direction == "descending")
            assert heading(report, "case-table", "iou").get_attribute("aria-sort") == direction
        assert heading(report, "case-table", "f1").get_attribute("aria-sort") is None

    def test_as_numbers_and_not_as_words(self, report):
        heading(report, "lesion-table", "volume").find_element(By.TAG_NAME, "button").click()
        volumes = [float(text) for text in texts(report, "lesion-table", "volume")]
        assert volumes == sorted(volumes)
        assert volumes[0] < 100 < volumes[-1]

    def test_by_keyboard(self, report):
        heading(report, "lesion-table", "iou").find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
        column = [float(text) for text in texts(report, "lesion-table", "iou")]
        assert column == sorted(column)


class TestFilters:
    def test_cases_by_status_name_and_misses(self, report):
        Select(control(report, "case-table", "status", "equals")).select_by_visible_text("both empty")
        assert texts(report, "case-table", "case") == ["case_02"]
        assert shown(report, "case-table") == "1 of 5 shown"
        report.find_element(By.CSS_SELECTOR, 'form[data-table="case-table"] button').click()
        WebDriverWait(report, 5).until(lambda _: shown(report, "case-table") == "5 of 5 shown")
        control(report, "case-table", "case", "contains").send_keys("SCRIPT>alert")
        assert texts(report, "case-table", "case") == [SCRIPT]

    def test_cases_with_misses(self, report):
        control(report, "case-table", "missed", "least").send_keys("1")
        assert texts(report, "case-table", "case")
        assert all(int(missed) >= 1 for missed in texts(report, "case-table", "missed"))

    def test_lesions_by_size_outcome_and_iou(self, report):
        Select(control(report, "lesion-table", "size", "equals")).select_by_visible_text(SIZE)
        Select(control(report, "lesion-table", "outcome", "equals")).select_by_visible_text("missed")
        assert set(texts(report, "lesion-table", "size")) == {SIZE}
        assert set(texts(report, "lesion-table", "outcome")) == {"missed"}
        report.find_element(By.CSS_SELECTOR, 'form[data-table="lesion-table"] button').click()
        WebDriverWait(report, 5).until(lambda _: len(set(texts(report, "lesion-table", "size"))) > 1)
        control(report, "lesion-table", "iou", "least").send_keys("0.2")
        control(report, "lesion-table", "iou", "most").send_keys("0.6")
        found = [float(text) for text in texts(report, "lesion-table", "iou")]
        assert found
        assert all(0.2 <= iou <= 0.6 for iou in found)

    def test_sorting_keeps_the_filter(self, report):
        Select(control(report, "lesion-table", "outcome", "equals")).select_by_visible_text("found")
        heading(report, "lesion-table", "case").find_element(By.TAG_NAME, "button").click()
        assert set(texts(report, "lesion-table", "outcome")) == {"found"}


class TestLinks:
    def test_a_case_leads_to_its_section(self, report):
        link = report.find_element(By.CSS_SELECTOR, "#case-table tbody a")
        link.click()
        target = report.find_element(By.CSS_SELECTOR, link.get_dom_attribute("href"))
        assert target.find_element(By.TAG_NAME, "h3").text == link.text
        assert 0 <= report.execute_script("return arguments[0].getBoundingClientRect().top", target) < 300

    def test_a_picture_leads_to_all_three_planes(self, report):
        link = report.find_element(By.CSS_SELECTOR, ".gallery a")
        link.click()
        panel = report.find_element(By.CSS_SELECTOR, link.get_dom_attribute("href"))
        names = [view.get_attribute("aria-label") for view in panel.find_elements(By.CSS_SELECTOR, "svg.close")]
        for plane, name in zip(("axial", "coronal", "sagittal"), names, strict=True):
            assert plane in name

    def test_the_first_tab_skips_to_the_report(self, report):
        report.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
        assert report.switch_to.active_element.get_dom_attribute("href") == "#main"


class TestLooks:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_contrast_is_aa(self, report, scheme):
        preferred = {"name": "prefers-color-scheme", "value": scheme}
        report.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [preferred]})
        dark = report.execute_script("return getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert dark == (scheme == "dark")
        report.execute_script("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        assert report.execute_script(POOR_CONTRAST) == []

    @pytest.mark.parametrize("width", [360, 1200])
    def test_nothing_sticks_out(self, report, width):
        screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        report.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        try:
            assert report.execute_script("return document.documentElement.scrollWidth") <= width
        finally:
            report.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def test_outlines_can_be_switched_off(self, report):
        script = """
        const paths = [...document.querySelectorAll("path.label, path.prediction")];
        return paths.map((path) => [path.classList[0], getComputedStyle(path).display]);
        """
        assert {display for _, display in report.execute_script(script)} == {"inline"}
        report.find_element(By.CSS_SELECTOR, '[data-outline="label"]').click()
        assert {tuple(pair) for pair in report.execute_script(script)} == {("label", "none"), ("prediction", "inline")}
