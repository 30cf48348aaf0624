"""One benchmark a file; `scripts/benchmark.py NAME` runs its `main(arguments)`."""
