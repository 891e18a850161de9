"""What happens in the trainer process: data, the loop, telemetry, checkpoints."""
