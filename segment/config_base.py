"""What all sections of the configuration share: strictness, number types and readable errors."""

from __future__ import annotations

import difflib
import types
from collections.abc import Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Share = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
FractionBelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]


class Section(BaseModel):
    """A group of options: unknown keys are refused and values cannot change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def explain(cause: ValidationError, root: type[Section]) -> str:
    """All errors of a validation of `root` in one line: each names the key, what was expected and what was found."""
    errors = cause.errors()
    locations = [error["loc"] for error in errors]
    # An item that fails is left out of its tuple, which then also "has too few items": the first message says it all.
    told = [
        error
        for error in errors
        if error["type"] != "too_short" or not any(_below(other, error["loc"]) for other in locations)
    ]
    return "; ".join(_explain(error, root) for error in told)


def _below(location: Sequence[int | str], parent: Sequence[int | str]) -> bool:
    return len(location) > len(parent) and tuple(location[: len(parent)]) == tuple(parent)


def _explain(error: Any, root: type[Section]) -> str:
    parts, section = _walk(error["loc"], root)
    key = ".".join(parts)
    context = error.get("ctx", {})
    if error["type"] == "extra_forbidden":
        return f"unknown key {key!r}{_did_you_mean(parts[-1], list(section.model_fields) if section else [])}"
    if error["type"] == "union_tag_invalid":
        names = [name.strip().strip("'") for name in context["expected_tags"].split(",")]
        tag, field = context["tag"], context["discriminator"].strip("'")
        return f"{key}.{field}: unknown {tag!r}{_did_you_mean(str(tag), names)} (one of {', '.join(names)})"
    if error["type"] == "union_tag_not_found":
        return f"{key}: expected a mapping with the key {context['discriminator']}, found {error['input']!r}"
    if error["type"] == "value_error":
        return f"{key}.{context['error']}" if key else str(context["error"])
    if error["type"] == "missing":
        return f"{key}: is required"
    message = error["msg"][0].lower() + error["msg"][1:]
    return f"{key}: {message}, found {error['input']!r}"


def _did_you_mean(word: str, valid: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, valid, n=1, cutoff=0.0)
    return f"; did you mean {near[0]!r}?" if near else ""


def _walk(location: Sequence[int | str], root: type[Section]) -> tuple[list[str], type[Section] | None]:
    """The keys of a location as the file has them, and the section that holds the last one."""
    keys: list[str] = []
    holder: type[Section] | None = root
    found: Any = root
    for part in location:
        choices = _sections(found)
        tagged = [choice for choice in choices if _tag(choice) == part]
        if tagged and len(choices) > 1:
            found = tagged[0]  # pydantic puts the chosen name of a union into the location; it is no key of the file
            continue
        keys.append(str(part))
        if isinstance(part, int):
            continue
        holder = choices[0] if len(choices) == 1 else None
        found = holder.model_fields[part].annotation if holder is not None and part in holder.model_fields else None
    return keys, holder


def _sections(annotation: Any) -> list[type[Section]]:
    """The sections within an annotation: itself, the members of a union, the items of a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, types.UnionType, tuple):
        return [section for argument in get_args(annotation) for section in _sections(argument)]
    return []


def _tag(section: type[Section]) -> str | None:
    field = section.model_fields.get("name")
    values = get_args(field.annotation) if field is not None else ()
    return values[0] if values else None
