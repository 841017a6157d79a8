"""Pages that need no other file, from the jinja2 templates beside this module."""

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

from spcl_lib.system.files import atomic_write


def write_page(file: Path, template: str, **values: Any) -> None:
    """Writes a page from a template; all values are escaped."""
    import jinja2  # comes with the notebooks, and prediction needs no pages

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    with atomic_write(file) as temporary:
        content = environment.get_template(template).render(**values)
        temporary.write_text(content, encoding="utf-8")


def embedded(picture: Image.Image) -> str:
    """A picture as the text of an <img>'s `src`."""
    stream = io.BytesIO()
    picture.save(stream, "jpeg", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
