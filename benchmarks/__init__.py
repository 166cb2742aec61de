"""What measures or attacks, and is no test: each is behind a `make` target."""
