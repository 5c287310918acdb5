"""Django's door to processorctl, localctl and modalctl."""

import sys

from apps.entry import execute

if __name__ == "__main__":
    execute(sys.argv)
