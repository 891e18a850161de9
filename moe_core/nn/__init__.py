"""The mathematics: gating, balancing losses, experts, the layer and the models made of it. Needs torch and the schema."""
