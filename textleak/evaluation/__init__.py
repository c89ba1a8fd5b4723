"""Scripted evaluation: data sets × models × attacks × shares × defenses × seeds, as records that survive a kill."""
