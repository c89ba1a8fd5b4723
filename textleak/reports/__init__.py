"""Reports: what the records of an evaluation, or of a run, add up to, as a page to read (`textleak report`, `compare`).

It reads folders and computes nothing anew; it knows no model and no attack. A module a step:

- `reading`: a folder's records, those of a run in the same form; `utility`: a file of what defenses cost.
- `settings`: how cells are told apart, named and put in order.
- `statistics`: means with bootstrap intervals; `figures`: those of one setting; `series`: those of a chart.
- `analysis`: all figures of a report; `compare`: two folders, sentence by sentence.
- `pages`: a report as HTML, Markdown (`templates/`) or JSON; `charts`: series as SVG.
"""
