"""Typed, frozen, strict settings.

Each stage keeps its settings in its own file as a :class:`Section`; this file knows how to read
them from YAML, lay dotted overrides over them (``select.count=500``), and explain a mistake. An
unknown key is an error that names the nearest known one: a misspelt setting never becomes a silent
default.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from mmrlhf_engine.errors import ConfigError

__all__ = [
    "MemorySize",
    "Section",
    "laid_over",
    "load_config",
    "parse_bytes",
    "parse_share",
    "to_yaml",
]


class Section(BaseModel):
    """Settings of one place: frozen, unknown keys refused, each described by the text under it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


SectionType = TypeVar("SectionType", bound=Section)


def load_config(
    kind: type[SectionType],
    file: Path | None = None,
    overrides: Iterable[str] = (),
    *,
    base: Mapping[str, Any] | None = None,
) -> SectionType:
    """Settings from a YAML file (or none) with ``dotted.key=value`` overrides laid over it.

    What neither has is taken from ``base``, by section, and else is the default.

    Values of overrides are read as YAML, so ``dedup.max_per_image=null`` and
    ``select.question_types={long: 1, short: 1}`` mean what they say.

    Raises:
        ConfigError: the file is not a mapping, or a key or value is not one of ``kind``.
    """
    settings = _read_yaml(file) if file is not None else {}
    settings = laid_over(base or {}, settings)
    for override in overrides:
        _apply_override(settings, override)
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise _explain(kind, error, file) from None


def to_yaml(section: Section) -> str:
    """The resolved settings as YAML; loading it again gives an equal section."""
    return yaml.safe_dump(section.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def parse_bytes(text: str | int) -> int:
    """``"4G"``, ``"512 MiB"`` or a plain number as bytes; every unit is a power of 1,024.

    Raises:
        ConfigError: the text is not a positive size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", str(text).lower())
    size = int(float(match[1]) * 1024 ** " kmgt".index(match[2] or " ")) if match else 0
    if size <= 0:
        raise ConfigError(f"memory: found {text!r}, expected a size", hint="for example 4G or 512M")
    return size


def _check_size(text: str | None) -> str | None:
    if text is not None:
        parse_bytes(text)
    return text


MemorySize = Annotated[str | None, AfterValidator(_check_size)]
"""A size such as ``4G``, or None for half of what the machine, or its control group, has."""


def parse_share(text: str, setting: str) -> float:
    """``"5%"`` or ``"0.05"`` as 0.05.

    Raises:
        ConfigError: the text is no share; ``setting`` says whose.
    """
    number = text.strip()
    try:
        share = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigError(f"{setting}: found {text!r}, expected a share such as 1% or 0.01")
    return share


def laid_over(base: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Both; a key of both is that of ``settings``, and where both are sections, both of them."""
    merged = {**base, **settings}
    for name in base.keys() & settings.keys():
        if isinstance(base[name], dict) and isinstance(settings[name], dict):
            merged[name] = laid_over(base[name], settings[name])
    return merged


def _read_yaml(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ConfigError(f"{file}: no such file of settings")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: found {type(content).__name__}, expected a mapping of sections")
    return content


def _apply_override(settings: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            f"override {override!r}: expected key=value", hint="for example --set select.count=500"
        )
    *parents, last = key.strip().split(".")
    place = settings
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise ConfigError(f"override {override!r}: {parent} is a value, not a section")
    try:
        place[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML: {error}") from None


def _explain(kind: type[Section], error: ValidationError, file: Path | None) -> ConfigError:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    origin = f"{file}: " if file is not None else ""
    if problem["type"] != "extra_forbidden":
        # What a validator of the project says is shown as it stands, without pydantic's preface.
        said = problem.get("ctx", {}).get("error", problem["msg"].lower())
        return ConfigError(f"{origin}{where}: found {problem['input']!r}: {said}")
    known = _known_keys(kind, problem["loc"][:-1])
    nearest = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.4)
    suggestion = f"did you mean {nearest[0]}?" if nearest else f"known: {', '.join(known)}"
    return ConfigError(f"{origin}{where}: unknown setting", hint=suggestion)


def _known_keys(kind: type[Section], path: tuple[int | str, ...]) -> list[str]:
    """The field names at ``path``, or those of the root where the path leaves the sections."""
    for part in path:
        field = kind.model_fields.get(str(part))
        inner = field.annotation if field is not None else None
        if isinstance(part, int) or inner is None:
            continue
        candidates = [inner, *getattr(inner, "__args__", ())]
        sections = [c for c in candidates if isinstance(c, type) and issubclass(c, Section)]
        kind = sections[0] if sections else kind
    return list(kind.model_fields)
