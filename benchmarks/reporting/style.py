"""How a report looks: one style sheet, light and dark, for wide and narrow screens."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #fff; --text: #1d2126; --dim: #59626d;
  --line: #d9dde2; --grid: #e9ecef; --warn: #8a5a00; --warn-page: #fff6e0; --bad: #b3261e;
  --s0: #1f6feb; --s1: #d1541f; --s2: #158462; --s3: #8b44c9; --s4: #b58900; --s5: #0e8fa8;
  --s6: #d13a7d; --s7: #6b7280; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --card: #1b1f24; --text: #e5e8ec;
  --dim: #a2acb8; --line: #363d46; --grid: #2a3038; --warn: #f0c674; --warn-page: #2e2715;
  --bad: #ff8a80; --s0: #6ea8ff; --s1: #ff9a66; --s2: #4cc9a0; --s3: #c79bff; --s4: #e6c04d;
  --s5: #5bd0e6; --s6: #ff85b8; --s7: #a3acb8; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .75rem; }
header p, footer p { margin: .1rem 0; color: var(--dim); font-size: .88rem; }
footer { margin-top: 2rem; border-top: 1px solid var(--line); padding-top: .75rem; }
.warning { background: var(--warn-page); color: var(--warn); border-radius: .4rem; padding: .6rem .8rem; }
.charts { display: grid; gap: 1rem; margin-bottom: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: .8rem .9rem; min-width: 0; }
figcaption { font-weight: 600; margin-bottom: .3rem; }
svg { display: block; width: 100%; max-width: 36rem; height: auto; }
svg text { fill: var(--dim); stroke: none; font-size: 12px; font-variant-numeric: tabular-nums;
  text-anchor: middle; }
svg .end { text-anchor: end; }
svg .start { text-anchor: start; }
svg .name { fill: var(--text); font-size: 11px; }
@media (max-width: 32rem) { svg text { font-size: 14px; } }
svg .grid { stroke: var(--grid); }
svg .base { stroke: var(--line); }
.s0 { --c: var(--s0); } .s1 { --c: var(--s1); } .s2 { --c: var(--s2); } .s3 { --c: var(--s3); }
.s4 { --c: var(--s4); } .s5 { --c: var(--s5); } .s6 { --c: var(--s6); } .s7 { --c: var(--s7); }
polyline { fill: none; stroke: var(--c); stroke-width: 2; }
polyline.hollow { stroke-dasharray: 5 4; }
.span { stroke: var(--c); stroke-width: 1.2; opacity: .55; }
circle { fill: var(--c); stroke: var(--c); stroke-width: 1.6; }
circle.hollow { fill: var(--card); }
rect { fill: var(--c); stroke: var(--c); }
rect.hollow { fill-opacity: .25; }
.legend { list-style: none; margin: 0 0 .4rem; padding: 0; display: flex; flex-wrap: wrap;
  gap: .15rem .9rem; font-size: .82rem; color: var(--dim); }
.key { display: inline-block; width: .75em; height: .75em; border-radius: 50%; margin-right: .4em;
  border: 2px solid var(--c); background: var(--c); }
.key.hollow { background: transparent; }
.wide { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
table { border-collapse: collapse; font-size: .83rem; width: 100%; }
th, td { padding: .35rem .5rem; text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; border-bottom: 1px solid var(--grid); }
th { font-weight: 600; color: var(--dim); }
.text { text-align: left; }
td.remark { white-space: normal; min-width: 10rem; }
tbody tr:last-child td { border-bottom: 0; }
tr.peer td { color: var(--dim); }
tr.noisy td.remark { color: var(--warn); }
tr.failed td.remark { color: var(--bad); }
details { margin-bottom: .6rem; }
summary { cursor: pointer; padding: .2rem 0; }
"""
