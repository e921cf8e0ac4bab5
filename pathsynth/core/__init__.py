"""What every stage shares: errors, files, parameters, devices, processes, checkpoints, downloads."""
