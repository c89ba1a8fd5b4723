"""Scripted evaluation: data sets × models × attacks × shares × defenses × seeds, as records that survive a kill.

The way from settings to answers, a module a step:

- `datasets`: the sentences (the bundled `sample.tsv`, the hub, a file); `records`: what one batch gave, the typed form
  that all others share.
- `grid`: settings and sentences to cells, their batches, and the hash that names it all.
- `engines`: who computes the batches (this process, several, ray); `measure`: one batch, from the client to its record.
- `store`: the folder of records, synced line by line; `drive`: what is left to do, and who does it.
- `answers`: records as a list with means, rows and files; `table`: the grid on a terminal while it fills.

What records add up to as a page to read is another room's: `textleak.reports`.
"""
