"""The record that the texts beside a picture make up, or a question that all pictures share."""

import json
from pathlib import PurePosixPath
from string import Formatter

from mmrlhf_engine.errors import ConfigError

__all__ = ["check_prompt", "prompt_for", "record_of_texts"]

_FIELDS = ("label", "name")


def record_of_texts(texts: dict[str, bytes]) -> tuple[bytes, list[str]]:
    """The record that texts by suffix (``json``, ``txt``, ``caption``) make up together.

    What is no JSON object, or no UTF-8, is returned as it is: the core says what is wrong with it.
    The second result are the suffixes of texts that the record does not hold.
    """
    plain = next((suffix for suffix in ("txt", "caption") if suffix in texts), None)
    unused = ["caption"] if plain == "txt" and "caption" in texts else []
    if plain is None:
        return texts.get("json", b"{}"), unused
    try:
        record = json.loads(texts["json"]) if "json" in texts else {}
        prompt = texts[plain].decode("utf-8-sig")
    except (ValueError, RecursionError):
        return texts.get("json", texts[plain]), unused
    if not isinstance(record, dict):
        return texts["json"], unused
    has_own = {"conversations", "messages", "prompt", "question"} & record.keys()
    if has_own:
        return texts["json"], [plain, *unused]
    return json.dumps({**record, "prompt": prompt}).encode(), unused


def check_prompt(template: str) -> None:
    """Refuse a template with fields other than ``{label}`` and ``{name}``.

    Raises:
        ConfigError: it has another field, or a brace that is no field.
    """
    try:
        fields = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise ConfigError(f"prompt_for_pictures: {error}: {template!r}") from None
    unknown = [field for field in fields if field not in _FIELDS]
    if unknown:
        raise ConfigError(
            f"prompt_for_pictures: {{{unknown[0]}}} is no field of a picture: {template!r}",
            hint="{label} is the name of its folder, {name} its own without the suffix",
        )


def prompt_for(template: str | None, name: str) -> bytes | None:
    """The record of a picture without a text; None where no question was given.

    Args:
        template: The question, in which ``{label}`` is the name of the picture's folder and
            ``{name}`` its own without the suffix.
        name: The picture, with its folders.
    """
    if template is None:
        return None
    path = PurePosixPath(name)
    return json.dumps({"prompt": template.format(label=path.parent.name, name=path.stem)}).encode()
