"""What is shown, one file per output; files that begin with ``_`` are the shared pieces."""
