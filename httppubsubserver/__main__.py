"""`python -m httppubsubserver`."""

from httppubsubserver.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
