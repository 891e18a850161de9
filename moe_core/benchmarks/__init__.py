"""What `python -m moe_core bench` measures. Peers that only a developer has, and whole pages, are in the folder benchmarks."""
