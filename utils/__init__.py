"""What every room uses: options, processes, checkpoints, metrics, logging, seeds."""
