"""`python -m cli`: the `orchestrator` command without its script."""

from cli.main import run

if __name__ == "__main__":
    run()
