"""Tables and figures made again from run directories and stores: `python -m sodp3d.results`."""
