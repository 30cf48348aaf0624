"""The options of a term: defaults and ranges come from its section of the configuration."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from segment.config_base import Section, explain
from segment.config_loss import TERMS
from segment.errors import InputError


def default(term: str, option: str) -> Any:
    """The default of an option."""
    return TERMS[term].model_fields[option].default


def checked(term: str, **options: Any) -> dict[str, Any]:
    """The options as they came, after a check of their ranges.

    Raises:
        InputError: A value is out of range; the message names the term, the option, the range and the value.
    """
    section: type[Section] = TERMS[term]
    try:
        section.model_validate({"name": term, **options})
    except ValidationError as cause:
        raise InputError(f"{term}: {explain(cause, section)}") from cause
    return options
