"""How the page looks."""

CSS = """
:root { color-scheme: light; --ink: #1d2530; --soft: #5f6b7a; --line: #e3e7ec; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f6f8; color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 32px 16px 64px; }
header h1 { margin: 0; font-size: 28px; letter-spacing: -0.01em; }
header p { margin: 4px 0 20px; color: var(--soft); }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 20px 20px; margin: 0 0 20px; }
section h2 { margin: 0 0 2px; font-size: 18px; }
section > p { margin: 0 0 12px; color: var(--soft); }
.verdict { border-left: 5px solid var(--accent); }
.verdict > p { margin: 0; color: var(--ink); font-size: 18px; line-height: 1.45; }
.verdict ul { margin: 12px 0 0; padding-left: 20px; }
.verdict li, .notes li { margin: 3px 0; }
figure { margin: 8px auto 18px; }
figure svg { display: block; width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 13.5px; }
th { text-align: left; color: var(--soft); font-weight: 600; font-size: 12.5px; border-bottom: 2px solid var(--line);
  padding: 6px 12px 6px 0; white-space: nowrap; }
td { padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
tr.reference td { color: var(--soft); font-style: italic; }
tr.group th { color: var(--ink); font-size: 14px; padding-top: 16px; border-bottom: 1px solid #b9c2cd; }
details summary { cursor: pointer; font-weight: 600; margin-top: 8px; }
tbody tr:hover td { background: #f8fafc; }
td small { color: var(--soft); font-size: 11.5px; }
td.up { color: #00694c; } td.up::before { content: "▲ "; font-size: 10px; }
td.down { color: #a83e00; } td.down::before { content: "▼ "; font-size: 10px; }
.notes { color: var(--soft); font-size: 14px; } .notes ul { margin: 8px 0 0; padding-left: 20px; }
.trials td:nth-child(4) { white-space: normal; }
code { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media print { body { background: #fff; } section { break-inside: avoid; border: 0; padding: 0 0 12px; } }
"""
