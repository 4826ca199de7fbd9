"""What everything stands on: errors, files, seeds, settings' values, run directories, checkpoints, the command line."""
