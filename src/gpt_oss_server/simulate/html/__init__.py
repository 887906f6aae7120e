"""A simulation's JSON document as one HTML file: everything drawn here, nothing fetched.

`page` (the document) → `head`, `tables` (what and how good), `latency`, `load`, `timeline`,
`places` (pictures) → `plot` over `scales` → `markup` (elements, escaped).
"""
