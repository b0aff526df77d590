"""`stackbert` and `python -m stackbert`: run a command, turn errors into sentences."""

import contextlib
import sys


def main() -> None:
    """Run the command line; exits with 2 for wrong input, 1 for a failed run."""
    from stackbert.cli import app
    from stackbert.errors import StackBertError
    from stackbert.files import writing

    try:
        with writing("running the command"):
            app()
    except StackBertError as error:
        if str(error):  # of several ranks one says it
            with contextlib.suppress(OSError):
                print(f"stackbert: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stackbert: stopped.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
