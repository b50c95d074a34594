"""The page of a scorecard: one HTML file that needs no script and no other file."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment

from mmrlhf_engine import __version__
from mmrlhf_engine.measure.views import section_views
from mmrlhf_engine.run.files import write_atomically

__all__ = ["write_page"]


def write_page(name: str, scorecard: Mapping[str, Any], page: Path) -> None:
    """Write the page of the sections that a scorecard has.

    Args:
        name: Of the run, its title.
        scorecard: Sections by name.
        page: The file.
    """
    template = files("mmrlhf_engine.measure").joinpath("report.html.jinja").read_text("utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(template).render(
        name=name, version=__version__, sections=section_views(scorecard)
    )
    write_atomically(page, text)
