"""The terminal app: set up a run and watch the text come back, open old runs, compare, try defenses.

It reads the events of run folders (`textleak.runs`), and nothing else; attacks run in child processes.

`app` makes the screens and hands them what they need; `places` is all that both know: where one can go, and what a
screen asks for. `screens/` has a file a screen, `widgets/` draws a `textleak.view.ViewState`. A `session` is one attack
being made: its process (`child`, which runs `attack_process`) and what it wrote. `recording` reads run folders as
timelines (`index`, `standing`), within the `bounds` of what is believed of them; `playback` moves in one. `fields` and
`setups` are the forms, `catalog` the names they offer; `ladder` and `climb` are one defense in growing strength.
`listing` is the history's rows, `export` what one takes away, `settings` what is remembered.
"""
