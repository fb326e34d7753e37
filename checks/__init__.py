"""What `make check` runs beside ruff, mypy and import-linter. Not shipped; each module is run with `python -m checks.NAME`.

Each check is a function from input to a list of problems, so that tests/architecture can show that it fails on wrong input.
"""
