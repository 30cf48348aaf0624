"""Self-contained pages: templates, labels in the reader's language, and a policy that lets nothing leave the page."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from segment.errors import InputError
from segment.files import write_text

DASH = "\N{EN DASH}"  # between bounds, and where a figure is undefined
TEMPLATES = Path(__file__).parent / "templates"
LANGUAGES = {"en": "en", "zh": "zh-Hans"}  # option -> BCP 47 tag of the page; the order is that of labels.json


@lru_cache
def page_labels(language: str) -> Mapping[str, str]:
    """Every fixed text of the pages in one language, by key, with `{name}` where a figure goes.

    Raises:
        InputError: The language is none of `LANGUAGES`.
    """
    if language not in LANGUAGES:
        raise InputError(f"language {language!r}: expected one of {', '.join(LANGUAGES)}")
    place = list(LANGUAGES).index(language)
    table = json.loads((TEMPLATES / "labels.json").read_text(encoding="utf-8"))
    return {key: texts[place] for key, texts in table.items()}


def write_page(path: Path, template: str, *, language: str, values: Mapping[str, Any]) -> None:
    """Renders a template of `templates/` and writes it atomically as one UTF-8 file that needs no other.

    Every value is escaped unless it is `Markup`. The same values give the same bytes.

    Raises:
        InputError: The language is unknown or the file cannot be written.
    """
    style, script = _asset("page.css"), _asset("page.js")
    policy = "; ".join(
        (
            "default-src 'none'",
            "img-src data:",
            f"style-src {_hash(style)}",
            f"script-src {_hash(script)}",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    values = {**values, "policy": policy, "style": Markup(style), "script": Markup(script)}
    text = render(template, language=language, values=values)
    # A file name that is not valid UTF-8 reaches Python with lone surrogates, which no UTF-8 file can hold.
    write_text(path, text.encode("utf-8", "backslashreplace").decode("utf-8"))


def render(template: str, *, language: str, values: Mapping[str, Any]) -> Markup:
    """Renders a template with the labels `t` of a language. Every value is escaped unless it is `Markup`."""
    # Attributes, for a dictionary's own methods (`clear`) would hide labels of their name from a template.
    labels = SimpleNamespace(**page_labels(language))
    text = _environment().get_template(template).render(t=labels, language=LANGUAGES[language], **values)
    return Markup(text)


def bin_name(name: str) -> str:
    """A size bin as it is printed: `≤10` for `<=10`, and a dash for the hyphen of `10-50`."""
    return name.replace("<=", "≤").replace("-", DASH)


def data_uri(png: bytes) -> str:
    """PNG bytes as a `data:` address."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def number(value: float | None, digits: int) -> str:
    """A figure with fixed decimals, or a dash where it is undefined; never "-0.0"."""
    if value is None:
        return DASH
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("-") and not text.strip("-0.") else text


@lru_cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, data_uri=data_uri, bin_name=bin_name)
    return environment


def _asset(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{digest}'"
