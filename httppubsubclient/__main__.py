"""`python -m httppubsubclient`."""

from httppubsubclient.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
