"""A hook on anybody's PyTorch model: what its routers choose, read without changing a bit of what it computes."""
