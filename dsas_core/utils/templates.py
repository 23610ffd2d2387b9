"""Text, Markdown and HTML from Jinja2 templates that lie beside the modules that fill them in."""

from __future__ import annotations

import html
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


def create_environment(loader: jinja2.BaseLoader, *, escape: bool, **options: Any) -> jinja2.Environment:
    """An environment for templates; the one place where it is decided how values are escaped.

    Args:
        loader: of the templates.
        escape: for HTML: every value is escaped, as `html.escape` does, unless it is marked as HTML.
        options: further ones of `jinja2.Environment`.

    Example:
        >>> from jinja2 import DictLoader
        >>> environment = create_environment(DictLoader({"page": "<p>{{ name }}</p>"}), escape=True)
        >>> environment.get_template("page").render(name="<b>'")
        '<p>&lt;b&gt;&#x27;</p>'
    """
    import jinja2
    from jinja2.utils import markupsafe

    def escape_value(value: Any) -> Any:
        return value if hasattr(value, "__html__") else markupsafe.Markup(html.escape(str(value)))

    return jinja2.Environment(loader=loader, autoescape=escape, finalize=escape_value if escape else None, **options)


@cache
def _load_template(file: Path) -> jinja2.Template:
    import jinja2

    environment = create_environment(
        jinja2.FileSystemLoader(file.parent),
        escape=file.name.endswith(".html.jinja"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(file.name)
