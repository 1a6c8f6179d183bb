"""`strop`, and `python -m strop.proxy.cli`: the commands; Ctrl-C ends their imports too."""

from strop.proxy.cli.interruptible import interruptible


def main() -> None:
    """Run the command that was typed."""
    with interruptible():
        from strop.proxy.cli.root import main as commands

        commands()


if __name__ == "__main__":
    main()
