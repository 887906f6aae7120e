"""`gpt-oss-server doctor`: would it run, how large, and what is wrong with this machine.

`plan` and `checks` are pure: they judge what `machine` has found. `report` prints.
"""
