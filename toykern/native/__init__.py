"""What stands between Python and the native module: addresses, devices, streams, threads."""
