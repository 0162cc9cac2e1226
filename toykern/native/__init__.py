"""What stands between Python and the native module: addresses, devices, streams, threads, numbers of enums.

Nothing of it is public.
"""

__all__: list[str] = []
