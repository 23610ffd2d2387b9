"""Text and Markdown from Jinja2 templates that lie beside the modules that fill them in."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2


def render_template(template: Path, **values: Any) -> str:
    """Fill in a template; files that are named `*.html.jinja` escape their values.

    Args:
        template: the template's file.
        values: what its names stand for. They are data: no template syntax in them is carried out.

    Raises:
        ValueError: a name that has no value.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     template = Path(folder, "hello.md.jinja")
        ...     _ = template.write_text("Hello {{ name }}.")
        ...     render_template(template, name="{{ you }}")
        'Hello {{ you }}.'
    """
    import jinja2

    try:
        return _load_template(template).render(values)
    except jinja2.UndefinedError as error:
        raise ValueError(error.message) from None


@cache
def _load_template(file: Path) -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(file.parent),
        autoescape=file.name.endswith(".html.jinja"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(file.name)
