"""report.html: one page, escaped, self-contained, capped, the same bytes for the same input."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import string
import weakref
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from report_fixture import CONFIG, SCRIPT, MadeReport, make_report

from segment.errors import InputError
from segment.evaluation import report, report_sections
from segment.evaluation.metrics import evaluate_case
from segment.evaluation.page import DASH, LANGUAGES, TEMPLATES, number, page_labels
from segment.evaluation.pictures import CasePictures
from segment.evaluation.summary import summarise
from segment.evaluation.tables import sorted_cases, sorted_lesions

CASE_IDS = [SCRIPT, "case_01", "case_02", "case_03", "case_04"]


class Page(HTMLParser):
    """Collects what the tests ask about: ids, links, attributes, text and the content of style and script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.raw: dict[str, list[str]] = {"style": [], "script": []}
        self.words: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self._inside = tag if tag in self.raw else self._inside
        for name, value in attributes:
            self.attributes.append((tag, name, value or ""))
            if name == "id":
                self.ids.append(value)
            if name == "href":
                self.links.append(value)

    def handle_endtag(self, tag):
        self._inside = "" if tag == self._inside else self._inside

    def handle_data(self, data):
        (self.raw[self._inside] if self._inside else self.words).append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


@pytest.fixture(scope="module")
def made() -> MadeReport:
    return make_report(CASE_IDS)


@pytest.fixture(scope="module")
def text(made, tmp_path_factory) -> str:
    return made.write(tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def page(text) -> Page:
    return Page(text)


class TestSelfContained:
    def test_every_link_stays_in_the_page(self, page):
        assert {link[:22] for link in page.links if not link.startswith("#")} == {"data:,", "data:image/png;base64,"}
        assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)

    def test_ids_are_unique(self, page):
        assert len(page.ids) == len(set(page.ids))

    def test_no_address_anywhere(self, text):
        assert not re.search(r"(?:https?:)?//[\w.]+\.\w+|@import|url\(", text)

    def test_policy_allows_this_style_and_script_only(self, page):
        policy = next(value for tag, _, value in page.attributes if tag == "meta" and value.startswith("default-src"))
        assert policy.startswith("default-src 'none'; img-src data:; ")
        assert "unsafe" not in policy
        for name in ("style", "script"):
            digest = hashlib.sha256("".join(page.raw[name]).encode()).digest()
            assert f"{name}-src 'sha256-{base64.b64encode(digest).decode()}'" in policy

    def test_nothing_that_the_policy_would_block(self, page):
        names = {name for _, name, _ in page.attributes}
        assert "style" not in names
        assert not {name for name in names if name.startswith("on")}

    def test_one_style_and_one_script(self, text):
        assert text.count("<script>") == 1
        assert text.count("<style>") == 1


class TestEscaping:
    def test_a_case_called_script_is_text(self, page, text):
        assert SCRIPT not in text
        assert "&lt;script&gt;alert(" in text
        assert SCRIPT in page.text

    def test_every_field_from_outside(self, made, tmp_path):
        outside = {"notes": [f"{SCRIPT}: note"], "inputs": {f"{SCRIPT}.nii": "0"}, "classes": [SCRIPT, "b"]}
        summary = {**made.summary, **outside}
        cases = [{**case, "class": SCRIPT} for case in made.cases]
        lesions = [{**lesion, "class": SCRIPT, "size_bin": SCRIPT} for lesion in made.lesions]
        odd = replace(made, summary=summary, cases=cases, lesions=lesions)
        assert SCRIPT not in odd.write(tmp_path / "report.html")

    def test_a_file_name_that_is_no_utf8(self, made, tmp_path):
        name = b"case\xff".decode("utf-8", "surrogateescape")
        cases = [{**made.cases[0], "case_id": name}]
        assert "case\\udcff" in replace(made, cases=cases, lesions=[]).write(tmp_path / "report.html")


class TestReading:
    def test_headline_in_words_and_figures(self, made, page):
        micro = made.summary["micro"]
        hit, n = micro["n_small_found"], micro["n_small"]
        low, high = (f"{100 * bound:.0f}%" for bound in micro["intervals"]["small_lesion_recall"])
        assert 0 < hit < n
        assert f"{hit} of {n} small lesions (at most 50 mm³) found: {100 * hit / n:.0f}%" in page.text
        assert f"(95% interval {low} to {high})" in page.text
        assert f"{micro['fp_per_scan']:.2f} false positives a scan" in page.text
        assert "p ≥ 0.5" in page.text

    def test_without_small_lesions(self, made, tmp_path):
        micro = {**made.summary["micro"], "small_lesion_recall": None, "n_small": 0, "n_small_found": 0}
        words = Page(replace(made, summary={**made.summary, "micro": micro}).write(tmp_path / "report.html")).text
        assert "There are no small lesions (at most 50 mm³) in these labels" in words

    def test_masks_without_probabilities(self, tmp_path):
        words = Page(make_report(CASE_IDS[1:2], probabilities=False).write(tmp_path / "report.html")).text
        assert "masks as given" in words
        assert "Give the probability maps to tell a threshold that is too high" in words
        assert "FROC" not in words

    def test_status_of_every_case(self, page):
        for words in ("both empty", "label empty", "prediction empty"):
            assert words in page.text

    def test_conventions_and_provenance_are_folded_in(self, made, page):
        assert "26-connected" in page.text
        assert made.summary["definitions"]["iou10"] in page.text
        assert "SHA-256 of labels/a.nii.gz" in page.text

    def test_views_of_the_largest_lesion_and_of_each_miss(self, made, text):
        missed = [row for row in made.lesions if row["side"] == "gt" and row["detected_iou10"] is False]
        places = {case["case_id"]: place for place, case in enumerate(made.cases, start=1)}
        assert len(missed) > 3
        for row in missed:
            assert f'id="case-{places[row["case_id"]]}-0-L{row["lesion_id"]}"' in text

    def test_tables_have_captions_and_scopes(self, text):
        assert text.count("<table") == text.count("<caption>") == 5
        assert len(re.findall(r"<th(?![^>]*scope)[ >]", text)) == 0


class TestClasses:
    def test_each_class_has_its_lines_and_its_figures(self, made, tmp_path):
        case_id, pictures = next(iter(made.arrays.items()))
        results = []
        for name, value in (("core", 1), ("rim", 2)):
            # The lesions of the class "rim" are those of "core" moved by a few voxels, and never predicted.
            label = pictures.label + 2 * (np.roll(pictures.label, 6, axis=0) & ~pictures.label & 1)
            names = {"config": CONFIG, "value": value, "class_name": name}
            results.append(evaluate_case(case_id, label, pictures.prediction, pictures.grid, **names))
        summary = summarise(results, config=CONFIG, seed=0, inputs={})
        both = MadeReport(summary, sorted_cases(results), sorted_lesions(results), made.arrays)
        text = both.write(tmp_path / "report.html")
        page = Page(text)
        assert "By class" in page.text
        assert re.search(r'<th scope="row">rim</th><td>\d+</td><td>0%</td>', text)
        assert len(page.ids) == len(set(page.ids))
        assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


class TestLanguages:
    def test_chinese_labels(self, made, tmp_path):
        text = made.write(tmp_path / "report.html", language="zh")
        assert '<html lang="zh-Hans">' in text
        assert "漏检病灶" in text

    def test_unknown_language_names_the_known_ones(self, made, tmp_path):
        with pytest.raises(InputError, match=r"language 'fr': expected one of en, zh"):
            made.write(tmp_path / "report.html", language="fr")
        assert list(tmp_path.iterdir()) == []

    def test_every_label_in_every_language_with_the_same_places(self):
        table = json.loads((TEMPLATES / "labels.json").read_text(encoding="utf-8"))
        for key, texts in table.items():
            assert len(texts) == len(LANGUAGES), key
            fields = [sorted(name for _, name, _, _ in string.Formatter().parse(label) if name) for label in texts]
            assert all(found == fields[0] for found in fields), key
            assert all(label.strip() for label in texts), key

    def test_no_label_is_unused(self):
        files = [path for path in TEMPLATES.parent.rglob("*.*") if path.suffix in (".py", ".html")]
        source = "\n".join(path.read_text(encoding="utf-8") for path in files)
        built = ("status_", "reason_", "iou_mean", "dice_mean", "compare_", "figure_")  # put together from a prefix
        unused = [
            key
            for key in page_labels("en")
            if not key.startswith(built) and not re.search(rf"""\bt\.{key}\b|["']{key}["']""", source)
        ]
        assert unused == []


class TestFile:
    def test_the_same_input_gives_the_same_bytes(self, text, tmp_path):
        assert make_report(CASE_IDS).write(tmp_path / "report.html") == text

    def test_nothing_is_left_beside_it(self, made, tmp_path):
        made.write(tmp_path / "report.html")
        assert [path.name for path in tmp_path.iterdir()] == ["report.html"]

    def test_a_path_that_cannot_be_written(self, made, tmp_path):
        (tmp_path / "report.html").mkdir()
        with pytest.raises(InputError, match=r"cannot write .*report.html"):
            made.write(tmp_path / "report.html")


class TestCaps:
    def test_pictures_stop_at_the_cap_and_the_page_says_so(self, made, tmp_path, monkeypatch):
        whole = made.write(tmp_path / "whole.html")
        monkeypatch.setattr(report_sections, "PICTURES_MIB", 0.05)
        capped = made.write(tmp_path / "capped.html")
        assert len(capped) < len(whole)
        assert "missed lesions and false positives: this page holds at most" in capped

    def test_only_the_worst_cases_are_loaded(self, made, tmp_path, monkeypatch):
        monkeypatch.setattr(report_sections, "PICTURED_CASES", 2)
        asked: list[str] = []
        arrays = {**made.arrays}
        lazy = replace(made, arrays=_Asked(arrays, asked))
        words = Page(lazy.write(tmp_path / "report.html")).text
        # No prediction at all (F1 0, 8 misses), then nothing but false positives.
        assert asked == ["case_04", "case_03"]
        assert "Pictures for the 2 worst of 5 cases" in words
        assert "beyond the page's cap" in words

    def test_one_case_in_memory_at_a_time(self, made, tmp_path):
        alive: list[weakref.ref[CasePictures]] = []

        def load(case_id: str) -> CasePictures:
            assert not [reference for reference in alive if reference() is not None]
            pictures = made.arrays[case_id]
            copy = CasePictures(np.copy(pictures.image), pictures.label, pictures.prediction, pictures.grid)
            alive.append(weakref.ref(copy))
            return copy

        names = {"summary": made.summary, "cases": made.cases, "lesions": made.lesions}
        report.write_html(tmp_path / "report.html", pictures=load, language="en", **names)
        assert len(alive) == len(CASE_IDS)

    def test_without_scans(self, made, tmp_path):
        words = Page(replace(made, arrays={}).write(tmp_path / "report.html")).text
        assert "the scan was not at hand" in words
        assert "No pictures of these." in words

    def test_lesion_rows_are_capped_misses_first(self, made, tmp_path, monkeypatch):
        monkeypatch.setattr(report, "LESION_ROWS", 3)
        text = made.write(tmp_path / "report.html")
        table = text[text.index('<table id="lesion-table"') : text.index('<h2 id="missed"')]
        assert table.count('class="t missed">missed') == 3
        assert "The page lists 3 of " in table


class _Asked(dict):
    """A dictionary that notes which keys were asked for."""

    def __init__(self, values, asked):
        super().__init__(values)
        self._asked = asked

    def get(self, key, default=None):
        self._asked.append(key)
        return super().get(key, default)


@pytest.mark.parametrize(
    ("value", "digits", "text"), [(None, 2, DASH), (0.125, 2, "0.12"), (-0.04, 1, "0.0"), (-1.26, 1, "-1.3")]
)
def test_numbers_as_printed(value, digits, text):
    assert number(value, digits) == text
