"""Styles that Streamlit's theme has no settings for. The values are those of figures/theme.py."""

from moe_core.figures.called import run_colour
from moe_core.figures.theme import DARK, LIGHT, Theme

# The mark: a pulse, as on a scope.
MARK = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 24 24' fill='none' stroke='black' "
    "stroke-width='2.4' stroke-linecap='round' stroke-linejoin='round'%3E%3Cpath d='M2 13h4l3-9 5 16 3-10 1.5 3H22'/%3E%3C/svg%3E"
)


WIDGETS = [
    "MultiSelect",
    "Selectbox",
    "ButtonGroup",
    "Slider",
    "NumberInput",
    "TextInput",
    "TextArea",
    "Checkbox",
    "FileUploader",
]


def _colours(theme: Theme) -> str:
    return (
        f"--moescope-ground: {theme.ground}; --moescope-side: {theme.side}; --moescope-ink-2: {theme.ink2}; "
        f"--moescope-rule: {theme.rule}; --moescope-hand: {theme.hand}; --moescope-tint: {theme.tint}; "
        f"--moescope-paused: {theme.paused}; --moescope-failed: {theme.banner}; "
        f"--moe-green: {theme.running}; --moe-amber: {theme.paused}; --moe-red: {theme.failed}; --moe-grey: {theme.ink2}; "
        f"--moe-rule: {theme.edge}; " + "".join(f"--moe-run-{at}: {run_colour(at, theme)}; " for at in range(4))
    )


CSS = f"""
.stApp {{ {_colours(LIGHT)} }}
.stApp[data-moe-theme="dark"] {{ {_colours(DARK)} }}
@media (prefers-color-scheme: dark) {{ .stApp:not([data-moe-theme="light"]) {{ {_colours(DARK)} }} }}
@media print {{
  @page {{ margin: 12mm; }}
  .stApp.stApp {{ {_colours(LIGHT)} color-scheme: light; }}
  .stApp, .stApp :not(.moescope-chart *) {{ --st-text-color: {LIGHT.ink}; --st-border-color: {LIGHT.edge}; }}
  html, body, .stApp, [data-testid="stAppViewContainer"], [data-testid="stMain"], #root, #root > div {{
    position: static !important; display: block !important; height: auto !important; overflow: visible !important; background: {LIGHT.ground} !important;
  }}
  [data-testid="stMainBlockContainer"] :not(.moescope *, .moeruns *) {{ color: {LIGHT.ink} !important; }}
  [data-testid="stMainBlockContainer"] {{ padding: 0 !important; }}
  [data-testid="stHeader"], [data-testid="stSidebar"], .stButton, .stDownloadButton, .moe-export,
  :is({", ".join(f"[data-testid=st{name}]" for name in WIDGETS)}) {{ display: none !important; }}
}}
@media (prefers-reduced-motion: reduce) {{
  .stApp *, .stApp *::before, .stApp *::after {{ transition-duration: 1ms !important; animation-duration: 1ms !important; animation-iteration-count: 1 !important; scroll-behavior: auto !important; }}
}}
@media (forced-colors: active) {{
  [data-testid="stSidebarHeader"]::before, .moe-run {{ forced-color-adjust: none; }}
  [data-testid="stSidebarHeader"]::before {{ background: CanvasText; }}
}}
[data-testid="stHeader"] {{ height: 48px; min-height: 48px; border-bottom: 1px solid var(--moescope-rule); background: var(--moescope-ground); }}
[data-testid="stMainBlockContainer"] {{ padding: 64px 24px 0; max-width: none; }}
[data-testid="stSidebar"] {{ border-right: 1px solid var(--moescope-rule); }}
[data-testid="stSidebarHeader"] {{
  height: 48px; min-height: 48px; padding: 0 12px 0 24px; margin: 0; gap: 8px; align-items: center;
  background: var(--moescope-ground); border-bottom: 1px solid var(--moescope-rule);
}}
[data-testid="stSidebarHeader"] > * {{ order: 3; }}
[data-testid="stSidebarHeader"]::before {{
  content: ""; order: 1; width: 22px; height: 22px; background: var(--moescope-hand);
  mask: url("{MARK}") center / contain no-repeat;
}}
[data-testid="stSidebarHeader"]::after {{ content: "MoEscope"; order: 2; flex: 1; font-size: 17px; font-weight: 600; }}
[data-testid="stMainBlockContainer"] h1 {{ font-size: 32px; padding: 16px 0 8px; }}
[data-testid="stMainBlockContainer"] h3 {{ font-size: 18px; padding: 4px 0; }}
[data-testid="stMainBlockContainer"] :is(p, h1) {{ max-width: 80ch; }}
[data-testid="stTopNavLink"]:focus-visible {{ outline: 2px solid var(--moescope-hand); outline-offset: -2px; }}
[data-testid="stTopNavLink"] span {{ font-size: 1rem; }}
[data-testid="stPageLink-NavLink"] * {{ white-space: normal; }}
[data-testid="stLogoSpacer"], [data-testid="stStatusWidget"] {{ display: none; }} /* a running man in the corner each second */
[data-testid="stSidebarContent"] {{ padding: 0; scrollbar-gutter: auto; }}
[data-testid="stSidebarUserContent"] {{ padding: 16px 24px; }}
@media (min-width: 1600px) {{ [data-testid="stMainBlockContainer"] {{ padding: 72px 32px 0; }} html {{ font-size: 17px; }} }}
/* Streamlit writes white on the primary colour, and that is light in the dark theme. */
.stApp button[kind^="primary"]:not(:disabled), .stApp [data-tag] {{ color: var(--moescope-ground) !important; }}
[data-testid="stButtonGroup"] button {{ padding-inline: 12px; }}
.st-key-batch-row {{ min-height: 88px; justify-content: center; }} /* the same while it measures: no chart moves */
.st-key-batch-row [data-testid="stVerticalBlock"] {{ gap: 8px; }}
.st-key-compare-row [data-testid="stHorizontalBlock"] {{ flex-wrap: wrap; }}
.st-key-compare-row [data-testid="stColumn"] {{ min-width: max-content; }}
.st-key-compare-row [data-testid="stColumn"]:first-child {{ min-width: min(100%, 320px); }}
.st-key-compare-row [data-tag] {{ max-width: clamp(10.5rem, 12.4vw, 14rem); }} /* one long name leaves room for the others */
.st-key-compare-row [data-tag] span {{ font-size: 0.87rem; }} /* 18 letters of it (compare.py) */
@media (max-width: 900px) {{ .st-key-your-model [data-testid="stHorizontalBlock"] {{ flex-direction: column; align-items: stretch; }}
  .st-key-your-model [data-testid="stColumn"] {{ width: 100%; }} }}
[data-testid="stCode"] .token {{ color: inherit !important; }} /* its colours for words are below 4.5:1 */
.moe-taken {{ margin: 0; padding-left: 16px; font-size: 13px; line-height: 18px; color: var(--moescope-ink-2); overflow-wrap: anywhere; }}
/* The preview stands below the choices where beside them their words would be cut. */
.st-key-export-row > * > [data-testid="stHorizontalBlock"] {{ flex-wrap: wrap; }}
.st-key-export-row > * > * > [data-testid="stColumn"] {{ flex: 1 1 0; min-width: min(100%, 300px); }}
.st-key-export-row > * > * > [data-testid="stColumn"] + [data-testid="stColumn"] {{ flex-grow: 2; min-width: min(100%, 380px); }}
/* The figures chosen are all in sight, where Streamlit has one line of them, which scrolls. */
.st-key-export-row :has(> [data-testid="stMultiSelectTagsContainer"]) {{ height: auto; max-height: none; }}
.st-key-export-row [data-testid="stMultiSelectTagsContainer"] {{ flex-wrap: wrap; overflow: visible; min-width: 0; height: auto; mask-image: none; }}
/* Once something else is chosen, the last file is no longer what the page shows. */
.stApp:not([data-test-script-state="notRunning"]) .st-key-export-one {{ pointer-events: none; opacity: 0.5; }}
.moe-export {{ font-size: 13px; color: var(--moescope-hand); line-height: 40px; }}
.moe-differences h2 {{ font-size: 16px; font-weight: 600; padding: 8px 0 0; }}
.moe-differences p {{ font-size: 13px; color: var(--moescope-ink-2); margin: 0 0 8px; }}
.moe-differences .moe-wide {{ overflow-x: auto; }} /* a table of four runs is wider than a phone: it scrolls, and not the page */
.moe-differences table {{ border-collapse: collapse; font-size: 13px; line-height: 20px; font-variant-numeric: tabular-nums; }}
.moe-differences th, .moe-differences td {{ text-align: left; font-weight: 400; padding: 4px 32px 4px 0; border: 0; }}
.moe-differences thead th, .moe-differences .moe-part {{ font-weight: 600; border-bottom: 1px solid var(--moe-rule); }}
.moe-differences .moe-part {{ padding-top: 12px; }}
.moe-differences tbody th[scope=row] {{ color: var(--moescope-ink-2); }}
@media (min-width: 1600px) {{ .moe-differences h2 {{ font-size: 18px; }} .moe-differences :is(p, table), .moe-export {{ font-size: 15px; }} }}
.moe-fault {{ color: var(--moe-red); font-size: 13px; line-height: 18px; margin: 4px 0 0; overflow-wrap: anywhere; }}
.moe-strategy {{ font-size: 13px; line-height: 18px; color: var(--moescope-ink-2); margin: 0; }}
.moe-strategy code {{ padding: 0; background: none; color: inherit; }}
@media (min-width: 1600px) {{ .moe-fault, .moe-strategy {{ font-size: 15px; line-height: 20px; }} }}
.moe-run {{ display: inline-block; width: 10px; height: 10px; margin-right: 6px; background: var(--moe-run-0); }}
.moe-run-1 {{ background: var(--moe-run-1); }} .moe-run-2 {{ background: var(--moe-run-2); }} .moe-run-3 {{ background: var(--moe-run-3); }}
"""
