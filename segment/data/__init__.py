"""Cases on disk, their scans, and the way from a scan to training patches. Only `pipeline` imports TensorFlow."""
