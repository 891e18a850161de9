"""What Streamlit's theme cannot say. The values are those of figures/theme.py."""

from moe_core.figures.theme import DARK, LIGHT, Theme


def _colours(theme: Theme) -> str:
    return (
        f"--moescope-ink-2: {theme.ink2}; --moescope-paused: {theme.paused}; --moescope-failed: {theme.banner}; "
        f"--moe-green: {theme.running}; --moe-amber: {theme.paused}; --moe-red: {theme.failed}; --moe-grey: {theme.ink2};"
    )


CSS = f"""
.stApp {{ {_colours(LIGHT)} }}
.stApp[data-moe-theme="dark"] {{ {_colours(DARK)} }}
@media (prefers-color-scheme: dark) {{ .stApp:not([data-moe-theme="light"]) {{ {_colours(DARK)} }} }}
[data-testid="stMainBlockContainer"] {{ padding: 64px 24px 8px; max-width: none; }}
[data-testid="stSidebarHeader"] {{ height: 44px; min-height: 0; padding: 0 24px; margin: 0; }}
[data-testid="stSidebarContent"] {{ padding: 0; }}
[data-testid="stSidebarUserContent"] {{ padding: 4px 24px 16px; }}
[data-testid="stSidebar"] .stButton button {{ padding: 4px 2px; min-height: 34px; }}
[data-testid="stSidebar"] .stButton button p {{ font-size: 14px; overflow: visible; }}
[data-testid="stSidebarUserContent"] [data-testid="stVerticalBlock"] {{ gap: 10px; }}
[data-testid="stSidebar"] [data-testid="stSlider"] {{ position: relative; margin-bottom: -4px; }}
[data-testid="stSidebar"] [data-testid="stSliderThumbValue"] {{ font-weight: 600; font-variant-numeric: tabular-nums; }}
.moe-state, .moe-change {{ display: flex; align-items: center; gap: 8px; font-size: 15px; }}
.moe-change {{ font-size: 13px; line-height: 22px; font-variant-numeric: tabular-nums; }}
.moe-right {{ margin-left: auto; font-size: 13px; color: var(--moescope-ink-2); font-variant-numeric: tabular-nums; }}
.moe-heading {{ font-size: 13px; font-weight: 600; color: var(--moescope-ink-2); }}
.moe-dot {{ width: 9px; height: 9px; border-radius: 50%; background: var(--moe-grey); }}
.moe-dot.green {{ background: var(--moe-green); }} .moe-dot.amber {{ background: var(--moe-amber); border-radius: 1px; }}
.moe-dot.red {{ background: var(--moe-red); border-radius: 1px; }}
b.green {{ color: var(--moe-green); }} b.amber {{ color: var(--moe-amber); }} b.red {{ color: var(--moe-red); }}
"""
