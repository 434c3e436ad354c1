"""`python -m trionat.server.workers`: what the parent starts."""

from trionat.server.workers.worker import main

if __name__ == "__main__":
    main()
