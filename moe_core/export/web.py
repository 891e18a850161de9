"""A figure as one HTML file that needs no network: plotly.js, the page's typefaces and the numbers inside."""

import base64
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from moe_core.export.fonts import FILES
from moe_core.export.svg import FAMILIES, printable


@lru_cache(1)
def plotly_js() -> str:
    """plotly.js out of the installed package, as text that may stand in a script element."""
    import plotly

    text = (Path(plotly.__file__).parent / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    return re.sub(r"</(?=script)", r"<\\/", text, flags=re.IGNORECASE)


@lru_cache(1)
def typefaces() -> str:
    """CSS that brings Source Sans and Source Code."""
    rules = []
    for mono, (name, _) in FAMILIES.items():
        data = base64.b64encode(FILES[mono].read_bytes()).decode()
        rules.append(
            f"@font-face{{font-family:'{name}';font-weight:200 900;src:url(data:font/woff2;base64,{data}) format('woff2')}}"
        )
    return "".join(rules)


def script_text(value: Any) -> str:
    """JSON that may stand in a script element: whatever a user wrote, it ends neither the element nor the script."""
    text = json.dumps(plain(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def plain(value: Any) -> Any:
    """value in JSON's types; a number that it lacks becomes null, and floats keep what a chart can show."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.7g}") if np.isfinite(value) else None
    return value


def head(facts: Mapping[str, str]) -> str:
    """The stamp as meta elements."""
    lines = [f"<title>{escape(printable(facts.get('Title', 'MoEscope')))}</title>", '<meta charset="utf-8">']
    lines += [f'<meta name="moescope:{escape(k.lower())}" content="{escape(printable(v))}">' for k, v in facts.items()]
    return "\n".join(lines)


def page(name: str, spec: dict[str, Any], facts: Mapping[str, str], zoom: float = 1.0, caption: str = "") -> str:
    """One chart as a page: zoom, hover and save as in the dashboard."""
    layout = spec["layout"]
    colours = f"background:{layout['paper_bgcolor']};color:{layout['font']['color']}"
    below = f'<p style="margin:0;font-size:11px">{escape(printable(caption))}</p>' if caption else ""
    return f"""<!DOCTYPE html>
<html lang="en"><head>
{head(facts)}
<style>{typefaces()}body{{margin:0;zoom:{zoom:g};{colours};font-family:'Source Sans',sans-serif}}</style>
<script>{plotly_js()}</script></head><body>
<div id="{name}"></div>{below}
<script>
const figure = {script_text(spec)};
document.fonts.ready.then(() => Plotly.newPlot({script_text(name)}, figure.data, figure.layout,
  {{displaylogo: false, modeBarButtonsToRemove: ["sendChartToCloud"], toImageButtonOptions: {{scale: 2, filename: {script_text(name)}}}}}));
</script></body></html>
"""
