"""Entry point of ``python -m scoresde.cli``, which launchers of several processes need."""

from scoresde.cli.application import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
