"""Lets `python -m replaycad` stand for the command."""

from replaycad.cli.commands import app

if __name__ == "__main__":
    app(prog_name="replaycad")
