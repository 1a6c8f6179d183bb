"""The command line: `root` is the `strop` command, each other module some of its commands."""
