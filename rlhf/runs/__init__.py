"""What a run leaves behind: configuration, metrics, checkpoints, model card, upload to the Hub."""
