"""What every kernel stands on: vectors, threads, memory, compiled code on disk."""
