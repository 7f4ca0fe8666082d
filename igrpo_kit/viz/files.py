"""Figures -> files: a page that opens offline, a picture that carries its description and its data."""

import html
import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
from plotly.offline import get_plotlyjs

from igrpo_kit.core.rows import write_atomically
from igrpo_kit.viz.style import WIDTH, alt_text

_DRAWN = ("x", "y", "z", "error_x", "error_y", "text", "cells")
"""the data of a trace; the rest is its appearance"""
SCALE = 1.6
"""sharp where 600 pixels are shown with 1,200 dots; a scale of 2 would take half as many bytes again"""
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def figure_data(figure: go.Figure) -> list[dict[str, Any]]:
    """What a figure was drawn from, trace by trace, numbers to 5 significant digits; no colors, no sizes."""
    traces = []
    for trace in figure.data:
        plain = trace.to_plotly_json()
        drawn = {key: _plain(plain[key]) for key in _DRAWN if key in plain}
        traces.append({"type": trace.type, "name": trace.name, **drawn})
    return traces


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(value[key]) for key in ("array", "arrayminus", "values") if key in value}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.5g}") if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def write_html(figure: go.Figure, path: str | Path, *, shared_script: bool = False) -> Path:
    """Write the figure and its description as one page that needs no network. Makes the folder.

    The page contains plotly.js (5 MB); with `shared_script` the pages of a folder share one copy beside them.
    Raises ValueError for a figure without a description (`viz.style.describe`).
    """
    path, words = Path(path), html.escape(alt_text(figure))
    path.parent.mkdir(parents=True, exist_ok=True)
    script = path.parent / "plotly.min.js"
    if shared_script and not script.exists():
        script.write_text(get_plotlyjs(), encoding="utf-8")
    drawing = pio.to_html(
        figure, full_html=False, include_plotlyjs=script.name if shared_script else True, div_id=path.stem
    )
    title = html.escape(figure.layout.title.text or path.stem)
    page = (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f'<body style="background: {figure.layout.template.layout.paper_bgcolor}">\n'
        f'<div role="img" aria-label="{words}">{drawing}</div>\n</body>\n</html>\n'
    )
    path.write_text(page, encoding="utf-8")
    return path


def write_pngs(figures: Mapping[Path, go.Figure]) -> list[Path]:
    """Write each figure as a PNG, with a single start of the browser. Makes the folders.

    A figure that names no size is `WIDTH` by 500 pixels; the picture has `SCALE` times as many each way.
    A picture carries its description and the data it was drawn from; `read_png` returns them.

    Raises FileNotFoundError where there is no Chrome or Chromium to draw them, and ValueError for a figure
    without a description (`viz.style.describe`).
    """
    texts = {
        path: {"Description": alt_text(figure), "Data": json.dumps(figure_data(figure))}
        for path, figure in figures.items()
    }
    for path in figures:
        path.parent.mkdir(parents=True, exist_ok=True)
    # A browser that is killed leaves half a file.
    drawn = [path.with_name(f".{path.name}") for path in figures]
    widths = [figure.layout.width or WIDTH for figure in figures.values()]
    heights = [figure.layout.height or 500 for figure in figures.values()]
    try:
        pio.write_images(list(figures.values()), drawn, width=widths, height=heights, scale=SCALE)
    except RuntimeError as error:
        if "Chrome" not in str(error):
            raise
        raise FileNotFoundError(
            "no browser to draw a PNG with: install Chromium (Debian: apt-get install chromium) or Chrome"
        ) from error
    for picture, (path, words) in zip(drawn, texts.items(), strict=True):
        write_atomically(path, _with_texts(picture.read_bytes(), words))
        picture.unlink()
    return list(figures)


def _with_texts(content: bytes, texts: Mapping[str, str]) -> bytes:
    """A PNG with compressed text chunks (iTXt, PNG 3rd edition, 11.3.3.4) after its header."""
    end_of_header = len(_SIGNATURE) + 25  # IHDR is always 13 bytes long, and first
    chunks = b""
    for keyword, text in texts.items():
        body = b"iTXt" + keyword.encode("latin-1") + b"\0\1\0\0\0" + zlib.compress(text.encode(), 9)
        chunks += struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return content[:end_of_header] + chunks + content[end_of_header:]


def read_png(path: str | Path) -> tuple[str, list[dict[str, Any]]]:
    """The description and the data that `write_pngs` put into a picture.

    Raises ValueError naming the file if it is not a PNG, or one without them.
    """
    content, at = Path(path).read_bytes(), len(_SIGNATURE)
    if content[:at] != _SIGNATURE:
        raise ValueError(f"{path}: not a PNG")
    texts: dict[str, str] = {}
    while at + 8 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        kind, body = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        if kind == b"iTXt":
            keyword, text = body.split(b"\0", 1)
            texts[keyword.decode("latin-1")] = zlib.decompress(text[4:]).decode()
        at += length + 12
    if not {"Description", "Data"} <= set(texts):
        raise ValueError(f"{path}: a picture without its words and data; draw it with `igrpo figures`")
    return texts["Description"], json.loads(texts["Data"])
